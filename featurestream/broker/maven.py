"""The Maven repositories that this machine is configured to use."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from featurestream.errors import MissingExtraError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

TIMEOUT_S = 20  # to connect, and between two pieces of a file


@dataclass(frozen=True, slots=True)
class Mirror:
    """One ``<mirror>`` of a settings.xml: ``of`` is its mirrorOf pattern."""

    of: str
    url: str
    blocked: bool

    def covers_central(self) -> bool:
        """Tell whether Maven would ask this mirror in place of central, which is external and speaks https.

        The pattern's rules are those of Maven's "Guide to Mirror Settings": a list of names, ``*``,
        ``external:*`` (not local), ``external:http:*`` (http only), and ``!name``, which wins.
        """
        patterns = [part.strip() for part in self.of.split(",")]
        return "!central" not in patterns and any(part in {"central", "*", "external:*"} for part in patterns)


def parse_mirrors(settings: str, environment: Mapping[str, str]) -> list[Mirror]:
    """Return the mirrors of a settings.xml, in its order, with ``${env.NAME}`` filled in.

    A text that is not XML has no mirrors: Maven itself says so at its next run; it is not ours to repair.
    """
    try:
        root = ET.fromstring(settings)  # noqa: S314 - the user's own configuration, read as Maven reads it
    except ET.ParseError:
        return []
    mirrors = []
    for element in root.iterfind(".//{*}mirrors/{*}mirror"):
        text = {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in element}
        url = re.sub(r"\$\{env\.(\w+)\}", lambda found: environment.get(found[1], found[0]), text.get("url", ""))
        mirrors.append(Mirror(text.get("mirrorOf", ""), url, blocked=text.get("blocked", "") == "true"))
    return mirrors


def choose_mirror(mirrors: list[Mirror]) -> str | None:
    """Return the URL to ask in place of central: a mirror of exactly central first, as Maven does; None for none."""
    usable = [mirror for mirror in mirrors if mirror.covers_central() and not mirror.blocked and mirror.url]
    usable.sort(key=lambda mirror: mirror.of != "central")
    return usable[0].url.rstrip("/") if usable else None


def settings_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield where Maven keeps its settings, the user's first, then the machine's."""
    yield Path.home() / ".m2" / "settings.xml"
    for variable in ("MAVEN_HOME", "M2_HOME"):
        if environment.get(variable):
            yield Path(environment[variable]) / "conf" / "settings.xml"
    yield Path("/etc/maven/settings.xml")


def repositories() -> dict[str, str]:
    """Return name and URL of each repository to ask, in order.

    Those of jgo's own settings, then central (or its mirror, where Maven's settings name one) unless jgo's settings
    say what central is. What comes from any of them is checked against our lock, so it does not matter who answers.
    """
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL

    named: dict[str, str] = dict(GlobalSettings.load().repositories)
    if "central" not in named:
        mirrors: list[Mirror] = []
        for path in settings_files(os.environ):
            try:
                mirrors += parse_mirrors(path.read_text(encoding="utf-8", errors="replace"), os.environ)
            except OSError:  # most machines have none
                continue
        named["central"] = choose_mirror(mirrors) or MAVEN_CENTRAL_URL
    return named


def open_context(cache: Path) -> MavenContext:
    """Return jgo's view of this machine's repositories; what it downloads goes below ``cache``.

    The user's own Maven repository is read where it has a file already, so that a machine without network can be
    prepared with Maven; nothing is ever written there. Raises MissingExtraError where jgo is not installed.
    """
    try:
        from jgo.constants import default_maven_repo
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise MissingExtraError("the embedded broker", "broker") from error
    return MavenContext(
        resolver=PythonResolver(),
        repo_cache=cache,
        local_repos=[default_maven_repo()],
        remote_repos=repositories(),
        timeout=TIMEOUT_S,
    )


def hosts(context: MavenContext) -> str:
    """Name the repositories in an error message: hosts only, because a URL may carry a password."""
    return ", ".join(urlsplit(url).hostname or name for name, url in context.remote_repos.items())

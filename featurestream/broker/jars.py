"""The broker's jars: which, verified how, kept where.

``jars.lock`` beside this file lists each jar of the broker with its SHA-256. Only files with exactly these sums are
ever given to Java; where they come from does not matter. ``python -m featurestream.broker.lock`` writes the list anew.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from featurestream.broker import maven
from featurestream.broker.exclusive import exclusive, folder_error
from featurestream.errors import BrokerError, InternalError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

_log = logging.getLogger(__name__)

THREADS = 8
INSTALL_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True, order=True)
class Jar:
    """One released jar, named as Maven names it, and the SHA-256 (hex) that it must have."""

    group: str
    artifact: str
    version: str
    classifier: str
    sha256: str

    @property
    def coordinate(self) -> str:
        """``group:artifact:version``, and ``:classifier`` where there is one."""
        parts = [self.group, self.artifact, self.version, self.classifier]
        return ":".join(part for part in parts if part)

    @property
    def filename(self) -> str:
        """The file's name, the same in every Maven repository."""
        return "-".join(part for part in (self.artifact, self.version, self.classifier) if part) + ".jar"


def parse_lock(text: str) -> list[Jar]:
    """Return the jars of a lock: a line each, ``group:artifact:version[:classifier]  sha256``."""
    jars = []
    for line in text.splitlines():
        coordinate, _, sha256 = line.partition("  ")
        group, artifact, version, *classifier = coordinate.split(":")
        if len(sha256) != 64 or len(classifier) > 1:
            raise InternalError(f'jars.lock has a line that cannot be read: "{line}"')
        jars.append(Jar(group, artifact, version, "".join(classifier), sha256))
    return jars


def format_lock(jars: Iterable[Jar]) -> str:
    """Return the text of the lock that :func:`parse_lock` reads, sorted."""
    return "".join(f"{jar.coordinate}  {jar.sha256}\n" for jar in sorted(jars))


def locked_jars() -> list[Jar]:
    """Return the jars of the committed lock."""
    return parse_lock(_lock_text())


def kafka_version() -> str:
    """Return the version of Apache Kafka that the lock holds."""
    return next(jar.version for jar in locked_jars() if jar.artifact.startswith("kafka_"))


def jar_folder() -> Path:
    """Return the folder in the user's cache that holds the jars of this lock; another lock has another folder."""
    key = hashlib.sha256(_lock_text().encode()).hexdigest()[:8]
    return platformdirs.user_cache_path("featurestream") / f"kafka-{kafka_version()}-{key}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(jar: Jar, path: Path, *, hint: str) -> None:
    """Raise BrokerError, with ``hint`` for what to do, unless ``path`` holds exactly the locked jar."""
    try:
        seen = sha256_of(path)
    except OSError as error:
        raise BrokerError(f"cannot read {path}: {error.strerror}", hint=hint, path=path) from error
    if seen != jar.sha256:
        raise BrokerError(
            f"{jar.filename} is not the jar that was released as {jar.coordinate}: its SHA-256 is {seen}, "
            f"expected {jar.sha256}; it was not used",
            hint=hint,
            path=path,
            expected=jar.sha256,
            seen=seen,
        )


def install_jars(jars: Sequence[Jar], folder: Path, progress: Callable[[str], None] | None = None) -> list[Path]:
    """Return the paths of ``jars`` in ``folder``, sorted, each verified now; what is missing is downloaded.

    Every sum is taken at every start (45 MB: 0.1 s), so that no marker can be wrong. Two processes may call it at once.
    ``progress`` gets a line now and then while there is something to download. Raises BrokerError for a jar whose sum
    is wrong, a repository that does not answer and a folder that cannot be written; MissingExtraError where jars are
    missing and jgo is not installed.
    """
    if any(not (folder / jar.filename).exists() for jar in jars):
        with exclusive(folder / ".lock", what="downloading the broker's jars", timeout_s=INSTALL_TIMEOUT_S):
            missing = [jar for jar in jars if not (folder / jar.filename).exists()]
            if missing:
                _download(missing, folder, progress or _log.info)
    for jar in jars:
        path = folder / jar.filename
        verify(jar, path, hint=f"delete {path} and start again")
    return sorted(folder / jar.filename for jar in jars)


def _download(jars: list[Jar], folder: Path, progress: Callable[[str], None]) -> None:
    """Put ``jars`` into ``folder``, each under its name only once it is complete and verified."""
    try:
        for left_over in folder.glob(".download-*"):  # of a process that was killed: this one has the lock
            shutil.rmtree(left_over, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as staging:
            context = maven.open_context(Path(staging))
            where = maven.hosts(context)

            def fetch(jar: Jar) -> None:
                path = _fetch(context, jar)
                # Either what was downloaded into the staging folder, or a file of the user's Maven repository.
                verify(jar, path, hint=f"delete {path}, if it is still there; it came from {where}")
                if not path.is_relative_to(staging):
                    path = Path(shutil.copyfile(path, Path(staging, jar.filename)))
                path.replace(folder / jar.filename)

            what = f"downloading Apache Kafka {kafka_version()}"
            progress(f"{what}, once: {len(jars)} jars from {where}")
            pool = ThreadPoolExecutor(THREADS)
            try:
                for done, _ in enumerate(pool.map(fetch, jars), start=1):
                    if done % 10 == 0 and done < len(jars):
                        progress(f"{what}: {done} of {len(jars)} jars")
            finally:
                pool.shutdown(cancel_futures=True)  # before the staging folder goes
    except OSError as error:
        raise folder_error(folder, error) from error


def _fetch(context: MavenContext, jar: Jar) -> Path:
    """Return a path of the jar's file, downloaded where the user's Maven repository does not have it; not verified."""
    import requests  # jgo brings it: what jgo lets through

    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact(jar.classifier)
    for pause_s in (1, 2, None):
        try:
            path: Path = artifact.resolve()
        except requests.RequestException as error:
            # jgo writes to the final name: without this a cut file would be taken for the jar.
            (context.repo_cache / artifact.component.path_prefix / artifact.filename).unlink(missing_ok=True)
            if pause_s is None:
                raise BrokerError(
                    f"cannot download {jar.filename} from {maven.hosts(context)}: {type(error).__name__}",
                    hint="the first start needs a Maven repository; where a mirror must be used, name it in Maven's "
                    "settings.xml (mirrorOf central) or in jgo's settings",
                ) from error
            time.sleep(pause_s)
        except RuntimeError as error:  # jgo: no repository has it
            raise BrokerError(
                f"{maven.hosts(context)} has no {jar.filename} ({jar.coordinate})",
                hint="name a repository that serves Maven Central's jars, as a mirror of central in Maven's "
                "settings.xml or in jgo's settings",
            ) from error
        else:
            return path
    raise InternalError("a loop that always returns or raises has ended")


def _lock_text() -> str:
    return files("featurestream.broker").joinpath("jars.lock").read_text(encoding="utf-8")

"""featurestream.broker.maven: the repositories are those that the machine is configured to use."""

from __future__ import annotations

from pathlib import Path

import pytest
from jgo.constants import MAVEN_CENTRAL_URL

from featurestream.broker.maven import Mirror, choose_mirror, parse_mirrors, repositories

SETTINGS = """<?xml version="1.0" encoding="UTF-8"?>
<settings{namespace}>
  <mirrors>
    <mirror><id>blocker</id><mirrorOf>external:http:*</mirrorOf><url>http://0.0.0.0/</url><blocked>true</blocked></mirror>
    <!-- <mirror><mirrorOf>*</mirrorOf><url>https://commented.example/</url></mirror> -->
    <mirror><id>ours</id><mirrorOf>*</mirrorOf><url> https://${{env.MIRROR_HOST}}/maven/ </url></mirror>
  </mirrors>
</settings>
"""


@pytest.fixture(autouse=True)
def bare_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without any settings of Maven or jgo, on a machine whose Maven is below ``tmp_path``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MAVEN_HOME", str(tmp_path / "maven"))
    monkeypatch.setenv("JGO_CONFIG_FILE", str(tmp_path / "jgo.conf"))
    (tmp_path / "maven" / "conf").mkdir(parents=True)
    (tmp_path / ".m2").mkdir()
    return tmp_path


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://maven.apache.org/SETTINGS/1.2.0"'])
def test_mirrors_are_read_with_and_without_a_namespace_and_with_the_environment_filled_in(namespace: str) -> None:
    assert parse_mirrors(SETTINGS.format(namespace=namespace), {"MIRROR_HOST": "mirror.example"}) == [
        Mirror("external:http:*", "http://0.0.0.0/", blocked=True),
        Mirror("*", "https://mirror.example/maven/", blocked=False),
    ]


@pytest.mark.parametrize("text", ["", "not xml", "<settings/>", "<settings><mirrors/></settings>"])
def test_settings_without_a_mirror_have_none(text: str) -> None:
    assert parse_mirrors(text, {}) == []


@pytest.mark.parametrize(
    ("pattern", "covers"),
    [
        ("central", True),
        ("*", True),
        ("external:*", True),
        ("spring, central", True),
        ("*,!spring", True),
        ("*,!central", False),
        ("external:http:*", False),
        ("spring", False),
        ("", False),
    ],
)
def test_a_mirror_covers_central_where_maven_would_say_so(pattern: str, covers: bool) -> None:
    assert Mirror(pattern, "https://m.example", blocked=False).covers_central() is covers


def test_a_mirror_of_exactly_central_goes_first_and_a_blocked_one_never() -> None:
    mirrors = [
        Mirror("central", "https://blocked.example", blocked=True),
        Mirror("*", "https://all.example", blocked=False),
        Mirror("central", "https://central.example/", blocked=False),
    ]
    assert choose_mirror(mirrors) == "https://central.example"
    assert choose_mirror(mirrors[:2]) == "https://all.example"
    assert choose_mirror(mirrors[:1]) is None


def test_without_settings_the_repository_is_jgos_default() -> None:
    assert repositories() == {"central": MAVEN_CENTRAL_URL}


def test_the_users_settings_go_before_the_machines(bare_home: Path) -> None:
    mirror = "<settings><mirrors><mirror><mirrorOf>*</mirrorOf><url>https://{}</url></mirror></mirrors></settings>"
    (bare_home / "maven" / "conf" / "settings.xml").write_text(mirror.format("machine.example"))
    assert repositories() == {"central": "https://machine.example"}
    (bare_home / ".m2" / "settings.xml").write_text(mirror.format("user.example"))
    assert repositories() == {"central": "https://user.example"}


def test_repositories_of_jgos_own_settings_are_asked_first(bare_home: Path) -> None:
    (bare_home / "jgo.conf").write_text("[repositories]\nlab = https://lab.example\n")
    assert list(repositories().items()) == [("lab", "https://lab.example"), ("central", MAVEN_CENTRAL_URL)]
    (bare_home / "jgo.conf").write_text("[repositories]\ncentral = https://lab.example\n")
    assert repositories() == {"central": "https://lab.example"}

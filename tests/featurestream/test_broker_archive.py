"""featurestream.broker.archive: what a first broker leaves, so that every later one starts in half the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from featurestream.broker import EmbeddedBroker, archive
from featurestream.broker.archive import Archive, find_archive, keep, written_by
from featurestream.broker.java import Java


@pytest.fixture
def java(tmp_path: Path) -> Java:
    """A Java of which only the files are there that tell one build from another."""
    for name in ("bin/java", "lib/modules", "lib/server/classes.jsa"):
        path = tmp_path / "java" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return Java(tmp_path / "java" / "bin" / "java", 17, "PATH")


@pytest.fixture
def jars(tmp_path: Path) -> list[Path]:
    (tmp_path / "a.jar").write_text("a")
    return [tmp_path / "a.jar"]


def test_without_an_archive_java_is_told_to_leave_one_under_a_name_of_the_writers_own(tmp_path: Path) -> None:
    wanted = Archive(tmp_path / "classes-1.jsa", None)
    one, other = wanted.options("one"), wanted.options("other")
    assert f"-XX:ArchiveClassesAtExit={tmp_path / 'classes-1.one'}" in one
    assert written_by(one) == tmp_path / "classes-1.one"
    assert written_by(other) == tmp_path / "classes-1.other"


def test_a_whole_archive_gets_the_name_that_starts_look_for_and_then_is_used(tmp_path: Path) -> None:
    wanted = Archive(tmp_path / "classes-1.jsa", None)
    written = written_by(wanted.options("one"))
    assert written is not None
    keep(written)  # its Java has not come to writing it: nothing happens
    assert list(tmp_path.iterdir()) == []
    written.write_text("classes")
    keep(written)
    assert [path.name for path in tmp_path.iterdir()] == ["classes-1.jsa"]
    assert f"-XX:SharedArchiveFile={tmp_path / 'classes-1.jsa'}" in wanted.options("one")
    assert written_by(wanted.options("one")) is None


def test_an_archive_over_one_of_javas_own_classes_names_both(tmp_path: Path) -> None:
    wanted = Archive(tmp_path / "classes-1.jsa", tmp_path / "java-1.jsa")
    assert f"-XX:SharedArchiveFile={tmp_path / 'java-1.jsa'}" in wanted.options("one")
    wanted.file.write_text("classes")
    assert f"-XX:SharedArchiveFile={tmp_path / 'java-1.jsa'}:{wanted.file}" in wanted.options("one")


def test_another_java_and_other_jars_have_an_archive_of_their_own(tmp_path: Path, java: Java, jars: list[Path]) -> None:
    first = find_archive(java, jars, tmp_path)
    assert first == find_archive(java, jars, tmp_path)
    jars[0].write_text("other")
    second = find_archive(java, jars, tmp_path)
    (tmp_path / "java" / "lib" / "modules").write_text("a later build")
    third = find_archive(java, jars, tmp_path)
    assert first is not None
    assert first.base is None
    assert len({first, second, third}) == 3


def test_a_java_that_can_make_no_archive_starts_without(tmp_path: Path, java: Java, jars: list[Path]) -> None:
    (tmp_path / "java" / "lib" / "server" / "classes.jsa").unlink()  # its own classes first: but it is no program
    assert find_archive(java, jars, tmp_path / "cache") is None
    (tmp_path / "java" / "lib" / "modules").unlink()
    assert find_archive(java, jars, tmp_path / "cache") is None


@pytest.mark.broker
def test_the_first_broker_that_is_stopped_leaves_the_archive_with_which_the_next_one_starts(
    new_broker: Callable[[str], EmbeddedBroker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "find_archive", lambda java, jars, _folder: find_archive(java, jars, tmp_path))
    broker = new_broker("home")
    broker.up()
    assert broker.down()
    (left,) = tmp_path.glob("classes-*")
    assert left.suffix == ".jsa"
    assert left.stat().st_size > 10_000_000
    status = broker.up()
    assert status.pid is not None
    assert any(str(left) in part for part in psutil.Process(status.pid).cmdline())
    assert not any("[warning][cds" in line for line in broker.logs(1000))  # Java's word for one that does not fit

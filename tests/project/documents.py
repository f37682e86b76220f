"""Our own Markdown, as the tests read it: fenced blocks, links, and the featurectl commands in either."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A featurectl command in a document: its words after ``featurectl``."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: featurectl {shlex.join(self.words)}"


def markdown_files() -> list[Path]:
    """Return every Markdown file of the repository."""
    found = [*ROOT.glob("*.md"), *(path for top in parts() for path in top.rglob("*.md"))]
    return sorted(found)


def parts() -> list[Path]:
    """Return the repository's own top-level folders: none that tools have made."""
    names = (
        "featurestream", "producer", "consumer", "gateway", "featurectl", "schemas", "tests", "benchmarks", "docs",
        "examples", ".ci",
    )  # fmt: skip
    return [ROOT / name for name in names if (ROOT / name).is_dir()]


def fenced(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    return [block for name, block in FENCED.findall(text) if name == language]


def commands_in(document: str, text: str) -> Iterator[Command]:
    """Yield the featurectl commands of a text: in its shell blocks, a line each, and between single back-ticks."""
    lines = []
    for block in fenced(text, "sh"):
        lines += block.replace("\\\n", " ").splitlines()
    for block in fenced(text, "console"):
        whole = block.replace("\\\n", " ").splitlines()
        lines += [line.removeprefix("$ ") for line in whole if line.startswith("$ ")]
    lines += re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    for line in lines:
        words = shlex.split(line, comments=True) if "featurectl" in line else []
        # `docker run ... featurectl train` and `.venv/bin/featurectl train` run the same command.
        for place, word in enumerate(words):
            if word == "featurectl" or word.endswith("/featurectl"):
                yield Command(document, tuple(words[place + 1 :]))
                break

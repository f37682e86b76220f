"""What a benchmark has found, as the Markdown that is printed and kept."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
REPORTS = Path(__file__).parent / "reports"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts under a header; the columns after the first are numbers, and end on the right."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """Return the table, its columns aligned."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        rule = "|".join("-" * (width + 2) if column == 0 else "-" * (width + 1) + ":"
                        for column, width in enumerate(widths))  # fmt: skip
        shown = [
            " | ".join(
                text.ljust(width) if column == 0 else text.rjust(width)
                for column, (text, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([f"| {shown[0]} |", f"|{rule}|", *(f"| {line} |" for line in shown[1:])])


@dataclass(frozen=True, slots=True)
class Report:
    """What one benchmark has found.

    Attributes:
        theme: its name on the command line.
        question: what was compared with what.
        tables: the numbers.
        remarks: what must be known to read them.
        versions: what ran, beside Python and featurestream.
    """

    theme: str
    question: str
    tables: Sequence[Table]
    remarks: Sequence[str]
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and when a benchmark runs; made before it starts."""

    cpu: str
    cores: int
    memory_gb: float
    system: str
    command: str
    at: datetime
    load: float = field(default_factory=lambda: os.getloadavg()[0])

    @classmethod
    def here(cls, arguments: Sequence[str]) -> Setting:
        """Return this machine's, now."""
        return cls(
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gb=psutil.virtual_memory().total / 1e9,
            system=f"{platform.system()} {platform.release()}",
            command=shlex.join(["python", "-m", "benchmarks", *arguments]),
            at=datetime.now(UTC),
        )

    @property
    def hardware(self) -> str:
        """The machine as a part of a file's name."""
        name = re.sub(r"\(.*?\)|\bcpu\b|\bprocessor\b|@.*", " ", self.cpu.lower())
        return "-".join([*re.findall(r"[a-z0-9]+", name)[:4], f"{self.cores}-cores"])


def package_versions(*names: str) -> dict[str, str]:
    """Return the versions of installed packages."""
    return {name: version(name) for name in names}


def markdown(report: Report, setting: Setting) -> str:
    """Return the whole report."""
    versions = {"python": platform.python_version(), **package_versions("featurestream"), **report.versions}
    parts = [
        f"# {report.theme}",
        report.question,
        *(table.markdown() for table in report.tables),
        *report.remarks,
        "\n".join(
            [
                f"- command: `{setting.command}`, {setting.at:%Y-%m-%d %H:%M} UTC{_commit()}",
                f"- hardware: {setting.cpu}, {setting.cores} cores, {setting.memory_gb:.0f} GB, {setting.system}; "
                f"load {setting.load:.1f} before, {os.getloadavg()[0]:.1f} after (the run's own included)",
                f"- versions: {', '.join(f'{name} {number}' for name, number in versions.items())}",
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def write(text: str, theme: str, setting: Setting, folder: Path) -> Path:
    """Write a report to ``<theme>_<hardware>_<date>.md``, over one of the same day; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{theme}_{setting.hardware}_{setting.at:%Y-%m-%d}.md"
    path.write_text(text, encoding="utf-8")
    return path


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit that is measured, nothing outside a git repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f", commit {done.stdout.strip()}"

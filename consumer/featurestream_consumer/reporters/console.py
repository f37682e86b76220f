"""Metrics as lines of text for the person who waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from featurestream.logs import Line

#: What a row holds beside metrics.
PLACE: Final = ("kind", "step", "epoch", "batch", "time")
SHARES: Final = ("top1", "top5", "label_accuracy")


class ConsoleReporter:
    """One line a row: ``step 120, epoch 2: validation top1 93.1 %, loss 0.2310``."""

    def __init__(self, say: Callable[[str], None], experiment: str) -> None:
        self._say = say
        self._experiment = experiment

    def report(self, row: Mapping[str, Any]) -> None:
        """Show the row."""
        facts = {name: value for name, value in row.items() if name != "time"}
        self._say(Line(format_row(row), experiment=self._experiment, **facts))

    def close(self) -> None:
        """Do nothing: every line is shown at once."""


def build(folder: Path, resume_step: int | None, say: Callable[[str], None]) -> ConsoleReporter:  # noqa: ARG001 - the shared signature
    """Return a reporter that shows rows with ``say``."""
    return ConsoleReporter(say, folder.name)


def format_row(row: Mapping[str, Any]) -> str:
    """Return a row as one line."""
    metrics = ", ".join(f"{name} {format_metric(name, row[name])}" for name in row if name not in PLACE)
    return f"step {row['step']}, epoch {row['epoch']}: {row['kind']} {metrics}"


def format_metric(name: str, value: object) -> str:
    """Return a metric's value as people read it: a share in percent, anything else with four digits."""
    if not isinstance(value, (int, float)):
        return "-" if value is None else str(value)
    if name in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.4g}"

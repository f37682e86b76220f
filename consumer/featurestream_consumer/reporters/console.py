"""Metrics as lines of text for the person who waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

#: What a row holds beside metrics.
PLACE: Final = ("kind", "step", "epoch", "batch", "time")
SHARES: Final = ("top1", "top5", "label_accuracy")


class ConsoleReporter:
    """One line a row: ``step 120, epoch 2: validation top1 93.1 %, loss 0.2310``."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def report(self, row: Mapping[str, Any]) -> None:
        """Show the row."""
        self._say(format_row(row))

    def close(self) -> None:
        """Do nothing: every line is shown at once."""


def build(folder: Path, resume_step: int | None, say: Callable[[str], None]) -> ConsoleReporter:  # noqa: ARG001 - the shared signature
    """Return a reporter that shows rows with ``say``."""
    return ConsoleReporter(say)


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

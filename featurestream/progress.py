"""How far a long command is: a bar on a terminal, a plain line now and then everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from featurestream import logs

LINE_EVERY_S = 5.0
LONGEST_S = 1e10  # 300 years: a stream may claim any number of passes


class Progress:
    """The progress of one job, shown on ``stream``. Use it as a context manager.

    ::

        with Progress("digits-train", total=3594, unit="img") as progress:
            progress.advance(256, rate="38 MB/s", loss=0.31)

    On a terminal: a bar with the count, the rate, the facts given last and the time left. Elsewhere (a log file, a
    pipe): plain lines, the first at once, then at most one every :data:`LINE_EVERY_S`, and always the last. Where the
    command's lines are JSON (:mod:`featurestream.logs`), those lines are objects with the same facts.

    Args:
        title: what is being done.
        total: how many there will be; None where nobody knows.
        unit: what is counted, as it follows a number: ``img``, ``rows``.
        done: how many were done before, by a run that this one goes on with: they say nothing about its speed.
        stream: where to show it; None is standard error as it is now, in the format of the command's lines.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = done
        self._before = done
        self._as_json = stream is None and logs.is_json()
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._given: dict[str, str | float] = {}
        self._facts = ""
        self._started = clock()
        self._line_at: float | None = None  # when the last plain line was written
        self._unwritten = False
        self._bar: RichProgress | None = None
        if self._stream.isatty() and not self._as_json:
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[line]}", markup=False),
                TimeElapsedColumn() if total is None else TimeRemainingColumn(),
                console=Console(file=self._stream),
                get_time=clock,
                expand=True,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, line="")

    def __enter__(self) -> Self:
        self._started = self._clock()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._unwritten:
            self._write()

    def advance(self, count: int, **facts: str | float) -> None:
        """Count ``count`` more as done. ``facts`` are shown beside it: texts as they are, numbers after their names."""
        self.done += count
        self._given = facts
        self._facts = ", ".join(
            value if isinstance(value, str) else f"{name} {value:.4g}" for name, value in facts.items()
        )
        if self._bar is not None:
            self._bar.update(self._task, advance=count, line=self._line())
            return
        self._unwritten = True
        if self._line_at is None or self._clock() - self._line_at >= LINE_EVERY_S:
            self._write()

    def note(self, text: str) -> None:
        """Show a text beside the count until the next :meth:`advance`, on a terminal; elsewhere it would be lines."""
        if self._bar is not None:
            self._facts = text
            self._bar.update(self._task, line=self._line())

    def say(self, text: str) -> None:
        """Write a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._as_json:
            logs.say(text)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    @property
    def rate(self) -> float:
        """Counted a second since the start."""
        seconds = self._clock() - self._started
        return (self.done - self._before) / seconds if seconds > 0 else 0.0

    def _line(self) -> str:
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        return ", ".join(
            part for part in (f"{count} {self.unit}", f"{self.rate:,.0f} {self.unit}/s", self._facts) if part
        )

    def _write(self) -> None:
        left = ""
        if self.total and 0 < self.done < self.total and self.rate > 0:
            seconds = (self.total - self.done) / self.rate
            left = f", {timedelta(seconds=round(min(seconds, LONGEST_S)))} left"
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        facts = {"done": self.done, "total": self.total, "unit": self.unit, "per_second": self.rate, **self._given}
        self.say(logs.Line(f"{self.title}: {self._line()}{share}{left}", progress=self.title, **facts))
        self._line_at = self._clock()
        self._unwritten = False

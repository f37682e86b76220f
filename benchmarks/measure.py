"""Several ways to do one thing, measured in turn: what changes on the machine meanwhile changes for all of them."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

TOLD_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement: units a second, and the seconds of CPU that this process took for a unit."""

    rate: float
    cpu_s: float


Runs = Mapping[str, Sequence[Run]]


class Clock:
    """Runs from the moment that it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, units: float) -> Run:
        """Return what it took to get ``units`` done until now."""
        cpu_s = time.process_time() - self._cpu
        return Run(units / (time.perf_counter() - self._wall), cpu_s / units)


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median over the repeats, with the smallest and the largest.

    ``error``: the median's standard error, from the median absolute deviation: a few repeats that something else on the
    machine met count as little for it as for the median.
    """

    median: float
    low: float
    high: float
    error: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"

    def against(self, goal: float) -> str:
        """Return the goal, and whether the median reaches it."""
        return f"{goal:.2f}: {'met' if self.median >= goal else 'missed'}"

    def within(self, goal: float) -> str:
        """Return the goal, and whether the median stays at or below it."""
        return f"{goal:.2f}: {'met' if self.median <= goal else 'missed'}"


def in_turn(ways: Mapping[str, Callable[[], Run]], repeats: int) -> Runs:
    """Return what each way did, a run a repeat, by its name.

    Every way runs once before, unmeasured; that tells how long the rest takes, which is printed where it is long. Every
    other repeat goes backwards, so that none of them always comes after the same one.
    """
    names = list(ways)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    began = time.perf_counter()
    for name in names:
        ways[name]()
    expected_s = (time.perf_counter() - began) * repeats
    if expected_s >= TOLD_S:
        print(f"    {', '.join(names)}: {repeats} repeats, about {expected_s:.0f} s", file=sys.stderr, flush=True)
    for repeat in range(repeats):
        for name in reversed(names) if repeat % 2 else names:
            runs[name].append(ways[name]())
    return runs


def ratio(runs: Runs, one: str, other: str) -> Ratio:
    """Return the rate of ``one`` over that of ``other``, taken repeat by repeat."""
    ratios = [mine.rate / theirs.rate for mine, theirs in zip(runs[one], runs[other], strict=True)]
    return _ratio(ratios)


def cpu_ratio(runs: Runs, one: str, other: str) -> Ratio:
    """Return the CPU that ``other`` takes for a unit over what ``one`` takes, taken repeat by repeat."""
    return _ratio([theirs.cpu_s / mine.cpu_s for mine, theirs in zip(runs[one], runs[other], strict=True)])


def _ratio(ratios: Sequence[float]) -> Ratio:
    median = statistics.median(ratios)
    deviation = statistics.median(abs(each - median) for each in ratios)
    # Of a normal distribution: this deviation is 0.6745 sigma, the median's error 1.2533 sigma / sqrt(n).
    error = 1.2533 / 0.6745 * deviation / math.sqrt(len(ratios))
    return Ratio(median, min(ratios), max(ratios), error)


def time_ratio(runs: Runs, one: str, other: str) -> Ratio:
    """Return how much longer ``one`` takes than ``other``, taken repeat by repeat."""
    return ratio(runs, other, one)


def rate(runs: Runs, name: str) -> float:
    """Return the median rate."""
    return statistics.median(run.rate for run in runs[name])


def cpu_ms(runs: Runs, name: str) -> float:
    """Return the median of the milliseconds of CPU for a unit."""
    return 1000 * statistics.median(run.cpu_s for run in runs[name])

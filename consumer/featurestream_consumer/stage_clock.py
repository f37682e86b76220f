"""Where the time of a reading goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

STAGES: Final = ("read", "train", "validate", "checkpoint")


class StageClock:
    """Counts the seconds of each stage. A stage inside another one stops the outer one's clock meanwhile.

    Attributes:
        seconds: by stage, of the time before the last change of stage.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._stages = {name: _Stage(self, name) for name in STAGES}
        self._clock = clock
        self._running: list[str] = []
        self._since = 0.0

    def stage(self, name: str) -> _Stage:
        """Return the ``with`` block whose seconds count as a stage's."""
        return self._stages[name]

    def _turn(self) -> None:
        now = self._clock()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


class _Stage:
    """A class and no generator: every record passes through two of them."""

    __slots__ = ("_clock", "_name")

    def __init__(self, clock: StageClock, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        self._clock._turn()
        self._clock._running.append(self._name)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._clock._turn()
        self._clock._running.pop()

"""Look-ups that many clients share: of all who ask the same at once, one goes and looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

from featurestream_gateway.workers import Workers

T = TypeVar("T")

KEPT: Final = 1024  # answers that are kept


class Looks:
    """Answers to questions that are asked in the workers' threads, each kept for a while."""

    def __init__(self, workers: Workers, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._kept: dict[Hashable, tuple[float, Any]] = {}
        self._under_way: dict[Hashable, asyncio.Task[Any]] = {}

    async def get(self, key: Hashable, question: Callable[[], T], *, max_age_s: float) -> T:
        """Return the answer to ``question``: one that is at most so old, or a new one. Errors are not kept."""
        kept = self._kept.get(key)
        if kept is not None and self._clock() - kept[0] <= max_age_s:
            found: T = kept[1]
            return found
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._look(key, question))
            task.add_done_callback(_heard)
            self._under_way[key] = task
        answer: T = await asyncio.shield(task)  # whoever goes away takes nothing from the others
        return answer

    async def _look(self, key: Hashable, question: Callable[[], T]) -> T:
        try:
            found = await self._workers.run(question)
            self._kept.pop(key, None)
            self._kept[key] = (self._clock(), found)
            while len(self._kept) > KEPT:
                self._kept.pop(next(iter(self._kept)))
            return found
        finally:
            self._under_way.pop(key, None)


def _heard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # or asyncio would complain where everybody who asked has gone away

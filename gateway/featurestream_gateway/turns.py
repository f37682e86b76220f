"""How many may do something at once; the others wait their turn for a while."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from featurestream_gateway.problems import AGAIN_S, RefusedError


class Turns:
    """``count`` turns. Whoever gets none within ``wait_s`` seconds is refused (429)."""

    def __init__(self, count: int, what: str, *, wait_s: float) -> None:
        self.count = count
        self._what = what
        self._wait_s = wait_s
        self._left = asyncio.Semaphore(count)
        self.taken = 0

    async def take(self) -> Turn:
        """Return a turn, to be given back with :meth:`Turn.end`. Raises RefusedError (busy)."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._left.acquire()
        except TimeoutError:
            raise RefusedError(
                "busy",
                f"all {self.count} {self._what} of this gateway are taken",
                hint=f"ask again in {AGAIN_S} seconds",
                limit=self.count,
            ) from None
        self.taken += 1
        return Turn(self)

    def _give_back(self) -> None:
        self.taken -= 1
        self._left.release()


class Turn:
    """One turn that was taken; it may be ended from anywhere in the event loop, and twice."""

    def __init__(self, turns: Turns) -> None:
        self._turns: Turns | None = turns

    def end(self) -> None:
        """Give the turn back."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

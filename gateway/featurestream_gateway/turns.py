"""How many may do something at once, and how many bytes they may hold together; the others wait for a while."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from featurestream_gateway.problems import AGAIN_S, RefusedError


class Turns:
    """``count`` turns, and ``most_bytes`` for all who have one. Whoever gets none within ``wait_s`` seconds is refused.

    Those who wait are served in the order in which they came, except that a smaller one may pass one who waits for more
    bytes than there are.
    """

    def __init__(self, count: int, what: str, *, wait_s: float, most_bytes: int = 0) -> None:
        self.count = count
        self.most_bytes = most_bytes
        self.taken = 0
        self.held_bytes = 0
        self._what = what
        self._wait_s = wait_s
        self._left = asyncio.Semaphore(count)
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []  # for so many bytes

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

    async def _hold(self, size: int) -> None:
        """Return when so many bytes are free, and taken."""
        if self._fits(size):
            self.held_bytes += size
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (size, granted)
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._wait_s):
                await granted
        except TimeoutError:
            if not granted.done() or granted.cancelled():
                raise RefusedError(
                    "busy",
                    f"other answers hold {_mega(self.held_bytes)} of the {_mega(self.most_bytes)} MiB that this "
                    f"gateway has for all, and this one may take {_mega(size)}",
                    hint=f"ask again in {AGAIN_S} seconds, or for fewer rows or taps",
                    max_bytes=self.most_bytes,
                ) from None
        except BaseException:
            if granted.done() and not granted.cancelled():
                self._let_go(size)
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _let_go(self, size: int) -> None:
        """Have so many bytes free again; fewer than none: somebody holds more than he had asked for."""
        self.held_bytes -= size
        for waiter in list(self._waiting):
            asked, granted = waiter
            if granted.cancelled():
                continue
            if self._fits(asked):
                self.held_bytes += asked
                self._waiting.remove(waiter)
                granted.set_result(None)

    def _fits(self, size: int) -> bool:
        return self.held_bytes + size <= self.most_bytes

    def _give_back(self) -> None:
        self.taken -= 1
        self._left.release()


def _mega(size: int) -> str:
    return f"{size / 2**20:.1f}"


class Turn:
    """One turn that was taken; it may be ended from anywhere in the event loop, and twice."""

    def __init__(self, turns: Turns) -> None:
        self._turns: Turns | None = turns
        self._bytes = 0

    async def hold(self, size: int) -> None:
        """Return when this turn may hold so many bytes, at most all that there are. Raises RefusedError (busy)."""
        if self._turns is not None:
            self.keep(0)
            size = min(size, self._turns.most_bytes)
            await self._turns._hold(size)
            self._bytes = size

    def keep(self, size: int) -> None:
        """Take note that this turn holds so many bytes by now."""
        if self._turns is not None:
            before, self._bytes = self._bytes, size
            self._turns._let_go(before - size)

    def end(self) -> None:
        """Give the turn back."""
        self.keep(0)
        turns, self._turns = self._turns, None
        if turns is not None:
            turns._give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

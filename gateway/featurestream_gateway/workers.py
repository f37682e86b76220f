"""Threads for what waits: Kafka is never polled in the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """A few threads that run functions for coroutines.

    They are daemons: a look-up that waits for a broker which is away must not keep the process from ending. (The
    threads of ``concurrent.futures`` are joined at exit.)
    """

    def __init__(self, count: int) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._run, name=f"gateway worker {number}", daemon=True).start()

    async def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, or raise what it raises. It runs to its end even if nobody waits any more."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._work.put((work, future))
        return await future

    def _run(self) -> None:
        while True:
            self._do_next()

    def _do_next(self) -> None:
        """Do what is next; in a function of its own, or the thread would hold an answer until its next task."""
        work, future = self._work.get()
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            _tell(future, future.set_exception, error)
        else:
            _tell(future, future.set_result, result)


def _tell(future: asyncio.Future[Any], setter: Callable[[Any], None], value: object) -> None:
    def tell() -> None:
        if not future.done():
            setter(value)

    try:
        future.get_loop().call_soon_threadsafe(tell)
    except RuntimeError:
        return  # the loop has ended, and with it whoever waited

"""Ctrl-C: ask for a clean end, and keep it from processes that are told in another way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM set ``stop`` for the length of the block; a second one works as before it.

    Python handles signals in the main thread alone; in another one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        restore()

    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        restore()


@contextmanager
def interrupt_blocked() -> Iterator[None]:
    """Start processes that never see Ctrl-C, which a terminal sends to all of a program's processes.

    A blocked signal stays blocked in a process that is started meanwhile, from its first instruction on.
    """
    # The first process that multiprocessing spawns starts its resource tracker on the way, which ends with SIGINT
    # unblocked, whatever it was before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

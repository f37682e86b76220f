"""Keep Ctrl-C from processes that are told to end in another way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


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

"""How far a worker may go, set from outside while it works."""

from __future__ import annotations

import threading


class PaceBound:
    """Lets batches below it through. One thread sets it, another waits at it."""

    def __init__(self, below: int | None = None) -> None:
        self._below = below
        self._changed = threading.Condition()

    def allow(self, below: int | None) -> None:
        """Let batches below ``below`` through, None: all."""
        with self._changed:
            self._below = below
            self._changed.notify_all()

    def is_open(self, batch: int) -> bool:
        """Tell whether ``batch`` may be worked on."""
        return self._below is None or batch < self._below

    def wait(self, batch: int, timeout_s: float) -> bool:
        """Return whether ``batch`` may be worked on, as soon as it may, at the latest after ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_open(batch), timeout_s)

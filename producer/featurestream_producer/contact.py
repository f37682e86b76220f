"""Tell the user that the broker is silent, and when it answers again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

SILENT_S: Final = 5.0  # an answer so long overdue is worth a line
LOOK_EVERY_S: Final = 0.5


class ContactWatch:
    """Says one line when the broker has been overdue for :data:`SILENT_S`, and one when it is back.

    A thread of its own, because all others may be waiting for the broker. ``silent_s`` tells for how long an answer is
    overdue; ``say`` takes a line from any thread.
    """

    def __init__(self, silent_s: Callable[[], float], say: Callable[[str], None]) -> None:
        self._silent_s = silent_s
        self._say = say
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="contact", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        longest_s = 0.0
        while not self._done.wait(LOOK_EVERY_S):
            silent_s = self._silent_s()
            if silent_s >= SILENT_S and longest_s == 0.0:
                self._say(
                    f"warning: no answer from Kafka for {silent_s:.0f} s: waiting for it; nothing is lost, and what is "
                    "computed is sent when it answers"
                )
            if silent_s >= SILENT_S:
                longest_s = max(silent_s, longest_s)
            elif longest_s > 0.0:
                self._say(f"Kafka answers again, after {longest_s:.0f} s")
                longest_s = 0.0

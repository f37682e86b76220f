"""Where a device's time goes: seconds by what its thread was busy with, or waited for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

SHOWN_SHARE: Final = 0.005  # of the time: less is left out of a text, where it is the exception
WINDOW_S: Final = 10.0  # of a device's time, over which the live line shows it


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds in which the device's thread waited for images, computed, and waited for room to send.

    On a device that computes beside its thread, computing is the time in which the thread has waited for it. At the
    end, waiting for Kafka includes what was still to be sent and acknowledged. ``ahead_s`` it waited for slower
    devices. ``sending_s`` is the sender's own time for encoding and appending, beside the others.
    """

    data_s: float = 0.0
    forward_s: float = 0.0
    send_s: float = 0.0
    sending_s: float = 0.0
    ahead_s: float = 0.0

    @property
    def thread_s(self) -> float:
        """Seconds of the device's thread in all."""
        return self.data_s + self.forward_s + self.send_s + self.ahead_s

    def since(self, earlier: Stages) -> Stages:
        """Return what was added after ``earlier``."""
        return Stages(*(getattr(self, field.name) - getattr(earlier, field.name) for field in fields(Stages)))

    def text(self) -> str:
        """Return the shares of the thread's time in words; empty where there was no time."""
        if self.thread_s <= 0:
            return ""
        parts = [
            f"waiting for images {self.data_s / self.thread_s:.0%}",
            f"computing {self.forward_s / self.thread_s:.0%}",
            f"waiting for Kafka {self.send_s / self.thread_s:.0%}",
        ]
        if self.ahead_s > SHOWN_SHARE * self.thread_s:
            parts.append(f"waiting for slower devices {self.ahead_s / self.thread_s:.0%}")
        return ", ".join(parts)

    def brief(self) -> str:
        """Return the shares in few words, without those that are next to nothing: ``computing 92%, Kafka 8%``."""
        named = {"images": self.data_s, "computing": self.forward_s, "Kafka": self.send_s, "others": self.ahead_s}
        return ", ".join(
            f"{name} {seconds / self.thread_s:.0%}"
            for name, seconds in named.items()
            if seconds > SHOWN_SHARE * self.thread_s
        )


def mean(stages: Sequence[Stages]) -> Stages:
    """Return the mean over workers, zeros of none."""
    count = max(len(stages), 1)
    return Stages(*(sum(getattr(one, field.name) for one in stages) / count for field in fields(Stages)))


class RecentStages:
    """The mean over the workers of where the last seconds went: of each at least :data:`WINDOW_S`, once it has them."""

    def __init__(self) -> None:
        self._seen: dict[int, list[Stages]] = {}  # of each worker: the window's start, where the next begins, the last

    def see(self, worker: int, so_far: Stages) -> None:
        """Take what a worker's time has been since it began."""
        start, middle, _ = self._seen.get(worker, [Stages(), Stages(), Stages()])
        if so_far.thread_s - middle.thread_s >= WINDOW_S:
            start, middle = middle, so_far
        self._seen[worker] = [start, middle, so_far]

    def mean(self) -> Stages:
        """Return the mean over the workers."""
        return mean([last.since(start) for start, _, last in self._seen.values()])

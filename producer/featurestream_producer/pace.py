"""How far a producer may go: from who reads, where, and what it was asked for. Numbers in, a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from featurestream.layout import Layout
from featurestream.reader_lease import LiveReader

Idle = Literal["run", "pause", "stop"]

#: With ``stop``: so long nobody must have read. Readers that are just being started take seconds to show up.
STOP_AFTER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What a producer was asked to keep to.

    Attributes:
        ahead: passes that it may be in front of the slowest reader; None is any number.
        idle: what it does while nobody reads, once the pass that it has begun is whole.
    """

    ahead: int | None
    idle: Idle

    @property
    def free(self) -> bool:
        """Whether readers change nothing."""
        return self.ahead is None and self.idle == "run"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now.

    Attributes:
        action: go on, wait, or end the run.
        below: batches below this one may be published; None: all.
        text: for people, where the producer waits.
    """

    action: Literal["go", "wait", "stop"]
    below: int | None
    text: str = ""


def decide(pace: Pace, layout: Layout, readers: Sequence[LiveReader], *, next_batch: int, unread_s: float) -> Verdict:
    """Return what a producer whose next batch is ``next_batch`` does, when nobody has read for ``unread_s`` seconds.

    In front of the slowest reader are the batches from its next one on, so ``ahead`` passes are that many times the
    batches of a pass. Where nobody reads, the pass that has been begun is finished, and there is at least one: whoever
    comes then finds a whole pass.
    """
    if readers:
        slowest = min(readers, key=lambda reader: reader.batch)
        if pace.ahead is None:
            return Verdict("go", None)
        below = slowest.batch + pace.ahead * layout.pass_batches
        if next_batch < below:
            return Verdict("go", below)
        at = f"slowest: {slowest.name} at pass {layout.pass_of(slowest.batch)}"
        return Verdict("wait", below, f"waiting for readers ({at})")
    if pace.idle == "run":
        return Verdict("go", None)
    below = layout.pass_start(layout.pass_of(max(next_batch - 1, 0)) + 1)
    if next_batch < below:
        return Verdict("go", below)
    if pace.idle == "stop" and unread_s >= STOP_AFTER_S:
        return Verdict("stop", below, "nobody reads")
    return Verdict("wait", below, "waiting for readers (nobody reads)")

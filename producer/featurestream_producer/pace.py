"""How far a producer may go: from who reads, where, and what it was asked for. Numbers in, a verdict out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from featurestream.layout import Layout
from featurestream.reader_lease import LiveReader

Idle = Literal["run", "pause", "stop"]

#: With ``stop``: so long nobody must have read. Readers that are just being started take seconds to show up.
STOP_AFTER_S: Final = 30.0
#: From this share of what retention keeps on, a reader is warned about.
WARN_SHARE: Final = 0.8


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


@dataclass(frozen=True, slots=True)
class Retention:
    """What the log keeps of one tap: for how long, how many bytes over all its lanes, and the bytes of one batch."""

    keep_ms: int
    keep_bytes: int
    batch_bytes: float


@dataclass(frozen=True, slots=True)
class Risk:
    """How near a reader's next batch is to being deleted: ``share`` of the tap's retention, 1 where it may go."""

    reader: str
    batch: int
    tap: str
    share: float
    by: Literal["time", "bytes"]

    def text(self) -> str:
        """Return the warning."""
        kept = "the time" if self.by == "time" else "the bytes"
        return (
            f"{self.reader} has not read batch {self.batch} of tap {self.tap}, and {self.share:.0%} of {kept} that "
            "retention keeps have passed since it came: it will be deleted; let the reader go on, or keep more"
        )


def risk_of(
    reader: LiveReader,
    taps: Mapping[str, Retention],
    *,
    next_batch: int,
    appended_ms: Mapping[str, int],
    now_ms: int,
) -> Risk | None:
    """Return the greatest risk of what a reader still needs, None where it needs nothing that is there.

    ``next_batch`` is the first batch that is not there; ``appended_ms``: when the first batch that the reader needs
    was appended, by tap. Kafka deletes whole segments, so what is at 1 may stay a while longer, and never less.
    """
    if reader.needs >= next_batch:
        return None
    found = []
    for tap in reader.taps:
        kept = taps.get(tap)
        if kept is None:
            continue
        by_bytes = (next_batch - reader.needs) * kept.batch_bytes / kept.keep_bytes
        found.append(Risk(reader.name, reader.needs, tap, by_bytes, "bytes"))
        if tap in appended_ms:
            by_time = max(0, now_ms - appended_ms[tap]) / kept.keep_ms
            found.append(Risk(reader.name, reader.needs, tap, by_time, "time"))
    return max(found, key=lambda risk: risk.share, default=None)

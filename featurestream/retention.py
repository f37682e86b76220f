"""How near a batch is to being deleted: numbers in, a risk out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from featurestream.layout import Layout
from featurestream.ports import LogRecord, RecordSource
from featurestream.reader_lease import LiveReader
from featurestream.seek import Lanes

#: From this share of what retention keeps on, there is a warning.
WARN_SHARE: Final = 0.8
#: Kafka's -1: without end.
ENDLESS: Final = 2**62


@dataclass(frozen=True, slots=True)
class Retention:
    """What the log keeps of one tap: for how long, how many bytes over all its lanes, and the bytes of one batch."""

    keep_ms: int
    keep_bytes: int
    batch_bytes: float

    @classmethod
    def of(cls, settings: Mapping[str, str], lanes: int, batch_bytes: float) -> Retention:
        """Return what a topic's settings say, by Kafka's names: its bytes count by lane, and -1 is without end."""
        keep_ms, lane_bytes = (int(settings[name]) for name in ("retention.ms", "retention.bytes"))
        return cls(keep_ms if keep_ms > 0 else ENDLESS, lane_bytes * lanes if lane_bytes > 0 else ENDLESS, batch_bytes)


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


def find_batch(source: RecordSource, layout: Layout, topic: str, batch: int) -> LogRecord | None:
    """Return the record of a batch, or a duplicate just before it; None where it is not there yet.

    Raises GoneError where it is no longer there.
    """
    lane = layout.lane_of(batch)
    offset = Lanes(source, layout, (topic,)).offset_of(topic, lane, batch)
    return source.record_at(topic, lane, offset) if offset < source.bounds(topic, lane).high else None

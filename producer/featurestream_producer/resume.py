"""Where a stream stands on the log, and so what is left to publish.

Every lane of every tap goes on for itself: a producer that died had sent a batch's record for one tap and perhaps not
for the next. What is missing is exactly what lies behind the greatest batch in each lane, because a producer appends
the batches of a lane in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featurestream.errors import FingerprintError, RecordError
from featurestream.layout import Layout
from featurestream.manifest import Manifest
from featurestream.names import tap_topic
from featurestream.ports import LogRecord, RecordSource
from featurestream.record import ITEM_BYTES
from featurestream.seek import Lanes, batch_of
from featurestream.tail import settled_bounds
from featurestream.wire import decode, parse_headers

READ_TIMEOUT_S = 10.0
QUIET_S = 0.3  # requests of a killed producer may still arrive for so long


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a stream, or of some of its lanes.

    ``next_batch[tap, lane]`` is the first batch that this lane of this tap does not hold.
    """

    layout: Layout
    taps: tuple[str, ...]
    next_batch: Mapping[tuple[str, int], int]

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes whose end this is."""
        return tuple(sorted({lane for _, lane in self.next_batch}))

    def lacking(self, batch: int) -> tuple[str, ...]:
        """Return the taps whose record of ``batch`` is not there."""
        lane = self.layout.lane_of(batch)
        return tuple(tap for tap in self.taps if self.next_batch[tap, lane] <= batch)

    @property
    def first_lacking(self) -> int:
        """The first batch that is not there in every tap."""
        return min(self.next_batch.values())

    @property
    def untouched(self) -> int:
        """The first batch such that it and all later ones are there in no tap."""
        return max(0, *(place - self.layout.lanes + 1 for place in self.next_batch.values()))

    def to_publish(self, lanes: Sequence[int], stop: int | None) -> Iterator[int]:
        """Yield, in order, the batches of some lanes that some tap lacks, below ``stop`` (None: without end)."""
        batch = self.first_lacking
        wanted = frozenset(lanes)
        while wanted and (stop is None or batch < stop):
            if self.layout.lane_of(batch) in wanted and self.lacking(batch):
                yield batch
            batch += 1


@dataclass(slots=True)
class PassSoFar:
    """What a pass has so far: missing samples, and when its first batch was extracted or appended.

    ``gone`` counts batches that retention deleted while the pass was not finished: nobody knows what was missing there.
    """

    missing: int = 0
    gone: int = 0
    started_ms: int | None = None


def fresh_tail(manifest: Manifest, lanes: Sequence[int] | None = None) -> Tail:
    """Return the tail of a stream that has no record yet, or of some of its lanes."""
    layout = manifest.layout
    taps = tuple(tap.name for tap in manifest.taps)
    lanes = range(layout.lanes) if lanes is None else lanes
    return Tail(layout, taps, {(tap, lane): lane for tap in taps for lane in lanes})


def find_tail(
    source: RecordSource,
    manifest: Manifest,
    finished_passes: int,
    lanes: Sequence[int] | None = None,
) -> Tail:
    """Return where the stream, or some of its lanes, stand once they have stood still for :data:`QUIET_S`.

    A lane from which retention has deleted everything tells nothing but how many records it had, duplicates among
    them. It goes on at the first pass that is not finished (``finished_passes``): what it publishes again is gone from
    the log, so no reader meets a batch twice and none is left out.

    Raises FingerprintError where the last record of a lane belongs to another stream.
    """
    layout = manifest.layout
    topics = {tap.name: tap_topic(manifest.stream, tap.name) for tap in manifest.taps}
    chosen = range(layout.lanes) if lanes is None else lanes
    places = [(topic, lane) for topic in topics.values() for lane in chosen]
    bounds = settled_bounds(source, places, quiet_s=QUIET_S)
    finder = Lanes(source, layout, tuple(topics.values()))
    next_batch: dict[tuple[str, int], int] = {}
    for tap, topic in topics.items():
        for lane in chosen:
            low, high = bounds[topic, lane]
            if low == high:
                least = layout.next_in_lane(lane, layout.pass_start(finished_passes)) if high else lane
                next_batch[tap, lane] = least
                continue
            if (last := finder.last_record(topic, lane)) is not None:
                _check_fingerprint(last, manifest)
            greatest = finder.greatest(topic, lane, high)
            if greatest is None:  # deleted between the two looks
                greatest = layout.next_in_lane(lane, layout.pass_start(finished_passes)) - layout.lanes
            next_batch[tap, lane] = greatest + layout.lanes
    return Tail(layout, tuple(topics), next_batch)


def reaches_end(source: RecordSource, manifest: Manifest) -> bool:
    """Tell whether every lane of a finite stream holds its last batch, or has held it until retention took it.

    What the manifest's topic calls complete was acknowledged; a broker without replicas that dies with its disk may
    lose it all the same. Raises StreamNotFoundError where a tap's topic is gone.
    """
    layout, total = manifest.layout, manifest.total_batches or 0
    topics = tuple(tap_topic(manifest.stream, tap.name) for tap in manifest.taps)
    finder = Lanes(source, layout, topics)
    for topic, lane in finder.places():
        low, high = source.bounds(topic, lane)
        greatest = finder.greatest(topic, lane, high)
        after = lane if greatest is None else greatest + layout.lanes
        if after < total and (low < high or high == 0):
            return False
    return True


def passes_so_far(source: RecordSource, manifest: Manifest, tail: Tail, finished_passes: int) -> dict[int, PassSoFar]:
    """Return what is there, in the tail's lanes, of the passes that have no record yet, by pass number.

    Headers tell how many rows a batch has; only where rows are missing is its value looked into. The narrowest tap is
    read, one lane after the other.
    """
    layout = manifest.layout
    start = layout.pass_start(finished_passes)
    passes: dict[int, PassSoFar] = {}
    stop = max(tail.next_batch.values())
    own = frozenset(tail.lanes)
    for batch in range(start, stop):
        if layout.lane_of(batch) in own and not tail.lacking(batch):
            passes.setdefault(layout.pass_of(batch), PassSoFar())
    narrowest = min(manifest.taps, key=lambda tap: tap.numbers * ITEM_BYTES[manifest.dtype])
    topic = tap_topic(manifest.stream, narrowest.name)
    lanes = Lanes(source, layout, (topic,))
    for lane in tail.lanes:
        end = min(tail.next_batch[tap, lane] for tap in tail.taps)
        first = layout.next_in_lane(lane, start)
        if first >= end:
            continue
        for batch, record in lane_records(lanes, topic, lane, range(first, end, layout.lanes)):
            if record is None:
                passes[layout.pass_of(batch)].gone += 1
            else:
                _count(passes[layout.pass_of(batch)], record, layout, batch)
    return passes


def lane_records(
    lanes: Lanes, topic: str, lane: int, batches: range
) -> Iterator[tuple[int, LogRecord | None]]:  # fmt: skip
    """Yield each of some batches that a lane holds or has held with its record, or with None where that is gone."""
    left = lanes.first_left(topic, lane)
    there = [batch for batch in batches if batch >= left]
    yield from ((batch, None) for batch in batches if batch < left)
    if not there:
        return
    reader = lanes.source.read(topic, lane, lanes.offset_of(topic, lane, there[0]))
    try:
        for batch in there:
            while True:
                record = reader.poll(READ_TIMEOUT_S)
                if record is None:
                    raise RecordError(
                        f"batch {batch} of {topic}, lane {lane} did not come within {READ_TIMEOUT_S:.0f} s",
                        hint="is the broker overloaded? try again",
                    )
                if batch_of(record) == batch:
                    yield batch, record
                    break
    finally:
        reader.close()


def _count(so_far: PassSoFar, record: LogRecord, layout: Layout, batch: int) -> None:
    if so_far.started_ms is None or record.timestamp_ms < so_far.started_ms:
        so_far.started_ms = record.timestamp_ms
    if parse_headers(record.headers).rows == layout.rows_of(batch):
        return
    try:
        so_far.missing += len(decode(record.value).missing)
    except RecordError as error:
        raise error.at(record.topic, record.lane, record.offset) from error


def _check_fingerprint(record: LogRecord, manifest: Manifest) -> None:
    try:
        found = parse_headers(record.headers).fingerprint
    except RecordError as error:
        raise error.at(record.topic, record.lane, record.offset) from error
    if found != manifest.fingerprint:
        raise FingerprintError(
            f"the last record of {record.topic}, lane {record.lane} has fingerprint {found}, "
            f'but stream "{manifest.stream}" has {manifest.fingerprint}',
            hint="the topic was written by another stream: delete it, or take another stream name",
        )

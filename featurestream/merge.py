"""The lanes of some taps, merged: batch after batch in ascending order, exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from featurestream.agreement import Agreement, Expectations, check_follows
from featurestream.batch import FeatureBatch, TapPart, TapRows, join, part_of
from featurestream.errors import GoneError, RecordError
from featurestream.manifest import Manifest
from featurestream.names import tap_topic
from featurestream.ports import LaneReader, LogRecord, Place, RecordSource
from featurestream.read_counts import ReadCounts
from featurestream.record import MissingSample, Record
from featurestream.seek import Lanes
from featurestream.wire import ExpectedTap, RecordHeaders, open_record, parse_headers

POLL_S: Final = 0.25


class LaneMerge:
    """The open lanes of one reading: takes batches from them, in any ascending order. Close it.

    A lane is opened when it is first needed, since a shard reads only its own, or by :meth:`open`. Duplicates are
    dropped and counted; a hole, a record of another stream, or one that is damaged or gone is an error that names it.

    Args:
        source: where the lanes are read. It stays the caller's.
        manifest: the stream's manifest.
        taps: names of taps, in the order in which records are joined.
        offsets: is kept at the next offset of each (topic, lane) that is read.
        found: offsets that were looked up already, by topic, lane and batch.
        counts: what is read, dropped, refused and waited is counted there; batches and rows are the caller's to count.
        on_wait: called with the seconds waited so far, about four times a second, while a record is not there yet; what
            it raises ends the waiting.
    """

    def __init__(
        self,
        source: RecordSource,
        manifest: Manifest,
        taps: Sequence[str],
        *,
        offsets: dict[Place, int] | None = None,
        found: Mapping[tuple[str, int, int], int] | None = None,
        counts: ReadCounts | None = None,
        on_wait: Callable[[float], None] | None = None,
    ) -> None:
        self.taps = tuple(taps)
        self._source = source
        self._manifest = manifest
        self._layout = manifest.layout
        self._topics = {tap: tap_topic(manifest.stream, tap) for tap in self.taps}
        self._lanes = Lanes(source, self._layout, tuple(self._topics.values()))
        self._offsets = {} if offsets is None else offsets
        self._found = {} if found is None else found
        self._counts = ReadCounts() if counts is None else counts
        self._on_wait = on_wait
        self._readers: dict[Place, LaneReader] = {}
        self._expected: dict[Place, int] = {}
        self._agreements = {tap: Agreement(manifest, tap) for tap in self.taps}
        self._dtype = manifest.dtype
        self._shapes = {tap: tuple(manifest.tap(tap).shape) for tap in self.taps}
        self._forms = {
            tap: ExpectedTap(manifest.stream, manifest.fingerprint, tap, self._dtype, shape)
            for tap, shape in self._shapes.items()
        }
        self._expectations = Expectations(manifest)

    @property
    def open_lanes(self) -> int:
        """How many lanes are open: each is a connection that reads ahead."""
        return len(self._readers)

    def batch(self, number: int) -> FeatureBatch:
        """Return one batch, joined over the taps."""
        expected = self._expectations.of(number)
        missing: tuple[MissingSample, ...] = ()
        parts: dict[str, TapPart] = {}
        for tap in self.taps:
            raw = self.raw(tap, number)
            opened = raw.value and self._forms[tap].open(raw.value, expected, raw[:3])
            if opened:
                identity, payload = opened
                parts[tap] = identity, TapRows(payload, self._dtype, self._shapes[tap])
            else:
                record = self._opened(tap, number, raw)
                missing = record.missing
                parts[tap] = part_of(record)
        return join(number, self._layout.pass_of(number), parts, missing)

    def _opened(self, tap: str, number: int, raw: LogRecord) -> Record:
        """Return what a record holds, which may be anything."""
        try:
            if raw.value is None:
                raise RecordError("a tombstone, where a batch should be")
            record = open_record(raw.value, (raw.topic, raw.lane, raw.offset))
            if record.batch != number or record.tap != tap:
                raise RecordError(
                    f"its headers say batch {number} of tap {tap}, its value says batch {record.batch} of tap "
                    f"{record.tap}"
                )
            self._agreements[tap].check(record)
        except RecordError as error:
            self._counts.refused += 1
            raise error.at(raw.topic, raw.lane, raw.offset) from error
        return record

    def raw(self, tap: str, number: int) -> LogRecord:
        """Return one batch of one tap as it stands on the log: its headers were looked at, its value was not."""
        topic = self._topics[tap]
        lane = self._layout.lane_of(number)
        place = (topic, lane)
        if place not in self._readers:
            self.open([number])
        while True:
            raw = self._poll(place, number)
            self._offsets[place] = raw.offset + 1
            due = self._expected[place]
            if raw.headers != self._expectations.of(due).headers:
                found = self._headers(raw)
                check_follows(raw, found, self._manifest, due)
                if found.batch < due:
                    self._counts.duplicates += 1
                    continue
            self._expected[place] = due + self._layout.lanes
            if due == number:
                self._counts.bytes += len(raw.value or b"")
                return raw
            # Another shard's.

    def open(self, numbers: Iterable[int]) -> None:
        """Open the lanes of the batches that are taken next, ascending, at once: they connect at the same time.

        A lane that is not among them is opened when it is first needed.
        """
        begins: dict[Place, int] = {}
        for number in numbers:
            for topic in self._topics.values():
                begins.setdefault((topic, self._layout.lane_of(number)), number)
        new = {place: number for place, number in begins.items() if place not in self._readers}
        known = {place: self._found.get((*place, number)) for place, number in new.items()}
        searched = self._lanes.offsets_of({place: number for place, number in new.items() if known[place] is None})
        for place, number in new.items():
            offset = known[place]
            self._readers[place] = self._source.read(*place, searched[place] if offset is None else offset)
            self._expected[place] = number

    def close(self) -> None:
        """Close the lanes; idempotent."""
        readers, self._readers = self._readers, {}
        for reader in readers.values():
            reader.close()

    def _headers(self, raw: LogRecord) -> RecordHeaders:
        try:
            return parse_headers(raw.headers)
        except RecordError as error:
            self._counts.refused += 1
            raise error.at(raw.topic, raw.lane, raw.offset) from error

    def _poll(self, place: Place, number: int) -> LogRecord:
        waited = 0.0
        reader = self._readers[place]
        while True:
            began = time.monotonic()
            try:
                raw = reader.poll(POLL_S)
            except GoneError as error:
                earliest = self._lanes.earliest()
                raise GoneError(
                    f"retention has deleted batch {number} of {place[0]} before it was read",
                    hint=f"what is left begins at batch:{earliest}; read faster, or make the retention longer",
                    first_left=earliest,
                ) from error
            took = time.monotonic() - began
            self._counts.waited_s += took
            if raw is not None:
                return raw
            waited += took
            if self._on_wait is not None:
                self._on_wait(waited)

"""A log in this process's memory: the same promises as Kafka's, for tests, documentation and trials."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featurestream.absent import no_lane, no_offset
from featurestream.closing import Closing
from featurestream.errors import BrokerError, GoneError, StreamMismatchError, StreamNotFoundError, UsageError
from featurestream.names import GROUP_PREFIX
from featurestream.ports import Bounds, Headers, LogRecord, Place


@dataclass(slots=True)
class _Lane:
    """The records of one lane; the first one that is left stands at offset ``low``."""

    low: int = 0
    records: list[LogRecord] = field(default_factory=list)
    stamp_ms: int = 0
    deleted: bool = False

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.low, self.low + len(self.records))


@dataclass(frozen=True, slots=True)
class _Topic:
    lanes: list[_Lane]
    settings: dict[str, str]


class MemoryLog:
    """A :class:`~featurestream.ports.Log` in this process; any number of threads may use it.

    Records are stamped when they are appended, with the time of ``clock`` (seconds since the epoch) or the stamp of
    the record before them in the lane, whichever is later. Nothing bounds the log's size, and nothing expires by
    itself: :meth:`delete_before` plays retention.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, dict[tuple[str, int], tuple[int, str]]] = {}  # (next offset, note)
        self._changed = threading.Condition()

    def sink(self) -> MemorySink:
        """Return a new sink."""
        return MemorySink(self)

    def source(self) -> MemorySource:
        """Return a new source."""
        return MemorySource(self)

    def topics(self) -> dict[str, int]:
        """Return every topic's name and number of lanes."""
        with self._changed:
            return {name: len(topic.lanes) for name, topic in self._topics.items()}

    def settings(self, topic: str) -> dict[str, str]:
        """Return the settings that a topic was created with."""
        with self._changed:
            self._lane(topic, 0)
            return dict(self._topics[topic].settings)

    def create_topic(self, topic: str, lanes: int, settings: Mapping[str, str]) -> None:
        """Create a topic; see :class:`~featurestream.ports.Log`."""
        if lanes < 1:
            raise UsageError(f'topic "{topic}" needs at least one lane, got {lanes}')
        with self._changed:
            known = self._topics.setdefault(topic, _Topic([_Lane() for _ in range(lanes)], dict(settings)))
            if len(known.lanes) != lanes:
                raise StreamMismatchError(
                    f'topic "{topic}" exists with {len(known.lanes)} lanes, not {lanes}',
                    hint="the lanes of a stream are fixed when it is created",
                    differences={"lanes": (len(known.lanes), lanes)},
                )

    def delete_topics(self, topics: Sequence[str]) -> None:
        """Delete topics; those that do not exist are no error."""
        with self._changed:
            for name in topics:
                topic = self._topics.pop(name, None)
                for lane in topic.lanes if topic else ():
                    lane.deleted = True
            self._changed.notify_all()

    def delete_before(self, topic: str, lane: int, offset: int) -> None:
        """Delete the records of a lane below ``offset``, as retention does."""
        with self._changed:
            place = self._lane(topic, lane)
            low, high = place.bounds
            if not low <= offset <= high:
                raise UsageError(f"cannot delete what is before {offset} of a lane that holds {low} to {high}")
            del place.records[: offset - low]
            place.low = offset
            self._changed.notify_all()

    def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> None:
        """Publish the next offset of each (topic, lane) under a group, with a note beside them."""
        with self._changed:
            for topic, lane in offsets:
                self._lane(topic, lane)
            if offsets:
                self._groups.setdefault(group, {}).update({place: (at, note) for place, at in offsets.items()})

    def committed_positions(self) -> dict[str, dict[tuple[str, int], int]]:
        """Return what each of our groups has committed."""
        with self._changed:
            return {
                group: {place: offset for place, (offset, _) in places.items()}
                for group, places in self._groups.items()
                if group.startswith(GROUP_PREFIX)
            }

    def committed_notes(self, prefix: str) -> dict[str, set[str]]:
        """Return the notes of each of our groups whose name begins with ``prefix``."""
        with self._changed:
            return {
                group: {note for _, note in places.values() if note}
                for group, places in self._groups.items()
                if group.startswith(GROUP_PREFIX) and group.startswith(prefix)
            }

    # What the sink and the sources do, under the log's one lock.

    def _lane(self, topic: str, lane: int) -> _Lane:
        known = self._topics.get(topic)
        if known is None or not 0 <= lane < len(known.lanes):
            raise no_lane(topic, lane)
        return known.lanes[lane]

    def _append(self, topic: str, lane: int, key: bytes, value: bytes | None, headers: Headers) -> None:
        with self._changed:
            place = self._lane(topic, lane)
            place.stamp_ms = max(place.stamp_ms, int(self._clock() * 1000))
            place.records.append(LogRecord(topic, lane, place.bounds.high, place.stamp_ms, key, tuple(headers), value))
            self._changed.notify_all()

    def _bounds(self, topic: str, lane: int) -> Bounds:
        with self._changed:
            return self._lane(topic, lane).bounds

    def _offset_at_time(self, topic: str, lane: int, time_ms: int) -> int:
        with self._changed:
            place = self._lane(topic, lane)
            return place.low + bisect_left(place.records, time_ms, key=lambda record: record.timestamp_ms)

    def _record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        with self._changed:
            place = self._lane(topic, lane)
            low, high = place.bounds
            if offset >= high:
                raise no_offset(topic, lane, offset, place.bounds)
            return place.records[max(offset - low, 0)]


class MemorySink(Closing):
    """A :class:`~featurestream.ports.RecordSink` on a :class:`MemoryLog`.

    Attributes:
        records: records appended so far.
        bytes: bytes of their values.
        blocked_s: seconds spent waiting for room: none, here.
    """

    def __init__(self, log: MemoryLog) -> None:
        self.records = 0
        self.bytes = 0
        self.blocked_s = 0.0
        self._log = log
        self._failure: BrokerError | None = None
        self._closed = False

    def append(
        self, topic: str, lane: int, *, key: bytes, value: NDArray[np.uint8] | bytes | None, headers: Headers = ()
    ) -> None:
        """Append one record; see :class:`~featurestream.ports.RecordSink`."""
        self._check()
        if isinstance(value, np.ndarray) and not value.flags.c_contiguous:
            raise UsageError("a record's value must be a C-contiguous array", hint="np.ascontiguousarray makes one")
        copy = value.tobytes() if isinstance(value, np.ndarray) else value
        try:
            self._log._append(topic, lane, key, copy, headers)
        except StreamNotFoundError as error:
            self._failure = BrokerError(error.message, hint=error.hint, **error.facts)
            raise self._failure from error
        self.records += 1
        self.bytes += len(copy or b"")

    @property
    def queued(self) -> int:
        """None, ever."""
        return 0

    def flush(self) -> None:
        """Do nothing but report an earlier failure: a record is durable when it is appended."""
        self._check()

    def close(self) -> None:
        """Take no more records; idempotent."""
        self._closed = True

    def _check(self) -> None:
        if self._closed:
            raise UsageError("this sink is closed", hint="get a new one with sink()")
        if self._failure is not None:
            raise self._failure


class MemorySource(Closing):
    """A :class:`~featurestream.ports.RecordSource` on a :class:`MemoryLog`."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def bounds(self, topic: str, lane: int) -> Bounds:
        """Return the offsets that a lane holds now."""
        return self._log._bounds(topic, lane)

    def all_bounds(self, places: Sequence[Place]) -> dict[Place, Bounds]:
        """Return the bounds of many lanes."""
        return {place: self.bounds(*place) for place in places}

    def offsets_at_time(self, places: Sequence[Place], time_ms: int) -> dict[Place, int]:
        """Return, for each lane, the first offset whose record was appended at or after a time."""
        return {place: self._log._offset_at_time(*place, time_ms) for place in places}

    def record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        """Return the record at an offset, or the first one after it."""
        return self._log._record_at(topic, lane, offset)

    def read(self, topic: str, lane: int, offset: int) -> MemoryLaneReader:
        """Return a reader whose first record is the one at ``offset``."""
        with self._log._changed:
            return MemoryLaneReader(topic, lane, offset, self._log._lane(topic, lane), self._log._changed)

    def close(self) -> None:
        """Do nothing: a look-up holds nothing open."""


class MemoryLaneReader:
    """A :class:`~featurestream.ports.LaneReader` on a :class:`MemoryLog`."""

    def __init__(self, topic: str, lane: int, offset: int, place: _Lane, changed: threading.Condition) -> None:
        self._topic = topic
        self._lane = lane
        self._offset = offset
        self._place = place
        self._changed = changed
        self._failure: GoneError | None = None
        self._closed = False

    def poll(self, timeout_s: float) -> LogRecord | None:
        """Return the next record, or None when none came in time; see :class:`~featurestream.ports.LaneReader`."""
        if self._closed:
            raise UsageError("this reader is closed", hint="get a new one with read()")
        if self._failure is not None:
            raise self._failure
        with self._changed:
            self._changed.wait_for(self._is_decided, timeout_s)
            low, high = self._place.bounds
            if self._place.deleted:
                raise no_lane(self._topic, self._lane)
            if not low <= self._offset <= high:
                # For ever, as on Kafka: an offset beyond the end does not become right when the lane grows.
                self._failure = no_offset(self._topic, self._lane, self._offset, self._place.bounds)
                raise self._failure
            if self._offset == high:
                return None
            record = self._place.records[self._offset - low]
        self._offset += 1
        return record

    def close(self) -> None:
        """Take no more polls; idempotent."""
        self._closed = True

    def _is_decided(self) -> bool:
        return self._place.deleted or self._offset != self._place.bounds.high

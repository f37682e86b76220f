"""Read lanes as they stand on the log, with readers that stay open from one answer to the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from featurestream.absent import no_lane, no_offset
from featurestream.errors import FeatureStreamError
from featurestream.manifest_topic import list_streams
from featurestream.names import tap_topic
from featurestream.ports import Bounds, LaneReader, Log, LogRecord, Place, RecordSource
from featurestream_gateway.problems import RefusedError

IDLE_S: Final = 30.0  # how long a lane stays open for a client that may come back
IDLE_LANES: Final = 64  # lanes that are open and idle: each holds up to some megabytes
POLL_S: Final = 0.25
FIRST_S: Final = 5.0  # for a record that is there: a new reader has to connect first
NEXT_S: Final = 0.02  # what comes later comes with the next answer


@dataclass(slots=True)
class _Open:
    """An open lane, and the offset that comes next."""

    topic: str
    lane: int
    offset: int
    reader: LaneReader
    idle_since: float = 0.0


class LaneReadings:
    """Reads lanes. May be used by many threads; :meth:`stop` ends what they wait for. ``log`` stays the caller's."""

    def __init__(self, log: Log, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._source: RecordSource | None = None
        self._idle: list[_Open] = []
        self._stopping = threading.Event()

    @property
    def idle_lanes(self) -> int:
        """Lanes that are open and idle."""
        with self._lock:
            return len(self._idle)

    @property
    def source(self) -> RecordSource:
        """The source that all share; connected when it is first needed."""
        with self._lock:
            if self._source is None:
                self._source = self._log.source()
            return self._source

    def topics(self) -> dict[str, int]:
        """Return the topics of all streams, with their numbers of lanes: no others are anybody's business here."""
        streams = set(list_streams(self._log))
        return {
            topic: lanes for topic, lanes in sorted(self._log.topics().items()) if topic.partition(".")[0] in streams
        }

    def places(self, stream: str, taps: Sequence[str]) -> list[Place]:
        """Return every (topic, lane) of some taps of a stream, or of all. Raises StreamNotFoundError for other taps."""
        known = {topic: lanes for topic, lanes in self._log.topics().items() if topic.partition(".")[0] == stream}
        topics = [tap_topic(stream, tap) for tap in taps] or sorted(known)
        for topic in topics:
            if topic not in known:
                raise no_lane(topic, 0)
        return [(topic, lane) for topic in dict.fromkeys(topics) for lane in range(known[topic])]

    def read(self, topic: str, lane: int, offset: int, most_bytes: int) -> list[LogRecord]:
        """Return the records from an offset on that are there: none at the lane's end, else at least one.

        The last one is that with which the values come to ``most_bytes``. Raises GoneError where the offset is not (or
        not any more) one of the lane, as every reader does.
        """
        bounds = self.source.bounds(topic, lane)
        if not bounds.low <= offset <= bounds.high:
            raise no_offset(topic, lane, offset, bounds)
        if offset == bounds.high:
            return []
        kept = self._take(topic, lane, offset)
        if kept is not None:
            try:
                return self._read(kept, bounds, most_bytes)
            except FeatureStreamError:  # the topic may have been made anew since: a new reader tells
                if self._stopping.is_set():
                    raise
        return self._read(_Open(topic, lane, offset, self.source.read(topic, lane, offset)), bounds, most_bytes)

    def reap(self, *, all_of_them: bool = False) -> None:
        """Close lanes that nobody has come back for, and those that are too many."""
        now = self._clock()
        with self._lock:
            newest = sorted(self._idle, key=lambda one: one.idle_since, reverse=True)
            kept = [] if all_of_them else [one for one in newest[:IDLE_LANES] if now - one.idle_since < IDLE_S]
            closed = [one for one in self._idle if one not in kept]
            self._idle = kept
        for one in closed:
            one.reader.close()

    def stop(self) -> None:
        """End all waiting, and close what is idle."""
        self._stopping.set()
        self.reap(all_of_them=True)
        with self._lock:
            source, self._source = self._source, None
        if source is not None:
            source.close()

    def _read(self, lane: _Open, bounds: Bounds, most_bytes: int) -> list[LogRecord]:
        records: list[LogRecord] = []
        size = 0
        try:
            while size < most_bytes and lane.offset < bounds.high:
                record = self._poll(lane.reader, NEXT_S if records else FIRST_S)
                if record is None:
                    break
                records.append(record)
                size += len(record.value or b"")
                lane.offset = record.offset + 1
        except BaseException:
            lane.reader.close()
            raise
        self._give(lane)
        return records

    def _poll(self, reader: LaneReader, limit_s: float) -> LogRecord | None:
        until = self._clock() + limit_s
        while True:
            record = reader.poll(min(limit_s, POLL_S))
            if record is not None or self._clock() >= until:
                return record
            if self._stopping.is_set():
                raise RefusedError("ending", "the gateway is ending", hint="ask again when it is back")

    def _take(self, topic: str, lane: int, offset: int) -> _Open | None:
        with self._lock:
            for one in self._idle:
                if (one.topic, one.lane, one.offset) == (topic, lane, offset):
                    self._idle.remove(one)
                    return one
        return None

    def _give(self, lane: _Open) -> None:
        lane.idle_since = self._clock()
        with self._lock:
            self._idle.append(lane)
        self.reap(all_of_them=self._stopping.is_set())

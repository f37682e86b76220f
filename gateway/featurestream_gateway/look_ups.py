"""Single batches, looked up one by one where opening lanes would take longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from featurestream.agreement import check_follows
from featurestream.errors import GoneError, InexactError, RecordError
from featurestream.manifest import Manifest
from featurestream.names import tap_topic
from featurestream.ports import Log, LogRecord, RecordSource
from featurestream.seek import Lanes, batch_of
from featurestream.wire import parse_headers

SOURCES: Final = 4  # connections for look-ups: each answers one after the other, in some milliseconds


class LookUps:
    """A few connections that look batches up. May be used by many threads; ``log`` stays the caller's."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._free = threading.Semaphore(SOURCES)
        self._lock = threading.Lock()
        self._idle: list[RecordSource] = []
        self._closed = False

    def batch(self, manifest: Manifest, lanes: Lanes, taps: tuple[str, ...], number: int) -> tuple[LogRecord, ...]:
        """Return a batch's records, in the order of the taps; ``lanes`` says where they are if not where expected.

        Raises GoneError, HoleError, FingerprintError and BrokerError as a reader of the lanes does.
        """
        with self._source() as source:
            return tuple(_record(source, manifest, lanes, tap, number) for tap in taps)

    def close(self) -> None:
        """Release the connections, those in use when their look-up has ended."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for source in idle:
            source.close()

    @contextmanager
    def _source(self) -> Iterator[RecordSource]:
        with self._free:
            with self._lock:
                source = self._idle.pop() if self._idle else None
            if source is None:
                source = self._log.source()
            usable = False
            try:
                yield source
                usable = True
            except (InexactError, RecordError):
                usable = True
                raise
            finally:
                with self._lock:
                    usable = usable and not self._closed
                    if usable:
                        self._idle.append(source)
                if not usable:
                    source.close()


def _record(source: RecordSource, manifest: Manifest, lanes: Lanes, tap: str, number: int) -> LogRecord:
    topic, lane = tap_topic(manifest.stream, tap), manifest.layout.lane_of(number)
    expected = _expected(source, topic, lane, manifest.layout.offset_of(number), number)
    found = expected or _searched(source, topic, lane, lanes.offset_of(topic, lane, number), number)
    check_follows(found, parse_headers(found.headers), manifest, number)
    return found


def _expected(source: RecordSource, topic: str, lane: int, offset: int, number: int) -> LogRecord | None:
    """Return the record at the offset that a batch has in a lane without duplicates, where it is that batch's."""
    try:
        found = source.record_at(topic, lane, offset)
        return found if batch_of(found) == number else None
    except (GoneError, RecordError):
        return None  # it may stand elsewhere


def _searched(source: RecordSource, topic: str, lane: int, offset: int, number: int) -> LogRecord:
    """Return the first record from an offset on that holds a batch or a later one: what is earlier is a duplicate."""
    while batch_of(found := source.record_at(topic, lane, offset)) < number:
        offset = found.offset + 1
    return found

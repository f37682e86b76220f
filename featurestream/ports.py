"""The two ports between the stream and a log of records, each with its contract.

Everything above them works on any log that keeps these promises: Kafka (:mod:`featurestream.kafka`) and the in-process
log (:mod:`featurestream.memory`). One test suite holds both to them.

A log holds topics; a topic holds lanes; a lane is a sequence of records, each at an offset. Offsets grow along a lane
but need not be dense. Old records may be gone: the lowest offset left is ``Bounds.low``; ``Bounds.high`` is where the
next record will go. Time stamps are the log's own, in milliseconds since the epoch, and never fall along a lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Headers = Sequence[tuple[str, bytes]]
Place = tuple[str, int]  # (topic, lane)


class Bounds(NamedTuple):
    """The offsets that a lane holds: ``low`` <= offset < ``high``."""

    low: int
    high: int


class LogRecord(NamedTuple):
    """What stands at one offset of one lane."""

    topic: str
    lane: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    value: bytes | None  # None is a tombstone: "this key is gone" on a compacted topic


class RecordSink(Protocol):
    """Appends records. Order in a lane is the order of the calls; nothing is dropped."""

    def append(
        self, topic: str, lane: int, *, key: bytes, value: NDArray[np.uint8] | bytes | None, headers: Headers = ()
    ) -> None:
        """Append one record.

        Blocks while the sink's bounded queue is full. The value is copied before this returns: the caller may reuse
        its buffer at once. A failure of an earlier record is raised here, or by :meth:`flush`, as BrokerError; after
        that the sink takes no more records.
        """

    @property
    def queued(self) -> int:
        """How many of the records appended so far are not known to be durable; asked by the thread that appends."""

    def flush(self) -> None:
        """Return when every record appended so far is durable; raise BrokerError if one is not."""

    def close(self) -> None:
        """Give up what is still queued and release the connection. Call :meth:`flush` first to keep it."""


class LaneReader(Protocol):
    """Reads one lane forward from an offset."""

    def poll(self, timeout_s: float) -> LogRecord | None:
        """Return the next record, or None when none came within ``timeout_s``.

        Raises GoneError when the next offset is no longer in the log (or never was: it lies beyond the end), and
        BrokerError when the log cannot be read. Never skips.
        """

    def close(self) -> None:
        """Release the connection; idempotent."""


class RecordSource(Protocol):
    """Finds and reads records."""

    def bounds(self, topic: str, lane: int) -> Bounds:
        """Return the offsets that a lane holds now. Raises StreamNotFoundError where there is no such topic or lane."""

    def all_bounds(self, places: Sequence[Place]) -> dict[Place, Bounds]:
        """Return the bounds of many lanes, for little more than the time that one of them takes."""

    def offsets_at_time(self, places: Sequence[Place], time_ms: int) -> dict[Place, int]:
        """Return, for each lane, the first offset whose record was appended at or after ``time_ms``.

        That is ``bounds().high``, read before the look-up, where there is none yet; and ``low`` where everything left
        is later.
        """

    def record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        """Return the record at ``offset``, or the first one after it. Raises GoneError where there is none."""

    def read(self, topic: str, lane: int, offset: int) -> LaneReader:
        """Return a reader whose first record is the one at ``offset`` (or, where offsets have holes, the next)."""

    def close(self) -> None:
        """Release the connections used for look-ups; readers live on until they are closed."""


class Log(Protocol):
    """A log: its topics, and a sink and sources on it."""

    def sink(self) -> RecordSink:
        """Return a new sink; the caller closes it."""

    def source(self) -> RecordSource:
        """Return a new source; the caller closes it."""

    def topics(self) -> dict[str, int]:
        """Return every topic's name and number of lanes."""

    def create_topic(self, topic: str, lanes: int, settings: Mapping[str, str]) -> None:
        """Create a topic; a topic that exists with as many lanes is left as it is, with others refused (UsageError).

        ``settings`` are Kafka's topic settings by their own names.
        """

    def delete_topics(self, topics: Sequence[str]) -> None:
        """Delete topics; a topic that does not exist is no error. Returns when they are gone."""

    def settings(self, topic: str) -> dict[str, str]:
        """Return a topic's settings by Kafka's names. Raises StreamNotFoundError where there is no such topic."""

    def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> None:
        """Publish, under a reader's group, the next offset of each (topic, lane): for lag tools, never read back.

        ``note`` stands beside each of them, in the field that Kafka has for it (at most 4096 bytes).
        """

    def committed_positions(self) -> dict[str, dict[tuple[str, int], int]]:
        """Return what every group has committed: {group: {(topic, lane): next offset}}."""

    def committed_notes(self, prefix: str) -> dict[str, set[str]]:
        """Return the notes beside what each of our groups whose name begins with ``prefix`` has committed."""

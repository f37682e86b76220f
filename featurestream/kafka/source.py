"""Find and read records on Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from featurestream.absent import no_lane, no_offset
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError, FeatureStreamError, GoneError, RecordError, UsageError
from featurestream.kafka.client import CONNECT_S, Home, ask, open_client
from featurestream.kafka.config import LANE_QUEUE_KBYTES, check_properties, finder_settings, reader_settings
from featurestream.kafka.errors import GONE, NO_LANE, PASSING, code_of, request_failed
from featurestream.ports import Bounds, LogRecord

T = TypeVar("T")

STALL_S: Final = 60.0
PROBE_S: Final = 5.0  # a reader that has heard nothing for so long asks whether the broker and its lane are there
PROBE_LIMIT_S: Final = 0.5
# A client looks for its group's coordinator even if it never joins: a login that may read the topic needs no group.
UNHEEDED: Final = PASSING | {KafkaError.GROUP_AUTHORIZATION_FAILED}
PAUSE_S: Final = 1.0  # between two probes; and between two polls: what is longer was spent elsewhere, not waiting


class KafkaSource:
    """A :class:`~featurestream.ports.RecordSource` on Kafka. Close it, or use it as a context manager.

    Each reader is a client of its own and reads at most ``queue_kbytes`` ahead. Look-ups and readers that wait raise
    BrokerError after ``stall_s`` seconds without contact, and at once for a refused login; a look-up whose cluster has
    never answered gives up after 10 s. Look-ups may come from any thread.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        client_id: str = "featurestream",
        queue_kbytes: int = LANE_QUEUE_KBYTES,
        stall_s: float = STALL_S,
    ) -> None:
        check_properties(cluster)
        self._finder = _Finder(cluster, client_id, stall_s)
        self._settings = reader_settings(cluster, client_id, queue_kbytes)
        self._stall_s = stall_s
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def bounds(self, topic: str, lane: int) -> Bounds:
        """Return the offsets that a lane holds now; see :class:`~featurestream.ports.RecordSource`."""
        return self._open().bounds(topic, lane)

    def offset_at_time(self, topic: str, lane: int, time_ms: int) -> int:
        """Return the first offset whose record was appended at or after a time."""
        return self._open().offset_at_time(topic, lane, time_ms)

    def record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        """Return the record at an offset, or the first one after it."""
        return self._open().record_at(topic, lane, offset)

    def read(self, topic: str, lane: int, offset: int) -> KafkaLaneReader:
        """Return a reader whose first record is the one at ``offset``.

        Raises StreamNotFoundError at once where there is no such topic or lane.
        """
        self._open().bounds(topic, lane)  # the client itself would wait in silence for a topic that is not there
        return KafkaLaneReader(topic, lane, offset, finder=self._finder, settings=self._settings, stall_s=self._stall_s)

    def close(self) -> None:
        """Release the connection used for look-ups; idempotent."""
        if not self._closed:
            self._closed = True
            self._finder.release()

    def _open(self) -> _Finder:
        if self._closed:
            raise UsageError("this source is closed", hint="open a new one")
        return self._finder


class KafkaLaneReader:
    """A :class:`~featurestream.ports.LaneReader` on Kafka: one lane, one client."""

    def __init__(
        self, topic: str, lane: int, offset: int, *, finder: _Finder, settings: dict[str, Any], stall_s: float
    ) -> None:
        self._topic = topic
        self._lane = lane
        self._offset = offset
        self._stall_s = stall_s
        self._home = Home()
        self._failure: FeatureStreamError | None = None
        self._closed = False
        # Seconds inside poll: since the broker's last sign of life, and since it was found to hold more than comes.
        self._silent_s = 0.0
        self._behind_s: float | None = None
        self._looked_at = time.monotonic()
        self._probe_at = 0.0
        self._consumer, self._reports = open_client(Consumer, settings)
        self._consumer.assign([TopicPartition(topic, lane, offset)])
        self._finder = finder.share()

    def poll(self, timeout_s: float) -> LogRecord | None:
        """Return the next record, or None when none came in time; see :class:`~featurestream.ports.LaneReader`.

        An error is final: it is raised by every later call.
        """
        self._home.check()
        if self._failure is not None:
            raise self._failure
        try:
            return self._poll(timeout_s)
        except FeatureStreamError as error:
            # After an offset that is gone the client is silent for ever; other errors are no better repeated.
            self._failure = error
            raise

    def close(self) -> None:
        """Release the connection; idempotent."""
        if not self._closed:
            self._closed = True
            self._home.check()
            self._failure = UsageError("this reader is closed", hint="get a new one with read()")
            self._consumer.close()
            self._finder.release()

    def _poll(self, timeout_s: float) -> LogRecord | None:
        until = time.monotonic() + timeout_s
        while (message := self._consumer.poll(timeout_s)) is not None:
            error = message.error()
            if error is None:
                record = _record(self._topic, self._lane, message)
                self._moved_to(record.offset + 1)
                return record
            if error.code() == KafkaError._PARTITION_EOF:
                self._moved_to(message.offset() or 0)
            elif error.code() in GONE:
                raise self._gone()
            elif error.code() not in UNHEEDED:
                raise request_failed(error, f"cannot read {self._topic}, lane {self._lane}", self._reports.address)
            timeout_s = max(until - time.monotonic(), 0.0)
        self._reports.check()
        self._wait_on(timeout_s)
        return None

    def _moved_to(self, offset: int) -> None:
        self._offset = offset
        self._silent_s = 0.0
        self._behind_s = None
        self._looked_at = time.monotonic()
        self._reports.answered()

    def _wait_on(self, timeout_s: float) -> None:
        """Decide, after a poll that brought nothing, whether waiting on makes sense."""
        now = time.monotonic()
        waited_s = min(now - self._looked_at, timeout_s + PAUSE_S)
        self._looked_at = now
        self._silent_s += waited_s
        if self._behind_s is not None:
            self._behind_s += waited_s
        quiet = self._silent_s < min(PROBE_S, self._stall_s / 4)
        if now < self._probe_at or (quiet and not self._reports.doubt):
            return
        self._probe_at = now + PAUSE_S
        try:
            _, high = self._finder.bounds(self._topic, self._lane, PROBE_LIMIT_S)
        except BrokerError:
            if self._silent_s >= self._stall_s:
                raise self._reports.unreachable(self._silent_s) from None
            return
        self._silent_s = 0.0
        self._reports.answered()
        if high <= self._offset:
            self._behind_s = None
        elif self._behind_s is None:
            self._behind_s = 0.0
        elif self._behind_s >= 2 * self._stall_s:
            raise _stuck(self._topic, self._lane, self._offset, high, self._behind_s)

    def _gone(self) -> GoneError:
        try:
            bounds = self._finder.bounds(self._topic, self._lane)
        except BrokerError:
            bounds = None
        return no_offset(self._topic, self._lane, self._offset, bounds)


class _Finder:
    """The client that answers where things are, shared by a source and its readers; the last one to leave closes it.

    It is a client of its own, because a client that reads answers questions only when its pending fetch has come back.
    """

    def __init__(self, cluster: Cluster, client_id: str, stall_s: float) -> None:
        self._consumer, self._reports = open_client(Consumer, finder_settings(cluster, client_id))
        self._home = Home()
        self._stall_s = stall_s
        self._lock = threading.RLock()
        self._users = 1

    def share(self) -> _Finder:
        with self._lock:
            self._users += 1
        return self

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._home.check()
                self._consumer.close()

    def bounds(self, topic: str, lane: int, limit_s: float | None = None) -> Bounds:
        place = TopicPartition(topic, lane)

        def question(timeout_s: float) -> tuple[int, int]:
            return self._consumer.get_watermark_offsets(place, timeout=timeout_s)

        return Bounds(*self._ask(topic, lane, question, limit_s))

    def offset_at_time(self, topic: str, lane: int, time_ms: int) -> int:
        low, high = self.bounds(topic, lane)  # before the look-up: what is appended after it must not be skipped
        place = TopicPartition(topic, lane, max(time_ms, 0))  # negative numbers have meanings of their own

        def question(timeout_s: float) -> TopicPartition:
            found = self._consumer.offsets_for_times([place], timeout=timeout_s)[0]
            if found.error is not None:
                raise KafkaException(found.error)
            return found

        found = self._ask(topic, lane, question).offset
        if found >= 0:
            return max(found, low)
        # The broker says "after everything". It says so too where the time lies before what is left, until it has
        # removed the deleted segments from its disk.
        try:
            first = self.record_at(topic, lane, low)
        except GoneError:
            return high
        return low if first.timestamp_ms >= time_ms else high

    def record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        with self._lock:
            while True:
                bounds = self.bounds(topic, lane)
                if max(offset, bounds.low) >= bounds.high:
                    raise no_offset(topic, lane, offset, bounds)
                message = self._fetch(topic, lane, max(offset, bounds.low))
                if message is None:
                    bounds = self.bounds(topic, lane)  # raises BrokerError where it is the broker that is silent
                    raise _stuck(topic, lane, offset, bounds.high, self._stall_s)
                error = message.error()
                if error is None:
                    return _record(topic, lane, message)
                if error.code() == KafkaError._PARTITION_EOF:  # nothing but a transaction's marker
                    raise no_offset(topic, lane, offset, bounds)
                if error.code() not in GONE:  # retention was faster: look again
                    raise request_failed(error, f"cannot read {topic}, lane {lane}", self._reports.address)

    def _fetch(self, topic: str, lane: int, offset: int) -> Message | None:
        """Return what the client gives for an offset, a record or an error, or None where it stays silent."""
        until = time.monotonic() + self._stall_s
        self._consumer.assign([TopicPartition(topic, lane, offset)])
        try:
            while time.monotonic() < until:
                message = self._consumer.poll(PROBE_LIMIT_S)
                error = None if message is None else message.error()
                if message is not None and (error is None or error.code() not in UNHEEDED):
                    return message
                self._reports.check()
        finally:
            self._consumer.unassign()
        return None

    def _ask(self, topic: str, lane: int, question: Callable[[float], T], limit_s: float | None = None) -> T:
        self._home.check()
        if limit_s is None:
            limit_s = self._stall_s if self._reports.contact else CONNECT_S

        def checked(timeout_s: float) -> T:
            try:
                return question(timeout_s)
            except KafkaException as error:
                if code_of(error) not in NO_LANE:
                    raise
                # The client says so of a lane that is not there, and of any lane while it has no contact.
                if not self._is_there(topic, lane, timeout_s):
                    raise no_lane(topic, lane) from error
                raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE)) from error

        with self._lock:
            try:
                return ask(self._consumer, self._reports, limit_s, checked)
            except KafkaException as error:
                raise request_failed(error, f"cannot look into {topic}, lane {lane}", self._reports.address) from error

    def _is_there(self, topic: str, lane: int, timeout_s: float) -> bool:
        found = self._consumer.list_topics(topic, timeout=timeout_s).topics.get(topic)
        if found is None or (found.error is not None and found.error.code() in NO_LANE):
            return False
        if found.error is None:
            return lane in found.partitions
        raise KafkaException(found.error)


def _stuck(topic: str, lane: int, offset: int, high: int, waited_s: float) -> RecordError:
    # A broker serves a damaged batch as it is, and the client asks for it again, for ever and in silence.
    return RecordError(
        f"nothing came for {waited_s:.0f} s although the lane goes on to offset {high}",
        hint="the batch may be damaged on the broker's disk; start behind it to read on",
    ).at(topic, lane, offset)


def _record(topic: str, lane: int, message: Message) -> LogRecord:
    # The stubs allow for headers as a mapping, and for messages that were never on a topic.
    headers: Any = message.headers() or ()
    offset: Any = message.offset()
    for _, value in headers:
        if value is None:  # ours are never null; those of other programs may be
            headers = [(name, value or b"") for name, value in headers]
            break
    return LogRecord(topic, lane, offset, message.timestamp()[1], message.key(), tuple(headers), message.value())

"""Find and read records on Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from featurestream.absent import no_lane, no_offset
from featurestream.closing import Closing
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError, FeatureStreamError, GoneError, RecordError, UsageError
from featurestream.kafka.client import CONNECT_S, Home, ask, open_client, replace_consumer
from featurestream.kafka.config import LANE_QUEUE_KBYTES, check_properties, finder_settings, reader_settings
from featurestream.kafka.errors import BROKEN, GONE, NO_LANE, PASSING, code_of, not_unpacked, request_failed
from featurestream.kafka.rights import Right
from featurestream.ports import Bounds, LogRecord, Place

T = TypeVar("T")

STALL_S: Final = 60.0
PROBE_S: Final = 5.0  # a reader that has heard nothing for so long asks whether the broker and its lane are there
PROBE_LIMIT_S: Final = 0.5
# A client that has had nothing for so long while the cluster has more, or that gets no answer, may be lost (client.py):
# another takes its place. Over a slow network it is not: there a reader learns to wait for longer.
LOST_S: Final = 5.0
# A client looks for its group's coordinator even if it never joins: a login that may read the topic needs no group.
UNHEEDED: Final = PASSING | {KafkaError.GROUP_AUTHORIZATION_FAILED}
PAUSE_S: Final = 1.0  # between two probes; and between two polls: what is longer was spent elsewhere, not waiting


class KafkaSource(Closing):
    """A :class:`~featurestream.ports.RecordSource` on Kafka. Close it, or use it as a context manager.

    Each reader is a client of its own and reads at most ``queue_kbytes`` ahead. Look-ups and readers that wait raise
    BrokerError after ``stall_s`` seconds without contact, and at once for a refused login; a look-up whose cluster has
    never answered gives up after 10 s. Look-ups may come from any thread.

    ``known`` are lanes of which the cluster has spoken: a reader of one of them is opened without a question. What is
    learned is added to it.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        client_id: str = "featurestream",
        queue_kbytes: int = LANE_QUEUE_KBYTES,
        stall_s: float = STALL_S,
        known: set[Place] | None = None,
    ) -> None:
        check_properties(cluster)
        self._finder = _Finder(cluster, client_id, stall_s, set() if known is None else known)
        self._settings = reader_settings(cluster, client_id, queue_kbytes)
        self._stall_s = stall_s
        self._closed = False

    def bounds(self, topic: str, lane: int) -> Bounds:
        """Return the offsets that a lane holds now; see :class:`~featurestream.ports.RecordSource`."""
        return self._open().bounds(topic, lane)

    def all_bounds(self, places: Sequence[Place]) -> dict[Place, Bounds]:
        """Return the bounds of many lanes, with two requests to each of their brokers."""
        return self._open().all_bounds(places)

    def offsets_at_time(self, places: Sequence[Place], time_ms: int) -> dict[Place, int]:
        """Return, for each lane, the first offset whose record was appended at or after a time."""
        return self._open().offsets_at_time(places, time_ms)

    def record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        """Return the record at an offset, or the first one after it."""
        return self._open().record_at((topic, lane), offset)

    def read(self, topic: str, lane: int, offset: int) -> KafkaLaneReader:
        """Return a reader whose first record is the one at ``offset``.

        Raises StreamNotFoundError at once where there is no such topic or lane.
        """
        self._open().require((topic, lane))  # the client itself would wait in silence for a topic that is not there
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
        self._client_behind_s = 0.0  # of that, with the client that it has now
        self._patience_s = LOST_S
        self._looked_at: float | None = None  # when a poll last brought nothing, if that was the last one
        self._probe_at = 0.0
        self._settings = settings
        self._consumer, self._reports = open_client(Consumer, settings)
        self._assign()
        self._finder = finder.share()

    def poll(self, timeout_s: float) -> LogRecord | None:
        """Return the next record, or None when none came in time; see :class:`~featurestream.ports.LaneReader`.

        An error is final: it is raised by every later call.
        """
        self._home.check()
        if self._failure is not None:
            raise self._failure
        message = self._consumer.poll(timeout_s)
        if message is not None and message.error() is None:
            return self._read(message)
        try:
            return self._wait(message, timeout_s)
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

    def _read(self, message: Message) -> LogRecord:
        record = _record(self._topic, self._lane, message)
        self._moved_to(record.offset + 1)
        return record

    def _wait(self, message: Message | None, timeout_s: float) -> LogRecord | None:
        """Take what is not a record: the client's word on the lane, or that nothing came in time."""
        until = time.monotonic() + timeout_s
        while message is not None:
            error = message.error()
            if error is None:
                return self._read(message)
            if error.code() == KafkaError._PARTITION_EOF:
                self._moved_to(message.offset() or 0)
            elif error.code() in GONE:
                raise self._gone()
            elif error.code() in BROKEN:
                raise not_unpacked(error, self._topic, self._lane, self._offset)
            elif error.code() not in UNHEEDED:
                doing, right = f"cannot read {self._topic}, lane {self._lane}", Right("Read", "topic", self._topic)
                raise request_failed(error, doing, self._reports.address, right)
            timeout_s = max(until - time.monotonic(), 0.0)
            message = self._consumer.poll(timeout_s)
        self._reports.check()
        self._wait_on(timeout_s)
        return None

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(self._topic, self._lane, self._offset)])

    def _moved_to(self, offset: int) -> None:
        self._offset = offset
        self._silent_s = 0.0
        if self._behind_s is not None:
            self._behind_s = None
            if self._client_behind_s < LOST_S:  # else it only took its time, and the one before may have, too
                self._patience_s = LOST_S
        self._looked_at = None
        self._reports.answered()

    def _wait_on(self, timeout_s: float) -> None:
        """Decide, after a poll that brought nothing, whether waiting on makes sense."""
        now = time.monotonic()
        waited_s = timeout_s if self._looked_at is None else min(now - self._looked_at, timeout_s + PAUSE_S)
        self._looked_at = now
        self._silent_s += waited_s
        if self._behind_s is not None:
            self._behind_s += waited_s
            self._client_behind_s += waited_s
        quiet = self._silent_s < min(PROBE_S, self._stall_s / 4)
        if now < self._probe_at or (quiet and not self._reports.doubt):
            return
        self._probe_at = now + PAUSE_S
        try:
            _, high = self._finder.bounds(self._topic, self._lane, PROBE_LIMIT_S)
        except BrokerError:
            if self._silent_s >= self._stall_s:
                raise self._reports.unreachable(self._silent_s) from None
            self._finder.replace_lost()
            return
        self._silent_s = 0.0
        self._reports.answered()
        if high <= self._offset:
            self._behind_s = None
        elif self._behind_s is None:
            self._behind_s = self._client_behind_s = 0.0
        elif self._behind_s >= 2 * self._stall_s:
            raise _stuck(self._topic, self._lane, self._offset, high, self._behind_s)
        elif self._client_behind_s >= self._patience_s:
            self._client_behind_s = 0.0
            self._patience_s *= 2
            self._consumer, self._reports = replace_consumer(self._consumer, self._reports, self._settings)
            self._assign()

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

    def __init__(self, cluster: Cluster, client_id: str, stall_s: float, known: set[Place]) -> None:
        # At once, and not with the first question: that comes when a reader hears nothing, and a client that is made
        # while a broker comes back is the likeliest to be lost.
        self._settings = finder_settings(cluster, client_id)
        self._consumer, self._reports = open_client(Consumer, self._settings)
        self._home = Home()
        self._stall_s = stall_s
        self._unanswered_since: float | None = None
        self._lock = threading.RLock()
        self._users = 1
        self._known = known

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

    def replace_lost(self) -> None:
        """Open another client where this one has had no answer for a while."""
        with self._lock:
            since = self._unanswered_since
            if since is not None and time.monotonic() - since >= LOST_S:
                self._unanswered_since = None
                self._consumer, self._reports = replace_consumer(self._consumer, self._reports, self._settings)

    def require(self, place: Place) -> None:
        """Raise StreamNotFoundError for a topic or a lane that is not there; nothing is asked where it was once."""
        self._home.check()
        if place not in self._known:
            self.bounds(*place)

    def bounds(self, topic: str, lane: int, limit_s: float | None = None) -> Bounds:
        return self.all_bounds([(topic, lane)], limit_s)[topic, lane]

    def all_bounds(self, places: Sequence[Place], limit_s: float | None = None) -> dict[Place, Bounds]:
        lows = self._offsets(places, OFFSET_BEGINNING, limit_s)  # first: what retention deletes in between is no harm
        highs = self._offsets(places, OFFSET_END, limit_s)
        return {place: Bounds(lows[place], highs[place]) for place in places}

    def offsets_at_time(self, places: Sequence[Place], time_ms: int) -> dict[Place, int]:
        time_ms = max(time_ms, 0)  # negative numbers have meanings of their own
        found = self._offsets(places, time_ms)
        late = [place for place in places if found[place] < 0]
        if late:
            # The broker says "after everything": that is the end which the lane had before the broker was asked.
            bounds = self.all_bounds(late)
            found |= self._offsets(late, time_ms)
            late = [place for place in late if found[place] < 0]
            # It says so too where the time lies before what is left, until it has removed the deleted segments.
            for place in late:
                low, high = bounds[place]
                try:
                    found[place] = low if self.record_at(place, low).timestamp_ms >= time_ms else high
                except GoneError:
                    found[place] = high
        return found

    def record_at(self, place: Place, offset: int) -> LogRecord:
        wanted = offset
        until = time.monotonic() + self._stall_s
        with self._lock:
            self.require(place)
            while True:
                message = self._fetch(place, wanted, until)
                error = message.error()
                if error is None:
                    return _record(*place, message)
                bounds = self.bounds(*place)
                if wanted < bounds.low < bounds.high:  # deleted, or deleted just now
                    wanted = bounds.low
                elif error.code() in GONE or error.code() == KafkaError._PARTITION_EOF:
                    # Beyond the end; or nothing is left there but markers of transactions, which the client has passed.
                    passed = error.code() == KafkaError._PARTITION_EOF and (message.offset() or 0) >= bounds.high
                    if passed or wanted >= bounds.high or bounds.low == bounds.high or time.monotonic() >= until:
                        raise no_offset(*place, offset, bounds)
                    # Else the broker has just come back, and does not serve all that it has.
                elif error.code() in BROKEN:
                    raise not_unpacked(error, *place, wanted)
                elif error.code() not in NO_LANE or time.monotonic() >= until:  # else the client learns of it in time
                    doing, right = f"cannot read {place[0]}, lane {place[1]}", Right("Read", "topic", place[0])
                    raise request_failed(error, doing, self._reports.address, right)

    def _fetch(self, place: Place, offset: int, until: float) -> Message:
        """Return what the client gives for an offset, a record or an error.

        Raises RecordError where it stays silent, StreamNotFoundError and BrokerError where that is their fault.
        """
        self._consumer.assign([TopicPartition(*place, offset)])
        try:
            while True:
                message = self._consumer.poll(PROBE_LIMIT_S)
                error = None if message is None else message.error()
                if message is not None and (error is None or error.code() not in UNHEEDED):
                    return message
                self._reports.check()
                if message is None:
                    self._explain(place, offset, until)
        finally:
            self._consumer.unassign()

    def _explain(self, place: Place, offset: int, until: float) -> None:
        """Raise the reason why nothing comes from a lane, where there is one by now."""
        over = time.monotonic() >= until
        try:
            bounds = self.bounds(*place, PROBE_LIMIT_S)
        except BrokerError:
            if over:
                raise
        else:
            if over:
                raise _stuck(*place, offset, bounds.high, self._stall_s)

    def _offsets(self, places: Sequence[Place], time_ms: int, limit_s: float | None = None) -> dict[Place, int]:
        """Return the broker's answer for a time, or for the first or the next offset, of each lane."""
        if not places:
            return {}
        asked = [TopicPartition(topic, lane, time_ms) for topic, lane in places]

        def question(timeout_s: float) -> list[TopicPartition]:
            found = self._consumer.offsets_for_times(asked, timeout=timeout_s)
            for place in found:
                if place.error is not None:
                    raise KafkaException(place.error)
            return found

        found = {(answer.topic, answer.partition): answer.offset for answer in self._ask(places, question, limit_s)}
        self._known.update(places)
        return found

    def _ask(self, places: Sequence[Place], question: Callable[[float], T], limit_s: float | None = None) -> T:
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
                for topic, lane in places:
                    if not self._is_there(topic, lane, timeout_s):
                        raise no_lane(topic, lane) from error
                raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE)) from error

        with self._lock:
            try:
                answer = ask(self._consumer, self._reports, limit_s, checked)
            except BrokerError:
                self._unanswered_since = self._unanswered_since or time.monotonic()
                raise
            except KafkaException as error:
                topic, lane = places[0]
                # Describe would do for this question, but Read, which brings it, is what the next one takes.
                right = Right("Read", "topic", topic)
                doing = f"cannot look into {topic}, lane {lane}"
                raise request_failed(error, doing, self._reports.address, right) from error
            self._unanswered_since = None
            return answer

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

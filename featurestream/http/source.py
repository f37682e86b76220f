"""Find and read records through a gateway."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from featurestream.absent import no_lane
from featurestream.errors import BrokerError, FeatureStreamError, InternalError, RecordError, UsageError
from featurestream.http.client import Client, Gateway, NoAnswerError
from featurestream.http.records import unpack_records
from featurestream.names import STREAM_NAME, TAP_NAME, tap_topic
from featurestream.ports import Bounds, LogRecord, Place

T = TypeVar("T")

STALL_S: Final = 60.0
FIRST_S: Final = 10.0  # how long a gateway that has never answered is asked
WAIT_S: Final = 15.0  # how long the gateway waits at the end of a lane before it answers with nothing
PAUSES_S: Final = (0.1, 0.25, 0.5, 1.0)  # between two tries; the last one again and again


class HttpSource:
    """A :class:`~featurestream.ports.RecordSource` on a gateway. Close it.

    A look-up whose question is not answered asks again for as long as ``stall_s`` seconds, 10 where the gateway has
    never answered; look-ups may come from any thread. Each reader has a connection and a thread of its own and reads at
    most ``queue_kbytes`` ahead.
    """

    def __init__(self, gateway: Gateway, *, queue_kbytes: int, stall_s: float = STALL_S) -> None:
        self._gateway = gateway
        self._queue_bytes = queue_kbytes * 1024
        self._stall_s = stall_s
        self._client = Client(gateway)
        self._lock = threading.Lock()
        self._contact = False
        self._closed = False
        self._known: set[Place] = set()  # lanes of which the gateway has spoken

    def topics(self) -> dict[str, int]:
        """Return the topics of all streams, with their numbers of lanes."""
        found = self._ask(lambda: self._client.get_json(["lanes"], {}))
        return {str(name): int(lanes) for name, lanes in found["topics"].items()}

    def bounds(self, topic: str, lane: int) -> Bounds:
        """Return the offsets that a lane holds now; see :class:`~featurestream.ports.RecordSource`."""
        return self.all_bounds([(topic, lane)])[topic, lane]

    def all_bounds(self, places: Sequence[Place]) -> dict[Place, Bounds]:
        """Return the bounds of many lanes, with one request a stream."""
        return {place: Bounds(found["low"], found["high"]) for place, found in self._lanes(places).items()}

    def offsets_at_time(self, places: Sequence[Place], time_ms: int) -> dict[Place, int]:
        """Return, for each lane, the first offset whose record was appended at or after a time."""
        return {place: int(found["offset"]) for place, found in self._lanes(places, ms=max(time_ms, 0)).items()}

    def record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        """Return the record at an offset, or the first one after it."""
        path = _path(topic, lane)
        body = self._ask(lambda: self._client.get([*path, "record"], {"offset": offset}))
        records = unpack_records(topic, lane, body)
        if len(records) != 1:
            raise RecordError(f"the gateway answered with {len(records)} records of {topic}, lane {lane}, expected one")
        return records[0]

    def read(self, topic: str, lane: int, offset: int) -> HttpLaneReader:
        """Return a reader whose first record is the one at ``offset``.

        Raises StreamNotFoundError at once where there is no such topic or lane.
        """
        if (topic, lane) not in self._known:
            self.bounds(topic, lane)
        return HttpLaneReader(
            topic, lane, offset, client=Client(self._gateway), queue_bytes=self._queue_bytes, stall_s=self._stall_s
        )

    def close(self) -> None:
        """Release the connection used for look-ups; idempotent."""
        with self._lock:
            self._closed = True
            self._client.close()

    def _lanes(self, places: Sequence[Place], **query: int) -> dict[Place, dict[str, int]]:
        """Return what the gateway tells of lanes."""
        told: dict[Place, dict[str, int]] = {}
        for stream, taps in _taps_of(places).items():
            found = self._ask(
                functools.partial(self._client.get_json, ["streams", stream, "lanes"], {"taps": taps, **query})
            )
            told |= {(tap_topic(stream, one["tap"]), one["lane"]): one for one in found["lanes"]}
        for place in places:
            if place not in told:
                raise no_lane(*place)
        self._known.update(places)
        return {place: told[place] for place in places}

    def _ask(self, question: Callable[[], T]) -> T:
        with self._lock:
            if self._closed:
                raise UsageError("this source is closed", hint="open a new one")
            began = time.monotonic()
            tries = 0
            while True:
                try:
                    found = question()
                except NoAnswerError as error:
                    self._contact |= error.contact
                    waited_s = time.monotonic() - began
                    if waited_s >= (self._stall_s if self._contact else min(FIRST_S, self._stall_s)):
                        raise _given_up(error, waited_s) from error
                    time.sleep(_pause_s(tries))
                    tries += 1
                else:
                    self._contact = True
                    return found


class HttpLaneReader:
    """A :class:`~featurestream.ports.LaneReader` on a gateway: one lane, one connection, one thread that reads ahead.

    Where the connection is lost it goes on with the next offset, as soon as the gateway is back; :meth:`poll` gives up
    after ``stall_s`` seconds of waiting without contact.
    """

    def __init__(self, topic: str, lane: int, offset: int, *, client: Client, queue_bytes: int, stall_s: float) -> None:
        self._topic = topic
        self._lane = lane
        self._client = client
        self._room = max(queue_bytes // 2, 1)  # asked for at once; as much may be held when the next is asked for
        self._stall_s = stall_s
        self._changed = threading.Condition()
        self._records: deque[LogRecord] = deque()
        self._held = 0  # bytes of the values in _records
        self._failure: FeatureStreamError | None = None
        self._trouble: NoAnswerError | None = None  # what the last try met; None: the gateway answers
        self._silent_s = 0.0  # spent in poll since the gateway's last answer
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, args=(offset,), name=f"reader of {topic}, lane {lane}", daemon=True
        )
        self._thread.start()

    def poll(self, timeout_s: float) -> LogRecord | None:
        """Return the next record, or None when none came in time; see :class:`~featurestream.ports.LaneReader`.

        An error is final: it is raised by every later call.
        """
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._records or self._failure, timeout_s)
            if self._closed:
                raise UsageError("this reader is closed", hint="get a new one with read()")
            if self._records:
                record = self._records.popleft()
                self._held -= len(record.value or b"")
                self._silent_s = 0.0
                self._changed.notify_all()
                return record
            if self._failure is not None:
                raise self._failure
            if self._trouble is None:
                self._silent_s = 0.0
                return None
            self._silent_s += time.monotonic() - began
            if self._silent_s >= self._stall_s:
                self._failure = _given_up(self._trouble, self._silent_s)
                raise self._failure
            return None

    def close(self) -> None:
        """Release the connection; idempotent."""
        with self._changed:
            self._closed = True
            self._records.clear()
            self._changed.notify_all()
        self._client.abort()
        self._thread.join(1.0)  # where it is connecting just now it ends a little later

    def _run(self, offset: int) -> None:
        try:
            tries = 0
            while self._wait_for_room():
                try:
                    records = self._fetch(offset)
                except NoAnswerError as error:
                    self._missed(error, _pause_s(tries))
                    tries += 1
                    continue
                tries = 0
                if records:
                    offset = records[-1].offset + 1
                self._take(records)
        except FeatureStreamError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - whoever polls would wait for ever
            self._fail(InternalError(f"reading ahead of {self._topic}, lane {self._lane} failed: {error!r}"))
        finally:
            self._client.close()

    def _fetch(self, offset: int) -> list[LogRecord]:
        path = [*_path(self._topic, self._lane), "records"]
        body = self._client.get(path, {"offset": offset, "bytes": self._room}, wait_s=WAIT_S)
        records = unpack_records(self._topic, self._lane, body)
        before = offset - 1
        for record in records:
            if record.offset <= before:
                raise RecordError(
                    f"the gateway answered with offset {record.offset} after {before}, of {self._topic}, "
                    f"lane {self._lane}",
                    hint="something between here and the gateway keeps answers",
                )
            before = record.offset
        return records

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._held <= self._room)
            return not self._closed and self._failure is None

    def _take(self, records: list[LogRecord]) -> None:
        with self._changed:
            self._trouble = None
            if not self._closed:
                self._records.extend(records)
                self._held += sum(len(record.value or b"") for record in records)
            self._changed.notify_all()

    def _fail(self, error: FeatureStreamError) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _missed(self, error: NoAnswerError, pause_s: float) -> None:
        with self._changed:
            self._trouble = error
            self._changed.wait_for(lambda: self._closed or self._failure, pause_s)


def _path(topic: str, lane: int) -> tuple[str, ...]:
    stream, tap = _split(topic, lane)
    return ("streams", stream, "lanes", tap, str(lane))


def _taps_of(places: Sequence[Place]) -> dict[str, str]:
    """Return the taps of each stream, separated by commas."""
    taps: dict[str, list[str]] = {}
    for place in places:
        stream, tap = _split(*place)
        named = taps.setdefault(stream, [])
        if tap not in named:
            named.append(tap)
    return {stream: ",".join(named) for stream, named in taps.items()}


def _split(topic: str, lane: int) -> tuple[str, str]:
    """Return stream and tap of a topic; a gateway has no topics of other names."""
    stream, _, tap = topic.partition(".")
    if not (STREAM_NAME.fullmatch(stream) and TAP_NAME.fullmatch(tap) and lane >= 0):
        raise no_lane(topic, lane)
    return stream, tap


def _given_up(error: NoAnswerError, waited_s: float) -> BrokerError:
    facts: dict[str, Any] = {key: error.facts[key] for key in error.facts}
    return BrokerError(f"{error.message}, for {waited_s:.0f} s", hint=error.hint, **facts)


def _pause_s(tries: int) -> float:
    return PAUSES_S[min(tries, len(PAUSES_S) - 1)]

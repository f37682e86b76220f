"""Append records to Kafka."""

from __future__ import annotations

import contextlib
import time
from typing import Final, NoReturn

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from numpy.typing import NDArray

from featurestream.closing import Closing
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError, FeatureStreamError, UsageError
from featurestream.kafka.client import CONNECT_S, Home, ask, open_client
from featurestream.kafka.config import SINK_QUEUE_KBYTES, check_properties, producer_settings
from featurestream.kafka.errors import TOO_LARGE, cause_of, code_of, request_failed, write_failed
from featurestream.kafka.rights import Right
from featurestream.ports import Headers

DELIVERY_S: Final = 120.0  # longer than any restart of a broker or election of a leader
LOOK_S: Final = 0.1  # how long a wait lasts before Ctrl-C, a failure or the clock is looked at
REPORT_S: Final = 2.0  # how long a client that has ended itself may take to report the record that did it


class KafkaSink(Closing):
    """A :class:`~featurestream.ports.RecordSink` on Kafka; a context manager that gives up what is not flushed.

    At most ``queue_kbytes`` wait for the broker: then :meth:`append` blocks. When the broker acknowledges nothing for
    ``delivery_s`` seconds while somebody waits for it, the sink fails. One thread at a time may use it.

    Raises BrokerError where the cluster does not answer, UsageError for properties that it cannot have.

    Attributes:
        records: records appended so far.
        bytes: bytes of their values.
        blocked_s: seconds that append has waited for room in the queue.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        client_id: str = "featurestream",
        queue_kbytes: int = SINK_QUEUE_KBYTES,
        delivery_s: float = DELIVERY_S,
    ) -> None:
        check_properties(cluster)
        self.records = 0
        self.bytes = 0
        self.blocked_s = 0.0
        self._address = cluster.bootstrap_servers
        self._delivery_s = delivery_s
        self._home = Home()
        self._failure: FeatureStreamError | None = None
        self._closed = False
        self._topic = ""  # of the last record
        settings = producer_settings(cluster, client_id, queue_kbytes)
        self._producer, self._reports = open_client(Producer, settings, on_delivery=self._on_delivery)
        try:
            # A broker that is not there is told now, not when the queue is full.
            ask(self._producer, self._reports, CONNECT_S, self._producer.cluster_id)
        except KafkaException as error:
            raise request_failed(error, "cannot write", self._address) from error

    def append(
        self, topic: str, lane: int, *, key: bytes, value: NDArray[np.uint8] | bytes | None, headers: Headers = ()
    ) -> None:
        """Append one record; see :class:`~featurestream.ports.RecordSink`. The array must be C-contiguous."""
        self._check()
        if isinstance(value, np.ndarray) and not value.flags.c_contiguous:
            raise UsageError("a record's value must be a C-contiguous array", hint="np.ascontiguousarray makes one")
        self._topic = topic
        size = 0 if value is None else len(value) if isinstance(value, bytes) else value.nbytes
        try:
            if not self._produce(topic, lane, key, value, headers):
                began = time.monotonic()
                progress = _Progress(self._producer)
                while not self._produce(topic, lane, key, value, headers):
                    self._producer.poll(LOOK_S)
                    self._check()
                    self._give_up_without(progress)
                self.blocked_s += time.monotonic() - began
        except KafkaException as error:
            self._fail_append(error, topic, lane, size)
        self.records += 1
        self.bytes += size
        self._producer.poll(0)  # runs the callbacks

    @property
    def queued(self) -> int:
        """How many of the records appended so far are not known to be durable."""
        return 0 if self._closed else len(self._producer)

    def flush(self) -> None:
        """Return when every record appended so far is durable; raise BrokerError if one is not."""
        self._check()
        progress = _Progress(self._producer)
        while True:
            try:
                left = self._producer.flush(LOOK_S)
            except KafkaException as error:  # the client has ended itself
                self._fail(error)
            self._check()
            if left == 0:
                self._reports.answered()
                return
            self._give_up_without(progress)

    def close(self) -> None:
        """Give up what is still queued and release the connection; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._home.check()
        self._reports.mute()
        # Without purging, close() would wait for ever for a broker that is gone.
        self._producer.purge()
        with contextlib.suppress(KafkaException):  # what was purged will not be in the log: that is what was asked for
            self._producer.close()

    def _check(self) -> None:
        self._home.check()
        if self._closed:
            raise UsageError("this sink is closed", hint="open a new one")
        if self._failure is not None:
            raise self._failure
        try:
            self._reports.check()
        except BrokerError as error:
            self._failure = error
            raise

    def _produce(
        self, topic: str, lane: int, key: bytes, value: NDArray[np.uint8] | bytes | None, headers: Headers
    ) -> bool:
        """Hand a record to the client; return whether there was room for it."""
        try:
            self._producer.produce(
                topic,
                value=value,  # type: ignore[arg-type]  # any contiguous buffer will do, and bytes would cost a copy
                key=key,
                partition=lane,
                headers=list(headers) or None,
            )
        except BufferError:
            return False
        return True

    def _give_up_without(self, progress: _Progress) -> None:
        silent_s = progress.silent_s()
        if silent_s > self._delivery_s:
            self._failure = self._reports.unreachable(silent_s)
            raise self._failure

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        # Only failures come here. The records that the client drops after one, or that close() purges, are no news.
        if error is None or error.code() in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            return
        if self._failure is None:
            self._failure = write_failed(error, message.topic() or "", message.partition() or 0)

    def _fail_append(self, error: KafkaException, topic: str, lane: int, size: int) -> NoReturn:
        if code_of(error) in TOO_LARGE:
            self._failure = BrokerError(
                f"a record of {size} bytes for {topic}, lane {lane} is larger than the Kafka client sends",
                hint="publish fewer rows a batch, or raise message.max.bytes here and max.message.bytes of the topic",
                topic=topic,
                lane=lane,
                code="MSG_SIZE_TOO_LARGE",
            )
            raise self._failure from error
        self._fail(error, topic, lane)

    def _fail(self, error: KafkaException, topic: str | None = None, lane: int = 0) -> NoReturn:
        cause = cause_of(error)
        if cause.fatal() or cause.code() == KafkaError._FATAL:
            # The client has ended itself over a record. That record's own report is on its way, and says more.
            topic = None
            until = time.monotonic() + REPORT_S
            while self._failure is None and time.monotonic() < until:
                self._producer.poll(LOOK_S)
        if self._failure is None and topic is not None:
            self._failure = write_failed(cause, topic, lane)
        elif self._failure is None:
            # A login that may write nowhere is refused as a whole, before its first record.
            right = Right("Write", "topic", self._topic)
            self._failure = request_failed(cause, f"cannot write to {self._topic}", self._address, right)
        raise self._failure from error


class _Progress:
    """How long a producer's queue has not become shorter while somebody waits for it, and appends nothing."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._least = len(producer)
        self._moved_at = time.monotonic()

    def silent_s(self) -> float:
        """Return the seconds since the queue was last seen to become shorter."""
        # Shorter, not other: reports of a lost connection wait in the same queue.
        left, now = len(self._producer), time.monotonic()
        if left < self._least:
            self._least, self._moved_at = left, now
        return now - self._moved_at

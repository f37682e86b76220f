"""A client of the Kafka library, with what it reports aside: through its error callback and its log lines.

A client can be lost. A broker that was stopped for longer than its session knows of no broker until it has told the
controller that it is back; a client that hears so forgets all that it knows, and in one case of ten (measured) has
none left to ask again: librdkafka's issue 5301, open, seen in 2.13 and 2.16. A reader then takes another (source.py);
whoever else waits for it gives up in time, and the next question is asked by a new client.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from featurestream.errors import BrokerError, UsageError
from featurestream.kafka.errors import (
    PASSING,
    REFUSED,
    bad_settings,
    code_of,
    other_protocol,
    reason_of,
    refused,
    unreachable,
)
from featurestream.kafka.handshake import spoken_protocol

T = TypeVar("T")
Client = TypeVar("Client", Producer, Consumer, AdminClient)

CONNECT_S: Final = 10.0  # how long a cluster may take to give its first answer
# Questions are asked in slices, so that a refused login is noticed at once; growing ones, for a cluster that is slow.
FIRST_LOOK_S: Final = 0.5
LONGEST_LOOK_S: Final = 4.0
PAUSE_S: Final = 0.05  # some refusals come without any wait: then not more than this many questions a second

_log = logging.getLogger("featurestream.kafka")
# Without a handler Python would print warnings to stderr, across the user's progress bar.
_log.addHandler(logging.NullHandler())


class Reports:
    """What one client has reported aside. Its callbacks run inside the client's poll, on the caller's thread.

    Attributes:
        address: the cluster's address, for messages.
        contact: whether the cluster has ever answered.
        reason: the last report of a lost or refused connection since then, in the client's words; or why the cluster
            does not do what it is asked, in a broker's.
        doubt: whether anything was reported since somebody last looked.
    """

    def __init__(self, address: str, protocol: str = "PLAINTEXT") -> None:
        self.address = address
        self.contact = False
        self.reason: str | None = None
        self.doubt = False
        self._protocol = protocol.upper()
        self._refusal: BrokerError | None = None
        self._hung_up = False
        self._last_line = ""
        self._muted = False

    def check(self) -> None:
        """Raise BrokerError where a login, a certificate or the protocol was refused: waiting does not help."""
        if self._hung_up and not self.contact:
            self._hung_up = False  # asked again when it happens again
            spoken = spoken_protocol(self.address)
            if spoken is not None and spoken != self._protocol:
                self._refusal = other_protocol(self.address, self._protocol, spoken)
        if self._refusal is not None:
            raise self._refusal

    def answered(self) -> None:
        """Take note that the cluster has answered."""
        self.contact = True
        self.doubt = False
        self.reason = None

    def mute(self) -> None:
        """Leave out the log lines of a client that is being closed with records in its queue."""
        self._muted = True

    def unreachable(self, waited_s: float) -> BrokerError:
        """Return the error for a cluster that has not answered for so long."""
        return unreachable(self.address, self.reason, waited_s)

    def on_error(self, error: KafkaError) -> None:
        """Take the client's error callback."""
        self.doubt = True
        # "All brokers are down" only counts; the reason was in the report before it.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.reason = reason_of(error.str())
        if "PLAINTEXT broker listener" in error.str():
            self._hung_up = True  # or the broker is just starting or stopping
        elif error.code() in REFUSED:
            self._refusal = refused(self.address, self.reason or error.name())
            # What a listener without logins says to who wants to log in.
            self._hung_up = "Request not valid in current SASL state" in error.str()

    def log(self, level: int, _form: str, facility: str, _client: str, text: str) -> None:
        """Take one of the client's log lines: it thinks that this is a logger."""
        reason = reason_of(text)
        if facility == "FAIL":
            self.reason = reason
            # A plain client at a TLS or SASL port, or any client at another program's port, is cut off before the first
            # answer: only the log line tells. It may also be a broker that is starting, so we go on trying.
            if not self.contact and (reason.startswith("Disconnected") or text.endswith("APIVERSION_QUERY)")):
                self.reason += "; does the broker expect another security.protocol?"
                self._hung_up = True
        if self._muted or (facility == "CONFWARN" and "enable.gapless.guarantee" in text):
            return  # it is called experimental; config.py says why it is set
        if reason != self._last_line:  # a lost connection is tried, and reported, twenty times a second
            self._last_line = reason
            _log.log(level, "%s %s: %s", facility, self.address, reason)


def open_client(kind: type[Client], settings: dict[str, Any], **callbacks: Any) -> tuple[Client, Reports]:
    """Return a new client and its reports. Raises UsageError for settings that the client library refuses."""
    reports = Reports(settings["bootstrap.servers"], settings.get("security.protocol", "PLAINTEXT"))
    try:
        whole: dict[str, Any] = {**settings, **callbacks, "error_cb": reports.on_error}
        client = kind(whole, logger=reports)
    except (KafkaException, TypeError, ValueError) as error:
        raise bad_settings(error) from error
    return client, reports


def replace_consumer(consumer: Consumer, reports: Reports, settings: dict[str, Any]) -> tuple[Consumer, Reports]:
    """Close a consumer that may be lost; return another of the same cluster, and its reports."""
    reports.mute()
    consumer.close()
    other, news = open_client(type(consumer), settings)
    news.contact = reports.contact
    return other, news


def ask(
    client: Producer | Consumer | AdminClient, reports: Reports, limit_s: float, question: Callable[[float], T]
) -> T:
    """Return the answer to ``question``, asked with growing time-outs until the cluster gives one.

    ``question`` takes its time-out in seconds. Raises BrokerError when there was no answer within ``limit_s``, and at
    once for a refused login; whatever else the cluster answers passes as the KafkaException that it is.
    """
    began = time.monotonic()
    look_s = FIRST_LOOK_S
    while True:
        try:
            answer = question(max(min(look_s, began + limit_s - time.monotonic()), 0.01))
        except KafkaException as error:
            client.poll(0)  # runs the callbacks
            reports.check()
            if code_of(error) not in PASSING:
                raise
            if code_of(error) > 0:  # a broker's own word, not the client's
                reports.reason = error.args[0].str()
            waited_s = time.monotonic() - began
            if waited_s >= limit_s:
                raise reports.unreachable(waited_s) from error
            look_s = min(2 * look_s, LONGEST_LOOK_S)
            client.poll(PAUSE_S)
        else:
            reports.answered()
            return answer


class Home:
    """The process that a client lives in: a client that was made before a fork does nothing in the child."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def check(self) -> None:
        """Raise UsageError in any other process."""
        if os.getpid() != self._process:
            raise UsageError(
                f"a Kafka client of process {self._process} is used in process {os.getpid()}, where it does nothing",
                hint='open it in the process that uses it, or start that process with the method "spawn"',
            )

"""The Kafka client's errors as ours: which end a client, which pass, and what to do about each."""

from __future__ import annotations

import re
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from featurestream.errors import BrokerError, FeatureStreamError, RecordError, UsageError
from featurestream.kafka.rights import Right

#: Reported aside, through the error callback; trying again does not help.
REFUSED: Final = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})

#: They pass: no contact for the moment, or a cluster that is electing, moving or starting.
PASSING: Final = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._TRANSPORT,
        KafkaError._WAIT_COORD,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_CONTROLLER,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.THROTTLING_QUOTA_EXCEEDED,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)

#: No such topic or lane; also what a client answers that has lost contact, so the source asks again.
NO_LANE: Final = frozenset(
    {
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)

#: The offset asked for is not in the log.
GONE: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION, KafkaError.OFFSET_OUT_OF_RANGE})

#: A batch that the client cannot take apart: damaged, or it would become larger than receive.message.max.bytes.
BROKEN: Final = frozenset({KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG})

FORBIDDEN: Final = frozenset(
    {
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
    }
)

TOO_LARGE: Final = frozenset(
    {KafkaError.INVALID_MSG_SIZE, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}
)

#: A topic that cannot be created as it was asked for: the caller's mistake.
BAD_TOPIC: Final = frozenset(
    {
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.INVALID_REQUEST,
        KafkaError.TOPIC_EXCEPTION,
    }
)

# What the client puts around a reason: "ssl://127.0.0.1:9092/bootstrap: REASON (after 3ms in state CONNECT)".
_AROUND: Final = re.compile(r"^(?:\[thrd:[^\]]*\]: )?(?:\S+/(?:bootstrap|\d+): )?|(?: \(after \d+ms in state \w+\))?$")


def cause_of(error: KafkaException) -> KafkaError:
    """Return the Kafka error inside an exception of the client library."""
    first = error.args[0] if error.args else None
    return first if isinstance(first, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def code_of(error: KafkaException) -> int:
    """Return the code of an exception of the client library."""
    return cause_of(error).code()


def reason_of(text: str) -> str:
    """Return the client's own words without the thread, the connection and the milliseconds around them."""
    return _AROUND.sub("", text)


def unreachable(address: str, reason: str | None, waited_s: float) -> BrokerError:
    """Return the error for a cluster that does not answer; ``reason`` is the client's last report."""
    return BrokerError(
        f"no answer from Kafka at {address} for {waited_s:.0f} s" + (f": {reason}" if reason else ""),
        hint="is the broker running, and is this its address? see featurectl doctor",
        bootstrap_servers=address,
        reason=reason,
    )


def refused(address: str, reason: str) -> BrokerError:
    """Return the error for a login, a certificate or a protocol that does not fit."""
    return BrokerError(
        f"Kafka at {address} cannot be talked to: {reason}",
        hint="check security.protocol, sasl.* and ssl.* in the properties file given with --kafka-config",
        bootstrap_servers=address,
        reason=reason,
    )


def other_protocol(address: str, ours: str, theirs: str) -> BrokerError:
    """Return the error for a client that was hung up on, as the broker's port speaks another protocol."""
    missing = "" if "SASL" in ours or "SASL" not in theirs else ", with sasl.mechanism, sasl.username and sasl.password"
    return BrokerError(
        f"Kafka at {address} expects security.protocol={theirs}, and this client came with {ours}",
        hint=f"put security.protocol={theirs}{missing} into the properties file given with --kafka-config",
        bootstrap_servers=address,
        reason=f"security.protocol is {ours}",
    )


def bad_settings(error: Exception) -> UsageError:
    """Return the error for settings that the client library refuses."""
    reason = cause_of(error).str() if isinstance(error, KafkaException) else str(error)
    return UsageError(
        f"the Kafka client refuses its settings: {reason}",
        hint="they are librdkafka's, not those of the Java client",
    )


def write_failed(error: KafkaError, topic: str, lane: int) -> BrokerError:
    """Return the error for a record that could not be written."""
    code = error.code()
    if code in TOO_LARGE:
        what = "the record is larger than the topic or the broker allows"
        hint = "publish fewer rows a batch, or raise the topic's max.message.bytes"
    elif code in FORBIDDEN:
        right = Right("Write", "topic", topic)
        what, hint = f"this login lacks the right {right}", right.advice
    elif code in NO_LANE:
        what = "there is no such topic or lane"
        hint = "was the stream deleted while it was being written?"
    elif code in (KafkaError.KAFKA_STORAGE_ERROR, KafkaError.LOG_DIR_NOT_FOUND):
        what = "the broker cannot write to its disk"
        hint = "is it full? free some space or shorten the retention, then start the broker again"
    else:
        what = reason_of(error.str())
        hint = "see the broker's log: featurectl broker logs"
    return BrokerError(
        f"a record for {topic}, lane {lane} was not written: {what} ({error.name()})",
        hint=hint,
        topic=topic,
        lane=lane,
        code=error.name(),
    )


def not_unpacked(error: KafkaError, topic: str, lane: int, offset: int) -> RecordError:
    """Return the error for a batch that the client cannot take apart."""
    return RecordError(
        f"the client cannot unpack a batch: {reason_of(error.str())} ({error.name()})",
        hint="another program may have written to this topic; our producers compress nothing",
    ).at(topic, lane, offset)


def request_failed(
    failed: KafkaError | KafkaException, doing: str, address: str, right: Right | None = None
) -> FeatureStreamError:
    """Return the error for a question or an order that the cluster has refused.

    ``doing`` is what was tried, ``right`` what a login needs for it, where that is one right.
    """
    error = cause_of(failed) if isinstance(failed, KafkaException) else failed
    code = error.code()
    if code in BAD_TOPIC:
        return UsageError(f"{doing}: {reason_of(error.str())}", code=error.name())
    if code in FORBIDDEN and right is not None:
        what = f"{doing}: this login lacks the right {right} ({error.name()})"
        return BrokerError(what, hint=right.advice, code=error.name(), right=str(right))
    if code in FORBIDDEN:
        hint = "it lacks an ACL; what each program needs: docs/security.md"
        return BrokerError(f"{doing}: this login may not ({error.name()})", hint=hint, code=error.name())
    return BrokerError(
        f"{doing}: Kafka at {address} refuses: {reason_of(error.str())} ({error.name()})",
        hint="see the broker's log: featurectl broker logs",
        code=error.name(),
    )

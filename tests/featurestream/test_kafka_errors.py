"""featurestream.kafka.errors: the client's codes as errors with a next step."""

from __future__ import annotations

import pickle

import pytest
from confluent_kafka import KafkaError, KafkaException

from featurestream.errors import BrokerError, UsageError
from featurestream.kafka.errors import (
    PASSING,
    bad_settings,
    cause_of,
    code_of,
    reason_of,
    request_failed,
    unreachable,
    write_failed,
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[thrd:127.0.0.1:9/bootstrap]: 127.0.0.1:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: "
            "Connection refused (after 0ms in state CONNECT)",
            "Connect to ipv4#127.0.0.1:9 failed: Connection refused",
        ),
        ("ssl://[::1]:9093/1: SSL handshake failed (after 12ms in state SSL_HANDSHAKE)", "SSL handshake failed"),
        (
            "t [0]: topic does not exist (Broker: Unknown topic or partition)",
            "t [0]: topic does not exist (Broker: Unknown topic or partition)",
        ),
        ("1/1 brokers are down", "1/1 brokers are down"),
        ("", ""),
    ],
)
def test_a_reason_is_what_is_left_without_thread_connection_and_time(text, reason):
    assert reason_of(text) == reason


@pytest.mark.parametrize(
    ("code", "what", "hint"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, "larger than the topic or the broker allows", "fewer rows"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "lacks the right Write on the topic s.layer2", "--operation Write"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, "no such topic or lane", "deleted"),
        (KafkaError.KAFKA_STORAGE_ERROR, "cannot write to its disk", "full"),
        (KafkaError.INVALID_RECORD, "INVALID_RECORD", "featurectl broker logs"),
    ],
)
def test_a_record_that_was_not_written_is_named_with_a_next_step(code, what, hint):
    error = write_failed(KafkaError(code), "s.layer2", 3)
    assert isinstance(error, BrokerError)
    assert "a record for s.layer2, lane 3 was not written" in error.message
    assert what in error.message
    assert hint in error.hint
    assert (error.topic, error.lane, error.code) == ("s.layer2", 3, KafkaError(code).name())


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (KafkaError.INVALID_CONFIG, UsageError, "cannot do this: Unknown topic config name: foo"),
        (KafkaError.TOPIC_EXCEPTION, UsageError, "cannot do this"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, BrokerError, "this login may not .TOPIC_AUTHORIZATION_FAILED.; .*ACL"),
        (KafkaError.POLICY_VIOLATION, BrokerError, "Kafka at h:1 refuses: Unknown topic config name: foo"),
    ],
)
def test_a_refusal_tells_what_was_tried(code, kind, said):
    cause = KafkaError(code, "Unknown topic config name: foo")
    for failed in (cause, KafkaException(cause)):
        error = request_failed(failed, "cannot do this", "h:1")
        assert type(error) is kind
        with pytest.raises(kind, match=said):
            raise error


def test_a_cluster_that_does_not_answer_is_named_with_the_last_reason():
    assert str(unreachable("h:1", "Connection refused", 10.2)).startswith(
        "no answer from Kafka at h:1 for 10 s: Connection refused; is the broker running"
    )
    assert "for 10 s; is" in str(unreachable("h:1", None, 10.2))


def test_exceptions_without_a_kafka_error_have_a_cause_all_the_same():
    assert code_of(KafkaException("odd")) == KafkaError._FAIL
    assert "odd" in cause_of(KafkaException("odd")).str()
    assert "odd" in str(bad_settings(TypeError("odd")))


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(write_failed(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), "t", 1)))
    assert (error.topic, error.lane, error.code) == ("t", 1, "MSG_SIZE_TOO_LARGE")


def test_what_passes_and_what_ends_are_apart():
    assert KafkaError._TRANSPORT in PASSING
    assert not PASSING & {KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError._AUTO_OFFSET_RESET}

"""featurestream.kafka.config: what every client is told, and what no user's property may change."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from featurestream.cluster import Cluster
from featurestream.errors import UsageError
from featurestream.kafka import KafkaLog, KafkaSink, KafkaSource
from featurestream.kafka.client import open_client
from featurestream.kafka.config import (
    admin_settings,
    check_properties,
    finder_settings,
    producer_settings,
    reader_settings,
)

NOWHERE = "127.0.0.1:9"
SECURITY = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "u"}


def cluster(**properties: str) -> Cluster:
    return Cluster(NOWHERE, {key.replace("_", "."): value for key, value in properties.items()})


def all_settings(cluster: Cluster) -> list[dict]:
    return [
        admin_settings(cluster, "me"),
        producer_settings(cluster, "me", 1024),
        reader_settings(cluster, "me", 512),
        finder_settings(cluster, "me"),
    ]


def test_the_users_security_reaches_every_client():
    for settings in all_settings(Cluster(NOWHERE, SECURITY)):
        assert SECURITY.items() <= settings.items()
        assert settings["bootstrap.servers"] == NOWHERE
        assert settings["client.id"] == "me"


def test_the_queues_are_bounded_by_the_callers_numbers():
    assert producer_settings(cluster(), "me", 1024)["queue.buffering.max.kbytes"] == 1024
    assert reader_settings(cluster(), "me", 512)["queued.max.messages.kbytes"] == 512


def test_writing_is_exact():
    settings = producer_settings(cluster(), "me", 1024)
    exact = {
        "enable.idempotence": True,
        "acks": "all",
        "enable.gapless.guarantee": True,
        "message.timeout.ms": 0,
        "delivery.report.only.error": True,
    }
    assert exact.items() <= settings.items()
    assert settings["batch.size"] < 1_048_588  # the stock limit of a topic


@pytest.mark.parametrize("settings", [reader_settings(cluster(), "me", 512), finder_settings(cluster(), "me")])
def test_reading_is_exact(settings):
    exact = {
        "auto.offset.reset": "error",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "check.crcs": False,
        "isolation.level": "read_committed",
    }
    assert exact.items() <= settings.items()


def test_the_client_library_knows_every_setting_and_their_combination():
    for kind, settings in zip(
        (AdminClient, Producer, Consumer, Consumer), all_settings(cluster(client_id="mine")), strict=True
    ):
        client, reports = open_client(kind, settings)
        assert client is not None
        assert reports.address == NOWHERE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("acks", "1"),
        ("request.required.acks", "0"),
        ("enable.idempotence", "false"),
        ("enable.gapless.guarantee", "false"),
        ("message.timeout.ms", "5000"),
        ("delivery.timeout.ms", "5000"),
        ("delivery.report.only.error", "false"),
        ("auto.offset.reset", "earliest"),
        ("enable.auto.commit", "true"),
        ("auto.commit.enable", "true"),
        ("check.crcs", "true"),
        ("isolation.level", "read_uncommitted"),
        ("group.id", "mine"),
    ],
)
def test_a_property_against_exactness_is_refused_by_name_and_value(key, value):
    for make in (KafkaLog, KafkaSink, KafkaSource):
        with pytest.raises(UsageError, match=rf'"{key}" cannot be {value}') as error:
            make(Cluster(NOWHERE, {key: value}))
        assert error.value.key == key


@pytest.mark.parametrize(("key", "value"), [("acks", "all"), ("enable.idempotence", "TRUE"), ("check.crcs", "false ")])
def test_a_property_that_agrees_is_no_error(key, value):
    check_properties(Cluster(NOWHERE, {key: value}))


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("bootstrap.servers", "--bootstrap-servers"),
        ("metadata.broker.list", "--bootstrap-servers"),
        ("transactional.id", "not on transactions"),
        ("group.instance.id", "do not join groups"),
    ],
)
def test_a_property_that_cannot_be_set_says_why(key, why):
    with pytest.raises(UsageError, match=f'"{key}" cannot be set: .*{why}'):
        KafkaLog(Cluster(NOWHERE, {key: "x"}))


@pytest.mark.parametrize(
    ("key", "instead"),
    [("sasl.jaas.config", "sasl.username and sasl.password"), ("ssl.truststore.location", "ssl.ca.location")],
)
def test_a_property_of_the_java_client_is_explained(key, instead):
    with pytest.raises(UsageError, match=f'"{key}" belongs to the Java client; .*{instead}'):
        KafkaLog(Cluster(NOWHERE, {key: "x"}))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("no.such.key", "1", 'No such configuration property: "no.such.key"'),
        ("security.protocol", "SSH", 'Invalid value "SSH" for configuration property "security.protocol"'),
        ("ssl.ca.location", "/no/such/file.pem", "ssl.ca.location"),
    ],
)
def test_what_the_client_library_refuses_is_a_usage_error(key, value, said):
    properties = {"security.protocol": "SSL", key: value}
    log = KafkaLog(Cluster(NOWHERE, properties))
    for ask in (log.topics, log.sink, log.source):
        with pytest.raises(UsageError, match=said):
            ask()

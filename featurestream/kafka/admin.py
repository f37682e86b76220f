"""Questions to a cluster as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ClusterMetadata

from featurestream.kafka.client import ask, open_client
from featurestream.kafka.errors import FORBIDDEN, NO_LANE, code_of, request_failed

#: A topic that need not be there, nor be seen by the login: whatever is said of it, somebody answers.
_ANY_TOPIC: Final = "featurestream"


def describe(client: AdminClient, look_s: float) -> ClusterMetadata:
    """Return the brokers, at least one, and the topics of a cluster, asked for ``look_s`` seconds.

    Raises KafkaException, with BROKER_NOT_AVAILABLE where brokers answer of which none is ready.

    That happens: a broker that starts, or was stopped for longer than its session, knows of none, itself among them. An
    answer without brokers to describe_cluster(), which would be the question, aborts the whole process: librdkafka 2.16,
    rdkafka_admin.c:960. Measured: of three clients that ask, a broker stopped 17 times beside busy cores ended all
    three.
    """
    try:
        # Not list_topics(): as a client's first question it waits for a connection in steps of 50 ms.
        client.describe_topics(TopicCollection([_ANY_TOPIC]), request_timeout=look_s)[_ANY_TOPIC].result()
    except KafkaException as error:
        if code_of(error) not in NO_LANE | FORBIDDEN:
            raise
    found = client.list_topics(timeout=look_s)
    if not found.brokers:
        raise KafkaException(KafkaError(KafkaError.BROKER_NOT_AVAILABLE))
    return found


def ping(bootstrap_servers: str, timeout_s: float, properties: Mapping[str, str] | None = None) -> None:
    """Return as soon as a broker of the cluster answers and is ready.

    ``properties`` are the client library's own settings (security). Raises BrokerError after ``timeout_s`` seconds
    without an answer, and at once when a login or a certificate is refused, or the broker speaks another protocol;
    UsageError for a setting that the client library does not know.
    """
    client, reports = open_client(AdminClient, {**(properties or {}), "bootstrap.servers": bootstrap_servers})
    try:
        ask(client, reports, timeout_s, lambda look_s: describe(client, look_s))
    except KafkaException as error:
        raise request_failed(error, "cannot describe the cluster", bootstrap_servers) from error

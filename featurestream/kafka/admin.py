"""Questions to a cluster as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._metadata import ClusterMetadata

from featurestream.kafka.client import Reports, ask, open_client
from featurestream.kafka.errors import FORBIDDEN, NO_LANE, code_of, request_failed

#: A topic that need not be there, nor be seen by the login: whatever is said of it, somebody answers.
_ANY_TOPIC: Final = "featurestream"


def describe(client: AdminClient, reports: Reports, look_s: float) -> ClusterMetadata:
    """Return the brokers, at least one, and the topics of a cluster, asked for ``look_s`` seconds.

    Raises KafkaException, with BROKER_NOT_AVAILABLE where brokers answer of which none is ready.

    That happens: a broker that was stopped for longer than its session knows of none, until it has told the controller
    that it is back. To describe_cluster(), which would be the question, an answer without brokers is the end of the
    whole process: librdkafka 2.16 aborts (rdkafka_admin.c:960). Measured: a broker that was stopped 17 times, beside
    busy cores, ended three of three processes that asked.
    """
    if not reports.contact:  # list_topics() as a client's first question waits for a connection in steps of 50 ms
        _greet(client, look_s)
    try:
        found = client.list_topics(timeout=look_s)
    except KafkaException as error:
        if code_of(error) != KafkaError._PARTIAL:  # neither brokers nor topics
            raise
        found = None
    if found is None or not found.brokers:
        raise KafkaException(KafkaError(KafkaError.BROKER_NOT_AVAILABLE, "none of its brokers is ready"))
    return found


def _greet(client: AdminClient, look_s: float) -> None:
    try:
        client.describe_topics(TopicCollection([_ANY_TOPIC]), request_timeout=look_s)[_ANY_TOPIC].result()
    except KafkaException as error:
        if code_of(error) not in NO_LANE | FORBIDDEN:
            raise


def ping(bootstrap_servers: str, timeout_s: float, properties: Mapping[str, str] | None = None) -> None:
    """Return as soon as a broker of the cluster answers and is ready.

    ``properties`` are the client library's own settings (security). Raises BrokerError after ``timeout_s`` seconds
    without an answer, and at once when a login or a certificate is refused, or the broker speaks another protocol;
    UsageError for a setting that the client library does not know.
    """
    client, reports = open_client(AdminClient, {**(properties or {}), "bootstrap.servers": bootstrap_servers})
    try:
        ask(client, reports, timeout_s, lambda look_s: describe(client, reports, look_s))
    except KafkaException as error:
        raise request_failed(error, "cannot describe the cluster", bootstrap_servers) from error

"""Questions to a cluster as a whole."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from featurestream.kafka.client import ask, open_client
from featurestream.kafka.errors import request_failed


def ping(bootstrap_servers: str, timeout_s: float, properties: Mapping[str, str] | None = None) -> None:
    """Return as soon as the cluster has answered one request.

    ``properties`` are the client library's own settings (security). Raises BrokerError after ``timeout_s`` seconds
    without an answer, and at once when a login or a certificate is refused, or the broker speaks another protocol;
    UsageError for a setting that the client library does not know.
    """
    client, reports = open_client(AdminClient, {**(properties or {}), "bootstrap.servers": bootstrap_servers})
    try:
        # Not list_topics(): as a client's first question it waits for a connection in steps of 50 ms.
        ask(client, reports, timeout_s, lambda look_s: client.describe_cluster(request_timeout=look_s).result())
    except KafkaException as error:
        raise request_failed(error, "cannot describe the cluster", bootstrap_servers) from error

"""Questions to a cluster as a whole."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from featurestream.errors import BrokerError, UsageError

# Where the client library's own log lines go instead of to stderr. What matters of them is in our errors.
_client_log = logging.getLogger("featurestream.kafka.client")
_client_log.addHandler(logging.NullHandler())
_client_log.propagate = False

# Trying again does not help against these. They are reported aside, never as the error of a request.
FINAL = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})
LOOK_S = 0.5


def ping(bootstrap_servers: str, timeout_s: float, properties: Mapping[str, str] | None = None) -> None:
    """Return as soon as the cluster has answered one request.

    ``properties`` are the client library's own settings (security). Raises BrokerError after ``timeout_s`` seconds
    without an answer, and at once when a login or a certificate is refused; UsageError for a setting that the client
    library does not know.
    """
    reasons: list[KafkaError] = []
    settings: dict[str, Any] = {
        **(properties or {}),
        "bootstrap.servers": bootstrap_servers,
        "error_cb": reasons.append,
    }
    try:
        client = AdminClient(settings, logger=_client_log)
    except (KafkaException, TypeError, ValueError) as error:
        raise UsageError(
            f"the Kafka client refuses its settings: {_text(error)}",
            hint="they are librdkafka's, not those of the Java client (docs: librdkafka CONFIGURATION.md)",
        ) from error
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            # Not list_topics(): as a client's first question it waits for a connection in steps of 50 ms.
            client.describe_cluster(request_timeout=max(min(left_s, LOOK_S), 0.001)).result()
        except KafkaException as error:
            client.poll(0)  # runs error_cb
            final = next((reason for reason in reasons if reason.code() in FINAL), None)
            if final is not None or left_s <= LOOK_S:
                reason = final or (reasons[0] if reasons else error.args[0])
                raise BrokerError(
                    f"no answer from Kafka at {bootstrap_servers}: {_plain(reason.str())}",
                    hint="is it running, and reachable from here?",
                    bootstrap_servers=bootstrap_servers,
                ) from error
        else:
            return


def _plain(reason: str) -> str:
    """Strip the client library's own thread name and state from one of its reasons."""
    return re.sub(r"^\S+/bootstrap: | \(after \d+ms in state \w+\)$", "", reason)


def _text(error: Exception) -> str:
    first = error.args[0] if error.args else error
    return str(first.str()) if isinstance(first, KafkaError) else str(first)

"""Which Kafka cluster to talk to: the one that is named, else the embedded broker."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featurestream.client_properties import environment_properties, read_properties, variable_of
from featurestream.errors import BrokerError, UsageError

_log = logging.getLogger(__name__)

VARIABLE = "FEATURESTREAM_BOOTSTRAP_SERVERS"
ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Kafka cluster that has answered.

    ``properties`` are further settings of the client library (librdkafka's names: security, mostly); they never show
    in a repr, because passwords are among them. ``embedded`` tells that it is the broker that this project runs.
    """

    bootstrap_servers: str
    properties: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    embedded: bool = False


def resolve_cluster(
    bootstrap_servers: str | None = None,
    kafka_config: Path | None = None,
    *,
    say: Callable[[str], None] | None = None,
    timeout_s: float = ANSWER_S,
) -> Cluster:
    """Return the cluster to use, after it has answered.

    Named, in this order, by ``bootstrap_servers`` (``host:port[,host:port]``), the environment variable
    ``FEATURESTREAM_BOOTSTRAP_SERVERS``, or ``bootstrap.servers`` in the properties file ``kafka_config``, whose other
    keys go to the client library: by its own names, or by those of the Java client where they have an equal. Variables
    such as ``FEATURESTREAM_KAFKA_SASL_PASSWORD`` (``sasl.password``) go before the file. Where nothing names a cluster,
    the embedded broker is used, started where it does not run, and ``say`` gets the line that tells so.

    Raises BrokerError where a named cluster has not answered for ``timeout_s`` seconds, refuses the login or cannot be
    talked to, or the embedded broker cannot be started; UsageError for a file that cannot be read or shows a secret to
    others, for properties that the client cannot have, and for properties where nothing names a cluster.
    """
    from_environment = environment_properties(os.environ)
    properties = (read_properties(kafka_config) if kafka_config else {}) | from_environment
    in_file = properties.pop("bootstrap.servers", "")
    named_by = [
        (bootstrap_servers, "--bootstrap-servers"),
        (os.environ.get(VARIABLE), VARIABLE),
        (in_file, f"bootstrap.servers in {kafka_config}"),
    ]
    for address, source in named_by:
        if address:
            # Here, so that a module which only needs the type does not load the Kafka client.
            from featurestream.kafka.java_properties import translated

            cluster = Cluster(address, translated(properties))
            _probe(cluster, source, timeout_s)
            return cluster
    if kafka_config:
        raise UsageError(
            f"{kafka_config} has no bootstrap.servers, and nothing else names a cluster",
            hint=f"add the line bootstrap.servers=HOST:PORT, or use --bootstrap-servers or {VARIABLE}",
        )
    if from_environment:
        variable = variable_of(next(iter(from_environment)))
        raise UsageError(
            f"{variable} is set, and nothing names a cluster",
            hint=f"name it with --bootstrap-servers or {VARIABLE}; for the embedded broker, unset {variable}",
        )
    return _embedded(say or _log.info)


def _probe(cluster: Cluster, source: str, timeout_s: float) -> None:
    address = cluster.bootstrap_servers
    for server in address.split(","):
        _, _, port = server.rpartition(":")
        # The client library would take any number modulo 65536.
        if not server.strip() or (port.isdigit() and not 0 < int(port) < 65536):
            raise UsageError(
                f'"{address}" (named by {source}) is no address of a cluster: "{server}"',
                hint="expected HOST:PORT[,HOST:PORT ...]",
            )
    from featurestream.kafka.admin import ping
    from featurestream.kafka.config import check_properties

    check_properties(cluster)
    try:
        ping(address, timeout_s, cluster.properties)
    except BrokerError as error:
        undo = f"unset {VARIABLE}" if source == VARIABLE else f"leave out {source}"
        raise BrokerError(
            f"{error.message} (named by {source})",
            hint=f"{error.hint}. For the embedded broker, {undo}: featurectl broker up",
            bootstrap_servers=address,
        ) from error


def _embedded(say: Callable[[str], None]) -> Cluster:
    from featurestream.broker import EmbeddedBroker
    from featurestream.broker.home import broker_home

    broker = EmbeddedBroker(broker_home())
    verb = "using" if broker.status().running else "started"
    status = broker.up(say)
    if status.bootstrap_servers is None:
        raise BrokerError(
            f"the embedded broker in {status.home} has ended right after it had answered",
            hint="see featurectl broker logs",
        )
    say(
        f"no cluster named: {verb} the embedded Kafka {status.version} at {status.bootstrap_servers} "
        f"(data in {status.home})"
    )
    return Cluster(status.bootstrap_servers, embedded=True)

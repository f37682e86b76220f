"""Which Kafka cluster to talk to: the one that is named, else the embedded broker."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featurestream.errors import BrokerError, UsageError
from featurestream.properties import parse_properties

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
    keys go to the client library as they are. Where nothing names one, the embedded broker is used, started where
    it does not run, and ``say`` gets the line that tells so.

    Raises BrokerError where a named cluster has not answered for ``timeout_s`` seconds, or the embedded broker cannot
    be started; UsageError for a file that cannot be read, or that has security settings and nothing names a cluster.
    """
    properties = _read(kafka_config) if kafka_config else {}
    in_file = properties.pop("bootstrap.servers", "")
    named_by = [
        (bootstrap_servers, "--bootstrap-servers"),
        (os.environ.get(VARIABLE), VARIABLE),
        (in_file, f"bootstrap.servers in {kafka_config}"),
    ]
    for address, source in named_by:
        if address:
            _probe(address, source, properties, timeout_s)
            return Cluster(address, properties)
    if kafka_config:
        raise UsageError(
            f"{kafka_config} has no bootstrap.servers, and nothing else names a cluster",
            hint=f"add the line bootstrap.servers=HOST:PORT, or use --bootstrap-servers or {VARIABLE}",
        )
    return _embedded(say or _log.info)


def _read(path: Path) -> dict[str, str]:
    try:
        return parse_properties(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the Kafka settings in {path}: {getattr(error, 'strerror', None) or error}",
            hint="a text file is expected, with lines like security.protocol=SASL_SSL",
        ) from error


def _probe(address: str, source: str, properties: Mapping[str, str], timeout_s: float) -> None:
    for server in address.split(","):
        _, _, port = server.rpartition(":")
        # The client library would take any number modulo 65536.
        if not server.strip() or (port.isdigit() and not 0 < int(port) < 65536):
            raise UsageError(
                f'"{address}" (named by {source}) is no address of a cluster: "{server}"',
                hint="expected HOST:PORT[,HOST:PORT ...]",
            )
    # Here, so that a module which only needs the type does not load the Kafka client.
    from featurestream.kafka.admin import ping

    try:
        ping(address, timeout_s, properties)
    except BrokerError as error:
        undo = f"unset {VARIABLE}" if source == VARIABLE else f"leave out {source}"
        raise BrokerError(
            f"{error.message} (named by {source})",
            hint=f"{error.hint} For the embedded broker, {undo}: featurectl broker up",
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

"""The settings of every client we open, each with its reason.

A user's own properties (security, addresses, time-outs) go over our defaults. The settings on which exactness rests
are ours alone: a property that says otherwise is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from featurestream.errors import UsageError
from featurestream.kafka.java_properties import check_known
from featurestream.names import GROUP_PREFIX

if TYPE_CHECKING:
    from featurestream.cluster import Cluster

SINK_QUEUE_KBYTES: Final = 131_072
LANE_QUEUE_KBYTES: Final = 8_192

#: What all clients share.
CLIENT: Final[dict[str, Any]] = {
    # Firewalls drop idle connections in silence.
    "socket.keepalive.enable": True,
    # Stock is 10 s: a broker that is back would be noticed that much later.
    "reconnect.backoff.max.ms": 1_000,
}

PRODUCER: Final[dict[str, Any]] = {
    # Lanes are chosen by us, records are large: waiting for more to fill a request gains nothing above a few ms.
    "linger.ms": 5,
    # Must stay below the topic's limit (stock: 1,048,588), or records that fit fail in a request that does not.
    "batch.size": 1_000_000,
    # Float16 features do not compress with lz4, and little with zstd; the broker would have to unpack every request.
    "compression.type": "none",
    # How long a topic that we have just created may be unknown to another broker. Stock is 30 s: that long would a
    # deleted topic go unnoticed.
    "topic.metadata.propagation.max.ms": 5_000,
}

#: Exactness of what is written.
PRODUCER_FIXED: Final[dict[str, Any]] = {
    # No duplicates and no reordering by retries, within one producer's life.
    "enable.idempotence": True,
    "acks": "all",
    # After a record that the broker refuses, librdkafka would go on with the next: a hole in the lane for ever. With
    # this the first refusal ends the producer, and what follows it is not sent. (Measured: with the stock setting 3
    # records followed a refused one into the log, with this one none.)
    "enable.gapless.guarantee": True,
    # Never give up single records: one that expires while the next is delivered leaves a hole too. The sink gives up
    # as a whole when nothing has been acknowledged for a while.
    "message.timeout.ms": 0,
    # A report on success would copy every record back into Python.
    "delivery.report.only.error": True,
}

READER: Final[dict[str, Any]] = {
    # One request brings several records of half a megabyte: 1.5 times the speed of the stock setting at that size.
    "fetch.message.max.bytes": 4_194_304,
    "fetch.max.bytes": 16_777_216,
    # Stock is 1 s: a reader whose queue was full would stop for that long each time.
    "fetch.queue.backoff.ms": 5,
    # The limit in kilobytes is the one that counts; stock (100,000) is for tiny records.
    "queued.min.messages": 1_000,
}

#: Look-ups take one record here and there, and ask in between.
FINDER: Final[dict[str, Any]] = {
    # One record, not everything after it. The broker always answers with at least one.
    "fetch.message.max.bytes": 1,
    "queued.min.messages": 1,
    "fetch.queue.backoff.ms": 1,
    # A broker serves one request of a connection at a time: the next look-up would wait behind an idle fetch.
    "fetch.wait.max.ms": 10,
}

#: Exactness of what is read.
CONSUMER_FIXED: Final[dict[str, Any]] = {
    # Stock is "latest": an offset that retention has deleted would jump to the end in silence.
    "auto.offset.reset": "error",
    # A position belongs to a checkpoint; the group only shows it.
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # True aborts the whole process on a damaged batch; the records carry a checksum of their own.
    "check.crcs": False,
    "isolation.level": "read_committed",
    # Tells that nothing is left to read, from nothing comes although there is more.
    "enable.partition.eof": True,
    # Every client must name a group; readers neither join nor commit to it.
    "group.id": f"{GROUP_PREFIX}reader",
    "allow.auto.create.topics": False,
}

#: A group's client commits and looks, and reads nothing.
GROUP: Final[dict[str, Any]] = {
    # How long a commit waits for the group's coordinator (it joins nothing, so there is no session), and for its
    # answer: after that it is asked again, and whoever waits is told in time.
    "session.timeout.ms": 6_000,
    "socket.timeout.ms": 6_000,
    # Stock is 10 min: a coordinator that has moved would be looked for that late.
    "coordinator.query.interval.ms": 1_000,
}

#: Keys that no property may set: key -> why.
REFUSED: Final[dict[str, str]] = {
    "bootstrap.servers": "the cluster is named with --bootstrap-servers or FEATURESTREAM_BOOTSTRAP_SERVERS",
    "metadata.broker.list": "the cluster is named with --bootstrap-servers or FEATURESTREAM_BOOTSTRAP_SERVERS",
    "transactional.id": "exactness rests on numbered batches, not on transactions",
    "group.instance.id": "readers do not join groups",
}

#: Other names that the client library has for some of our settings.
ALIASES: Final[dict[str, str]] = {
    "request.required.acks": "acks",
    "delivery.timeout.ms": "message.timeout.ms",
    "auto.commit.enable": "enable.auto.commit",
}


def check_properties(cluster: Cluster) -> None:
    """Raise UsageError for a property that contradicts a setting on which exactness rests, or that only Java knows."""
    check_known(cluster.properties)
    fixed = PRODUCER_FIXED | CONSUMER_FIXED
    for key, value in cluster.properties.items():
        ours = fixed.get(ALIASES.get(key, key))
        if key in REFUSED:
            raise UsageError(f'the Kafka property "{key}" cannot be set: {REFUSED[key]}', hint="leave it out", key=key)
        if ours is not None and value.strip().lower() != str(ours).lower():
            raise UsageError(
                f'the Kafka property "{key}" cannot be {value}: reading and writing exactly needs {str(ours).lower()}',
                hint="leave it out",
                key=key,
            )


def admin_settings(cluster: Cluster, client_id: str) -> dict[str, Any]:
    """Return the settings of a client that creates, deletes and lists."""
    return _merged(cluster, client_id, CLIENT, {})


def producer_settings(cluster: Cluster, client_id: str, queue_kbytes: int) -> dict[str, Any]:
    """Return the settings of a sink's client, which holds at most ``queue_kbytes`` that are not acknowledged."""
    # Stock is 1 GiB a producer: eight devices would take 8 GiB of the host's memory.
    bounded = {"queue.buffering.max.kbytes": queue_kbytes}
    return _merged(cluster, client_id, CLIENT | PRODUCER | bounded, PRODUCER_FIXED)


def reader_settings(cluster: Cluster, client_id: str, queue_kbytes: int) -> dict[str, Any]:
    """Return the settings of one lane's reader, which reads at most ``queue_kbytes`` ahead (and one fetch).

    A fetch is no larger than that either; it always brings one record.
    """
    bounded = {
        "queued.max.messages.kbytes": queue_kbytes,
        "fetch.message.max.bytes": min(READER["fetch.message.max.bytes"], queue_kbytes * 1024),
    }
    return _merged(cluster, client_id, CLIENT | READER | bounded, CONSUMER_FIXED)


def finder_settings(cluster: Cluster, client_id: str) -> dict[str, Any]:
    """Return the settings of the client that answers where things are."""
    return _merged(cluster, client_id, CLIENT | FINDER, CONSUMER_FIXED)


def group_settings(cluster: Cluster, client_id: str, group: str) -> dict[str, Any]:
    """Return the settings of the client that commits to a group, and looks at what it has committed."""
    return _merged(cluster, client_id, CLIENT | GROUP, CONSUMER_FIXED | {"group.id": group})


def _merged(cluster: Cluster, client_id: str, ours: dict[str, Any], fixed: dict[str, Any]) -> dict[str, Any]:
    return {
        "client.id": client_id,
        **ours,
        **cluster.properties,
        **fixed,
        "bootstrap.servers": cluster.bootstrap_servers,
    }

"""A broker of the benchmarks' own, and topics that are gone when they end."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
import psutil

from benchmarks.report import package_versions
from featurestream.broker import EmbeddedBroker
from featurestream.broker.config import DATA
from featurestream.broker.jars import kafka_version
from featurestream.broker.java import find_java
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog

MARK = "-Dfeaturestream.home="  # by which an embedded broker's process is known


@contextmanager
def own_broker() -> Iterator[Cluster]:
    """Run a new embedded broker in a temporary folder; stop it, and delete all that it held, at the end."""
    with tempfile.TemporaryDirectory(prefix="featurestream-bench-") as folder:
        broker = EmbeddedBroker(Path(folder))
        try:
            status = broker.up(print)
            yield Cluster(status.bootstrap_servers or "", embedded=True)
        finally:
            broker.down()


@contextmanager
def topics(log: KafkaLog, names: Sequence[str], lanes: int, settings: Mapping[str, str]) -> Iterator[None]:
    """Have topics for as long as the block lasts."""
    try:
        for name in names:
            log.create_topic(name, lanes, settings)
        yield
    finally:
        log.delete_topics(names)


def log_bytes(cluster: Cluster, topic: str) -> int:
    """Return the bytes of a topic's segments on the disk of an embedded broker of this machine, over all lanes."""
    folders = (_home(cluster) / DATA).glob(f"{topic}-[0-9]*")
    return sum(segment.stat().st_size for folder in folders for segment in folder.glob("*.log"))


def _home(cluster: Cluster) -> Path:
    for process in psutil.process_iter(["cmdline"]):
        for word in process.info["cmdline"] or ():
            home = Path(word.removeprefix(MARK))
            if word.startswith(MARK) and EmbeddedBroker(home).status().bootstrap_servers == cluster.bootstrap_servers:
                return home
    raise RuntimeError(f"no embedded broker of this machine listens at {cluster.bootstrap_servers}")


def unique(name: str) -> str:
    """Return a stream's name that nobody else uses: the cluster may be shared."""
    return f"bench-{name}-{uuid.uuid4().hex[:8]}"


def client_versions() -> dict[str, str]:
    """Return the versions of what stands between a record and the broker's disk."""
    return {
        **package_versions("confluent-kafka"),
        "librdkafka": confluent_kafka.libversion()[0],
        "kafka": kafka_version(),
        "java": str(find_java().major),
    }

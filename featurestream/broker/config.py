"""What the embedded broker is told: its server.properties and its Java command line. Pure text.

Proven as a whole on Kafka 4.3.1: ready in 1.5 s (half of it with an archive of its classes, see archive.py), 140 MB of
memory, and ready again 2.3 s after a SIGKILL.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from featurestream.broker.java import Java

HOST = "127.0.0.1"
CLUSTER_ID = "featurestream-embedded"
DATA = "data"  # below the broker's home, which is its working folder: no path to escape, and the home can be moved


def server_properties(broker_port: int, controller_port: int) -> str:
    """Return the text of server.properties for one node on loopback.

    The voters are static: the controller's port is read from this file at each start, so that both ports may change
    between two starts on the same data.
    """
    return f"""\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{HOST}:{broker_port},CONTROLLER://{HOST}:{controller_port}
advertised.listeners=PLAINTEXT://{HOST}:{broker_port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.quorum.voters=1@{HOST}:{controller_port}
log.dirs={DATA}
# One node: nothing can be replicated, and 50 partitions of a system topic are 46 too many.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
# A killed broker stays registered with its own controller for this long, and the next one waits for it: stock 9 s.
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
background.threads=2
num.recovery.threads.per.data.dir=1
log.cleaner.dedupe.buffer.size=2097152
log.retention.check.interval.ms=5000
log.initial.task.delay.ms=500
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
"""


def broker_command(java: Java, jars: Iterable[Path], mark: str, archive: Sequence[str] = ()) -> list[str]:
    """Return the command that runs the broker in its home.

    ``mark`` is the argument that its process is known by, ``archive`` what Java is told of its archive of classes.
    """
    return [str(java.path), mark, *archive, *_options(jars), "kafka.Kafka", "server.properties"]


def format_command(java: Java, jars: Iterable[Path]) -> list[str]:
    """Return the command that prepares an empty data folder; on a prepared one it changes nothing."""
    tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", "server.properties", "--ignore-formatted"]
    return [str(java.path), *_options(jars), *tool]


def _options(jars: Iterable[Path]) -> list[str]:
    return [
        "-Xms64m",
        "-Xmx512m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",  # halves the start; C2 pays only with TLS, and this broker has none
        "-XX:-UsePerfData",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        "-Djava.net.preferIPv4Stack=true",
        "-Djdk.nio.maxCachedBufferSize=262144",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
        "-cp",
        os.pathsep.join(str(jar) for jar in jars),
    ]

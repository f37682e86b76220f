"""Encoding and publishing records against a bare loop of ``Producer.produce``, and against Kafka's own tool.

And how many bytes a record takes on the log's disk for those of its numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from benchmarks.broker import client_versions, log_bytes, topics, unique
from benchmarks.features import make_manifest, make_record
from benchmarks.features import publish as publish_stream
from benchmarks.kafka_tools import producer_performance, tools_jars
from benchmarks.measure import Clock, Ratio, Run, cpu_ms, in_turn, rate, ratio
from benchmarks.report import Report, Table, package_versions
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog, KafkaSink
from featurestream.kafka.config import SINK_QUEUE_KBYTES, producer_settings
from featurestream.manifest import TapFacts
from featurestream.names import manifest_topic, record_key, tap_topic
from featurestream.record import ITEM_BYTES, Record
from featurestream.topics import tap_topic_settings
from featurestream.wire import Encoder, encode, headers_of
from featurestream_producer.config import DEFAULT_BATCH_SIZE
from featurestream_producer.plan import choose_batch_samples

LANES = 4
WIDTH = 2048
ROWS = (124, 232)  # 513 kB, 960 kB
VOLUME = 400_000_000
RECORDS = 16  # different ones, sent again and again
GOAL, JAVA_GOAL, LOG_GOAL = 0.95, 1.0, 1.02
#: What Java's producer is given beside its defaults: ours are measured with the same promises.
JAVA_SETTINGS = ("acks=all", "enable.idempotence=true", "batch.size=1000000", "linger.ms=5")
#: Taps whose records are weighed: a name, and the shape of a row.
TAPS = {
    "ResNet-18 layer2:gap": (128,),
    "ViT-B/16 cls": (768,),
    "ResNet-50 avgpool": (2048,),
    "ResNet-18 layer4, the map": (512, 7, 7),
}
WEIGHED = 8  # batches
MB = 1_000_000


def run(
    cluster: Cluster, *, rows: Sequence[int] = ROWS, volume: int = VOLUME, repeats: int = 7, java: bool = True
) -> Report:
    """Measure records of every size in ``rows``, ``volume`` bytes a run; ``java``: against Kafka's tool too."""
    log = KafkaLog(cluster)
    jars = tools_jars() if java else []
    # The broker may delete what came before: a run never leaves more than a few hundred megabytes on the disk.
    settings = tap_topic_settings(retention_ms=3_600_000, retention_bytes=256 * 2**20, lanes=LANES)
    lines = []
    for count in rows:
        topic = unique("publish")
        with topics(log, [topic], LANES, settings | {"file.delete.delay.ms": "1000"}):
            lines.append(_compare(cluster, topic, count, volume=volume, repeats=repeats, jars=jars))
    weights = [_weigh(cluster, log, title, shape) for title, shape in TAPS.items()]
    log.close()
    return Report(
        theme="publish",
        question="`Encoder` and `KafkaSink` against a bare loop of `Producer.produce` with the same settings, keys, "
        f"headers and values, which it finds encoded: {LANES} lanes, acks=all, idempotent, until all is acknowledged, "
        f"about {volume / MB:,.0f} MB a run. And against `ProducerPerformance`, which comes with Kafka, at the same "
        f"record size ({', '.join(JAVA_SETTINGS)}).",
        tables=[
            Table(
                (
                    "record",
                    "bare MB/s",
                    "Java MB/s",
                    "featurestream MB/s",
                    "/ bare",
                    "goal",
                    "/ Java",
                    "goal",
                    "bare CPU ms/MB",
                    "featurestream CPU ms/MB",
                ),
                lines,
            ),
            Table(
                ("tap, float16", "rows a record", "numbers, bytes", "record on the log, bytes", "ratio", "goal"),
                weights,
            ),
        ],
        remarks=[
            f"Medians of {repeats} repeats in turn, the ratio with its smallest and largest. CPU is the "
            "client's; broker and client share the cores, and the broker is the slower one. Java's rate is that of its "
            "steady state: its start and a quarter more of records to warm up are not counted.",
            "On the log: the segments of a topic, divided by its records, whose rows are as many as the producer "
            "takes; ids of 30 characters. Beside the numbers a row has its sample's index, id and label, which is what "
            "makes narrow taps heavier.",
        ],
        versions={**package_versions("numpy", "msgpack", "xxhash"), **client_versions()},
    )


@dataclass(frozen=True, slots=True)
class _Message:
    """A record with all that a bare loop sends of it."""

    record: Record
    lane: int
    key: bytes
    headers: list[tuple[str, str | bytes | None]]
    value: NDArray[np.uint8]


def _compare(
    cluster: Cluster, topic: str, rows: int, *, volume: int, repeats: int, jars: Sequence[Path]
) -> tuple[str, ...]:
    manifest = make_manifest("publish", rows=rows, width=WIDTH, batches=RECORDS, lanes=LANES)
    messages = [_message(make_record(manifest, batch, "avgpool"), batch % LANES) for batch in range(RECORDS)]
    size = messages[0].value.nbytes
    # Whole rounds, so that every lane gets the same.
    sent = list(islice(cycle(messages), -(-volume // (size * LANES)) * LANES))
    total_mb = sum(message.value.nbytes for message in sent) / MB
    ways = {
        "bare": lambda: _bare(cluster, topic, sent, total_mb),
        "ours": lambda: _ours(cluster, topic, sent, total_mb),
    }
    if jars:
        ways["java"] = lambda: producer_performance(
            cluster, jars, topic, record_bytes=size, records=len(sent), settings=JAVA_SETTINGS
        )
    runs = in_turn(ways, repeats)
    found = ratio(runs, "ours", "bare")
    java = ratio(runs, "ours", "java") if jars else None
    return (
        f"{size / 1000:,.0f} kB",
        f"{rate(runs, 'bare'):,.0f}",
        f"{rate(runs, 'java'):,.0f}" if jars else "",
        f"{rate(runs, 'ours'):,.0f}",
        str(found),
        found.against(GOAL),
        "" if java is None else str(java),
        "" if java is None else java.against(JAVA_GOAL),
        *(f"{cpu_ms(runs, name):.2f}" for name in ("bare", "ours")),
    )


def _weigh(cluster: Cluster, log: KafkaLog, title: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Publish a few batches as the producer would; return what a record takes on the disk."""
    width = math.prod(shape)
    tap = TapFacts(name="tap", spec="tap", layer="tap", shape=[width])
    id_bytes = len(make_record(make_manifest("x", rows=1, width=1, batches=1), 0, "avgpool").ids[0])
    rows = choose_batch_samples(
        [tap], dtype="float16", samples=10**6, views=1, longest_id_bytes=id_bytes, label_values=1,
        batch_size=DEFAULT_BATCH_SIZE,
    )  # fmt: skip
    manifest = make_manifest(unique("weight"), rows=rows, width=width, batches=WEIGHED, lanes=LANES)
    topic = tap_topic(manifest.stream, "avgpool")
    settings = tap_topic_settings(retention_ms=3_600_000, retention_bytes=256 * 2**20, lanes=LANES)
    with topics(log, [manifest_topic(manifest.stream)], 1, {}), topics(log, [topic], LANES, settings):
        publish_stream(log, manifest)
        size = log_bytes(cluster, topic) / WEIGHED
    numbers = rows * width * ITEM_BYTES["float16"]
    found = Ratio(size / numbers, size / numbers, size / numbers)
    return title, f"{rows:,}", f"{numbers:,}", f"{size:,.0f}", f"{found.median:.3f}", found.within(LOG_GOAL)


def _message(record: Record, lane: int) -> _Message:
    value = np.frombuffer(encode(record), np.uint8)
    return _Message(record, lane, record_key(record.pass_number, record.batch), [*headers_of(record)], value)


def _ours(cluster: Cluster, topic: str, sent: Sequence[_Message], total_mb: float) -> Run:
    """Send all; return the run in MB, from the first record to the last acknowledgement."""
    encoder = Encoder()
    with KafkaSink(cluster) as sink:
        _append(sink, topic, encoder, sent[0])  # the connection, the topic's place, the producer's id
        sink.flush()
        clock = Clock()
        for message in sent:
            _append(sink, topic, encoder, message)
        sink.flush()
        return clock.stop(total_mb)


def _append(sink: KafkaSink, topic: str, encoder: Encoder, message: _Message) -> None:
    record = message.record
    sink.append(
        topic,
        message.lane,
        key=record_key(record.pass_number, record.batch),
        value=encoder.encode(record),
        headers=headers_of(record),
    )


def _bare(cluster: Cluster, topic: str, sent: Sequence[_Message], total_mb: float) -> Run:
    """Send all; return the run in MB, from the first record to the last acknowledgement."""
    settings = producer_settings(cluster, "bare", SINK_QUEUE_KBYTES)
    silent = logging.Logger("bare", logging.CRITICAL)  # of its own, with no handler
    producer = Producer(settings, logger=silent)
    _produce(producer, topic, sent[0])
    producer.flush()
    clock = Clock()
    for message in sent:
        _produce(producer, topic, message)
    producer.flush()
    return clock.stop(total_mb)


def _produce(producer: Producer, topic: str, message: _Message) -> None:
    while True:
        try:
            producer.produce(
                topic,
                value=message.value,  # type: ignore[arg-type]  # any contiguous buffer will do
                key=message.key,
                partition=message.lane,
                headers=message.headers,
            )
        except BufferError:
            producer.poll(0.1)
        else:
            producer.poll(0)
            return

"""Encoding and publishing records against a bare loop of ``Producer.produce`` over finished values."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from confluent_kafka import Producer
from numpy.typing import NDArray

from benchmarks.broker import client_versions, topics, unique
from benchmarks.features import make_manifest, make_record
from benchmarks.measure import Clock, Run, cpu_ms, in_turn, rate, ratio
from benchmarks.report import Report, Table, package_versions
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog, KafkaSink
from featurestream.kafka.config import SINK_QUEUE_KBYTES, producer_settings
from featurestream.names import record_key
from featurestream.record import Record
from featurestream.topics import tap_topic_settings
from featurestream.wire import Encoder, encode, headers_of

LANES = 4
WIDTH = 2048
ROWS = (124, 232)  # 513 kB, 960 kB
VOLUME = 400_000_000
RECORDS = 16  # different ones, sent again and again
GOAL = 0.95
MB = 1_000_000


def run(cluster: Cluster, *, rows: Sequence[int] = ROWS, volume: int = VOLUME, repeats: int = 7) -> Report:
    """Measure records of every size in ``rows``, ``volume`` bytes a run."""
    log = KafkaLog(cluster)
    # The broker may delete what came before: a run never leaves more than a few hundred megabytes on the disk.
    settings = tap_topic_settings(retention_ms=3_600_000, retention_bytes=256 * 2**20, lanes=LANES)
    lines = []
    for count in rows:
        topic = unique("publish")
        with topics(log, [topic], LANES, settings | {"file.delete.delay.ms": "1000"}):
            lines.append(_compare(cluster, topic, count, volume, repeats))
    log.close()
    return Report(
        theme="publish",
        question="`Encoder` and `KafkaSink` against a bare loop of `Producer.produce` with the same settings, keys, "
        f"headers and values, which it finds encoded: {LANES} lanes, acks=all, idempotent, until all is acknowledged, "
        f"about {volume / MB:,.0f} MB a run.",
        tables=[
            Table(
                (
                    "record",
                    "bare MB/s",
                    "featurestream MB/s",
                    "ratio",
                    "goal",
                    "bare CPU ms/MB",
                    "featurestream CPU ms/MB",
                ),
                lines,
            ),
        ],
        remarks=[
            f"Medians of {repeats} repeats in turn, the ratio with its smallest and largest. CPU is the "
            "client's; broker and client share the cores, and the broker is the slower one."
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


def _compare(cluster: Cluster, topic: str, rows: int, volume: int, repeats: int) -> tuple[str, ...]:
    manifest = make_manifest("publish", rows=rows, width=WIDTH, batches=RECORDS, lanes=LANES)
    messages = [_message(make_record(manifest, batch, "avgpool"), batch % LANES) for batch in range(RECORDS)]
    size = messages[0].value.nbytes
    # Whole rounds, so that every lane gets the same.
    sent = list(islice(cycle(messages), -(-volume // (size * LANES)) * LANES))
    total_mb = sum(message.value.nbytes for message in sent) / MB
    runs = in_turn(
        {
            "bare": lambda: _bare(cluster, topic, sent, total_mb),
            "ours": lambda: _ours(cluster, topic, sent, total_mb),
        },
        repeats,
    )
    found = ratio(runs, "ours", "bare")
    return (
        f"{size / 1000:,.0f} kB",
        *(f"{rate(runs, name):,.0f}" for name in ("bare", "ours")),
        str(found),
        found.against(GOAL),
        *(f"{cpu_ms(runs, name):.2f}" for name in ("bare", "ours")),
    )


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

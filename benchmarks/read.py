"""``FeatureStream`` against a bare loop of ``poll()`` on one Consumer per lane; and what a reader takes of memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import psutil
from confluent_kafka import Consumer, TopicPartition

from benchmarks.broker import client_versions, topics, unique
from benchmarks.features import make_manifest, publish
from benchmarks.measure import Clock, Run, cpu_ms, in_turn, rate, ratio
from benchmarks.report import Report, Table, package_versions
from featurestream.batch import FeatureBatch
from featurestream.cluster import Cluster
from featurestream.heap import children_keep_memory
from featurestream.kafka import KafkaLog
from featurestream.kafka.config import LANE_QUEUE_KBYTES, READER, reader_settings
from featurestream.manifest import Manifest
from featurestream.names import manifest_topic, tap_topic
from featurestream.stream import FeatureStream
from featurestream.topics import tap_topic_settings

LANES = 4
WIDTH = 2048
ROWS = (124, 232)  # 513 kB, 960 kB
VOLUME = 2_000_000_000  # what fills the queues before the clock starts is a small part of it
TAPS = ("layer3", "layer4")
SKIPPED = 4 * LANES  # batches before the clock starts: until then connections are opened and queues fill
SLOWNESS = 100  # a slow user takes so many times longer for a batch than reading it takes
SLOW_S = 4.0
GOAL = 0.95
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class _Published:
    """A stream on the cluster, with the bytes of one tap's records from the first one that is measured."""

    manifest: Manifest
    batches: int
    measured_mb: float
    record_kb: float


def run(
    cluster: Cluster,
    *,
    rows: Sequence[int] = ROWS,
    volume: int = VOLUME,
    repeats: int = 7,
    slow_s: float = SLOW_S,
) -> Report:
    """Measure records of every size in ``rows``, ``volume`` bytes a tap; and memory with the last size."""
    log = KafkaLog(cluster)
    settings = tap_topic_settings(retention_ms=3_600_000, retention_bytes=2**40, lanes=LANES)
    lines: list[tuple[str, ...]] = []
    memory: list[tuple[str, ...]] = []
    for count in rows:
        batches = max(-(-volume // (count * WIDTH * 2)), 2 * SKIPPED)
        manifest = make_manifest(unique("read"), rows=count, width=WIDTH, batches=batches, taps=TAPS, lanes=LANES)
        names = [tap_topic(manifest.stream, tap) for tap in TAPS]
        with topics(log, [manifest_topic(manifest.stream)], 1, {}), topics(log, names, LANES, settings):
            published = _publish(log, manifest)
            for taps in (TAPS[:1], TAPS):
                lines.append(_compare(cluster, published, taps, repeats))
            if count == rows[-1]:
                with children_keep_memory():
                    memory = [row for taps in (TAPS[:1], TAPS) for row in _memory(cluster, published, taps, slow_s)]
    log.close()
    return Report(
        theme="read",
        question="`FeatureStream` (checksum, decoding, lanes merged in batch order, taps joined, features and labels "
        "as arrays) against a bare loop of `poll()` and `value()` in the same order, on one Consumer a lane: `bare` "
        "with the same settings, `stock` with the client library's own, as a loop written by hand has them, both as a "
        "plain script; `memory kept` and ours in a process that keeps its memory as the commands that train do. "
        f"{LANES} lanes, about {volume / MB:,.0f} MB a tap, from the page cache.",
        tables=[
            Table(
                (
                    "records",
                    "taps",
                    "stock MB/s",
                    "bare MB/s",
                    "memory kept MB/s",
                    "featurestream MB/s",
                    "/ bare",
                    "goal",
                    "/ memory kept",
                    "/ stock",
                    "bare CPU ms/MB",
                    "memory kept CPU ms/MB",
                    "featurestream CPU ms/MB",
                ),
                lines,
            ),
            Table(("reader's memory", "taps", "read MB", "grown MB", "queues MB", "with a fetch each MB"), memory),
        ],
        remarks=[
            f"Medians of {repeats} repeats in turn, the ratio with its smallest and largest; the first {SKIPPED} "
            "batches are not counted, which open connections and fill queues. CPU is the client's; the broker, which "
            "shares the cores, takes some too.",
            "Memory is how much the resident set of a new process, which keeps its memory, has grown at its largest "
            "while it read, from the moment that the stream was found. Its bound: "
            f"{LANE_QUEUE_KBYTES:,} kB a lane and tap, which a fetch of {READER['fetch.message.max.bytes'] / MB:.1f} MB"
            " may exceed once, and the batch in the user's hands. The slow user reads at 1/"
            f"{SLOWNESS} of the speed for {slow_s:.0f} s.",
        ],
        versions={**package_versions("numpy", "msgpack", "xxhash"), **client_versions()},
    )


def _publish(log: KafkaLog, manifest: Manifest) -> _Published:
    sizes = publish(log, manifest)
    return _Published(manifest, len(sizes), sum(sizes[SKIPPED:]) / MB, sizes[-1] / 1000)


def _compare(cluster: Cluster, published: _Published, taps: Sequence[str], repeats: int) -> tuple[str, ...]:
    same = reader_settings(cluster, "bare", LANE_QUEUE_KBYTES)
    stock = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": "bare", "enable.auto.commit": False}
    with _process() as script, children_keep_memory(), _process() as trainer:
        runs = in_turn(
            {
                "stock": partial(script, _bare, stock, published, taps),
                "bare": partial(script, _bare, same, published, taps),
                "kept": partial(trainer, _bare, same, published, taps),
                "ours": partial(trainer, _ours, cluster.bootstrap_servers, published, taps),
            },
            repeats,
        )
    found = ratio(runs, "ours", "bare")
    return (
        f"{published.record_kb:,.0f} kB",
        str(len(taps)),
        *(f"{rate(runs, name):,.0f}" for name in ("stock", "bare", "kept", "ours")),
        str(found),
        found.against(GOAL),
        *(str(ratio(runs, "ours", name)) for name in ("kept", "stock")),
        *(f"{cpu_ms(runs, name):.2f}" for name in ("bare", "kept", "ours")),
    )


@contextmanager
def _process() -> Iterator[Callable[..., Run]]:
    """Yield what calls a function in a process of its own, which has the environment of this moment."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(int).result()  # only now is it there
        yield lambda work, *arguments: pool.submit(work, *arguments).result()


def _ours(address: str, published: _Published, taps: Sequence[str]) -> Run:
    """Read all; return the run in MB, from the end of the first batches to the end of the stream."""
    rows = 0
    clock = Clock()
    with FeatureStream(published.manifest.stream, taps, bootstrap_servers=address) as stream:
        for number, batch in enumerate(stream, 1):
            for tap in taps:
                rows += len(batch.numpy(tap))
            if batch.labels is None:
                raise RuntimeError("the labels are gone")
            if number == SKIPPED:
                clock = Clock()
        run = clock.stop(published.measured_mb * len(taps))
    if rows != published.manifest.data.samples * len(taps):
        raise RuntimeError(f"{rows} rows were read")
    return run


def _bare(settings: dict[str, Any], published: _Published, taps: Sequence[str]) -> Run:
    """Read all; return the run in MB, from the end of the first batches to the end of the stream."""
    silent = logging.Logger("bare", logging.CRITICAL)
    consumers = [[Consumer(settings, logger=silent) for _ in range(LANES)] for _ in taps]
    for tap, lanes in zip(taps, consumers, strict=True):
        for lane, consumer in enumerate(lanes):
            consumer.assign([TopicPartition(tap_topic(published.manifest.stream, tap), lane, 0)])
    size = 0
    clock = Clock()
    for batch in range(published.batches):
        for lanes in consumers:
            size += len(_value(lanes[batch % LANES]))
        if batch + 1 == SKIPPED:
            clock, size = Clock(), 0
    run = clock.stop(published.measured_mb * len(taps))
    for lanes in consumers:
        for consumer in lanes:
            consumer.close()
    if size != round(published.measured_mb * MB) * len(taps):
        raise RuntimeError(f"{size} bytes were read")
    return run


def _value(consumer: Consumer) -> bytes:
    while True:
        message = consumer.poll(10)
        if message is None:
            raise RuntimeError("nothing came for 10 s")
        if message.error() is None:
            return message.value() or b""


# ---- memory -------------------------------------------------------------------------------------------------------


def _memory(cluster: Cluster, published: _Published, taps: Sequence[str], slow_s: float) -> list[tuple[str, ...]]:
    """Return what readers of a quarter, of the whole, and a slow one take, each in a process of its own."""
    quarter = published.batches // 4
    pause_s = SLOWNESS * published.record_kb * len(taps) / 2e6  # reading goes at about 2 GB/s
    readers = [
        ("a quarter of the stream", quarter, 0.0),
        ("the whole stream", published.batches, 0.0),
        ("a slow user", max(1, min(published.batches, int(slow_s / pause_s))), pause_s),
    ]
    queue = LANES * len(taps) * LANE_QUEUE_KBYTES * 1024
    fetch = LANES * len(taps) * int(READER["fetch.message.max.bytes"])
    lines: list[tuple[str, ...]] = []
    for title, batches, wait_s in readers:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            grown = pool.submit(_grown, cluster.bootstrap_servers, published.manifest.stream, taps, batches, wait_s)
            lines.append(
                (
                    title,
                    str(len(taps)),
                    f"{batches * published.record_kb * len(taps) / 1000:,.0f}",
                    f"{grown.result() / MB:,.0f}",
                    f"{queue / MB:,.0f}",
                    f"{(queue + fetch) / MB:,.0f}",
                )
            )
    return lines


def _grown(address: str, name: str, taps: Sequence[str], batches: int, pause_s: float) -> int:
    """Return by how many bytes this process has grown at most while it read."""
    process = psutil.Process()
    stream = FeatureStream(name, taps, stop=f"batch:{batches}", bootstrap_servers=address)
    before = peak = process.memory_info().rss
    batch: FeatureBatch
    for batch in stream:
        batch.numpy(taps[0])
        time.sleep(pause_s)
        peak = max(peak, process.memory_info().rss)
    stream.close()
    return int(peak - before)

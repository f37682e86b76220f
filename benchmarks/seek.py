"""``FeatureStream`` from a time to its first batch, against bare ``offsets_for_times`` plus one fetch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from confluent_kafka import Consumer, TopicPartition

from benchmarks.broker import client_versions, topics, unique
from benchmarks.features import make_manifest, publish
from benchmarks.measure import Run, in_turn, rate, time_ratio
from benchmarks.report import Report, Table
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.kafka.config import LANE_QUEUE_KBYTES, reader_settings
from featurestream.manifest import Manifest
from featurestream.names import manifest_topic, tap_topic
from featurestream.position import StartPoint
from featurestream.seek import Lanes, find_start
from featurestream.stream import FeatureStream
from featurestream.topics import tap_topic_settings
from featurestream.wire import decode

RECORDS = (1_000, 10_000, 100_000)
LANES = (1, 4)
ROWS, WIDTH = 1, 16  # small records: what counts is how many there are
PARTS = 20  # appended one after the other, so that a record of any but the last has a time before the end
PLACES = (0.05, 0.3, 0.5, 0.7, 0.9)  # of the way through the log
GOAL = 1.3


def run(
    cluster: Cluster, *, records: Sequence[int] = RECORDS, lanes: Sequence[int] = LANES, repeats: int = 7
) -> Report:
    """Measure logs of every length in ``records``, spread over every number of lanes."""
    lines: list[tuple[str, ...]] = []
    with KafkaLog(cluster) as log:
        for count in lanes:
            settings = tap_topic_settings(retention_ms=3_600_000, retention_bytes=2**40, lanes=count)
            for length in records:
                manifest = make_manifest(unique("seek"), rows=ROWS, width=WIDTH, batches=length, lanes=count)
                names = [tap_topic(manifest.stream, tap.name) for tap in manifest.taps]
                with topics(log, [manifest_topic(manifest.stream)], 1, {}), topics(log, names, count, settings):
                    publish(log, manifest, parts=PARTS)
                    lines += _compare(cluster, log, manifest, repeats)
    return Report(
        theme="seek",
        question="From a time in the middle of the log to the first batch, exact over all lanes and decoded, against "
        "bare `offsets_for_times` for all lanes, `assign` and the poll of one record. `open`: both have their "
        "connections for look-ups, ours has looked at each lane's first record before, and, as always, makes a new "
        "connection to read. `new`: a new `FeatureStream`, with "
        "the search for the cluster and the manifest, against a new Consumer. `from batch` is ours told the batch's "
        "number instead of a time.",
        tables=[
            Table(
                ("records", "lanes", "connections", "bare ms", "from batch ms", "from time ms", "ratio", "goal"), lines
            )
        ],
        remarks=[
            f"Medians of {repeats} repeats in turn, each a mean over {len(PLACES)} places of the log; the ratio with "
            "its smallest and largest. The clock stops when the first batch is there: closing is not counted.",
            "A Consumer at the end of a lane serves a new `assign` when its idle fetch has come back: bare "
            "times of hundreds of milliseconds are that, and say nothing for ours.",
            "Flat is a time that does not grow from the shortest log to the longest.",
        ],
        versions=client_versions(),
    )


def _compare(cluster: Cluster, log: KafkaLog, manifest: Manifest, repeats: int) -> list[tuple[str, ...]]:
    batches, layout = manifest.total_batches or 0, manifest.layout
    targets = [min(batches - 1, int(place * batches)) for place in PLACES]
    topic = tap_topic(manifest.stream, manifest.taps[0].name)
    with log.source() as source, _bare_consumer(cluster) as consumer:
        found = [source.record_at(topic, layout.lane_of(batch), layout.offset_of(batch)) for batch in targets]
        times_ms = [record.timestamp_ms for record in found]
        lanes = Lanes(source, layout, [topic])
        ways: dict[str, Callable[[int], float]] = {
            "bare, open": lambda place: _bare(consumer, topic, layout.lanes, times_ms[place], time.perf_counter()),
            "batch, open": lambda place: _open(lanes, StartPoint("batch", targets[place])),
            "time, open": lambda place: _open(lanes, StartPoint("time", times_ms[place])),
            "bare, new": lambda place: _bare_new(cluster, topic, layout.lanes, times_ms[place]),
            "batch, new": lambda place: _new(cluster, manifest, f"batch:{targets[place]}"),
            "time, new": lambda place: _new(cluster, manifest, str(times_ms[place] / 1000)),
        }
        runs = in_turn({name: partial(_timed, seek) for name, seek in ways.items()}, repeats)
    lines: list[tuple[str, ...]] = []
    for connections in ("open", "new"):
        ratio = time_ratio(runs, f"time, {connections}", f"bare, {connections}")
        shown = [f"{1000 / rate(runs, f'{name}, {connections}'):.1f}" for name in ("bare", "batch", "time")]
        lines.append((f"{batches:,}", str(layout.lanes), connections, *shown, str(ratio), ratio.within(GOAL)))
    return lines


def _timed(seek: Callable[[int], float]) -> Run:
    """Return how many seeks a second there are, the mean over all places."""
    return Run(len(PLACES) / sum(seek(place) for place in range(len(PLACES))), 0.0)


def _new(cluster: Cluster, manifest: Manifest, start: str) -> float:
    began = time.perf_counter()
    with FeatureStream(manifest.stream, start=start, bootstrap_servers=cluster.bootstrap_servers) as stream:
        rows = next(iter(stream)).numpy()
        seconds = time.perf_counter() - began
    if len(rows) != ROWS:
        raise RuntimeError(f"{len(rows)} rows came")
    return seconds


def _open(lanes: Lanes, start: StartPoint) -> float:
    began = time.perf_counter()
    position, offsets = find_start(start, lanes)
    batch, place = position.batch, (lanes.topics[0], lanes.layout.lane_of(position.batch))
    # As a FeatureStream does: the offsets of all lanes, so that a range that is partly gone is refused.
    offsets = offsets or lanes.offsets_of({at: lanes.layout.next_in_lane(at[1], batch) for at in lanes.places()})
    with closing(lanes.source.read(*place, offsets[place])) as reader:
        record = reader.poll(10)
        if record is None or record.value is None or decode(record.value).batch != batch:
            raise RuntimeError(f"batch {batch} did not come")
        return time.perf_counter() - began


def _bare_new(cluster: Cluster, topic: str, lanes: int, time_ms: int) -> float:
    began = time.perf_counter()
    with _bare_consumer(cluster) as consumer:
        return _bare(consumer, topic, lanes, time_ms, began)


def _bare(consumer: Consumer, topic: str, lanes: int, time_ms: int, began: float) -> float:
    consumer.assign(consumer.offsets_for_times([TopicPartition(topic, lane, time_ms) for lane in range(lanes)]))
    while True:
        message = consumer.poll(10)
        if message is None:
            raise RuntimeError("nothing came for 10 s")
        if message.error() is None and message.value():
            return time.perf_counter() - began


@contextmanager
def _bare_consumer(cluster: Cluster) -> Iterator[Consumer]:
    silent = logging.Logger("bare", logging.CRITICAL)
    consumer = Consumer(reader_settings(cluster, "bare", LANE_QUEUE_KBYTES), logger=silent)
    try:
        yield consumer
    finally:
        consumer.close()

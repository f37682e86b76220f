"""Producers that stand still or start twice, readers that are overtaken or share a name, topics changed under them."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster
from featurestream.errors import (
    BrokerError,
    FingerprintError,
    GoneError,
    StreamMismatchError,
    StreamNotFoundError,
)
from featurestream.kafka import KafkaLog
from featurestream.manifest import Manifest, sealed
from featurestream.memory import MemoryLog
from featurestream.names import record_key, tap_topic
from featurestream.ports import RecordSink
from featurestream.stream import FeatureStream
from featurestream.wire import encode, headers_of
from featurestream_producer.run import produce
from tests.faults.harm import END_S, cluster_of
from tests.faults.oracle import Files, examine
from tests.faults.witness import AroundLog, WitnessedLog, contents, write_lines, write_yielded
from tests.producer_killing import producer, records_of
from tests.producing import command, config, settings, wait_for_batches, write_images
from tests.support import append, create, make_batch_record, make_manifest, publish

pytestmark = pytest.mark.broker

SLOW = pytest.mark.slow
PASSES = 40  # 240 batches
ROW = 50_000  # numbers of a wide row: 200 kB


@pytest.fixture
def log(broker: Cluster) -> Iterator[KafkaLog]:
    with KafkaLog(broker) as log:
        yield log


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process publishes that nobody disturbs, for the oracle."""
    log = MemoryLog()
    produce(config(images, "undisturbed", passes=PASSES), log, say=lambda _: None)
    with FeatureStream("undisturbed", log=log) as stream:
        return write_lines(
            tmp_path_factory.mktemp("reference") / "reference.txt",
            ((tap, number, content) for batch in stream for number, tap, content in contents(batch)),
        )


def wide(name: str, batches: int, **changes: int) -> Manifest:
    """A stream of one tap whose batches are 200 kB each."""
    plain = make_manifest(name, samples=batches, batch_samples=1, lanes=1, passes=1, taps=("layer3",), **changes)
    (tap,) = plain.taps
    return sealed(plain.model_copy(update={"taps": [tap.model_copy(update={"shape": [ROW]})]}))


# ---- producers ------------------------------------------------------------------------------------------------------


@SLOW
def test_a_zombie_that_wakes_while_its_successor_publishes_changes_nothing(
    log: KafkaLog, images: Path, unique: str, *, undisturbed: Path, account
) -> None:
    one = account("zombie producer: SIGSTOP, successor, SIGCONT")
    address = log.cluster.bootstrap_servers
    with command(images, unique, address, passes=PASSES, delay_s=0.01) as zombie:
        wait_for_batches(log, unique, ("late",), 20, zombie)
        os.killpg(zombie.pid, signal.SIGSTOP)
        stopped_at = records_of(log, unique, "late")
        with producer(address, settings(images, unique, passes=PASSES, take_over=True), delay_s=0.01) as successor:
            while records_of(log, unique, "late") < stopped_at + 20:
                successor.join(0.02)
                assert successor.is_alive()
            os.killpg(zombie.pid, signal.SIGCONT)
            one.injected += 1
            successor.join(END_S)
            assert successor.exitcode == 0
        _, shown = zombie.communicate(timeout=END_S)
    assert zombie.returncode == 2, shown
    assert "was taken over by another producer" in shown
    verdict = examine(unique, address, Files(reference=undisturbed))
    print(f"{verdict.duplicates} duplicates")
    one.judge(verdict)


@pytest.mark.parametrize("seed", [11, pytest.param(12, marks=SLOW), pytest.param(13, marks=SLOW)])
def test_of_two_producers_that_are_started_at_once_one_publishes_the_stream_and_the_other_says_why_not(
    log: KafkaLog, images: Path, unique: str, *, undisturbed: Path, account, seed: int
) -> None:
    one = account("two producers started at once")
    fields = settings(images, unique, passes=PASSES)
    address, chance = log.cluster.bootstrap_servers, random.Random(seed)
    with ExitStack() as stack:
        both = [stack.enter_context(producer(address, fields))]
        threading.Event().wait(chance.uniform(0, 0.05))
        both.append(stack.enter_context(producer(address, fields)))
        one.injected += 1
        for process in both:
            process.join(END_S)
    codes = {process.exitcode for process in both}
    assert codes in ({0, 2}, {0}), "one publishes; the other is refused, or finds it finished"
    one.judge(examine(unique, address, Files(reference=undisturbed)))


def test_clocks_that_are_wrong_move_neither_times_nor_retention(log: KafkaLog, unique: str, account) -> None:
    """A writer two hours ahead, and one thirty days behind: the broker's clock is what counts."""
    one = account("clock skew of producers, +2 h and -30 d")
    manifest = make_manifest(unique, samples=30, lanes=3)
    create(log, manifest, **{"retention.ms": "3600000"})
    writer = Producer({"bootstrap.servers": log.cluster.bootstrap_servers, "enable.idempotence": True})
    refused: list[object] = []
    now = time.time()
    marks = []
    for batch in range(16):
        skew_s = 2 * 3600 if batch % 2 else -30 * 86_400
        for tap in manifest.taps:
            record = replace(make_batch_record(manifest, batch, tap.name), extracted_ns=int((now + skew_s) * 1e9))
            writer.produce(
                tap_topic(unique, tap.name), encode(record), record_key(record.pass_number, batch), batch % 3,
                headers=list(headers_of(record)), timestamp=int((now + skew_s) * 1000),
                on_delivery=lambda error, _: refused.append(error) if error is not None else None,
            )  # fmt: skip
        assert writer.flush(30) == 0
        one.injected += 1
        marks.append(time.time())
        while time.time() - marks[-1] < 0.003:
            pass
    assert refused == []
    with FeatureStream(unique, log=log, start=marks[7]) as stream:
        assert [batch.position.batch for batch in stream] == list(range(8, 16))
    one.judge(examine(unique, log.cluster.bootstrap_servers))


@SLOW
def test_a_disk_that_fills_ends_the_run_in_words_and_costs_nothing_that_was_acknowledged(
    images: Path, unique: str, tmp_path: Path, *, undisturbed: Path, account
) -> None:
    one = account("disk full on a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    broker, ballast = EmbeddedBroker(disk), disk / "ballast"
    try:
        log = KafkaLog(cluster_of(broker), delivery_s=3.0)
        witnessed = WitnessedLog(log, tmp_path)
        with pytest.raises(BrokerError) as caught:
            produce(config(images, unique, passes=PASSES), Filling(witnessed, ballast), say=lambda _: None)
        one.injected += 1
        assert "the same command goes on where the stream ends" in str(caught.value)
        broker.down()
        ballast.unlink()
        address = cluster_of(broker).bootstrap_servers
        result = produce(config(images, unique, passes=PASSES), witnessed, say=lambda _: None)
        assert result.finished
        one.judge(examine(unique, address, replace(witnessed.files, reference=undisturbed)))
        log.close()
    finally:
        broker.down()
        subprocess.run(["umount", "-l", str(disk)], check=True)


class Filling(AroundLog):
    """A log whose disk is full from the tenth flush on."""

    def __init__(self, log: WitnessedLog, ballast: Path) -> None:
        super().__init__(log)
        self._ballast = ballast

    def sink(self) -> RecordSink:
        sink, flushes = self.inner.sink(), itertools.count()
        flush = sink.flush

        def filling() -> None:
            flush()
            if next(flushes) == 10:
                fill(self._ballast)

        sink.flush = filling  # type: ignore[method-assign]
        return sink


def fill(ballast: Path) -> None:
    """Write until nothing is free."""
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


# ---- readers --------------------------------------------------------------------------------------------------------


def test_a_reader_that_retention_overtakes_stops_with_what_is_left_and_the_others_go_on(
    doomed: EmbeddedBroker, unique: str, tmp_path: Path, account
) -> None:
    one = account("retention overtaking a slow reader")
    cluster = cluster_of(doomed)
    with KafkaLog(cluster, queue_kbytes=1000) as log:
        manifest = wide(unique, 200)
        create(log, manifest, **{"segment.bytes": str(2**20), "retention.bytes": str(4 * 2**20)})
        append(log, manifest, range(20))
        slow = FeatureStream(unique, log=log)
        reading = iter(slow)
        seen = [next(reading).position.batch for _ in range(3)]
        with FeatureStream(unique, log=log) as fast:
            ahead = iter(fast)
            for done in range(20, 200, 20):  # at the speed of the publisher: never behind
                write_yielded(tmp_path / "fast.txt", itertools.islice(ahead, 20))
                append(log, manifest, range(done, done + 20))
            write_yielded(tmp_path / "fast.txt", ahead)
        source = log.source()
        wait_until(lambda: source.bounds(f"{unique}.layer3", 0).low > 100)
        source.close()
        one.injected += 1
        with pytest.raises(GoneError, match="before it was read") as caught:
            seen += [batch.position.batch for batch in reading]
        slow.close()
        assert seen == list(range(len(seen))), "in order, up to where it stopped"
        assert len(seen) < 100
        assert "what is left begins at batch:1" in (caught.value.hint or "")
        got = [int(line.split()[0]) for line in (tmp_path / "fast.txt").read_text().splitlines()]
        assert got == list(range(200))
    one.judge(examine(unique, cluster.bootstrap_servers))


def wait_until(condition, limit_s: float = END_S) -> None:
    tick, began = threading.Event(), time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not come"
        tick.wait(0.05)


def test_a_stream_that_is_deleted_and_made_anew_under_a_reader_is_refused_or_read_on_exactly(
    log: KafkaLog, unique: str, tmp_path: Path, account
) -> None:
    one = account("topic deleted and re-created under a reader")
    for seed, same in ((0, True), (1, False)):
        name = f"{unique}-{seed}"
        manifest = publish(log, wide(name, 60))
        reading = iter(FeatureStream(name, log=KafkaLog(log.cluster, queue_kbytes=1)))
        begun = list(itertools.islice(reading, 2))
        log.delete_topics([tap_topic(name, "layer3"), f"{name}.manifest"])
        publish(log, manifest if same else wide(name, 60, seed=7))
        one.injected += 1
        try:
            begun += reading
        except (GoneError, FingerprintError, StreamNotFoundError, BrokerError) as error:
            print(f"{len(begun)} batches, then: {type(error).__name__}: {error}")
        else:
            assert same, "another stream was read as if it were the old one"
        numbers = [batch.position.batch for batch in begun]
        assert numbers == list(range(len(numbers)))
        for batch in begun:
            expected = make_batch_record(manifest, batch.position.batch, "layer3")
            assert batch.tap().payload.tobytes() == expected.payload.tobytes()
        one.judge(examine(name, log.cluster.bootstrap_servers))


def test_a_topic_with_more_partitions_is_refused_by_its_producer_and_read_on_exactly(
    log: KafkaLog, images: Path, unique: str, tmp_path: Path, account
) -> None:
    one = account("partition count changed")
    address = log.cluster.bootstrap_servers
    produce(config(images, unique, passes=2), log, say=lambda _: None)
    before = write_yielded(tmp_path / "before.txt", FeatureStream(unique, log=log))
    reading = iter(FeatureStream(unique, log=log))
    begun = list(itertools.islice(reading, 4))
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_partitions([NewPartitions(f"{unique}.late", 5)])[f"{unique}.late"].result(30)
    wait_until(lambda: log.topics()[f"{unique}.late"] == 5)
    one.injected += 1
    after = write_yielded(tmp_path / "after.txt", [*begun, *reading])
    again = write_yielded(tmp_path / "again.txt", FeatureStream(unique, log=log))
    with pytest.raises(StreamMismatchError, match="exists with 5 lanes, not 3"):
        produce(config(images, unique, passes=3), log, say=lambda _: None)
    one.judge(examine(unique, address, Files(yielded=[after, again], resumed=after, uninterrupted=before)))


def test_two_readers_with_one_name_get_the_same_bytes(log: KafkaLog, unique: str, tmp_path: Path, account) -> None:
    one = account("two readers with one experiment name")
    publish(log, make_manifest(unique, samples=200, lanes=3))
    files = [tmp_path / "one.txt", tmp_path / "other.txt"]
    threads = [
        threading.Thread(target=write_yielded, args=(file, FeatureStream(unique, log=log, reader="E1")))
        for file in files
    ]
    for thread in threads:
        thread.start()
    one.injected += 1
    for thread in threads:
        thread.join(END_S)
    one.judge(examine(unique, log.cluster.bootstrap_servers, Files(
        yielded=files, resumed=files[0], uninterrupted=files[1],
    )))  # fmt: skip


SLOW_READER = """
import sys, time, threading
from featurestream import FeatureStream
pause = threading.Event()
began = time.monotonic()
for number, batch in enumerate(FeatureStream(sys.argv[1], bootstrap_servers=sys.argv[2])):
    batch.numpy().sum()
    print(batch.position.batch, flush=True)
    pause.wait(100 * (time.monotonic() - began) / (number + 1) if number < 2 else 0.25)
"""


def test_a_reader_at_a_hundredth_of_the_speed_holds_little_and_holds_nobody_up(
    log: KafkaLog, unique: str, tmp_path: Path, account
) -> None:
    one = account("a reader at 1 % speed")
    manifest = wide(unique, 400)  # 80 MB, ten times what a lane's reader may hold
    create(log, manifest)
    append(log, manifest, range(10))
    address = log.cluster.bootstrap_servers
    slow = subprocess.Popen(
        [sys.executable, "-c", SLOW_READER, unique, address], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert slow.stdout is not None
        assert slow.stdout.readline() == "0\n"
        process = psutil.Process(slow.pid)
        first = process.memory_info().rss
        append(log, manifest, range(10, 400))
        one.injected += 1
        sizes = []
        for _ in range(3):
            with FeatureStream(unique, log=log) as stream:
                file = write_yielded(tmp_path / f"fast-{len(sizes)}.txt", stream)
            sizes.append(process.memory_info().rss - first)
        assert slow.poll() is None
    finally:
        slow.kill()
        said, _ = slow.communicate()
    print(f"it grew by {np.array(sizes) / 2**20} MiB")
    assert len(said.splitlines()) < 200, "it was not slow"
    assert max(sizes) < 40 * 2**20, "8 MiB are read ahead, and a request may bring 16 more"
    one.judge(examine(unique, address, Files(yielded=[file])))

"""What readers and writers do when the broker dies, stands still, or has a damaged disk."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError, RecordError
from featurestream.kafka import KafkaLog, KafkaSink, KafkaSource
from tests.conftest import guarded
from tests.support import poll_for

pytestmark = pytest.mark.broker

BATCH_HEADER = 61  # bytes before the first record of a batch


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("broken")
    with guarded(home):
        yield home


@pytest.fixture
def own(home: Path) -> EmbeddedBroker:
    """A broker that the tests of this module may break, running; the next one starts it again."""
    broker = EmbeddedBroker(home)
    broker.up()
    return broker


@pytest.fixture
def topic(own: EmbeddedBroker, unique: str) -> str:
    """A topic of two lanes."""
    with KafkaLog(cluster_of(own)) as log:
        log.create_topic(unique, 2, {})
    return unique


def cluster_of(broker: EmbeddedBroker) -> Cluster:
    return Cluster(broker.status().bootstrap_servers or "")


def kill(broker: EmbeddedBroker) -> None:
    process = psutil.Process(broker.status().pid)
    process.kill()
    process.wait(20)


@contextmanager
def standing_still(broker: EmbeddedBroker) -> Iterator[None]:
    pid = broker.status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_broker_that_is_killed_and_comes_back_has_lost_nothing_and_doubled_nothing(own, topic):
    cluster = cluster_of(own)
    with KafkaSink(cluster) as sink, KafkaSource(cluster) as source:
        readers = [source.read(topic, lane, 0) for lane in range(2)]

        def append(numbers):
            for number in numbers:
                sink.append(topic, number % 2, key=b"k", value=b"%d" % number)

        append(range(100))
        sink.flush()
        assert [readers[n % 2].poll(10.0).value for n in range(60)] == [b"%d" % n for n in range(60)]
        kill(own)
        append(range(100, 200))
        revival = threading.Thread(target=own.up)
        revival.start()
        sink.flush()
        revival.join()
        append(range(200, 300))
        sink.flush()
        assert [poll_for(readers[n % 2], 30.0).value for n in range(60, 300)] == [b"%d" % n for n in range(60, 300)]
        assert [source.bounds(topic, lane) for lane in range(2)] == [(0, 150), (0, 150)]
        for reader in readers:
            reader.close()


def test_a_broker_that_stands_still_or_is_gone_is_an_error_in_time_for_all_who_wait(own, topic):
    cluster = cluster_of(own)
    sink = KafkaSink(cluster, queue_kbytes=1_000, delivery_s=1.0)
    blocked = KafkaSink(cluster, queue_kbytes=1_000)
    source = KafkaSource(cluster, stall_s=1.0)
    reader = source.read(topic, 0, 0)
    sink.append(topic, 0, key=b"k", value=b"v")
    sink.flush()
    assert reader.poll(10.0).value == b"v"
    address = cluster.bootstrap_servers
    with standing_still(own):
        sink.append(topic, 0, key=b"k", value=b"never")
        for wait in (sink.flush, lambda: poll_for(reader, 20.0), lambda: source.bounds(topic, 0)):
            began = time.monotonic()
            with pytest.raises(BrokerError, match=f"no answer from Kafka at {address} for "):
                wait()
            assert time.monotonic() - began < 10
        with pytest.raises(BrokerError, match="no answer"):
            sink.append(topic, 0, key=b"k", value=b"never")

        with interrupted_after(0.5), pytest.raises(KeyboardInterrupt):
            fill(blocked, topic)
        began = time.monotonic()
        for opened in (sink, blocked, reader, source):
            opened.close()
        assert time.monotonic() - began < 10

    source = KafkaSource(cluster, stall_s=1.0)
    reader = source.read(topic, 1, 0)
    kill(own)
    with pytest.raises(BrokerError, match=f"no answer from Kafka at {address} for .*Connection refused"):
        poll_for(reader, 20.0)
    reader.close()
    source.close()


def fill(sink, topic):
    while True:
        sink.append(topic, 1, key=b"k", value=bytes(400_000))


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Interrupt the main thread as Ctrl-C does."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_batch_that_is_damaged_on_disk_is_an_error_that_names_its_place(own, topic):
    cluster = cluster_of(own)
    with KafkaSink(cluster) as sink:
        for number in range(4):
            sink.append(topic, 0, key=b"k", value=b"%d" % number * 100)
            sink.flush()  # a batch each
    own.down()
    (segment,) = own.home.glob(f"**/{topic}-0/*.log")
    damage_second_batch(segment)
    own.up()
    with KafkaSource(cluster, stall_s=0.5) as source:
        reader = source.read(topic, 0, 0)
        assert reader.poll(10.0).offset == 0
        for _ in range(2):
            with pytest.raises(RecordError, match=rf"record at {topic}, lane 0, offset 1: nothing came .* to offset 4"):
                poll_for(reader, 20.0)
        reader.close()
        with pytest.raises(RecordError, match=f"record at {topic}, lane 0, offset 1"):
            source.record_at(topic, 0, 1)
        # What is not damaged can still be read.
        assert source.record_at(topic, 0, 2).value == b"2" * 100


def damage_second_batch(segment: Path) -> None:
    """Make the lengths inside the second batch's first record impossible."""
    content = bytearray(segment.read_bytes())
    (length,) = struct.unpack_from(">i", content, 8)
    content[12 + length + BATCH_HEADER + 1] = 0xFF
    segment.write_bytes(content)

"""A broker that goes away while a stream is produced, and comes back, or does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog
from featurestream.manifest_topic import require_manifest
from featurestream.memory import MemoryLog
from featurestream_producer import contact as contact_module
from featurestream_producer import lease as lease_module
from featurestream_producer.run import Result, produce
from tests.conftest import guarded
from tests.producer_killing import records_of
from tests.producing import DELAY, config, contents, write_images

pytestmark = pytest.mark.broker

PASSES = 30
LIMIT_S = 120.0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A broker that the tests of this module may kill; each starts it again."""
    home = tmp_path_factory.mktemp("outage")
    with guarded(home):
        yield EmbeddedBroker(home)


class Running:
    """A producer in a thread of this process: what it said, and how it ended."""

    def __init__(self, images: Path, stream: str, log: KafkaLog) -> None:
        self.said: list[str] = []
        self.news = threading.Condition()
        self.result: Result | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(images, stream, log), daemon=True)
        self._thread.start()

    def _run(self, images: Path, stream: str, log: KafkaLog) -> None:
        try:
            self.result = produce(config(images, stream, passes=PASSES), log, say=self._say)
        except BrokerError as error:
            self.error = error
        self._say("ended")

    def _say(self, line: str) -> None:
        with self.news:
            self.said.append(line)
            self.news.notify_all()

    def wait_for(self, part: str) -> None:
        """Return when something with ``part`` in it was said."""
        with self.news:
            assert self.news.wait_for(lambda: any(part in line for line in self.said), LIMIT_S), self.said


def kill(broker: EmbeddedBroker) -> None:
    process = psutil.Process(broker.status().pid)
    process.kill()
    process.wait(20)


def start(
    broker: EmbeddedBroker, images: Path, stream: str, monkeypatch: pytest.MonkeyPatch, *, delivery_s: float
) -> tuple[Running, KafkaLog]:
    """Return a producer that has published a part of its stream, and its log; heartbeats are quick."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(contact_module, "SILENT_S", 1.0)
    monkeypatch.setenv(DELAY, "0.02")
    log = KafkaLog(Cluster(broker.up().bootstrap_servers or ""), delivery_s=delivery_s)
    running = Running(images, stream, log)
    tick = threading.Event()
    for _ in range(int(LIMIT_S / 0.05)):
        if records_of(log, stream, "late") >= 20:
            return running, log
        tick.wait(0.05)
    raise AssertionError(running.said)


def in_memory(images: Path) -> object:
    log = MemoryLog()
    produce(config(images, "toy", passes=PASSES), log, say=[].append)
    return contents(log, require_manifest(log, "toy"))


@pytest.mark.parametrize("away_s", [0, pytest.param(60, marks=pytest.mark.slow)])
def test_a_broker_that_goes_away_is_waited_for_and_nothing_is_lost_or_doubled(
    broker: EmbeddedBroker, images: Path, unique: str, monkeypatch: pytest.MonkeyPatch, away_s: float
) -> None:
    running, log = start(broker, images, unique, monkeypatch, delivery_s=120.0)
    kill(broker)
    running.wait_for("no answer from Kafka for ")
    threading.Event().wait(away_s)
    broker.up()
    running.wait_for("Kafka answers again, after ")
    running.wait_for("ended")
    assert running.error is None
    assert running.result is not None
    assert running.result.finished
    monkeypatch.delenv(DELAY)
    assert contents(log, require_manifest(log, unique)) == in_memory(images)
    log.close()


def test_a_broker_that_stays_away_ends_the_run_with_what_is_safe_and_how_to_go_on(
    broker: EmbeddedBroker, images: Path, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, log = start(broker, images, unique, monkeypatch, delivery_s=2.0)
    kill(broker)
    running.wait_for("ended")
    text = str(running.error)
    assert isinstance(running.error, BrokerError)
    assert "no answer from Kafka at" in text
    assert "batches below " in text
    assert "are safe on the log" in text
    assert "the same command goes on where the stream ends" in text

    broker.up()
    monkeypatch.delenv(DELAY)
    said: list[str] = []
    result = produce(config(images, unique, passes=PASSES), log, say=said.append)
    assert result.finished
    assert any("goes on at batch " in line for line in said)
    assert contents(log, require_manifest(log, unique)) == in_memory(images)
    log.close()

"""A reader's own look at retention: the numbers worked out by hand, and the warning that comes in time."""

from __future__ import annotations

import logging
import threading

import pytest

from featurestream.logs import Line
from featurestream.memory import MemoryLog
from featurestream.reader_lease import ReaderPlace
from featurestream.retention_watch import Edge, RetentionWatch
from featurestream.stream import FeatureStream
from tests.support import append, create, make_manifest

T0 = 1_700_000_000.0  # when everything is appended
HOUR = {"retention.ms": "3600000", "retention.bytes": str(2**30)}
MANIFEST = make_manifest(samples=12, batch_samples=4, lanes=2, passes=2)  # batches 0 to 5


class Scene:
    """Batches 0 to 3 of six, appended at T0; a reader somewhere; a clock."""

    def __init__(self, **settings: str) -> None:
        self.now, self.batch = T0, 0
        self.warned: list[Line] = []
        self.log = MemoryLog(lambda: self.now)
        create(self.log, MANIFEST, **HOUR | settings)
        append(self.log, MANIFEST, range(4))
        self.watch = RetentionWatch(self.log, MANIFEST, self.place, self.warned.append, clock=lambda: self.now)

    def place(self) -> ReaderPlace:
        return ReaderPlace("E1", self.batch, self.batch, ("layer3", "avgpool"), {})

    def look(self, after_s: float, batch: int = 0) -> Edge:
        self.now, self.batch = T0 + after_s, batch
        self.watch.look(self.log.source())
        assert self.watch.edge is not None
        return self.watch.edge


def test_the_share_is_of_the_time_since_the_next_batch_came() -> None:
    """It was appended at 0 s and is kept for 3,600 s: after 900 s a quarter has passed, and 2,700 s are left."""
    scene = Scene()
    edge = scene.look(900)
    assert (edge.share, edge.end) == (0.25, 4)
    assert edge.expires_in_s(T0 + 900) == 2700
    assert edge.expires_in_s(T0 + 5000) == 0


def test_there_is_one_warning_when_a_fifth_is_left_and_another_when_it_comes_near_again() -> None:
    scene = Scene()
    for after_s, batch, count in ((2879, 0, 0), (2880, 0, 1), (3000, 1, 1), (3000, 4, 1), (3001, 1, 2)):
        scene.look(after_s, batch)
        assert scene.watch.warnings == len(scene.warned) == count
    first = scene.warned[0]
    assert first.startswith("warning: E1 has not read batch 0 of tap layer3, and 80% of the time")
    assert first.facts == {"reader": "E1", "batch": 0, "tap": "layer3", "share": 0.8, "by": "time"}


def test_a_reader_that_waits_for_the_next_batch_has_all_of_the_retention_before_it() -> None:
    edge = Scene().look(9999, batch=4)
    assert (edge.share, edge.expires_at, edge.expires_in_s(T0 + 9999)) == (0.0, None, 3600)


def test_bytes_count_too_and_as_kafka_counts_them_by_lane() -> None:
    """Lane 0 holds batches 0 and 2; what is kept is just the bytes of these two."""
    scene = Scene()
    record = scene.log.source().record_at("toy.avgpool", 0, 0)
    assert record.value is not None
    scene = Scene(**{"retention.bytes": str(2 * len(record.value))})
    assert scene.look(0, batch=0).share == pytest.approx(1.0, abs=0.05)
    assert scene.look(0, batch=2).share == pytest.approx(0.5, abs=0.05)
    assert scene.warned[0].facts["by"] == "bytes"


def test_a_batch_that_is_gone_has_expired() -> None:
    scene = Scene()
    for tap in ("layer3", "avgpool"):
        scene.log.delete_before(f"toy.{tap}", 0, 1)
    edge = scene.look(10, batch=0)
    assert (edge.share, edge.expires_in_s(scene.now)) == (1.0, 0)
    assert scene.watch.warnings == 1


def test_what_is_kept_for_ever_never_expires() -> None:
    scene = Scene(**{"retention.ms": "-1", "retention.bytes": "-1"})
    edge = scene.look(10**9)
    assert edge.share == pytest.approx(0, abs=1e-6)
    assert edge.expires_in_s(scene.now) == float("inf")
    assert scene.warned == []


def test_a_reader_that_reads_nothing_is_not_looked_for() -> None:
    log = MemoryLog()
    watch = RetentionWatch(log, MANIFEST, lambda: None, lambda _: None)
    watch.look(log.source())
    assert watch.edge is None


class Publisher(logging.Handler):
    """Appends the rest of the stream when it hears the warning."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__()
        self.log = log
        self.heard: list[logging.LogRecord] = []
        self.hearing = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record)
        append(self.log, MANIFEST, range(4, 6))
        self.hearing.set()


def test_a_named_reader_warns_in_pythons_log_while_it_reads() -> None:
    """Everything on the log is of 1970; the reader waits for batch 4, which only comes after the warning."""
    log = MemoryLog(lambda: 0.0)
    create(log, MANIFEST, **HOUR)
    append(log, MANIFEST, range(4))
    publisher, logger = Publisher(log), logging.getLogger("featurestream.stream")
    logger.addHandler(publisher)
    try:
        with FeatureStream("toy", "avgpool", log=log, reader="notebook") as stream:
            batches = iter(stream)
            next(batches)
            assert publisher.hearing.wait(30)  # it stands at a batch that should have been deleted long ago
            assert len(list(batches)) == 5
    finally:
        logger.removeHandler(publisher)
    (record,) = publisher.heard
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("notebook has not read batch")

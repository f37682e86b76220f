"""Whole runs of the producer that keep to the pace of readers, on the in-memory log."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream.memory import MemoryLog
from featurestream.names import reader_group
from featurestream.progress import Progress
from featurestream.reader_lease import ReaderNote
from featurestream_producer import pace, pacer
from featurestream_producer.run import Result, produce
from tests.producing import config, contents, write_images

PASS = 6  # batches
NOBODY = "waiting for readers (nobody reads)"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacer, "LOOK_S", 0.02)


def facts_of(log: MemoryLog) -> StreamFacts:
    with ManifestTopic(log, "toy") as topic:
        return topic.read()


def batches_of(log: MemoryLog) -> int:
    source = log.source()
    return sum(source.bounds("toy.late", lane).high for lane in range(3))


def beat(log: MemoryLog, reader: str, batch: int, needs: int | None = None, taps: tuple[str, ...] = ("late",)) -> None:
    """Do what a living reader does every few seconds."""
    needs = batch if needs is None else needs
    note = ReaderNote(batch=batch, needs=needs, taps=taps, beat_ms=round(time.time() * 1000))
    log.commit_positions(reader_group("toy", reader), {("toy.late", 0): 0}, note.model_dump_json())


def beats(log: MemoryLog, **places: int) -> None:
    for reader, batch in places.items():
        beat(log, reader, batch)


class Scene(Progress):
    """A progress that acts: each text that the waiting producer shows calls the next step; after the last, Ctrl-C."""

    def __init__(self, log: MemoryLog, steps: list[Callable[[], None]]) -> None:
        super().__init__("toy", None, "img")
        self.log, self.steps = log, steps
        self.shown: list[tuple[str, int]] = []

    def note(self, text: str) -> None:
        if (text, batches_of(self.log)) in self.shown[-1:]:
            return  # the same wait
        if facts_of(self.log).passes.keys() != set(range(batches_of(self.log) // PASS)):
            return  # what was published is not yet recorded
        self.shown.append((text, batches_of(self.log)))
        if self.steps:
            self.steps.pop(0)()
        else:
            signal.raise_signal(signal.SIGINT)


def play(log: MemoryLog, images: Path, *steps: Callable[[], None], **changes: object) -> tuple[Scene, Result]:
    scenes: list[Scene] = []

    def show(_title: str, _total: int | None, _unit: str) -> Progress:
        scenes.append(Scene(log, list(steps)))
        return scenes[0]

    result = produce(config(images, "toy", **{"passes": None} | changes), log, say=lambda _: None, progress=show)
    return scenes[0], result


def test_an_endless_stream_that_nobody_reads_has_one_pass_and_waits_until_it_is_ended(images: Path) -> None:
    log = MemoryLog()
    scene, result = play(log, images)
    assert scene.shown == [(NOBODY, PASS)]
    assert (result.batches, result.interrupted, result.finished) == (PASS, True, False)
    assert sorted(facts_of(log).passes) == [0]


def test_a_producer_keeps_its_distance_to_the_slowest_reader_and_goes_on_with_it(images: Path) -> None:
    """Nobody; then E1 and E2 at the beginning; then E1 has read 4 batches, E2 8."""
    log = MemoryLog()
    slow, fast = "waiting for readers (slowest: E1 at pass 0)", "waiting for readers (slowest: E2 at pass 1)"
    scene, result = play(
        log,
        images,
        lambda: beats(log, E1=0, E2=0),
        lambda: beats(log, E1=4, E2=8),
        lambda: beat(log, "E1", 13),
        ahead=2,
    )
    assert scene.shown == [(NOBODY, PASS), (slow, 2 * PASS), (slow, 4 + 2 * PASS), (fast, 8 + 2 * PASS)]
    assert result.waited_s > 0
    assert result.batches == 20


def test_what_was_waited_for_is_what_would_have_been_published_without_waiting(images: Path) -> None:
    log, free = MemoryLog(), MemoryLog()
    play(log, images, lambda: beat(log, "E1", 3), ahead=1)
    produce(config(images, "toy", passes=2), log, say=lambda _: None)
    produce(config(images, "toy", passes=2), free, say=lambda _: None)
    manifest = facts_of(free).manifest
    assert manifest is not None
    assert contents(log, manifest) == contents(free, manifest)


def test_a_finite_stream_runs_to_its_end_although_nobody_reads(images: Path) -> None:
    log = MemoryLog()
    assert produce(config(images, "toy", passes=2), log, say=lambda _: None).finished


def test_a_run_that_stops_when_nobody_reads_ends_with_a_whole_pass(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "STOP_AFTER_S", 0.2)
    log, said = MemoryLog(), list[str]()
    result = produce(config(images, "toy", passes=None, idle="stop"), log, say=said.append)
    assert (result.batches, result.unread, result.interrupted) == (PASS, True, False)
    assert said[-1].startswith("nobody reads: everything that was sent is safe")
    assert said[-1].endswith('goes on with stream "toy" at batch 6')


class Cramped(MemoryLog):
    """Keeps 1,000 bytes a lane, which is less than three of its batches."""

    def settings(self, topic: str) -> dict[str, str]:
        return super().settings(topic) | {"retention.bytes": "1000"}


def test_a_reader_is_warned_about_before_retention_takes_what_it_has_not_read(images: Path) -> None:
    """One reads batch 5 and would go on at batch 0 after a crash; another one needs nothing before batch 5."""
    log = Cramped()

    def two_readers() -> None:
        beat(log, "late", 5, needs=0)
        beat(log, "early", 5)

    scene, result = play(log, images, two_readers, ahead=1)
    assert scene.shown[-1] == ("waiting for readers (slowest: early at pass 0)", 5 + PASS)
    warnings = facts_of(log).retention_warnings
    assert (warnings["late"].batch, warnings["late"].tap, warnings["late"].by) == (0, "late", "bytes")
    assert warnings["late"].share >= 0.8
    assert warnings["late"].text in result.warnings


def test_a_reader_with_room_left_is_not_warned_about(images: Path) -> None:
    log = MemoryLog()
    _, result = play(log, images, lambda: beat(log, "E1", 5, needs=0), ahead=1)
    assert (facts_of(log).retention_warnings, result.warnings) == ({}, ())

"""Which lanes a reading opens, and when."""

from __future__ import annotations

import pytest

from featurestream.memory import MemoryLog
from featurestream.merge import LaneMerge
from featurestream.ports import LaneReader, LogRecord, RecordSource
from featurestream.stream import FeatureStream
from tests.support import make_manifest, publish

MANIFEST = make_manifest(lanes=4, taps=("layer3", "avgpool"))


class WatchedLog:
    """A log that writes down which lanes of taps are opened and polled, in turn: ``open avgpool 0``."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.events: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.log, name)

    def source(self) -> RecordSource:
        return WatchedSource(self.log.source(), self.events)


class WatchedSource:
    def __init__(self, source: RecordSource, events: list[str]) -> None:
        self.source = source
        self.events = events

    def __getattr__(self, name: str) -> object:
        return getattr(self.source, name)

    def read(self, topic: str, lane: int, offset: int) -> LaneReader:
        name = f"{topic.rpartition('.')[2]} {lane}"
        self.events.append(f"open {name}")
        return WatchedReader(self.source.read(topic, lane, offset), name, self.events)


class WatchedReader:
    def __init__(self, reader: LaneReader, name: str, events: list[str]) -> None:
        self.reader = reader
        self.name = name
        self.events = events

    def poll(self, timeout_s: float) -> LogRecord | None:
        self.events.append(f"poll {self.name}")
        return self.reader.poll(timeout_s)

    def close(self) -> None:
        self.reader.close()


@pytest.fixture
def log() -> WatchedLog:
    log = WatchedLog()
    publish(log, MANIFEST)
    return log


def test_the_first_batch_waits_for_its_own_lane_and_the_others_connect_together(log: WatchedLog) -> None:
    with FeatureStream("toy", log=log) as stream:
        del log.events[:]  # what the stream was found with
        batches = iter(stream)
        next(batches)
        next(batches)
    first = ["open layer3 0", "open avgpool 0", "poll layer3 0", "poll avgpool 0"]
    others = [f"open {tap} {lane}" for lane in (1, 2, 3) for tap in ("layer3", "avgpool")]
    assert log.events == [*first, *others, "poll layer3 1", "poll avgpool 1"]


@pytest.mark.parametrize(
    ("options", "lanes"),
    [
        ({"shard": (0, 2)}, [0, 2]),
        ({"shard": (1, 2), "start": "batch:2"}, [3, 1]),
        ({"shard": (0, 3), "start": "batch:1"}, [1, 0]),  # batches 1 and 4: the stream ends before the next
        ({"stop": "batch:2"}, [0, 1]),
        ({"start": "batch:3", "stop": "batch:5"}, [3, 0]),
    ],
)
def test_no_lane_is_opened_that_the_range_or_the_shard_does_not_read(
    log: WatchedLog, options: dict[str, object], lanes: list[int]
) -> None:
    with FeatureStream("toy", "layer3", log=log, **options) as stream:
        del log.events[:]
        assert list(stream)
    assert [event for event in log.events if event.startswith("open")] == [f"open layer3 {lane}" for lane in lanes]


def test_a_lane_that_was_not_opened_is_opened_when_it_is_needed(log: WatchedLog) -> None:
    source = log.source()
    merge = LaneMerge(source, MANIFEST, ["layer3"])
    merge.open([1])
    assert merge.open_lanes == 1
    assert [merge.batch(number).position.batch for number in (1, 2, 5)] == [1, 2, 5]
    merge.close()
    assert [event for event in log.events if event.startswith("open layer3")] == ["open layer3 1", "open layer3 2"]

"""Lanes as they stand on the log: what an answer holds, and what stays open for the next one.

What a reader is promised of them is in the suites of the ports, which run on a gateway too.
"""

from __future__ import annotations

import msgpack
import pytest

from featurestream.memory import MemoryLog, MemorySource
from featurestream.ports import LaneReader
from featurestream.wire import decode
from featurestream_gateway.lane_readings import IDLE_LANES, IDLE_S, LaneReadings
from tests.gateway.serving import Served

LANE = "/v1/streams/toy/lanes/layer3/0"


class CountingLog(MemoryLog):
    """A log that counts how many lanes were opened."""

    opened = 0

    def source(self) -> MemorySource:
        log = self

        class Source(MemorySource):
            def read(self, topic: str, lane: int, offset: int) -> LaneReader:
                log.opened += 1
                return super().read(topic, lane, offset)

        return Source(self)


@pytest.fixture
def counting() -> CountingLog:
    """Lane 0 holds ten values of ten bytes."""
    log = CountingLog()
    log.create_topic("t", 1, {})
    sink = log.sink()
    for number in range(10):
        sink.append("t", 0, key=b"k", value=b"%010d" % number)
    return log


def test_topics_of_streams_are_listed_with_their_lanes(served: Served) -> None:
    assert served.json("/v1/lanes") == {"topics": {"toy.avgpool": 2, "toy.layer3": 2, "toy.manifest": 1}}


def test_lanes_tell_their_bounds_and_where_a_time_is(served: Served) -> None:
    lanes = "/v1/streams/toy/lanes"
    assert served.json(lanes, taps="layer3") == {
        "stream": "toy",
        "lanes": [{"tap": "layer3", "lane": lane, "low": 0, "high": 3} for lane in (0, 1)],
    }
    late = served.json(lanes, taps=["avgpool", "layer3"], ms=4_000_000_000_000)["lanes"]
    assert [(one["tap"], one["lane"], one["offset"]) for one in late] == [
        ("avgpool", 0, 3), ("avgpool", 1, 3), ("layer3", 0, 3), ("layer3", 1, 3),
    ]  # fmt: skip
    assert {one["offset"] for one in served.json(lanes, taps="layer3,avgpool", ms=0)["lanes"]} == {0}
    assert [(one["tap"], one["lane"]) for one in served.json(lanes)["lanes"]][-1] == ("manifest", 0)


def test_records_come_with_key_headers_and_the_value_as_it_stands(served: Served) -> None:
    answer = served.get(f"{LANE}/records", offset=1)
    assert answer.headers["content-type"] == "application/msgpack"
    second, third = msgpack.unpackb(answer.content)
    assert (second[0], second[2]) == (1, b"0/2")
    assert dict(second[3])["batch"] == b"2"
    assert decode(second[4]).batch == 2
    assert third[0] == 2
    assert msgpack.unpackb(served.get(f"{LANE}/record", offset=1).content) == [second]


def test_an_answer_ends_with_the_bytes_that_were_asked_for(served: Served) -> None:
    assert [entry[0] for entry in msgpack.unpackb(served.get(f"{LANE}/records", offset=0, bytes=1).content)] == [0]


def test_at_the_end_of_a_lane_an_answer_is_empty_with_or_without_waiting(served: Served) -> None:
    for wait in (0, 0.05):
        assert msgpack.unpackb(served.get(f"{LANE}/records", offset=3, wait=wait).content) == []


@pytest.mark.parametrize(
    ("path", "asked", "kind", "detail"),
    [
        ("toi/lanes", {}, "stream-not-found", 'there is no stream "toi"'),
        ("toi/lanes/layer3/0/records", {"offset": 0}, "stream-not-found", 'there is no stream "toi"'),
        ("toy/lanes", {"taps": "layer4"}, "stream-not-found", 'no topic "toy.layer4" with a lane 0'),
        ("toy/lanes", {"ms": -1}, "bad-request", "query.ms: "),
        ("toy/lanes/layer4/0/records", {"offset": 0}, "stream-not-found", 'no topic "toy.layer4" with a lane 0'),
        ("toy/lanes/layer3/2/record", {"offset": 0}, "stream-not-found", 'no topic "toy.layer3" with a lane 2'),
        ("toy/lanes/layer3/-1/record", {"offset": 0}, "bad-request", "greater than or equal to 0"),
        ("toy/lanes/la yer/0/record", {"offset": 0}, "bad-request", "should match pattern"),
        ("toy/lanes/layer3/0/records", {"offset": 4}, "gone", "has no record at offset 4"),
        ("toy/lanes/layer3/0/record", {"offset": 3}, "gone", "has no record at offset 3"),
        ("toy/lanes/layer3/0/records", {}, "bad-request", "query.offset: "),
        ("toy/lanes/layer3/0/records", {"offset": 0, "bytes": 0}, "bad-request", "query.bytes: "),
        ("toy/lanes/layer3/0/records", {"offset": 0, "n": 1}, "bad-request", "query.n: "),
    ],
)
def test_what_is_not_there_or_no_question_is_a_problem(
    served: Served, path: str, asked: dict[str, int | str], kind: str, detail: str
) -> None:
    found = served.problem(f"/v1/streams/{path}", **asked)
    assert found["type"].rsplit(":", 1)[-1] == kind
    assert detail in found["detail"]


def test_a_lane_stays_open_for_whoever_goes_on_and_is_opened_anew_for_others(counting: CountingLog) -> None:
    lanes = LaneReadings(counting)
    assert [record.offset for record in lanes.read("t", 0, 0, 30)] == [0, 1, 2]
    assert [record.offset for record in lanes.read("t", 0, 3, 15)] == [3, 4]
    assert counting.opened == 1
    assert [record.offset for record in lanes.read("t", 0, 1, 1)] == [1]
    assert (counting.opened, lanes.idle_lanes) == (2, 2)
    lanes.stop()
    assert lanes.idle_lanes == 0


def test_a_lane_that_is_kept_open_but_is_that_of_a_deleted_topic_is_opened_anew(counting: CountingLog) -> None:
    lanes = LaneReadings(counting)
    lanes.read("t", 0, 0, 10)
    counting.delete_topics(["t"])
    counting.create_topic("t", 1, {})
    sink = counting.sink()
    for value in (b"new 0", b"new 1"):
        sink.append("t", 0, key=b"k", value=value)
    assert [record.value for record in lanes.read("t", 0, 1, 100)] == [b"new 1"]
    lanes.stop()


def test_lanes_that_nobody_comes_back_for_or_that_are_too_many_are_closed(counting: CountingLog) -> None:
    now = 0.0
    lanes = LaneReadings(counting, clock=lambda: now)
    for _ in range(IDLE_LANES + 5):
        lanes.read("t", 0, 0, 1)  # and nobody goes on at offset 1
    assert (counting.opened, lanes.idle_lanes) == (IDLE_LANES + 5, IDLE_LANES)
    now += IDLE_S
    lanes.reap()
    assert lanes.idle_lanes == 0
    lanes.stop()

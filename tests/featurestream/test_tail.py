"""featurestream.tail: where lanes end, once they stand still."""

from __future__ import annotations

import pytest

from featurestream.errors import StreamBusyError
from featurestream.ports import Bounds
from featurestream.tail import settled_bounds

PLACES = [("t", 0), ("t", 1)]


class Growing:
    """A log's look-ups on a clock of their own: lane -> the times at which a record arrives."""

    def __init__(self, arrivals: dict[int, list[float]], look_s: float = 0.0) -> None:
        self.arrivals = arrivals
        self.look_s = look_s
        self.now = 0.0
        self.looks: list[float] = []

    def bounds(self, topic: str, lane: int) -> Bounds:
        self.looks.append(self.now)
        high = sum(time <= self.now for time in self.arrivals[lane])
        self.now += self.look_s
        return Bounds(0, high)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def settle(source, **arguments):
    return settled_bounds(source, PLACES, clock=source.clock, sleep=source.sleep, **arguments)


def test_lanes_that_stand_still_are_believed_after_the_quiet_time():
    source = Growing({0: [], 1: [-1.0]})
    assert settle(source, quiet_s=0.3) == {("t", 0): (0, 0), ("t", 1): (0, 1)}
    assert 0.3 <= source.now <= 0.4


def test_one_lane_that_moves_starts_the_quiet_time_of_all_anew():
    source = Growing({0: [], 1: [0.25, 0.5, 0.75]})
    assert settle(source, quiet_s=0.3)["t", 1] == (0, 3)
    assert 1.05 <= source.now <= 1.15


def test_all_lanes_stand_still_together_however_long_a_look_takes():
    # A look at both lanes takes 2 s. The record comes just after the second look at lane 0: between the looks at 0 and
    # at 2.05 s nothing has come anywhere, but that was no common quiet time of 0.3 s.
    source = Growing({0: [2.2], 1: []}, look_s=1.0)
    assert settle(source, quiet_s=0.3)["t", 0] == (0, 1)


def test_a_lane_that_never_stands_still_has_another_writer():
    source = Growing({0: [number / 10 for number in range(1000)], 1: []})
    with pytest.raises(StreamBusyError, match=r"ends of t still move after 5 s.*another producer"):
        settle(source, limit_s=5.0)
    assert 5.0 <= source.now <= 5.2


def test_no_places_have_no_bounds():
    source = Growing({})
    assert settled_bounds(source, [], clock=source.clock, sleep=source.sleep) == {}

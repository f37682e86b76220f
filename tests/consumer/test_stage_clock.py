"""Where the time of a reading goes, by a clock that the test moves."""

from __future__ import annotations

import pytest

from featurestream_consumer.stage_clock import StageClock


class Watch:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_inside_another_one_stops_its_clock() -> None:
    """3 s of training, 5 s of a checkpoint in it, 2 s of training; then 7 s that are no stage's."""
    watch = Watch()
    clock = StageClock(watch)
    with clock.stage("train"):
        watch.now += 3
        with clock.stage("checkpoint"):
            watch.now += 5
        watch.now += 2
    watch.now += 7
    with clock.stage("read"):
        watch.now += 1
    assert clock.seconds == {"read": 1.0, "train": 5.0, "validate": 0.0, "checkpoint": 5.0}


def test_the_seconds_of_what_fails_count_and_the_outer_stage_goes_on() -> None:
    watch = Watch()
    clock = StageClock(watch)

    def fail() -> None:
        with clock.stage("validate"):
            watch.now += 4
            raise RuntimeError("broken")

    with clock.stage("train"):
        with pytest.raises(RuntimeError):
            fail()
        watch.now += 1
    assert (clock.seconds["validate"], clock.seconds["train"]) == (4.0, 1.0)

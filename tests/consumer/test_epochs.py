"""An epoch is a pass read once, or a pass read again."""

from __future__ import annotations

from featurestream.layout import Layout
from featurestream.position import Position
from featurestream_consumer.epochs import EpochPlan, Segment

LAYOUT = Layout(samples=10, batch_samples=4, lanes=2)  # passes are batches 0-2, 3-5, 6-8, ...


def test_each_epoch_reads_the_next_pass_and_starts_again_when_they_are_used_up():
    plan = EpochPlan(LAYOUT, Position(0), 6)
    assert plan.passes == 2
    assert [plan.segment(epoch) for epoch in range(3)] == [
        Segment(0, Position(0), 3),
        Segment(1, Position(3), 6),
        Segment(0, Position(0), 3),
    ]


def test_a_start_inside_a_pass_makes_the_first_epoch_shorter_each_time_it_is_read():
    plan = EpochPlan(LAYOUT, Position(1, 2), 5)
    assert [plan.segment(epoch) for epoch in range(3)] == [
        Segment(0, Position(1, 2), 3),
        Segment(1, Position(3), 5),
        Segment(0, Position(1, 2), 3),
    ]


def test_an_endless_stream_always_has_a_next_pass():
    plan = EpochPlan(LAYOUT, Position(4), None)
    assert plan.passes is None
    assert plan.segment(0) == Segment(1, Position(4), 6)
    assert plan.segment(7) == Segment(8, Position(24), 27)

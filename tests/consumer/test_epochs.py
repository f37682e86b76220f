"""An epoch is a pass read once, or a pass read again."""

from __future__ import annotations

import pytest

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
    assert plan.counts(5) == (2, 3)
    assert plan.counts(1) == (1, 0)


def test_a_start_inside_a_pass_makes_the_first_epoch_shorter_each_time_it_is_read():
    plan = EpochPlan(LAYOUT, Position(1, 2), 5)
    assert [plan.segment(epoch) for epoch in range(3)] == [
        Segment(0, Position(1, 2), 3),
        Segment(1, Position(3), 5),
        Segment(0, Position(1, 2), 3),
    ]
    assert plan.rows_of_first(3) == [4, 8, 4], "batches of 4, 4 and 2 rows"
    assert plan.steps(3, 3) == 2 + 3 + 2


def test_an_endless_stream_always_has_a_next_pass():
    plan = EpochPlan(LAYOUT, Position(4), None)
    assert plan.passes is None
    assert plan.segment(0) == Segment(1, Position(4), 6)
    assert plan.segment(7) == Segment(8, Position(24), 27)
    assert plan.counts(8) == (8, 0)
    assert plan.rows_of_first(3) == [6, 10, 10], "so a schedule's length is known although nobody knows the stream's"


def choices(plan: EpochPlan, *moments: tuple[int, int]) -> tuple[int, ...]:
    """The passes of the epochs, each chosen at a moment: (the first batch not there yet, the first one still there)."""
    for complete, earliest in moments:
        plan = plan.choose(complete=complete, earliest=earliest)
    assert plan.chosen is not None
    return plan.chosen


def test_who_never_waits_reads_a_pass_again_until_the_next_one_is_there_to_its_end():
    plan = EpochPlan(LAYOUT, Position(0), None).never_waiting()
    assert plan.chosen == (0,)
    assert choices(plan, (5, 0), (5, 0), (6, 0), (8, 0)) == (0, 0, 0, 1, 1)


def test_the_pass_that_is_read_again_is_the_one_read_least_often_and_of_those_the_earliest():
    plan = EpochPlan(LAYOUT, Position(0), None, chosen=(0, 1))
    assert choices(plan, *[(6, 0)] * 5) == (0, 1, 0, 1, 0, 1, 0)
    assert choices(plan, (6, 0), (9, 0), (9, 0), (9, 0), (9, 0)) == (0, 1, 0, 2, 1, 2, 0)


def test_a_range_that_is_all_there_is_read_in_the_order_of_one_that_waits():
    waiting = EpochPlan(LAYOUT, Position(1), 8)
    chosen = choices(waiting.never_waiting(), *[(9, 0)] * 6)
    assert chosen == tuple(waiting.segment(epoch).pass_number for epoch in range(7))


def test_a_pass_that_has_lost_its_beginning_is_not_chosen():
    plan = EpochPlan(LAYOUT, Position(0), None, chosen=(0, 1))
    assert choices(plan, (7, 2)) == (0, 1, 1)
    assert choices(plan, (7, 4)) == (0, 1, 2), "nothing is left to read again: it waits"
    over = EpochPlan(LAYOUT, Position(0), 6, chosen=(0, 1))
    assert choices(over, (6, 4)) == (0, 1, 0), "and where nothing more comes, the reader will say what is gone"


def test_passes_and_rereads_are_counted_apart():
    plan = EpochPlan(LAYOUT, Position(0), None, chosen=(0, 0, 1, 0, 2))
    assert [plan.counts(epochs) for epochs in range(1, 6)] == [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2)]
    assert [plan.rereads(epoch) for epoch in range(5)] == [False, True, False, True, False]
    assert [plan.knows(epoch) for epoch in (4, 5)] == [True, False]


@pytest.mark.parametrize(
    ("start", "stop", "rows"), [(0, None, [10] * 3), (3, 9, [10] * 3), (1, None, None), (0, 7, None)]
)
def test_the_rows_of_epochs_are_known_unless_they_depend_on_which_pass_is_read_again(start, stop, rows):
    assert EpochPlan(LAYOUT, Position(start), stop).never_waiting().rows_of_first(3) == rows


def test_rows_of_a_part_of_the_samples_are_known_of_whole_passes_alone():
    assert EpochPlan(LAYOUT, Position(0), None).rows_of_first(2, samples=7) == [7, 7]
    assert EpochPlan(LAYOUT, Position(0), None).steps(2, 4, samples=7) == 4
    assert EpochPlan(LAYOUT, Position(1), None).rows_of_first(2, samples=7) is None


@pytest.mark.parametrize("plan", [EpochPlan(LAYOUT, Position(4), None), EpochPlan(LAYOUT, Position(0), 6, (0, 0))])
def test_a_record_gives_the_plan_back(plan):
    facts = plan.facts()
    start = facts["start"]
    assert EpochPlan.of_record(LAYOUT, facts | {"start": {"batch": start.batch, "row": start.row}}) == plan
    assert EpochPlan.of_record(LAYOUT, {}) is None


def test_one_plan_goes_on_another_where_it_only_knows_more():
    plan = EpochPlan(LAYOUT, Position(0), None, (0, 0, 1))
    assert plan.goes_on(EpochPlan(LAYOUT, Position(0), None, (0, 0)))
    assert not plan.goes_on(EpochPlan(LAYOUT, Position(0), None, (0, 1)))
    assert not plan.goes_on(EpochPlan(LAYOUT, Position(0), None))
    assert str(plan) == "from batch 0 on (passes 0, 0, 1)"

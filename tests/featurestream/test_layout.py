"""The arithmetic of samples, batches, passes and lanes, worked by hand and against a list that is counted off."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestream.errors import UsageError
from featurestream.layout import Layout

LAYOUTS = st.builds(
    Layout,
    samples=st.integers(1, 40),
    batch_samples=st.integers(1, 12),
    lanes=st.integers(1, 5),
    views=st.integers(1, 3),
)


def test_ten_samples_in_batches_of_four_make_three_batches_a_pass() -> None:
    layout = Layout(samples=10, batch_samples=4, lanes=2, views=2)

    assert layout.pass_batches == 3
    assert [layout.pass_of(batch) for batch in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert [layout.pass_start(number) for number in range(3)] == [0, 3, 6]
    assert [layout.lane_of(batch) for batch in range(4)] == [0, 1, 0, 1]
    assert [layout.offset_of(batch) for batch in range(5)] == [0, 0, 1, 1, 2]
    assert [layout.sample_range(batch) for batch in range(4)] == [range(4), range(4, 8), range(8, 10), range(4)]
    assert [layout.rows_of(batch) for batch in range(4)] == [8, 8, 4, 8]


def test_a_batch_larger_than_the_dataset_is_a_pass() -> None:
    layout = Layout(samples=3, batch_samples=100, lanes=4)

    assert layout.pass_batches == 1
    assert layout.pass_of(7) == 7
    assert layout.rows_of(7) == 3


def test_the_next_batch_in_a_lane_is_the_given_one_where_it_lies_there() -> None:
    layout = Layout(samples=100, batch_samples=1, lanes=4)

    assert [layout.next_in_lane(lane, 6) for lane in range(4)] == [8, 9, 6, 7]
    assert layout.next_in_lane(0, 0) == 0


@settings(derandomize=True, deadline=None)
@given(layout=LAYOUTS)
def test_the_batches_of_every_pass_cover_every_sample_once(layout: Layout) -> None:
    for number in range(3):
        first = layout.pass_start(number)
        batches = range(first, first + layout.pass_batches)
        covered = [place for batch in batches for place in layout.sample_range(batch)]
        assert covered == list(range(layout.samples))
        assert {layout.pass_of(batch) for batch in batches} == {number}
        assert sum(layout.rows_of(batch) for batch in batches) == layout.samples * layout.views


@settings(derandomize=True, deadline=None)
@given(layout=LAYOUTS)
def test_lanes_filled_in_batch_order_hold_every_batch_at_its_offset(layout: Layout) -> None:
    lanes: list[list[int]] = [[] for _ in range(layout.lanes)]
    for batch in range(50):
        lane = lanes[layout.lane_of(batch)]
        assert layout.offset_of(batch) == len(lane)
        assert layout.batch_at(layout.lane_of(batch), len(lane)) == batch
        lane.append(batch)


@settings(derandomize=True, deadline=None)
@given(layout=LAYOUTS, lane=st.integers(0, 4), at_least=st.integers(0, 100))
def test_the_next_batch_in_a_lane_is_the_first_of_that_lane(layout: Layout, lane: int, at_least: int) -> None:
    lane %= layout.lanes
    following = (batch for batch in range(at_least, at_least + layout.lanes) if layout.lane_of(batch) == lane)

    assert layout.next_in_lane(lane, at_least) == next(following)


@pytest.mark.parametrize("field", ["samples", "batch_samples", "lanes", "views"])
def test_a_layout_without_samples_batches_lanes_or_views_is_refused(field: str) -> None:
    numbers = {"samples": 10, "batch_samples": 4, "lanes": 2, "views": 1, field: 0}

    with pytest.raises(UsageError, match=f"a stream's layout needs {field} >= 1, got 0"):
        Layout(**numbers)

"""Records become batches of any size, with the same rows in the same order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestream.batch import concatenate, regroup
from featurestream.errors import FingerprintError, UsageError
from featurestream.position import Position
from featurestream.record import MissingSample
from tests.support import joined, make_batch_record, make_manifest

MANIFEST = make_manifest(samples=10, batch_samples=4, passes=2)  # batches of 4, 4 and 2 rows


def both_taps(batch: int):
    return joined(*(make_batch_record(MANIFEST, batch, tap) for tap in ("layer3", "avgpool")))


def test_a_joined_batch_has_every_taps_features_of_the_same_rows():
    batch = both_taps(1)
    assert batch.indices.tolist() == [4, 5, 6, 7]
    assert batch.labels.tolist() == [1, 2, 0, 1]
    assert batch.numpy("layer3").tolist() == [[40, 41], [50, 51], [60, 61], [70, 71]]
    assert batch.numpy("avgpool")[0].tolist() == [40, 41, 42]
    assert batch.tensor("layer3").tolist() == batch.numpy("layer3").tolist()
    with pytest.raises(UsageError, match="several taps"):
        batch.numpy()
    with pytest.raises(UsageError, match="read are layer3, avgpool"):
        batch.numpy("layer4")


def test_features_are_views_of_the_record():
    record = make_batch_record(MANIFEST, 0, "layer3")
    batch = joined(record)
    assert np.shares_memory(batch.numpy(), record.payload)
    assert np.shares_memory(batch.rows(1, 3).numpy(), record.payload)


def test_taps_with_other_rows_are_refused():
    one = make_batch_record(MANIFEST, 0, "layer3")
    other = make_batch_record(make_manifest(samples=10, batch_samples=4, classes=2), 0, "avgpool")
    with pytest.raises(FingerprintError, match="batch 0 has other rows at tap avgpool"):
        joined(one, other)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12))
def test_batches_of_any_size_have_the_same_rows_and_never_span_two_passes(size):
    groups = list(regroup([both_taps(number) for number in range(6)], size))
    assert [index for group in groups for index in group.indices] == [*range(10), 9, *range(9)]
    sizes = [size] * (10 // size) + ([10 % size] if 10 % size else [])
    assert [len(group) for group in groups] == sizes * 2
    places = [group.position for group in groups]
    assert places[1:] == [group.next_position for group in groups[:-1]]


def test_positions_name_the_row_that_is_read_next():
    groups = list(regroup([both_taps(0), both_taps(1), both_taps(2)], 3))
    assert [group.position for group in groups] == [Position(0, 0), Position(0, 3), Position(1, 2), Position(2, 1)]
    assert groups[-1].next_position == Position(3, 0)
    assert groups[1].next_position == Position(1, 2)


def test_a_frame_has_a_row_a_row():
    frame = both_taps(0).frame("layer3")
    assert list(frame.columns) == ["index", "id", "pass", "label", "f0", "f1"]
    assert frame.iloc[1].tolist() == [1, "img/1.png", 0, 1, 10.0, 11.0]


def test_a_batch_without_rows_still_says_what_is_missing():
    lost = MissingSample(4, "img/4.png", "cannot decode")
    whole = make_batch_record(MANIFEST, 1, "layer3")
    empty = replace(
        whole, payload=whole.payload[:0], indices=whole.indices[:0], ids=(), labels=whole.labels[:0], missing=(lost,)
    )
    groups = list(regroup([joined(make_batch_record(MANIFEST, 0, "layer3")), joined(empty)], 8))
    assert [len(group) for group in groups] == [4]
    assert groups[0].missing == (lost,)
    assert groups[0].labels.tolist() == [0, 1, 2, 0]
    assert groups[0].next_position == Position(2)


def test_putting_nothing_together_is_the_callers_mistake():
    with pytest.raises(UsageError):
        concatenate([])

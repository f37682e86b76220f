"""What a reader takes from a value only when it is asked for, and wherever the value lies."""

from __future__ import annotations

import gc
import weakref

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestream.errors import RecordError
from featurestream.record import MissingSample
from featurestream.testing import LabelKind, make_record, open_value, same_record, seal
from featurestream.wire import encode, open_record


def test_a_value_that_lies_at_any_place_in_memory_is_read() -> None:
    value = encode(make_record(9))
    for shift in range(16):
        moved = bytearray(shift) + value
        record = open_record(memoryview(moved)[shift:])
        assert record.numpy().flags.aligned
        assert same_record(record, make_record(9))


@pytest.mark.parametrize("labels", ["class", "value", "target", None])
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 300])
def test_a_key_that_no_reader_knows_changes_nothing_but_the_extra_fields(rows: int, labels: LabelKind | None) -> None:
    # A header of known keys is taken apart in one call, one with another key goes key by key: the same comes of it.
    missing = [MissingSample(7, "lost.png", "cannot identify image file"), MissingSample(8, "", "")]
    inputs = {"inputs": [[0, "0" * 16], [2**32 - 1, "f" * 16]]}
    record = make_record(3, rows=rows, labels=labels or "class", missing=missing, extra=inputs)
    header, payload = open_value(encode(record))
    header["labels"] = header["labels"] if labels else None
    plain, later = (open_record(seal(each, payload)) for each in (header, {**header, "a later key": [1]}))
    assert plain.missing == tuple(missing)
    assert later.extra == {**plain.extra, "a later key": [1]}
    assert plain.extra == inputs
    later.extra.clear()
    plain.extra.clear()
    assert same_record(plain, later)


def test_a_list_that_was_asked_for_does_not_hold_the_payload() -> None:
    record = open_record(encode(make_record()))
    held, ids = weakref.ref(record.payload), record.ids
    del record
    gc.collect()
    assert held() is None
    assert len(ids) == 4


@pytest.mark.parametrize("labels", [[1, True], [1, 2.0], [2.0, 1], [1, "2"], [1, None], [[1.0], [2]], [2.0, [1.0]]])
def test_labels_of_two_kinds_are_refused_when_they_are_asked_for(labels: list[object]) -> None:
    header, payload = open_value(encode(make_record(rows=2, shape=(1,))))
    record = open_record(seal({**header, "labels": labels}, payload))
    assert len(record.ids) == 2
    with pytest.raises(RecordError, match="the header's labels are not all"):
        assert record.labels is None


NUMBERS = st.one_of(
    st.integers(0, 127), st.integers(128, 255), st.integers(256, 2**16 - 1), st.integers(2**16, 2**32 - 1),
    st.integers(2**32, 2**63 - 1), st.integers(-32, -1), st.integers(-128, -33), st.integers(-(2**63), -129),
)  # fmt: skip


@given(
    labels=st.one_of(
        st.lists(NUMBERS, min_size=1, max_size=40), NUMBERS.flatmap(lambda n: st.lists(st.just(n), min_size=1)),
        st.sampled_from([(0, 127), (128, 255), (256, 2**16 - 1), (2**16, 2**32 - 1), (-(2**31), -(2**15) - 1)]).flatmap(
            lambda ends: st.lists(st.integers(*ends), min_size=1, max_size=40)
        ),
    )
)  # fmt: skip
def test_labels_of_any_width_are_the_integers_that_were_written(labels: list[int]) -> None:
    record = make_record(rows=len(labels), shape=(1,))
    header, payload = open_value(encode(record))
    found = open_record(seal({**header, "labels": labels}, payload)).labels
    assert found is not None
    assert (found.dtype, found.tolist()) == (np.dtype(np.int64), labels)


@given(labels=st.lists(st.floats(width=32, allow_infinity=False), min_size=1, max_size=40))
def test_labels_that_are_numbers_are_those_that_were_written(labels: list[float]) -> None:
    record = make_record(rows=len(labels), shape=(1,), labels="value")
    header, payload = open_value(encode(record))
    singles = msgpack.packb({**header, "labels": labels}, use_single_float=True)
    for packed in (singles, msgpack.packb({**header, "labels": labels})):
        found = open_record(seal(packed, payload)).labels
        assert found is not None
        assert found.dtype == np.float32
        assert np.array_equal(found, np.array(labels, np.float32), equal_nan=True)

"""A decoder says of every value what reading it alone says, whatever it has read before."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestream.errors import RecordError
from featurestream.record import MissingSample, Record
from featurestream.testing import hostile_values, make_record, open_value, same_record, seal
from featurestream.wire import Decoder, encode, open_record
from featurestream.wire.form import Form

PLACE = ("s.avgpool", 2, 17)


def outcome(read: Any, value: bytes | None) -> Record | str:
    """Return the record, every list of it read, or what was said instead."""
    try:
        record: Record = read(value, PLACE)
        assert (len(record.indices), len(record.ids)) == (record.rows, record.rows)
        assert record.labels is None or len(record.labels) == record.rows
    except RecordError as error:
        return f"{error} {error.hint} {error.topic} {error.lane} {error.offset}"
    return record


def agrees(decoder: Decoder, value: bytes | None) -> bool:
    one, other = outcome(decoder.open, value), outcome(open_record, value)
    if isinstance(one, Record) and isinstance(other, Record):
        return same_record(one, other) and one.numpy().tobytes() == other.numpy().tobytes()
    return one == other


def after(record: Record) -> Decoder:
    decoder = Decoder()
    decoder.open(encode(record))
    return decoder


FOLLOWERS = {
    "the next batch": {},
    "a batch and a pass with longer numbers": {"batch": 70_000, "pass_number": 300},
    "a batch from far away": {"batch": 2**50, "pass_number": 2**33},
    "fewer rows": {"rows": 2},
    "no rows": {"rows": 0},
    "many rows": {"rows": 300},
    "labels that are values": {"labels": "value"},
    "labels that are targets": {"labels": "target"},
    "no labels": {"labels": "none"},
    "another tap": {"tap": "layer3"},
    "another dtype": {"dtype": "bfloat16"},
    "another shape": {"shape": (4, 2)},
    "views": {"views": 2},
    "other ids": {"ids": ["one", "two", "three", "a longer one than those before"]},
    "a missing sample": {"missing": [MissingSample(7, "seven", "not an image")]},
    "keys of a later writer": {"extra": {"colour": {"space": "sRGB"}}},
    "another fingerprint": {"fingerprint": "f" * 32},
}


@pytest.mark.parametrize("first", FOLLOWERS)
@pytest.mark.parametrize("second", FOLLOWERS)
def test_a_record_is_the_same_behind_any_other(first: str, second: str) -> None:
    one, other = (make_record(**{"batch": batch, **FOLLOWERS[name]}) for batch, name in ((1, first), (2, second)))
    decoder = after(one)
    assert agrees(decoder, encode(other))
    assert agrees(decoder, encode(one))


@pytest.mark.parametrize("labels", ["class", "value", "target", "none"])
@pytest.mark.parametrize("rows", [4, 100])
def test_a_header_of_the_same_form_is_not_read_again(rows: int, labels: Any) -> None:
    form = Form(make_record(1, rows=rows, labels=labels).form)
    for batch in (2, 200, 2**40):
        record = make_record(batch, rows=rows, labels=labels)
        packed = msgpack.unpackb(encode(record))[2]
        found = form.read(packed, record.payload, PLACE)
        assert found is not None
        assert same_record(found, record)


@pytest.mark.parametrize("hostile", hostile_values(), ids=lambda hostile: hostile.name)
def test_what_is_no_record_is_refused_alike_behind_a_good_one(hostile: Any) -> None:
    decoder = after(make_record())
    assert agrees(decoder, hostile.value)
    assert agrees(decoder, encode(make_record(5)))


@given(data=st.data())
def test_a_header_of_changed_bytes_under_a_right_checksum_is_the_same_or_refused_alike(data: st.DataObject) -> None:
    labels = data.draw(st.sampled_from(["class", "value", "none"]))
    _, _, packed, payload = msgpack.unpackb(encode(make_record(3, labels=labels)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(packed) - 1))
        packed = packed[:place] + data.draw(st.binary(max_size=2)) + packed[place + 1 :]
    assert agrees(after(make_record(2, labels=labels)), seal(packed, payload))


def test_a_value_that_lies_at_any_place_in_memory_is_read() -> None:
    decoder, value = after(make_record()), encode(make_record(9))
    for shift in range(16):
        moved = bytearray(shift) + value
        record = decoder.open(memoryview(moved)[shift:])
        assert record.numpy().flags.aligned
        assert same_record(record, make_record(9))


def test_a_decoder_holds_no_record_that_it_has_read() -> None:
    decoder = Decoder()
    payload = decoder.open(encode(make_record())).payload
    held = weakref.ref(payload)
    del payload
    gc.collect()
    assert held() is None


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

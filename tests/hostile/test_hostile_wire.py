"""After any bytes at all: a RecordError that says what is wrong, at once and in little memory, or a true record."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestream.errors import RecordError
from featurestream.record import Record
from featurestream.testing import (
    Hostile,
    HostileHeaders,
    hostile_headers,
    hostile_values,
    make_record,
    open_value,
    same_record,
    seal,
)
from featurestream.wire import decode, encode, parse_headers

MANY = settings(
    deadline=None, derandomize=True, max_examples=400, suppress_health_check=[HealthCheck.too_slow], database=None
)
GOOD = make_record(3, labels="target", missing=(), extra={"later": {"nested": [1, 2.5, None, True, "x"]}})
VALUE = encode(GOOD)
CORPUS = hostile_values()


def decoded(value: bytes) -> Record | None:
    """Return the record, or None where a RecordError that people can read refused it; let all else out."""
    try:
        return decode(value)
    except RecordError as error:
        refusal = error
    assert len(refusal.message) < 400
    assert refusal.hint, "what to do next is said too"
    return None


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
def test_a_hostile_value_is_refused_with_its_reason(hostile: Hostile) -> None:
    with pytest.raises(RecordError) as caught:
        decode(hostile.value)

    assert hostile.says in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("hostile", hostile_headers(), ids=lambda hostile: hostile.name)
def test_hostile_headers_are_refused_with_their_reason(hostile: HostileHeaders) -> None:
    with pytest.raises(RecordError) as caught:
        parse_headers(hostile.headers)

    assert hostile.says in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_corpus_names_every_case_once() -> None:
    assert len({hostile.name for hostile in CORPUS}) == len(CORPUS) > 200
    assert len({hostile.name for hostile in hostile_headers()}) == len(hostile_headers()) > 60


def test_the_corpus_takes_no_time_and_no_memory() -> None:
    """The largest value is 300 KB; what some of them claim is 480 MB and 4 GB."""
    tracemalloc.start()
    try:
        for hostile in CORPUS:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            start = time.perf_counter()
            assert decoded(hostile.value) is None
            elapsed = time.perf_counter() - start
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 20 * len(hostile.value) + 200_000, hostile.name
            assert elapsed < 2, hostile.name
    finally:
        tracemalloc.stop()


def test_memory_grows_with_the_bytes_that_are_there_and_no_faster() -> None:
    """The costliest msgpack there is: a map of one byte is a Python object of 64 bytes and a pointer."""
    header, payload = open_value(encode(make_record()))
    value = seal(header | {"later": [{}] * 60_000}, payload)
    tracemalloc.start()
    try:
        decode(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 90 * len(value)


def test_a_value_that_ends_at_any_byte_is_refused() -> None:
    for length in range(len(VALUE)):
        assert decoded(VALUE[:length]) is None, length


def test_a_header_that_ends_at_any_byte_is_refused_even_under_a_right_checksum() -> None:
    _, _, packed, payload = msgpack.unpackb(VALUE)
    for length in range(len(packed)):
        assert decoded(seal(packed[:length], payload)) is None, length


def test_any_single_byte_may_change_without_going_unseen() -> None:
    for place in range(len(VALUE)):
        for change in (0x01, 0x80, 0xFF):
            changed = VALUE[:place] + bytes([VALUE[place] ^ change]) + VALUE[place + 1 :]
            assert decoded(changed) is None, (place, change)


@MANY
@given(value=st.binary(max_size=200))
def test_random_bytes_are_refused(value: bytes) -> None:
    assert decoded(value) is None


@MANY
@given(data=st.data())
def test_bytes_that_were_cut_out_put_in_or_changed_are_refused(data: st.DataObject) -> None:
    value = VALUE
    for _ in range(data.draw(st.integers(1, 3))):
        first = data.draw(st.integers(0, len(value)))
        last = data.draw(st.integers(first, min(len(value), first + 40)))
        value = value[:first] + data.draw(st.binary(max_size=40)) + value[last:]

    record = decoded(value)

    assert record is None or (value == VALUE and same_record(record, GOOD))


@MANY
@given(data=st.data())
def test_a_header_of_changed_bytes_under_a_right_checksum_is_refused_or_a_true_record(data: st.DataObject) -> None:
    _, _, packed, payload = msgpack.unpackb(VALUE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(packed) - 1))
        packed = packed[:place] + data.draw(st.binary(min_size=1, max_size=2)) + packed[place + 1 :]

    check_true(decoded(seal(packed, payload)))


MSGPACK: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=12)
    | st.binary(max_size=12)
    | st.sampled_from(["float16", "bfloat16", "uint8", 0, 1, 4, 8, [8], [2, 4], [64], 0.5]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@MANY
@given(data=st.data())
def test_a_header_of_any_values_under_a_right_checksum_is_refused_or_a_true_record(data: st.DataObject) -> None:
    header, payload = open_value(VALUE)
    keys = [*header, "must_understand", "another"]
    for _ in range(data.draw(st.integers(1, 2))):
        header[data.draw(st.sampled_from(keys))] = data.draw(MSGPACK)
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=1)):
        header.pop(key, None)

    check_true(decoded(seal(header, payload)))


@MANY
@given(packed=st.binary(max_size=100))
def test_random_bytes_as_a_header_under_a_right_checksum_are_refused(packed: bytes) -> None:
    assert decoded(seal(packed, b"")) is None


def check_true(record: Record | None) -> None:
    """A record that was let in has numbers where it says so, and survives the wire."""
    if record is None:
        return
    assert record.numpy().shape == (record.rows, *record.shape)
    if not record.extra:
        assert same_record(decode(encode(record)), record)

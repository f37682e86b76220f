"""A record says no to what it cannot hold, and shows its bytes as numbers without copying them."""

from __future__ import annotations

import pickle
import threading
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from featurestream.errors import UsageError
from featurestream.record import (
    ITEM_BYTES,
    REASON_BYTES,
    MissingSample,
    Record,
    short_reason,
    widen_bfloat16,
)
from featurestream.tensors import as_tensor, tensor_of
from featurestream.testing import make_record, same_record
from featurestream.wire import decode, encode


def record_of(payload: np.ndarray, dtype: str, shape: tuple[int, ...], rows: int) -> Record:
    return replace(make_record(rows=rows), dtype=dtype, shape=shape, payload=payload)


@pytest.mark.parametrize(
    ("dtype", "raw", "numbers"),
    [
        ("float16", b"\x00\x3c\x00\xc0", [1.0, -2.0]),
        ("bfloat16", b"\x80\x3f\x00\xc0", [1.0, -2.0]),
        ("float32", b"\x00\x00\x80\x3f\x00\x00\x00\xc0", [1.0, -2.0]),
        ("uint8", b"\x01\xfe", [1, 254]),
        ("int64", b"\x01" + bytes(7) + b"\xfe" + b"\xff" * 7, [1, -2]),
    ],
)
def test_numbers_are_read_as_little_endian(dtype: str, raw: bytes, numbers: list[float]) -> None:
    record = record_of(np.frombuffer(raw, np.uint8), dtype, (1,), 2)

    assert record.numpy().tolist() == [[number] for number in numbers]
    assert tensor_of(record).tolist() == [[number] for number in numbers]
    assert tensor_of(record).dtype == getattr(torch, dtype)
    assert record.row_bytes == ITEM_BYTES[dtype]


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_numpy_and_torch_see_the_same_numbers_in_the_same_order(dtype: str) -> None:
    record = make_record(rows=3, shape=(2, 3, 5), dtype=dtype)

    assert record.numpy().shape == (3, 2, 3, 5)
    assert np.array_equal(record.numpy(), tensor_of(record).to(torch.float64).numpy())
    first = record.numpy()[1, 0, 2, 4]
    flat = replace(record, shape=(30,)).numpy()
    assert flat[1, 0 * 15 + 2 * 5 + 4] == first


def test_numpy_and_torch_share_the_payload_and_numpy_cannot_write_into_it() -> None:
    record = make_record()

    assert np.shares_memory(record.numpy(), record.payload)
    assert tensor_of(record).data_ptr() == record.payload.ctypes.data
    assert not record.numpy().flags.writeable
    assert record.payload.flags.writeable


def test_bfloat16_becomes_the_float32_that_torch_makes_of_it() -> None:
    """All 65,536 patterns, the NaNs among them."""
    patterns = np.arange(2**16, dtype="<u2")

    wide = widen_bfloat16(patterns.view(np.uint8))

    expected = torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert wide.view(np.uint32).tolist() == expected.view(np.uint32).tolist()


def test_a_row_may_be_one_number_and_a_batch_may_have_no_rows() -> None:
    single = make_record(shape=())
    empty = make_record(rows=0, shape=(4, 2))

    assert single.numpy().shape == (4,)
    assert tensor_of(single).shape == (4,)
    assert empty.numpy().shape == (0, 4, 2)
    assert tensor_of(empty).shape == (0, 4, 2)
    assert empty.row_bytes == 16


def test_the_bytes_of_a_huge_row_are_counted_exactly() -> None:
    """In 64 bits, 2^32 x 2^32 numbers would be none."""
    with pytest.raises(UsageError, match=r"4 rows of \(4294967296, 4294967296\) float16 take 147573952589676412928"):
        replace(make_record(), shape=(2**32, 2**32))


def test_torch_tells_nobody_that_the_memory_is_read_only_whatever_the_thread() -> None:
    payload = decode(encode(make_record())).payload
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        threads = [threading.Thread(target=as_tensor, args=(payload, "float16", (4, 8))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == filters

    assert not heard


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stream": "digits train"}, '"digits train" cannot name a stream'),
        ({"tap": "manifest"}, '"manifest" cannot name a tap'),
        ({"fingerprint": ""}, "is not a fingerprint"),
        ({"fingerprint": "é"}, "is not a fingerprint"),
        ({"batch": -1}, "batch of a record is -1"),
        ({"pass_number": -1}, "pass_number of a record is -1"),
        ({"views": 0}, "views of a record is 0"),
        ({"views": 3}, "has 4 rows, which 3 views of every sample cannot make"),
        ({"extracted_ns": -1}, "extracted_ns of a record is -1"),
        ({"extracted_ns": 2**63}, "extracted_ns of a record is 9223372036854775808"),
        ({"dtype": "float64"}, 'dtype "float64"; known: float16, bfloat16, float32, uint8, int64'),
        ({"dtype": "float32"}, "has 64 bytes, but 4 rows of (8,) float32 take 128"),
        ({"shape": (9,)}, "has 64 bytes, but 4 rows of (9,) float16 take 72"),
        ({"shape": (8, 0)}, "a row of shape (8, 0) cannot be held"),
        ({"shape": (-8,)}, "a row of shape (-8,) cannot be held"),
        ({"shape": (1,) * 9}, "a row of 9 axes cannot be held"),
        ({"payload": np.zeros(32, np.float16)}, "is float16 (32,); expected contiguous uint8 bytes"),
        ({"payload": np.zeros((4, 16), np.uint8)}, "is uint8 (4, 16); expected contiguous uint8 bytes"),
        ({"payload": np.zeros(128, np.uint8)[::2]}, "expected contiguous uint8 bytes"),
        ({"ids": ("a", "b")}, "but 2 rows of (8,) float16 take 32"),
        ({"indices": np.arange(3)}, "has 4 ids, 3 sample indices and 4 labels"),
        ({"indices": np.arange(4, dtype=np.int32)}, "are int32 (4,), expected int64 (rows,)"),
        ({"indices": np.zeros((4, 1), np.int64)}, "are int64 (4, 1), expected int64 (rows,)"),
        ({"indices": np.arange(-1, 3)}, "go from -1 to 2, expected 0"),
        ({"indices": np.arange(4) + 2**53}, "go from 9007199254740992 to"),
        ({"labels": np.arange(5)}, "has 4 ids, 4 sample indices and 5 labels"),
        ({"labels": np.arange(4, dtype=np.int32)}, "expected int64 (rows,), float32 (rows,) or float32 (rows, K)"),
        ({"labels": np.zeros(4)}, "are float64 (4,)"),
        ({"labels": np.zeros((4, 2), np.int64)}, "are int64 (4, 2)"),
        ({"labels": np.zeros((4, 0), np.float32)}, "are float32 (4, 0)"),
        ({"labels": np.full(4, -np.inf, np.float32)}, "hold an infinite number; a target that is not known is NaN"),
        ({"missing": (MissingSample(-1, "a", "b"),)}, "missing sample of batch 0, tap avgpool has index -1"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_a_record_that_cannot_be_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace(make_record(), **change)

    assert says in str(caught.value)


def test_a_target_that_is_not_known_is_nan() -> None:
    labels = np.array([[0.5, np.nan]] * 4, np.float32)

    assert replace(make_record(), labels=labels).labels is labels


def test_a_record_travels_between_processes() -> None:
    record = make_record(labels="target", missing=[MissingSample(7, "b.png", "truncated")])

    assert same_record(pickle.loads(pickle.dumps(record)), record)


def test_records_differ_where_a_single_field_does() -> None:
    record = make_record(labels="value")
    assert same_record(record, make_record(labels="value"))
    assert record.labels is not None
    for change in (
        {"batch": 1}, {"ids": ("a", "b", "c", "d")}, {"labels": None}, {"labels": np.zeros(4, np.int64)},
        {"extra": {"a": 1}}, {"payload": record.payload + 1}, {"labels": record.labels.reshape(4, 1)},
    ):  # fmt: skip
        assert not same_record(record, replace(record, **change))


# ---- reasons --------------------------------------------------------------------------------------------------


def test_a_reason_is_one_line() -> None:
    assert short_reason("cannot identify\n  image file\t'x'") == "cannot identify image file 'x'"
    assert short_reason("") == ""


def test_a_reason_of_240_bytes_is_whole_and_a_longer_one_shows_that_it_was_cut() -> None:
    assert short_reason("x" * 240) == "x" * 240
    assert short_reason("x" * 241) == "x" * 237 + "..."


def test_a_reason_is_never_cut_inside_a_character() -> None:
    """119 two-byte characters are 238 bytes, of which 237 would leave half a one."""
    assert short_reason("é" * 121) == "é" * 118 + "..."
    assert len(short_reason("é" * 121).encode()) <= REASON_BYTES


def test_a_reason_with_bytes_that_are_no_text_can_be_written() -> None:
    assert short_reason("caf\udce9.png") == "caf?.png"

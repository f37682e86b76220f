"""Validation rows for the run registry: what goes in comes out, and what a record claims is checked."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurestream.errors import RecordError
from featurestream.manifest import from_json, to_json
from featurestream.validation import Packed, Validation, labels_checksum, pack_validation

LABELS = np.array([0, 1, 2])


def packed(**values: np.ndarray) -> Validation:
    found = pack_validation("f" * 32, np.array([7, 3, 5]), LABELS, values)
    assert found is not None
    return from_json(Validation, to_json(found))


def test_rows_come_back_in_the_order_of_their_samples() -> None:
    found = packed(top1=np.array([True, False, True]), loss=np.array([0.5, 0.25, 4.0]))
    assert found.indices().tolist() == [3, 5, 7]
    assert found.values_of("top1").tolist() == [False, True, True]
    assert found.values_of("loss").tolist() == [0.25, 4.0, 0.5]
    assert found.values_of("mse") is None
    assert found.labels == labels_checksum([1, 2, 0])


def test_views_of_a_sample_keep_their_order() -> None:
    found = pack_validation("f", np.array([4, 1, 4, 1]), np.zeros(4), {"loss": np.array([1.0, 2.0, 3.0, 4.0])})
    assert found is not None
    assert found.indices().tolist() == [1, 1, 4, 4]
    assert found.values_of("loss").tolist() == [2.0, 4.0, 1.0, 3.0]


@given(st.one_of(
    hnp.arrays(bool, st.integers(0, 40)),
    hnp.arrays(np.float32, st.integers(0, 40)).map(lambda values: values.astype(np.float64)),
    hnp.arrays(np.float64, st.integers(0, 40)),
    hnp.arrays(np.int64, st.integers(0, 40)),
))  # fmt: skip
def test_numbers_come_back_bit_for_bit(values: np.ndarray) -> None:
    back = Packed.of(values).unpack(len(values))
    assert back.dtype == values.dtype
    np.testing.assert_array_equal(back, values)


def test_single_precision_is_used_where_it_loses_nothing() -> None:
    assert Packed.of(np.array([0.5, np.nan])).dtype == "float32"
    assert Packed.of(np.array([0.1])).dtype == "float64"


def test_what_does_not_fit_is_left_out_and_named() -> None:
    noise = np.random.default_rng(0).random(1000)  # 8,000 bytes that nothing compresses
    indices, right = np.arange(1000), np.arange(1000) % 7 > 0
    found = pack_validation("f", indices, indices, {"top1": right, "loss": noise}, limit=5000)
    assert found is not None
    assert (list(found.values), found.left_out) == (["top1"], ["loss"])
    assert len(to_json(found)) <= 5000
    assert pack_validation("f", indices, indices, {"loss": noise}, limit=5000) is None


def test_fifty_thousand_rows_fit_whole() -> None:
    random = np.random.default_rng(0)
    loss = random.random(50_000).astype(np.float32).astype(np.float64)
    found = pack_validation(
        "f", random.permutation(50_000), np.zeros(50_000), {"top1": loss < 0.7, "top5": loss < 0.9, "loss": loss}
    )
    assert found is not None
    assert not found.left_out
    assert len(to_json(found)) < 400_000


@pytest.mark.parametrize(
    "data",
    [
        "not base64",
        base64.b64encode(b"not zlib").decode(),
        base64.b64encode(zlib.compress(b"\0" * 23)).decode(),
        base64.b64encode(zlib.compress(b"\0" * 25)).decode(),
        base64.b64encode(zlib.compress(b"\0" * 50_000_000)).decode(),  # 50 kB that claim 50 MB
        base64.b64encode(zlib.compress(b"\0" * 24)[:-6]).decode(),
    ],
)
def test_three_rows_that_do_not_take_24_bytes_are_refused(data: str) -> None:
    with pytest.raises(RecordError, match="numbers of validation rows"):
        Packed(dtype="int64", data=data).unpack(3)


def test_equal_labels_have_equal_checksums_whatever_their_type() -> None:
    assert labels_checksum(np.array([1, 2], np.int16)) == labels_checksum([1, 2]) == labels_checksum([1.0, 2.0])
    assert labels_checksum([0.5, -0.0]) == labels_checksum([0.5, 0.0])
    assert labels_checksum([0.5, 1.0]) != labels_checksum([1.0, 0.5])

"""The order of samples and the seeds of augmentations never change: not between runs, machines or versions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestream.errors import UsageError
from featurestream_producer.sampling import order_checksum, permutation, sample_seed, uniform_numbers

INTEGERS = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize(
    ("seed", "pass_number", "expected"),
    [
        (0, 0, [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]),
        (0, 1, [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]),
        (7, 0, [8, 4, 1, 6, 3, 2, 7, 5, 9, 0]),
    ],
)
def test_the_permutation_of_ten_is_pinned(seed: int, pass_number: int, expected: list[int]) -> None:
    assert permutation(seed, pass_number, 10).tolist() == expected


def test_the_permutation_of_many_is_pinned() -> None:
    order = permutation(2**63 - 1, 12, 100_000)
    assert order.dtype == np.int64
    assert order[:4].tolist() == [46925, 91833, 44805, 99956]
    assert order_checksum(order) == "c5e295651703b87a"


@given(INTEGERS, INTEGERS, st.integers(0, 200))
def test_every_sample_comes_once_a_pass(seed: int, pass_number: int, samples: int) -> None:
    assert sorted(permutation(seed, pass_number, samples).tolist()) == list(range(samples))


@given(INTEGERS, st.integers(0, 2**40))
def test_two_passes_have_different_orders(seed: int, pass_number: int) -> None:
    assert permutation(seed, pass_number, 64).tolist() != permutation(seed, pass_number + 1, 64).tolist()


def test_every_place_is_equally_likely() -> None:
    first = [int(permutation(5, number, 4)[0]) for number in range(4000)]
    counts = np.bincount(first, minlength=4)
    # 1000 expected each; the standard deviation is sqrt(4000 * 1/4 * 3/4) = 27.
    assert np.all(np.abs(counts - 1000) < 5 * 27)


def test_the_seeds_of_augmentations_are_pinned() -> None:
    assert sample_seed(0, 0, 0, 0) == 5776873186339120334
    assert sample_seed(1, 2, 3, 4) == 3023191443222632907


@given(INTEGERS, INTEGERS, INTEGERS, INTEGERS)
def test_a_seed_of_an_augmentation_has_63_bits(seed: int, pass_number: int, sample: int, view: int) -> None:
    assert 0 <= sample_seed(seed, pass_number, sample, view) < 2**63


def test_each_sample_view_and_pass_has_a_seed_of_its_own() -> None:
    seeds = {sample_seed(1, p, sample, view) for p in range(10) for sample in range(200) for view in range(4)}
    assert len(seeds) == 10 * 200 * 4


def test_the_checksum_of_an_order_is_pinned_and_depends_on_the_order() -> None:
    assert order_checksum(np.arange(4)) == "2e81a9d8a2d098ea"
    assert order_checksum(np.arange(4).astype(">i8")) == "2e81a9d8a2d098ea"
    assert order_checksum(np.arange(4)[::-1]) != "2e81a9d8a2d098ea"


def test_uniform_numbers_are_pinned_and_a_longer_list_begins_with_the_shorter() -> None:
    numbers = uniform_numbers(5, 3)
    assert numbers == [0.7337459554446363, 0.5905206445727093, 0.20780894066207112]
    assert uniform_numbers(5, 9)[:3] == numbers
    assert all(0 <= number < 1 for number in uniform_numbers(2**63 - 1, 1000))


@pytest.mark.parametrize(("seed", "pass_number", "samples"), [(-1, 0, 1), (0, -1, 1), (0, 0, -1), (2**63, 0, 1)])
def test_a_number_out_of_range_is_refused(seed: int, pass_number: int, samples: int) -> None:
    with pytest.raises(UsageError, match=r"out of range; expected 0 ... 9223372036854775807"):
        permutation(seed, pass_number, samples)
    with pytest.raises(UsageError, match="view -1 is out of range"):
        sample_seed(0, 0, 0, -1)

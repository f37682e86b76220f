"""Normalisation: literal rows, scikit-learn as the oracle, and any batching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from featurestream.errors import DataError, UnknownNameError, UsageError
from featurestream_consumer.normalization import Standardize, build_normalization


def test_none_leaves_features_alone() -> None:
    features = torch.randn(3, 4)
    assert build_normalization("none")(features) is features


def test_l2_gives_rows_length_one_and_leaves_a_row_of_zeros() -> None:
    rows = build_normalization("l2")(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]


def test_standardize_gives_zero_mean_and_unit_deviation() -> None:
    standardize = Standardize()
    rows = torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 10.0], [7.0, 10.0]])
    standardize.update(rows)
    # Mean 4, deviation sqrt((9 + 1 + 1 + 9) / 4) = sqrt 5; the constant feature is only shifted.
    assert standardize(rows[:1]).tolist() == [[pytest.approx(-3 / 5**0.5), 0.0]]


@pytest.mark.parametrize("sizes", [[1000], [1] * 1000, [7, 500, 493]])
def test_standardize_equals_scikit_learn_whatever_the_batches(sizes: list[int]) -> None:
    generator = np.random.default_rng(0)
    rows = (generator.normal(size=(1000, 5)) * [1e-4, 1, 50, 0, 1e3] + [1e3, 0, -3, 7.7, 1e4]).astype(np.float32)
    standardize, first = Standardize(), 0
    for size in sizes:
        standardize.update(torch.from_numpy(rows[first : first + size]))
        first += size
    oracle = StandardScaler().fit(rows.astype(np.float64))
    state = standardize.state_dict()
    assert state["mean"].numpy() == pytest.approx(oracle.mean_, rel=1e-6)
    assert state["std"].numpy() == pytest.approx(oracle.scale_, rel=1e-6)
    assert int(state["rows"]) == standardize.rows == 1000


def test_standardize_goes_on_exactly_from_its_saved_state() -> None:
    rows = torch.randn(50, 3)
    first, second = Standardize(), Standardize()
    first.update(rows)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(rows), second(rows))


def test_standardize_without_statistics_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"standardize has no statistics yet; give the stream's rows to update\(\)"):
        Standardize()(torch.zeros(1, 2))
    assert Standardize().state_dict() == {}


def test_statistics_cannot_change_under_a_head() -> None:
    standardize = Standardize()
    standardize.update(torch.randn(4, 2))
    standardize(torch.zeros(1, 2))
    with pytest.raises(UsageError, match="the statistics of standardize are fixed"):
        standardize.update(torch.zeros(1, 2))


def test_statistics_of_another_normalisation_are_refused() -> None:
    with pytest.raises(DataError, match="Identity normalisation has no statistics, but was given mean"):
        build_normalization("none").load_state_dict({"mean": torch.zeros(2)})
    with pytest.raises(DataError, match="the statistics of standardize lack rows, std"):
        Standardize().load_state_dict({"mean": torch.zeros(2)})


def test_an_unknown_normalisation_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown normalisation "standardise"; did you mean "standardize"\?'):
        build_normalization("standardise")

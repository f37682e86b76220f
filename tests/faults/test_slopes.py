"""The slope that the soak judges by, worked by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.faults.slopes import fit


def test_a_line_without_noise_has_its_slope_and_no_interval():
    found = fit([[(0, 1), (30, 2), (60, 3), (120, 5)]])
    assert found == pytest.approx((2, 2, 2))


def test_each_life_has_a_level_of_its_own():
    """Two lives that each grow by one a minute, the second one from far below."""
    found = fit([[(0, 100), (60, 101), (120, 102)], [(200, 10), (260, 11), (320, 12)]])
    assert found == pytest.approx((1, 1, 1))


def test_one_life_is_the_regression_of_scipy():
    chance = np.random.default_rng(3)
    x = np.sort(chance.uniform(0, 300, 40))
    y = 5 + 0.01 * x + chance.normal(0, 1, 40)
    found = fit([list(zip(x, y, strict=True))])
    expected = stats.linregress(x / 60, y)
    margin = stats.t.ppf(0.975, 38) * expected.stderr
    assert found is not None
    assert found == pytest.approx((expected.slope, expected.slope - margin, expected.slope + margin))


@pytest.mark.parametrize("lives", [[], [[(0, 1), (1, 1)]], [[(5, 1), (5, 2), (5, 3)]]])
def test_too_little_has_no_slope(lives):
    assert fit(lives) is None

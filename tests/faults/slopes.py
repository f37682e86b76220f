"""Does it grow? A straight line through samples of several lives of a process, with the interval of its slope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Slope(NamedTuple):
    """The growth per minute that fits best, and the ends of its interval."""

    per_minute: float
    low: float
    high: float


def fit(lives: Sequence[Sequence[tuple[float, float]]]) -> Slope | None:
    """Return the common slope of (seconds, value) samples, each life with a level of its own; None for too few.

    Ordinary least squares with one intercept a life and Student's t with as many degrees of freedom as samples are left
    over. Samples that follow one another are alike, so the interval is narrower than it should be.
    """
    used = [np.array(life, float) for life in lives if len(life) >= 3]
    samples = sum(len(life) for life in used)
    freedom = samples - len(used) - 1
    if freedom < 1:
        return None
    x = np.concatenate([life[:, 0] - life[:, 0].mean() for life in used]) / 60
    y = np.concatenate([life[:, 1] - life[:, 1].mean() for life in used])
    spread = float(x @ x)
    if spread == 0:
        return None
    slope = float(x @ y) / spread
    error = float(np.sqrt(((y - slope * x) ** 2).sum() / freedom / spread))
    margin = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    return Slope(slope, slope - margin, slope + margin)

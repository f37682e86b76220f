"""Paired statistics: how much better one experiment is than another on the very same validation samples.

Two experiments that were validated on one stream have a right or wrong answer (or an error) each on every sample. The
difference from sample to sample says far more than two averages: most of what makes accuracy vary, which samples are
hard, is the same for both and falls out.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featurestream.errors import DataError, UsageError
from featurestream_consumer.runs import read_record

SCORES_NAME: Final = "validation.npz"
RESAMPLES: Final = 10_000
#: Up to so many distinct differences are resampled by how often each is drawn, which is one draw for all rows.
FEW: Final = 64
#: Numbers drawn at a time where differences are many: 32 MB of places, 32 MB of values.
DRAWN: Final = 4_000_000

#: What a row is judged by, named as in :mod:`featurestream_consumer.metrics`. Less is better for mse alone.
Measure = Literal["top1", "label_accuracy", "mse"]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of the first minus mean of the second, with a confidence interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class McNemar:
    """Rows that only the first, and only the second, has right; and how likely a split as uneven as that is."""

    only_a: int
    only_b: int
    p_value: float


@dataclass(frozen=True, slots=True, eq=False)
class RunScores:
    """What a run said of every validation row.

    Attributes:
        name: the experiment's name.
        index: int64 (rows,), the samples' indices; a sample with V views is there V times.
        label: (rows,) class numbers or values, or (rows, K) targets.
        scores: (rows, outputs).
        fingerprint: the validation stream's.
        measure: what a row is judged by.
    """

    name: str
    index: NDArray[np.int64]
    label: NDArray[Any]
    scores: NDArray[Any]
    fingerprint: str
    measure: Measure = "top1"

    def __post_init__(self) -> None:
        rows = self.index.shape
        if len(rows) != 1 or self.label.shape[:1] != rows or self.scores.ndim != 2 or self.scores.shape[:1] != rows:
            raise UsageError(
                f'the scores of "{self.name}" have the shapes {self.index.shape}, {self.label.shape} and '
                f"{self.scores.shape}",
                hint="expected index (rows,), label (rows,) or (rows, K) and scores (rows, outputs)",
            )
        if self.label.ndim != 1 if self.measure == "top1" else self.label.size != self.scores.size:
            raise UsageError(
                f'the scores of "{self.name}", {self.scores.shape}, cannot be judged by {self.measure} against labels '
                f"{self.label.shape}",
                hint="top1 needs one class number a row, the other measures one output a number of the label",
            )

    def row_values(self) -> NDArray[Any]:
        """Return how good each row is, (rows,): bool where it is right or wrong, else float64.

        top1: whether the label's class has the highest score (of equal scores the first class counts as the highest).
        label_accuracy: the share of outputs on the right side of 0. mse: the squared error, averaged over outputs.
        """
        if self.measure == "top1":
            return np.asarray(self.scores.argmax(1) == self.label)
        targets = self.label.reshape(self.scores.shape)
        if self.measure == "label_accuracy":
            right = (self.scores > 0) == (targets > 0.5)
            return np.asarray(right[:, 0] if right.shape[1] == 1 else right.mean(1))
        return np.asarray(np.square(self.scores.astype(np.float64) - targets).mean(1))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs compared; figures are None where they cannot be had.

    Attributes:
        a, b: the runs' names.
        reason: why the two cannot be compared; None where they are. All figures are None with a reason.
        measure: what rows are judged by.
        samples: how many samples both were judged on.
        value_a, value_b: the measure's mean over the samples.
        difference, low, high: ``value_a - value_b`` and its interval (:func:`paired_difference`).
        only_a, only_b: rows that only one of the two has right, where a row is right or wrong.
        p_value: McNemar's exact test; None where rows are not right or wrong, and where samples have several views,
            which are not independent.
        p_holm: the same, corrected for all tests of the comparison (:func:`holm`). The intervals are not corrected.
    """

    a: str
    b: str
    reason: str | None = None
    measure: str | None = None
    samples: int | None = None
    value_a: float | None = None
    value_b: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    only_a: int | None = None
    only_b: int | None = None
    p_value: float | None = None
    p_holm: float | None = None


# ---- statistics -----------------------------------------------------------------------------------------------


def paired_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> PairedDifference:
    """Return the mean difference ``correct_a - correct_b`` with its paired bootstrap interval.

    Rows are resampled in pairs, so what both share falls out. The interval is bias-corrected and accelerated (BCa):
    B. Efron: Better bootstrap confidence intervals, Journal of the American Statistical Association 82 (1987) 171-185;
    it is second-order accurate, where the plain percentile interval is not. Where all differences are equal there is
    nothing to resample and the interval is that one number.

    Args:
        correct_a: (rows,) right or wrong, or any number a row (a squared error).
        correct_b: the same of the same rows, in the same order.
        resamples: bootstrap samples.
        seed: what they are drawn from: the same seed gives the same interval.
        confidence: the interval's, between 0 and 1.

    Raises UsageError for rows that are none, not finite or not of one length, and for the other arguments.
    """
    a, b = _rows(correct_a, "first"), _rows(correct_b, "second")
    if a.shape != b.shape or not len(a):
        raise UsageError(
            f"{len(a)} and {len(b)} rows cannot be compared in pairs", hint="give the same rows of both, at least one"
        )
    if resamples < 1 or not 0 < confidence < 1:
        raise UsageError(
            f"resamples={resamples}, confidence={confidence}", hint="expected at least 1, and between 0 and 1"
        )
    differences = a - b
    mean = float(differences.mean())
    if differences.min() == differences.max():
        return PairedDifference(mean, mean, mean)
    low, high = bca_interval(_resampled_means(differences, resamples, seed), differences, confidence=confidence)
    return PairedDifference(mean, low, high)


def bca_interval(
    means: NDArray[np.float64], values: NDArray[np.float64], *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the BCa interval of a mean.

    ``means`` (resamples,) are those of resamples of ``values`` (rows,), which are not all equal. Efron 1987 (see
    :func:`paired_difference`); the acceleration is the jackknife's, which for a mean is the skewness of the values
    over 6 sqrt(rows): B. Efron, R. Tibshirani: An Introduction to the Bootstrap (1993), equations 14.9 to 14.15.
    """
    normal = NormalDist()
    centred = values - values.mean()
    observed = values.mean()
    # Equal means count half: those of right and wrong answers are multiples of 1 / rows, and often equal.
    below = ((means < observed).sum() + (means <= observed).sum()) / (2 * len(means))
    bias = normal.inv_cdf(min(max(float(below), 0.5 / len(means)), 1 - 0.5 / len(means)))
    acceleration = float((centred**3).sum() / (6 * (centred**2).sum() ** 1.5))
    shares = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + normal.inv_cdf(tail)
        # Far in a long tail the denominator reaches 0: the share is then that of the end.
        stretch = max(1 - acceleration * shifted, 1e-9)
        shares.append(normal.cdf(bias + shifted / stretch))
    low, high = np.quantile(means, shares)
    return float(low), float(high)


def mcnemar_exact(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Return McNemar's test of two classifiers on the same rows, exact and two-sided.

    Only rows on which one is right and the other wrong tell them apart; if the two were equally good, each of these
    would be a fair coin. The p-value is twice the smaller tail of the binomial distribution, at most 1: Q. McNemar,
    Psychometrika 12 (1947) 153-157; exact form in M. Fagerland, S. Lydersen, P. Laake, BMC Medical Research Methodology
    13:91 (2013); for classifiers T. Dietterich, Neural Computation 10 (1998) 1895-1923. Without such rows it is 1.

    Raises UsageError for rows that are not right or wrong (bool, or 0 and 1), or not of one length.
    """
    a, b = _right_or_wrong(correct_a), _right_or_wrong(correct_b)
    if a.shape != b.shape:
        raise UsageError(f"{len(a)} and {len(b)} rows cannot be compared in pairs", hint="give the same rows of both")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_a, only_b, _two_sided(min(only_a, only_b), only_a + only_b))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return the p-values corrected for how many there are, in the order given.

    The step-down method, which bounds the chance of even one false finding, whatever the tests share: S. Holm,
    Scandinavian Journal of Statistics 6 (1979) 65-70. The smallest of m is multiplied by m, the next by m - 1, and so
    on; none becomes smaller than the one before, or greater than 1. Raises UsageError for what is no probability.
    """
    p = np.atleast_1d(np.asarray(p_values, np.float64))
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise UsageError(f"{p_values!r} are not p-values", hint="expected numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


# ---- runs -----------------------------------------------------------------------------------------------------


def read_scores(folder: Path) -> RunScores:
    """Return the validation scores of a run folder.

    Rows are judged by the loss that the run was trained with: class numbers with one output a class by ``top1``, other
    outputs of ``bce`` by ``label_accuracy``, everything else by ``mse``. Raises UsageError where there is no run or it
    has no scores, DataError for a file that cannot be read.
    """
    record = read_record(folder)
    path = folder / SCORES_NAME
    if not path.is_file():
        why = "it was not validated" if record["validation_fingerprint"] is None else "it has not finished"
        raise UsageError(f'run "{record["name"]}" has no {SCORES_NAME}: {why}', hint="only finished runs can be paired")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            index, label, scores = (held[name] for name in ("index", "label", "scores"))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="the file is damaged, or not one of ours") from error
    config = record["config"] if isinstance(record["config"], dict) else {}
    measure: Measure = "mse"
    if config.get("loss") != "mse" and label.ndim == 1 and label.dtype.kind in "iu" and scores.shape[-1] > 1:
        measure = "top1"
    elif config.get("loss") == "bce":
        measure = "label_accuracy"
    try:
        return RunScores(record["name"], index, label, scores, str(record["validation_fingerprint"]), measure)
    except UsageError as error:
        raise DataError(f"{path}: {error.message}", hint=error.hint) from error


def compare_pairs(
    runs: Sequence[RunScores], *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> list[Pair]:
    """Return every pair of ``runs``, in the order given, with Holm's correction over all tests among them.

    Rows are brought together by sample index, views of a sample by their order. Runs that were validated on other
    streams, on other samples or with other labels are never cut to what they share: their pair has a ``reason`` and no
    figures. Where a sample has several views, its value is their mean, and samples are what is resampled.
    """
    sorted_runs = [_Sorted.of(run) for run in runs]
    pairs = [
        _pair(a, b, resamples=resamples, seed=seed, confidence=confidence) for a, b in combinations(sorted_runs, 2)
    ]
    adjusted = iter(holm([pair.p_value for pair in pairs if pair.p_value is not None]))
    return [pair if pair.p_value is None else replace(pair, p_holm=float(next(adjusted))) for pair in pairs]


@dataclass(frozen=True, slots=True, eq=False)
class _Sorted:
    """A run's rows by sample index, and how good each sample is."""

    run: RunScores
    index: NDArray[np.int64]
    label: NDArray[Any]
    values: NDArray[Any]  # (samples,) bool or float64
    finite: bool

    @classmethod
    def of(cls, run: RunScores) -> _Sorted:
        order = np.argsort(run.index, kind="stable")
        index = run.index[order]
        values = run.row_values()[order]
        _, first, rows = np.unique(index, return_index=True, return_counts=True)
        if len(first) < len(index):
            values = np.add.reduceat(values.astype(np.float64), first) / rows
        finite = bool(np.isfinite(run.scores).all()) and bool(np.isfinite(values).all())
        return cls(run, index, run.label[order], values, finite)


def _pair(a: _Sorted, b: _Sorted, *, resamples: int, seed: int, confidence: float) -> Pair:
    reason = _why_not(a, b)
    if reason is not None:
        return Pair(a.run.name, b.run.name, reason)
    found = paired_difference(a.values, b.values, resamples=resamples, seed=seed, confidence=confidence)
    test = mcnemar_exact(a.values, b.values) if a.values.dtype == bool else None
    return Pair(
        a.run.name,
        b.run.name,
        measure=a.run.measure,
        samples=len(a.values),
        value_a=float(a.values.mean()),
        value_b=float(b.values.mean()),
        difference=found.difference,
        low=found.low,
        high=found.high,
        only_a=None if test is None else test.only_a,
        only_b=None if test is None else test.only_b,
        p_value=None if test is None else test.p_value,
    )


def _why_not(a: _Sorted, b: _Sorted) -> str | None:
    """Return why two runs cannot be compared, or None where they can."""
    one, other = a.run, b.run
    if one.fingerprint != other.fingerprint:
        return f"validated on other streams (fingerprints {one.fingerprint[:12]} and {other.fingerprint[:12]})"
    if one.measure != other.measure:
        return f"judged by other measures ({one.measure} and {other.measure})"
    if not np.array_equal(a.index, b.index):
        only_a, only_b = len(np.setdiff1d(a.index, b.index)), len(np.setdiff1d(b.index, a.index))
        if only_a or only_b:
            return f"validated on other samples ({only_a} only in {one.name}, {only_b} only in {other.name})"
        return f"validated on other numbers of views ({len(a.index)} and {len(b.index)} rows)"
    if not len(a.index):
        return "no sample was validated"
    if not np.array_equal(a.label, b.label, equal_nan=a.label.dtype.kind == "f"):
        return "validated with other labels"
    for run in (a, b):
        if not run.finite:
            return f"scores or labels of {run.run.name} are not finite"
    return None


# ---- helpers --------------------------------------------------------------------------------------------------


def _resampled_means(values: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the means of ``resamples`` samples of ``values``, drawn with replacement."""
    random = np.random.default_rng(seed)
    rows = len(values)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= FEW:
        # Differences of right and wrong answers are -1, 0 or 1: how often each is drawn is all that matters.
        drawn = random.multinomial(rows, counts / rows, size=resamples)
        return np.asarray(drawn @ distinct / rows)
    means = np.empty(resamples)
    step = max(1, DRAWN // rows)
    for first in range(0, resamples, step):
        part = means[first : first + step]
        part[:] = values[random.integers(0, rows, size=(len(part), rows))].mean(1)
    return means


def _two_sided(fewer: int, rows: int) -> float:
    """Return min(1, 2 P(X <= fewer)) of X ~ Binomial(rows, 1/2), where ``fewer`` is at most half of ``rows``."""
    if 2 * fewer == rows:
        return 1.0
    # From the greatest term down, each the one before times k / (rows - k + 1): no factorial, no overflow.
    k = np.arange(fewer, 0, -1, dtype=np.float64)
    sum_of_ratios = 1.0 + float(np.cumprod(k / (rows - k + 1)).sum())
    greatest = math.lgamma(rows + 1) - math.lgamma(fewer + 1) - math.lgamma(rows - fewer + 1) - rows * math.log(2)
    return min(1.0, 2 * sum_of_ratios * math.exp(greatest))


def _rows(values: ArrayLike, which: str) -> NDArray[np.float64]:
    rows = np.asarray(values, np.float64)
    if rows.ndim != 1 or not np.isfinite(rows).all():
        raise UsageError(
            f"the {which} rows have the shape {rows.shape} or are not all finite", hint="expected one number a row"
        )
    return rows


def _right_or_wrong(values: ArrayLike) -> NDArray[np.bool_]:
    rows = np.asarray(values)
    if rows.ndim != 1 or not (rows.dtype == bool or np.isin(rows, (0, 1)).all()):
        raise UsageError("McNemar's test compares rows that are right or wrong", hint="expected bool, or 0 and 1")
    return rows.astype(bool)

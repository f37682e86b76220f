"""Paired statistics: how much better one experiment is than another on the very same validation samples.

Two experiments that were validated on one stream have a right or wrong answer (or an error) each on every sample. The
difference from sample to sample says far more than two averages: most of what makes accuracy vary, which samples are
hard, is the same for both and falls out.

What is compared must be independent: samples are, views of one sample are not. A sample with several views counts as
one, by the mean of its views.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featurestream.errors import DataError, UsageError
from featurestream.validation import labels_checksum
from featurestream_consumer.runs import read_record

SCORES_NAME: Final = "validation.npz"
RESAMPLES: Final = 10_000
#: Up to so many distinct differences are resampled by how often each is drawn, which is one draw for all rows.
FEW: Final = 64
#: Numbers drawn at a time where differences are many: 32 MB of places, 32 MB of counts.
DRAWN: Final = 4_000_000
#: Sums of the same numbers in another order differ by less than this share of their size, and count as equal.
ROUNDING: Final = 1e-12
#: The names of the tests, as a pair has them.
MCNEMAR: Final = "McNemar"
SIGN_FLIP: Final = "sign flip"


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
        measure: what a row is judged by: a metric that is the mean of a value that each row has by itself.
        loss: the loss that the run was trained with, and its arguments: what the measure "loss" is.
    """

    name: str
    index: NDArray[np.int64]
    label: NDArray[Any]
    scores: NDArray[Any]
    fingerprint: str
    measure: str = "top1"
    loss: tuple[str, Mapping[str, Any]] = ("cross_entropy", {})

    def __post_init__(self) -> None:
        rows = self.index.shape
        if len(rows) != 1 or self.label.shape[:1] != rows or self.scores.ndim != 2 or self.scores.shape[:1] != rows:
            raise UsageError(
                f'the scores of "{self.name}" have the shapes {self.index.shape}, {self.label.shape} and '
                f"{self.scores.shape}",
                hint="expected index (rows,), label (rows,) or (rows, K) and scores (rows, outputs)",
            )
        numbers = self.label.size == self.scores.size
        if not {"top1": self.label.ndim == 1 or numbers, "label_accuracy": numbers, "mse": numbers}.get(
            self.measure, True
        ):
            raise UsageError(
                f'the scores of "{self.name}", {self.scores.shape}, cannot be judged by {self.measure} against labels '
                f"{self.label.shape}",
                hint="top1 needs one class number a row, the other measures one output a number of the label",
            )

    def row_values(self) -> NDArray[Any]:
        """Return how good each row is, (rows,): bool where it is right or wrong, else float64.

        top1: whether the label's class has the highest score (of equal scores the first class counts as the highest).
        label_accuracy: the share of outputs on the right side of 0. mse: the squared error, averaged over outputs.
        Any other: as :mod:`featurestream_consumer.metrics` has it, which imports torch. Raises UsageError for a metric
        whose rows have no values of their own.
        """
        if self.measure not in ("top1", "label_accuracy", "mse"):
            return _values_by_metric(self)
        if self.measure == "top1":
            classes = self.label if self.label.ndim == 1 else self.label.argmax(1)
            return np.asarray(self.scores.argmax(1) == classes)
        targets = self.label.reshape(self.scores.shape)
        if self.measure == "label_accuracy":
            right = (self.scores > 0) == (targets > 0.5)
            return np.asarray(right[:, 0] if right.shape[1] == 1 else right.mean(1))
        return np.asarray(np.square(self.scores.astype(np.float64) - targets).mean(1))


@dataclass(frozen=True, slots=True, eq=False)
class RowValues:
    """How good a run was on every validation row, where its scores are not at hand: what a run registry holds.

    Attributes:
        name, index, fingerprint, measure: as those of :class:`RunScores`; the indices never fall.
        labels: the checksum of the rows' labels (:func:`featurestream.validation.labels_checksum`).
        values: (rows,) bool or float64, what :meth:`RunScores.row_values` returned.
    """

    name: str
    index: NDArray[np.int64]
    labels: str
    values: NDArray[Any]
    fingerprint: str
    measure: str


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A run that has no scores to compare, and why: "it has not finished"."""

    name: str
    reason: str


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
        only_a, only_b: samples that only one of the two has right, where a sample is right or wrong.
        test: what ``p_value`` is of: "McNemar" (:func:`mcnemar_exact`) where a sample is right or wrong, else "sign
            flip" (:func:`sign_flip`), which is the same test for numbers.
        p_value: how likely a difference as great as that is between two that are equally good.
        p_holm: the same, corrected for all pairs of the comparison (:func:`holm`). The intervals are not corrected.
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
    test: str | None = None
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
    return _difference(
        differences, lambda: _resampled_means(differences[:, None], resamples, seed)[:, 0],
        resamples=resamples, seed=seed, confidence=confidence,
    )  # fmt: skip


def _difference(
    differences: NDArray[np.float64],
    means: Callable[[], NDArray[np.float64]],
    *,
    resamples: int,
    seed: int,
    confidence: float,
) -> PairedDifference:
    """Return the mean of ``differences`` with its interval; ``means`` gives those of resamples, if they are needed."""
    mean = float(differences.mean())
    distinct, counts = np.unique(differences, return_counts=True)
    if len(distinct) == 1:
        return PairedDifference(mean, mean, mean)
    if len(distinct) <= FEW:
        # Differences of right and wrong answers are -1, 0 or 1: how often each is drawn is all that matters.
        rows = len(differences)
        drawn = np.random.default_rng(seed).multinomial(rows, counts / rows, size=resamples)
        found = np.asarray(drawn @ distinct / rows)
    else:
        found = means()
    low, high = bca_interval(found, differences, confidence=confidence)
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


def sign_flip(
    values_a: ArrayLike, values_b: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> float:  # fmt: skip
    """Return the two-sided p-value of a mean difference between two that judged the same rows.

    If the two were equally good, each row's difference might as well have the other sign: the share of all ways to
    choose the signs that give a sum at least as far from 0. R. Fisher: The Design of Experiments (1935), section 21;
    for right and wrong answers it is McNemar's exact test. It counts every way where there are no more than
    ``resamples``; else that many are drawn, and the sum that was seen is one more of them, so that the p-value is never
    below 1 / (resamples + 1): B. Phipson, G. Smyth, Statistical Applications in Genetics and Molecular Biology 9:39
    (2010).

    Raises UsageError for rows that are none, not finite or not of one length.
    """
    a, b = _rows(values_a, "first"), _rows(values_b, "second")
    if a.shape != b.shape or not len(a):
        raise UsageError(
            f"{len(a)} and {len(b)} rows cannot be compared in pairs", hint="give the same rows of both, at least one"
        )
    return _sign_flip(a, b, lambda: _flipped_sums((a - b)[:, None], resamples, seed)[:, 0], resamples)


def _sign_flip(
    a: NDArray[np.float64], b: NDArray[np.float64], sums: Callable[[], NDArray[np.float64]], resamples: int
) -> float:
    """Return the p-value; ``sums`` gives sums of differences with random signs, if they are needed."""
    differences = a - b
    moving = differences[differences != 0]
    enough = abs(differences.sum()) - ROUNDING * float(np.abs(a).sum() + np.abs(b).sum())
    if len(moving) < 63 and 2 ** len(moving) <= resamples:
        signs = 1 - 2 * ((np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving))) & 1)
        return float((np.abs(signs @ moving) >= enough).mean())
    found = sums()
    return float(((np.abs(found) >= enough).sum() + 1) / (len(found) + 1))


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


def read_scores(folder: Path, measure: str | None = None) -> RunScores:
    """Return the validation scores of a run folder.

    Rows are judged by ``measure``, a metric of the run. Where it is not given, by the loss that the run was trained
    with: class numbers with one output a class by ``top1``, other outputs of ``bce`` by ``label_accuracy``, everything
    else by ``mse``. Raises UsageError where there is no run or it has no scores, DataError for a file that cannot be
    read.
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
    loss = config.get("loss")
    if measure is None:
        measure = "mse"
        if loss != "mse" and label.ndim == 1 and label.dtype.kind in "iu" and scores.shape[-1] > 1:
            measure = "top1"
        elif loss == "bce":
            measure = "label_accuracy"
    try:
        return RunScores(
            record["name"], index, label, scores, str(record["validation_fingerprint"]), measure,
            (str(loss), config.get("loss_args") or {}),
        )  # fmt: skip
    except UsageError as error:
        raise DataError(f"{path}: {error.message}", hint=error.hint) from error


def compare_pairs(
    runs: Sequence[RunScores | RowValues | Unpaired],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
    every_interval: bool = True,
) -> list[Pair]:
    """Return every pair of ``runs``, in the order given, with Holm's correction over all pairs that have figures.

    With ``every_interval`` False only the first pair in which a run is the second one has an interval: that of each run
    with the first one that it can be compared with. Intervals are what takes time where runs are many.

    Rows are brought together by sample index, views of a sample by their order. Runs that were validated on other
    streams, on other samples or with other labels are never cut to what they share: their pair has a ``reason`` and no
    figures. Where a sample has several views, its value is their mean, and samples are what is resampled and tested.
    """
    judged = [run if isinstance(run, Unpaired) else _Sorted.of(run) for run in runs]
    groups: list[_Group] = []
    place: dict[int, tuple[_Group, int]] = {}
    for number, one in enumerate(judged):
        if isinstance(one, Unpaired) or _why_not(one, one) is not None:
            continue
        group = next((group for group in groups if _why_not(group.members[0], one) is None), None)
        if group is None:
            groups.append(group := _Group(resamples, seed, confidence))
        place[number] = (group, len(group.members))
        group.members.append(one)
    pairs = []
    second: set[int] = set()
    for number, other in combinations(range(len(judged)), 2):
        if number in place and other in place and place[number][0] is place[other][0]:
            interval = every_interval or other not in second
            pairs.append(place[number][0].pair(place[number][1], place[other][1], interval=interval))
            second.add(other)
        else:
            a, b = judged[number], judged[other]
            pairs.append(Pair(_name(a), _name(b), _why_not(a, b)))
    adjusted = iter(holm([pair.p_value for pair in pairs if pair.p_value is not None]))
    return [pair if pair.p_value is None else replace(pair, p_holm=float(next(adjusted))) for pair in pairs]


@dataclass(frozen=True, slots=True, eq=False)
class _Sorted:
    """A run's rows by sample index, and how good each sample is."""

    run: RunScores | RowValues
    index: NDArray[np.int64]
    labels: str  # their checksum
    values: NDArray[Any]  # (samples,) bool or float64
    finite: bool

    @classmethod
    def of(cls, run: RunScores | RowValues) -> _Sorted:
        if isinstance(run, RowValues):
            return cls._of(run, run.index, run.labels, run.values)
        order = np.argsort(run.index, kind="stable")
        found = cls._of(run, run.index[order], labels_checksum(run.label[order]), run.row_values()[order])
        return found if np.isfinite(run.scores).all() else replace(found, finite=False)

    @classmethod
    def _of(cls, run: RunScores | RowValues, index: NDArray[np.int64], labels: str, values: NDArray[Any]) -> _Sorted:
        _, first, rows = np.unique(index, return_index=True, return_counts=True)
        if len(first) < len(index):
            values = np.add.reduceat(values.astype(np.float64), first) / rows
        return cls(run, index, labels, values, bool(np.isfinite(values).all()))


@dataclass(eq=False)
class _Group:
    """Runs that can be compared with each other. What is drawn is drawn once for all of their pairs."""

    resamples: int
    seed: int
    confidence: float
    members: list[_Sorted] = field(default_factory=list)

    def pair(self, first: int, second: int, *, interval: bool) -> Pair:
        """Return two members compared."""
        a, b = self.members[first], self.members[second]
        values_a, values_b = self._values[first], self._values[second]
        found = None
        if interval:
            found = _difference(
                values_a - values_b, lambda: self._means[:, first] - self._means[:, second],
                resamples=self.resamples, seed=self.seed, confidence=self.confidence,
            )  # fmt: skip
        test = mcnemar_exact(a.values, b.values) if a.values.dtype == bool else None
        p_value = (
            _sign_flip(values_a, values_b, lambda: self._sums[:, first] - self._sums[:, second], self.resamples)
            if test is None
            else test.p_value
        )
        return Pair(
            a.run.name,
            b.run.name,
            measure=a.run.measure,
            samples=len(a.values),
            value_a=float(values_a.mean()),
            value_b=float(values_b.mean()),
            difference=float((values_a - values_b).mean()),
            low=None if found is None else found.low,
            high=None if found is None else found.high,
            only_a=None if test is None else test.only_a,
            only_b=None if test is None else test.only_b,
            test=SIGN_FLIP if test is None else MCNEMAR,
            p_value=p_value,
        )

    @cached_property
    def _values(self) -> NDArray[np.float64]:
        """(members, samples)."""
        return np.stack([member.values.astype(np.float64) for member in self.members])

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        """(resamples, members): a resample's mean difference of two members is the difference of their means."""
        return _resampled_means(self._values.T, self.resamples, self.seed)

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """(resamples, members), likewise."""
        return _flipped_sums(self._values.T, self.resamples, self.seed)


def _name(run: _Sorted | Unpaired) -> str:
    return run.name if isinstance(run, Unpaired) else run.run.name


def _why_not(a: _Sorted | Unpaired, b: _Sorted | Unpaired) -> str | None:
    """Return why two runs cannot be compared, or None where they can."""
    if isinstance(a, Unpaired):
        return f"{a.name}: {a.reason}"
    if isinstance(b, Unpaired):
        return f"{b.name}: {b.reason}"
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
    if a.labels != b.labels:
        return "validated with other labels"
    for run in (a, b):
        if not run.finite:
            return f"scores or labels of {run.run.name} are not finite"
    return None


# ---- helpers --------------------------------------------------------------------------------------------------


def _resampled_means(values_SK: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the means (resamples, K) of resamples of ``values_SK`` (samples, K), drawn with replacement."""
    random = np.random.default_rng(seed)
    samples = len(values_SK)
    means = np.empty((resamples, values_SK.shape[1]))
    step = max(1, DRAWN // samples)
    for first in range(0, resamples, step):
        part = means[first : first + step]
        drawn = random.integers(0, samples, size=(len(part), samples)) + samples * np.arange(len(part))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=len(part) * samples).reshape(len(part), samples)
        part[:] = counts.astype(np.float64) @ values_SK / samples
    return means


def _flipped_sums(values_SK: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return sums (resamples, K) over the samples, each sample with a random sign; the same one in every column."""
    random = np.random.default_rng(seed)
    samples = len(values_SK)
    sums = np.empty((resamples, values_SK.shape[1]))
    step = max(1, DRAWN // samples)
    for first in range(0, resamples, step):
        part = sums[first : first + step]
        drawn = np.frombuffer(random.bytes(len(part) * -(-samples // 8)), np.uint8).reshape(len(part), -1)
        plus = np.unpackbits(drawn, axis=1, count=samples).astype(np.float64)
        part[:] = 2 * (plus @ values_SK) - values_SK.sum(0)
    return sums


def _values_by_metric(run: RunScores) -> NDArray[Any]:
    """Return the rows' values of a metric as the trainer computed it."""
    import torch

    from featurestream_consumer.features import as_tensor
    from featurestream_consumer.losses import build_loss
    from featurestream_consumer.metrics import build_metrics

    metric = build_metrics([run.measure])[run.measure]
    if metric.row_value is None:
        raise UsageError(
            f'the metric "{run.measure}" is not a mean over rows: its rows cannot be compared in pairs',
            hint="compare by another one with --metric NAME",
        )
    loss = build_loss(*run.loss)
    scores_BC = as_tensor(run.scores)
    targets = loss.targets(as_tensor(run.label), scores_BC.shape[1])
    with torch.inference_mode():
        values_B = metric.row_value(scores_BC, targets, loss(scores_BC, targets))
    return values_B.numpy() if values_B.dtype == torch.bool else values_B.double().numpy()


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

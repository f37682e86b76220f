"""Probes with an exact answer: what one reading must add up, and the linear classifiers that follow from it.

No optimiser, no learning rate, no order: the sums of a reading are the same whatever came first, two readers' sums can
be put together, and ridge regression, nearest class mean and linear discriminant analysis are functions of them.

Everything is NumPy in float64: X'X of one matrix is half the work there (a symmetric product), and of what was tried
it was the fastest. Axes: B rows, D features, K outputs (one a class, or one a number of the label).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import DataError, UsageError
from featurestream_consumer.memory import check_memory

Floats = NDArray[np.float64]

#: Penalties that are tried, as shares of the mean variance of the features: from next to none to more than all of it.
LAMBDAS: Final = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
#: Below this share a penalty no longer outweighs the rounding of the sums, and the equations may have no answer.
LEAST_LAMBDA: Final = 1e-10
SHRINKAGE: Final = 0.01
STATE_KEYS: Final = ("origin", "sum_x", "sum_xx", "sum_y", "sum_xy")


class Moments:
    """The sums of one reading, from which every probe follows.

    Features are taken as distances x from an origin, the mean of the first rows: the sums then lose no digits to a mean
    that is large beside its deviation. y is the label's numbers or, of class labels, the class as a unit vector: then
    the sum of y is the rows of each class, and that of xy' the sum of its features.

    A sum of n terms has an error of at most about n 2^-53 times the sum of the terms' sizes (N. Higham: Accuracy and
    Stability of Numerical Algorithms, 2nd edition (2002), section 4.2), in whatever order they come: two orders, or
    merged parts and the whole, differ by no more than twice that, and usually by the root of n instead of n. The same
    updates in the same order give the same bits, also across :meth:`state_dict`, with one number of threads.

    Args:
        features: D.
        outputs: K: classes, or numbers of a label.
        class_labels: whether labels are class numbers.

    Attributes:
        rows: n, rows taken.
        origin, sum_x: (D,). The origin is 0 before the first row.
        sum_xx: (D, D), the sum of xx'.
        sum_y: (K,).
        sum_xy: (D, K), the sum of xy'.
    """

    def __init__(self, features: int, outputs: int, *, class_labels: bool) -> None:
        self.features = features
        self.outputs = outputs
        self.class_labels = class_labels
        self.rows = 0
        numbers = features * (features + outputs + 2) + outputs
        check_memory(f"the sums over {features:,} features and {outputs:,} outputs", numbers * 8)
        self.origin: Floats = np.zeros(features)
        self.sum_x: Floats = np.zeros(features)
        self.sum_xx: Floats = np.zeros((features, features))
        self.sum_y: Floats = np.zeros(outputs)
        self.sum_xy: Floats = np.zeros((features, outputs))

    @staticmethod
    def bytes_of(features: int, outputs: int) -> int:
        """Return the bytes that the sums of a reading take."""
        return 8 * (features * features + features * outputs + 2 * features + outputs)

    @property
    def mean(self) -> Floats:
        """The features' mean (D,)."""
        return self.origin + self.sum_x / self.rows

    @property
    def classes_seen(self) -> int:
        """How many classes have a row."""
        return int((self.sum_y > 0).sum())

    def update(self, features_BD: NDArray[Any], labels: NDArray[Any]) -> None:
        """Take rows: features of any number dtype, and class numbers (B,) or values (B,) or (B, K).

        Raises DataError for rows that do not fit, class numbers outside 0 to K - 1, and numbers that are not finite;
        the sums are then as they were.
        """
        if features_BD.ndim != 2 or features_BD.shape[1] != self.features or len(labels) != len(features_BD):
            raise DataError(
                f"features {features_BD.shape} and {len(labels)} labels", hint=f"expected (rows, {self.features})"
            )
        if not len(labels):
            return
        x_BD = features_BD.astype(np.float64)
        if not np.isfinite(x_BD).all():
            raise DataError("features are not all finite numbers", hint="publish the stream again with another --dtype")
        origin = self.origin if self.rows else x_BD.mean(0)
        x_BD -= origin
        if self.class_labels:
            self._add_classes(x_BD, labels)
        else:
            self._add_values(x_BD, labels)
        self.origin = origin
        self.rows += len(x_BD)
        self.sum_x += x_BD.sum(0)
        self.sum_xx += x_BD.T @ x_BD

    def merge(self, other: Moments) -> None:
        """Take the rows of ``other``, which stays as it is. Raises UsageError for sums of another shape."""
        if (self.features, self.outputs, self.class_labels) != (other.features, other.outputs, other.class_labels):
            raise UsageError(
                f"sums of {other.features} features and {other.outputs} outputs cannot be merged into sums of "
                f"{self.features} and {self.outputs}"
            )
        if not other.rows:
            return
        if not self.rows:
            self.origin = other.origin.copy()
        # Seen from our origin, the other's x are d further: sums of (x + d)(x + d)' and (x + d)y'.
        d = other.origin - self.origin
        moved = other.sum_x + other.rows * d
        self.sum_xx += other.sum_xx + np.outer(other.sum_x, d) + np.outer(d, moved)
        self.sum_xy += other.sum_xy + np.outer(d, other.sum_y)
        self.sum_x += moved
        self.sum_y += other.sum_y
        self.rows += other.rows

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rows and the sums. The arrays are the live ones."""
        return {"rows": self.rows, **{key: getattr(self, key) for key in STATE_KEYS}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, which is copied. Raises DataError for sums of another shape."""
        arrays = {key: np.array(state[key], np.float64) for key in STATE_KEYS}
        for key, array in arrays.items():
            if array.shape != getattr(self, key).shape:
                raise DataError(
                    f"the saved {key} has the shape {array.shape}, expected {getattr(self, key).shape}",
                    hint="the sums are of another tap or other labels",
                )
        self.rows = int(state["rows"])
        for key, array in arrays.items():
            setattr(self, key, array)

    def _add_classes(self, x_BD: Floats, labels: NDArray[Any]) -> None:
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(f"labels {labels.dtype} {labels.shape} are no class numbers", hint="expected int64 (rows,)")
        if labels.min() < 0 or labels.max() >= self.outputs:
            raise DataError(
                f"class numbers from {labels.min()} to {labels.max()}, expected 0 to {self.outputs - 1}",
                hint="the stream's labels and its number of classes do not agree",
            )
        # Sums of each class's rows; a product with unit vectors would cost as much as X'X for a thousand classes.
        order = np.argsort(labels, kind="stable")
        classes, first, rows = np.unique(labels[order], return_index=True, return_counts=True)
        self.sum_xy[:, classes] += np.add.reduceat(x_BD[order], first, axis=0).T
        self.sum_y[classes] += rows

    def _add_values(self, x_BD: Floats, labels: NDArray[Any]) -> None:
        y_BK = labels.reshape(len(x_BD), -1).astype(np.float64)
        if y_BK.shape[1] != self.outputs or not np.isfinite(y_BK).all():
            raise DataError(
                f"labels {labels.shape} of another width, or not all finite",
                hint=f"expected {self.outputs} finite numbers a row",
            )
        self.sum_xy += x_BD.T @ y_BK
        self.sum_y += y_BK.sum(0)


@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """``scores = (features - origin) weights + intercept``.

    Attributes:
        weights: (D, K).
        origin: (D,), the features' mean: subtracted first, so that a large mean costs no digits.
        intercept: (K,); -inf for a class without a row, which is never predicted.
        class_labels: whether outputs stand for classes.
        alpha: the penalty as ridge regression has it, in units of sum_xx; None for other probes.
    """

    weights: Floats
    origin: Floats
    intercept: Floats
    class_labels: bool
    alpha: float | None = None

    def scores(self, features_BD: NDArray[Any]) -> Floats:
        """Return (B, K): the higher, the likelier the class; or the values."""
        return np.asarray((features_BD.astype(np.float64) - self.origin) @ self.weights + self.intercept)

    def predict(self, features_BD: NDArray[Any]) -> NDArray[Any]:
        """Return class numbers int64 (B,), of equal scores the first class; or values float64 (B, K)."""
        scores_BK = self.scores(features_BD)
        return scores_BK.argmax(1) if self.class_labels else scores_BK


def ridge(moments: Moments, lambdas: Iterable[float] = LAMBDAS) -> list[LinearProbe]:
    """Return the ridge regressions with these penalties, in the order given.

    Each minimises |Y - (X - mean) W - mean of Y|^2 + alpha |W|^2, the intercept unpenalised: A. Hoerl, R. Kennard,
    Technometrics 12 (1970) 55-67; T. Hastie, R. Tibshirani, J. Friedman: The Elements of Statistical Learning, 2nd
    edition (2009), equation 3.44. Class labels are regressed as unit vectors. ``alpha`` is lambda times the mean of the
    features' centred sums of squares (the trace of the centred X'X over D), so that one lambda means the same for every
    tap, number of rows and scale. All outputs of a penalty are solved for at once; penalties one by one, for which a
    shared eigendecomposition is no faster at the default eight and takes three times the memory.

    Raises UsageError for no rows or a lambda below :data:`LEAST_LAMBDA`.
    """
    lambdas = check_lambdas(lambdas)
    _need_rows(moments)
    mean_D, mean_K = moments.sum_x / moments.rows, moments.sum_y / moments.rows
    centred_DD = moments.sum_xx - np.outer(moments.sum_x, mean_D)
    centred_DK = moments.sum_xy - np.outer(moments.sum_x, mean_K)
    scale = _scale(centred_DD, moments)
    probes = []
    for share in lambdas:
        alpha = share * scale
        weights = _solve(centred_DD + alpha * np.eye(moments.features), centred_DK)
        probes.append(LinearProbe(weights, moments.mean, mean_K, moments.class_labels, alpha))
    return probes


def nearest_class_mean(moments: Moments) -> LinearProbe:
    """Return the classifier that picks the class with the nearest mean (Euclidean).

    |x - m|^2 is least where x'm - |m|^2 / 2 is greatest: R. Tibshirani, T. Hastie, B. Narasimhan, G. Chu, PNAS 99
    (2002) 6567-6572, section 1, without its shrinkage. Raises UsageError without rows, DataError for a single class.
    """
    means_KD = _class_means(moments)
    half_squares_K = np.square(means_KD).sum(1) / 2
    intercept = np.where(moments.sum_y > 0, -half_squares_K, -np.inf)
    return LinearProbe(means_KD.T, moments.mean, intercept, class_labels=True)


def lda(moments: Moments, *, shrinkage: float = SHRINKAGE) -> LinearProbe:
    """Return linear discriminant analysis: normal classes of one shared covariance S, with their shares as priors.

    The score of class k is x'S^-1 m_k - m_k'S^-1 m_k / 2 + log p_k: Hastie, Tibshirani, Friedman 2009 (see
    :func:`ridge`), equation 4.10. S is the within-class covariance (over n), drawn towards a multiple of the identity:
    (1 - shrinkage) S + shrinkage (trace S / D) I, J. Friedman: Regularized discriminant analysis, Journal of the
    American Statistical Association 84 (1989) 165-175, equation 18; as scikit-learn's solver "lsqr" has it.

    Raises UsageError without rows or for a shrinkage outside (0, 1], DataError for a single class.
    """
    check_shrinkage(shrinkage)
    means_KD = _class_means(moments)
    mean_D = moments.sum_x / moments.rows
    seen_K = moments.sum_y > 0
    within_DD = moments.sum_xx - np.outer(moments.sum_x, mean_D) - (means_KD.T * moments.sum_y) @ means_KD
    shrunk_DD = (1 - shrinkage) * within_DD
    shrunk_DD[np.diag_indices(moments.features)] += shrinkage * _scale(within_DD, moments)
    weights_DK = _solve(shrunk_DD / moments.rows, means_KD.T)
    log_shares_K = np.log(np.where(seen_K, moments.sum_y, 1) / moments.rows)
    intercept = np.where(seen_K, log_shares_K - (means_KD * weights_DK.T).sum(1) / 2, -np.inf)
    return LinearProbe(weights_DK, moments.mean, intercept, class_labels=True)


def check_lambdas(lambdas: Iterable[float]) -> tuple[float, ...]:
    """Return the penalties, or raise UsageError where there are none, or one is too small or not finite."""
    found = tuple(float(share) for share in lambdas)
    if not found or not all(LEAST_LAMBDA <= share < np.inf for share in found):
        raise UsageError(f"lambdas {found}", hint=f"expected one or more numbers, each {LEAST_LAMBDA} or greater")
    return found


def check_shrinkage(shrinkage: float) -> float:
    """Return the shrinkage, or raise UsageError where it is outside (0, 1]."""
    if not LEAST_LAMBDA <= shrinkage <= 1:
        raise UsageError(f"shrinkage={shrinkage!r}", hint=f"expected {LEAST_LAMBDA} to 1")
    return float(shrinkage)


def _class_means(moments: Moments) -> Floats:
    """Return the classes' distances (K, D) from the mean of all rows; 0 for a class without a row."""
    if not moments.class_labels:
        raise UsageError("classes are needed, and the labels are values", hint="ridge regression fits them")
    _need_rows(moments)
    if moments.classes_seen < 2:
        raise DataError(
            f"all {moments.rows} rows are of class {int(moments.sum_y.argmax())}", hint="read rows of two or more"
        )
    mean_D = moments.sum_x / moments.rows
    rows_K = moments.sum_y
    means_KD = moments.sum_xy.T / np.maximum(rows_K, 1)[:, None] - mean_D
    means_KD[rows_K == 0] = 0
    return means_KD


def _scale(centred_DD: Floats, moments: Moments) -> float:
    """Return the mean of the diagonal; 1 where that is nothing but rounding, so that weights come out as 0."""
    mean = float(np.trace(centred_DD)) / moments.features
    rounding = moments.rows * np.finfo(np.float64).eps * float(np.abs(moments.mean).max())
    return mean if mean > moments.rows * rounding**2 else 1.0


def _solve(matrix_DD: Floats, right_DK: Floats) -> Floats:
    return np.asarray(np.linalg.solve(matrix_DD, right_DK), np.float64)


def _need_rows(moments: Moments) -> None:
    if not moments.rows:
        raise UsageError("there are no rows to fit a probe to", hint="update the sums first")

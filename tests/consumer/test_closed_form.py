"""Closed-form probes against scikit-learn on the same features, and what their sums promise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.neighbors import NearestCentroid

from featurestream.errors import DataError, UsageError
from featurestream_consumer.closed_form import LAMBDAS, Moments, lda, nearest_class_mean, ridge

Data = tuple[np.ndarray, np.ndarray, np.ndarray]  # features to fit, labels, features to predict


def digits() -> Data:
    """The 1,797 digits, 64 pixels each, three of which never change; features as a stream has them, float16."""
    found = load_digits()
    features = found.data.astype(np.float16)
    return features[::2], found.target[::2], features[1::2]


def blobs() -> Data:
    """Four classes of very unequal sizes in 30 correlated features, far from the origin beside their deviation."""
    random = np.random.default_rng(11)
    mix = random.normal(size=(30, 30))
    labels = np.repeat([0, 1, 2, 3], [200, 100, 40, 10])
    random.shuffle(labels)
    centres = random.normal(size=(4, 30))
    features = (random.normal(size=(350, 30)) + centres[labels]) @ mix + 1000 * random.normal(size=30)
    return features, labels, features + random.normal(size=features.shape)


def few_rows() -> Data:
    """Fewer rows than features."""
    random = np.random.default_rng(5)
    labels = np.arange(40) % 3
    features = random.normal(size=(40, 100)).astype(np.float32) + labels[:, None] * 0.2
    return features, labels, random.normal(size=(200, 100)).astype(np.float32) + 0.2


CASES = pytest.mark.parametrize("data", [digits(), blobs(), few_rows()], ids=["digits", "blobs", "few rows"])


def moments_of(features: np.ndarray, labels: np.ndarray, *, rows: int = 64, order: np.ndarray | None = None) -> Moments:
    """The sums of these rows, taken ``rows`` at a time."""
    class_labels = labels.dtype.kind == "i"
    outputs = int(labels.max()) + 1 if class_labels else labels[0].size
    moments = Moments(features.shape[1], outputs, class_labels=class_labels)
    places = np.arange(len(features)) if order is None else order
    for first in range(0, len(places), rows):
        part = places[first : first + rows]
        moments.update(features[part], labels[part])
    return moments


def assert_same_sums(one: Moments, other: Moments) -> None:
    """Fail where two sums differ by more than the bound: here 2 n 2^-53 of the sizes, with n = 900 at most."""
    assert one.rows == other.rows
    assert one.sum_y == pytest.approx(other.sum_y, rel=1e-13)
    assert one.mean == pytest.approx(other.mean, rel=1e-13)
    for probe, twin in zip(ridge(one), ridge(other), strict=True):
        assert probe.alpha == pytest.approx(twin.alpha, rel=1e-10)
    # From another origin: brought to the mean, which both share.
    for name in ("xx", "xy"):
        sums = [
            getattr(m, f"sum_{name}") - np.outer(m.sum_x, m.sum_x if name == "xx" else m.sum_y) / m.rows
            for m in (one, other)
        ]
        assert np.abs(sums[0] - sums[1]).max() <= 2e-13 * np.abs(sums[0]).max()


# ---- the sums -------------------------------------------------------------------------------------------------


def test_the_sums_of_three_rows_worked_by_hand() -> None:
    """Rows (1, 2), (3, 4) and (8, 0) of classes 0, 1, 0: origin (4, 2), distances (-3, 0), (-1, 2), (4, -2)."""
    moments = Moments(2, 2, class_labels=True)
    moments.update(np.array([[1, 2], [3, 4], [8, 0]], np.float16), np.array([0, 1, 0]))
    assert moments.rows == 3
    assert moments.origin.tolist() == [4, 2]
    assert moments.sum_x.tolist() == [0, 0]
    assert moments.sum_xx.tolist() == [[26, -10], [-10, 8]]
    assert moments.sum_y.tolist() == [2, 1]
    assert moments.sum_xy.tolist() == [[1, -1], [-2, 2]]
    moments.update(np.array([[5, 2]]), np.array([1]))
    assert (moments.origin.tolist(), moments.sum_x.tolist()) == ([4, 2], [1, 0])
    assert moments.mean.tolist() == [4.25, 2]


@CASES
def test_neither_order_nor_batches_matter(data: Data) -> None:
    features, labels, _ = data
    whole = moments_of(features, labels, rows=len(features))
    assert_same_sums(moments_of(features, labels, rows=7), whole)
    shuffled = np.random.default_rng(1).permutation(len(features))
    assert_same_sums(moments_of(features, labels, order=shuffled), whole)
    assert_same_sums(moments_of(features, labels, order=np.argsort(labels, kind="stable")), whole)


@CASES
def test_merged_parts_are_the_whole(data: Data) -> None:
    features, labels, _ = data
    outputs = int(labels.max()) + 1
    merged = Moments(features.shape[1], outputs, class_labels=True)
    merged.merge(Moments(features.shape[1], outputs, class_labels=True))
    for first in range(3):
        part = Moments(features.shape[1], outputs, class_labels=True)
        part.update(features[first::3], labels[first::3])
        merged.merge(part)
    assert_same_sums(merged, moments_of(features, labels))


def test_a_state_goes_on_bit_for_bit() -> None:
    features, labels, _ = blobs()
    whole = moments_of(features, labels, rows=50)
    begun = moments_of(features[:150], labels[:150], rows=50)
    saved = {key: np.array(value) for key, value in begun.state_dict().items()}
    begun.update(features[:50], labels[:50])  # the state that was copied does not move on
    resumed = Moments(30, 4, class_labels=True)
    resumed.load_state_dict(saved)
    for first in range(150, 350, 50):
        resumed.update(features[first : first + 50], labels[first : first + 50])
    for key, value in whole.state_dict().items():
        assert np.asarray(value).tobytes() == np.asarray(resumed.state_dict()[key]).tobytes()


def test_no_rows_change_nothing() -> None:
    moments = Moments(2, 2, class_labels=True)
    moments.update(np.empty((0, 2)), np.empty(0, np.int64))
    assert moments.rows == 0
    for probe in (ridge, nearest_class_mean, lda):
        with pytest.raises(UsageError, match="no rows"):
            probe(moments)


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        (np.ones((2, 3)), np.array([0, 1]), r"expected \(rows, 2\)"),
        (np.ones((2, 2)), np.array([0]), "1 labels"),
        (np.ones((2, 2)), np.array([0, 3]), "class numbers from 0 to 3, expected 0 to 1"),
        (np.ones((2, 2)), np.array([-1, 1]), "class numbers from -1 to 1"),
        (np.ones((2, 2)), np.array([0.0, 1.0]), "no class numbers"),
        (np.array([[1, np.nan], [1, 1]]), np.array([0, 1]), "not all finite"),
        (np.array([[np.inf, 1], [-np.inf, 1]]), np.array([0, 1]), "not all finite"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_change_nothing(
    features: np.ndarray, labels: np.ndarray, says: str
) -> None:
    moments = Moments(2, 2, class_labels=True)
    with pytest.raises(DataError, match=says):
        moments.update(features, labels)
    assert moments.rows == 0
    assert not moments.sum_y.any()


def test_values_that_do_not_fit_are_refused() -> None:
    moments = Moments(2, 3, class_labels=False)
    with pytest.raises(DataError, match="expected 3 finite numbers a row"):
        moments.update(np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(DataError, match="not all finite"):
        moments.update(np.ones((1, 2)), np.array([[1, np.nan, 2]]))
    with pytest.raises(UsageError, match="cannot be merged"):
        moments.merge(Moments(2, 2, class_labels=False))
    with pytest.raises(DataError, match=r"saved origin has the shape \(5,\)"):
        moments.load_state_dict(Moments(5, 3, class_labels=False).state_dict())


# ---- against scikit-learn -------------------------------------------------------------------------------------


@CASES
def test_ridge_is_scikit_learns(data: Data) -> None:
    features, labels, unseen = (np.asarray(part, np.float64) if part.dtype.kind == "f" else part for part in data)
    for probe in ridge(moments_of(data[0], labels), LAMBDAS[::3]):
        theirs = RidgeClassifier(alpha=probe.alpha, solver="svd").fit(features, labels)
        # Its targets are -1 and 1, ours 0 and 1: half its weights.
        scale = np.abs(theirs.coef_).max()
        assert np.abs(2 * probe.weights.T - theirs.coef_).max() <= 1e-7 * scale
        expected = theirs.decision_function(unseen)
        assert 2 * probe.scores(data[2]) - 1 == pytest.approx(expected, rel=1e-6, abs=1e-7)
        assert (probe.predict(data[2]) == theirs.predict(unseen)).all()


@pytest.mark.parametrize("shape", [(300,), (300, 4)], ids=["values", "targets"])
def test_ridge_on_values_is_scikit_learns(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(2)
    features = random.normal(size=(300, 20)).astype(np.float32) + 5
    labels = (random.normal(size=shape) + features[:, :1].reshape(300, *([1] * (len(shape) - 1))) + 7).astype(
        np.float32
    )
    for probe in ridge(moments_of(features, labels)):
        theirs = Ridge(alpha=probe.alpha, solver="svd").fit(features.astype(np.float64), labels.astype(np.float64))
        weights = probe.weights.T
        assert weights == pytest.approx(np.atleast_2d(theirs.coef_), rel=1e-8, abs=1e-10)
        assert probe.predict(features).reshape(shape) == pytest.approx(theirs.predict(features), rel=1e-9)


def test_two_classes_are_told_apart_as_scikit_learn_does() -> None:
    features, labels, unseen = digits()
    labels = labels % 2
    for probe in ridge(moments_of(features, labels), (1e-4, 0.1)):
        theirs = RidgeClassifier(alpha=probe.alpha, solver="svd").fit(features.astype(np.float64), labels)
        assert (probe.predict(unseen) == theirs.predict(unseen.astype(np.float64))).all()


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has at least 1 zero:UserWarning")  # pixels of digits
@CASES
def test_the_nearest_class_mean_is_scikit_learns(data: Data) -> None:
    features, labels, unseen = data
    theirs = NearestCentroid().fit(features.astype(np.float64), labels)
    probe = nearest_class_mean(moments_of(features, labels))
    assert (probe.weights.T + probe.origin) == pytest.approx(theirs.centroids_, rel=1e-9, abs=1e-12)
    assert (probe.predict(unseen) == theirs.predict(unseen.astype(np.float64))).all()


@CASES
@pytest.mark.parametrize("shrinkage", [0.001, 0.01, 0.5, 1.0])
def test_lda_is_scikit_learns(data: Data, shrinkage: float) -> None:
    features, labels, unseen = data
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(features.astype(np.float64), labels)
    probe = lda(moments_of(features, labels), shrinkage=shrinkage)
    # A score that all classes share tells none apart; theirs has one more of those.
    ours, expected = probe.weights.T, theirs.coef_
    expected = expected - np.average(expected, axis=0, weights=np.bincount(labels))[None]
    assert np.abs(ours - expected).max() <= 1e-7 * np.abs(expected).max()
    scores, their_scores = probe.scores(unseen), theirs.decision_function(unseen.astype(np.float64))
    assert scores - scores[:, :1] == pytest.approx(their_scores - their_scores[:, :1], rel=1e-6, abs=1e-6)
    assert (probe.predict(unseen) == theirs.predict(unseen.astype(np.float64))).all()


def test_lda_is_scikit_learns_by_eigenvectors_too() -> None:
    """Solver "eigen" projects on the space that the class means span: the same decisions by another way."""
    features, labels, unseen = blobs()
    theirs = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.01).fit(features, labels)
    probe = lda(moments_of(features, labels), shrinkage=0.01)
    assert (probe.predict(unseen) == theirs.predict(unseen)).mean() > 0.99


# ---- the edges ------------------------------------------------------------------------------------------------


def test_a_class_without_rows_is_never_predicted() -> None:
    features, labels, unseen = blobs()
    labels = labels + 1  # class 0 has no row
    moments = moments_of(features, labels)
    assert moments.classes_seen == 4
    for probe in (*ridge(moments), nearest_class_mean(moments), lda(moments)):
        assert set(probe.predict(unseen)) <= {1, 2, 3, 4}


def test_features_that_never_change_predict_the_commonest_class() -> None:
    moments = moments_of(np.full((9, 4), 0.1, np.float32), np.array([0, 1, 1, 2, 1, 1, 0, 2, 1]))
    for probe in (*ridge(moments), lda(moments)):
        assert probe.predict(np.full((2, 4), 0.1, np.float32)).tolist() == [1, 1]


def test_one_class_alone_cannot_be_told_from_others() -> None:
    moments = Moments(2, 3, class_labels=True)
    moments.update(np.eye(2), np.array([2, 2]))
    for probe in (nearest_class_mean, lda):
        with pytest.raises(DataError, match="all 2 rows are of class 2"):
            probe(moments)


def test_values_have_no_classes() -> None:
    moments = moments_of(np.eye(3), np.array([[1.0], [2.0], [3.0]]))
    for probe in (nearest_class_mean, lda):
        with pytest.raises(UsageError, match="the labels are values"):
            probe(moments)


@pytest.mark.parametrize("wrong", [(), (0.0,), (-1.0,), (np.inf,), (np.nan,)])
def test_a_penalty_that_cannot_be_is_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="lambdas"):
        ridge(moments_of(np.eye(3), np.array([0, 1, 0])), wrong)


@pytest.mark.parametrize("wrong", [0.0, 1.5, np.nan])
def test_a_shrinkage_that_cannot_be_is_refused(wrong: float) -> None:
    with pytest.raises(UsageError, match="shrinkage"):
        lda(moments_of(np.eye(3), np.array([0, 1, 0])), shrinkage=wrong)


def test_a_penalty_means_the_same_at_any_scale_and_number_of_rows() -> None:
    features, labels, unseen = digits()
    once = ridge(moments_of(features, labels), LAMBDAS)
    again = ridge(moments_of(np.tile(features.astype(np.float64) * 1024, (2, 1)), np.tile(labels, 2)), LAMBDAS)
    for one, other in zip(once, again, strict=True):
        assert one.scores(unseen) == pytest.approx(other.scores(unseen.astype(np.float64) * 1024), rel=1e-6, abs=1e-8)

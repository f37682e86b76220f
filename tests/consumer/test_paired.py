"""Paired statistics against hand-worked examples, SciPy and statsmodels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from featurestream.errors import DataError, UsageError
from featurestream_consumer.paired import (
    Pair,
    RunScores,
    Unpaired,
    bca_interval,
    compare_pairs,
    holm,
    mcnemar_exact,
    paired_difference,
    read_scores,
    sign_flip,
)

STREAM = "f" * 32


def answers(rows: int, share_a: float, share_b: float) -> tuple[np.ndarray, np.ndarray]:
    """Two classifiers' right answers, which are right with these chances."""
    random = np.random.default_rng(rows)
    return random.random(rows) < share_a, random.random(rows) < share_b


def differences(kind: str) -> np.ndarray:
    """Differences of a kind: of right and wrong answers, or of errors."""
    random = np.random.default_rng(7)
    return {
        "few apart": lambda: random.choice([-1.0, 0.0, 1.0], 400, p=[0.05, 0.85, 0.1]),
        "one-sided": lambda: random.choice([0.0, 1.0], 60, p=[0.9, 0.1]),
        "skewed": lambda: random.exponential(size=50) - 0.3,
        "normal": lambda: random.normal(size=300),
    }[kind]()


# ---- McNemar --------------------------------------------------------------------------------------------------


def test_mcnemar_of_a_case_worked_by_hand() -> None:
    """Five rows apart, split 4 to 1: 2 (C(5,0) + C(5,1)) / 2^5 = 12/32."""
    a = [1, 1, 1, 1, 0, 1, 1, 0]
    b = [0, 0, 0, 0, 1, 1, 1, 0]
    found = mcnemar_exact(a, b)
    assert (found.only_a, found.only_b) == (4, 1)
    assert found.p_value == pytest.approx(12 / 32, rel=1e-14)


@pytest.mark.parametrize(("a", "b"), [([True, False], [True, False]), ([1, 0], [0, 1]), ([], [])])
def test_mcnemar_finds_nothing_where_the_split_is_even(a: list[int], b: list[int]) -> None:
    assert mcnemar_exact(a, b).p_value == 1.0


def test_all_of_ten_on_one_side_is_twice_one_in_1024() -> None:
    assert mcnemar_exact([True] * 10, [False] * 10).p_value == pytest.approx(2 / 1024, rel=1e-13)


@pytest.mark.parametrize(
    ("only_a", "only_b"),
    [(0, 1), (3, 1), (1, 3), (12, 29), (50, 51), (0, 200), (400, 600), (4900, 5100), (0, 1000), (25_000, 26_000)],
)
def test_mcnemar_is_the_exact_binomial_test_of_scipy(only_a: int, only_b: int) -> None:
    a = np.repeat([True, False, True], [only_a, only_b, 7])
    b = np.repeat([False, True, True], [only_a, only_b, 7])
    expected = stats.binomtest(only_a, only_a + only_b).pvalue
    assert mcnemar_exact(a, b).p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_is_that_of_statsmodels_on_random_rows() -> None:
    for rows in (10, 100, 2000):
        a, b = answers(rows, 0.8, 0.7)
        table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        assert mcnemar_exact(a, b).p_value == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-11)


@pytest.mark.parametrize("values", [[0.5, 1], [[True]], [2, 0]])
def test_mcnemar_refuses_rows_that_are_not_right_or_wrong(values: list[float]) -> None:
    with pytest.raises(UsageError, match="right or wrong"):
        mcnemar_exact(values, values)


def test_mcnemar_refuses_other_rows() -> None:
    with pytest.raises(UsageError, match="2 and 3 rows"):
        mcnemar_exact([1, 0], [1, 0, 1])


# ---- the sign-flip test ---------------------------------------------------------------------------------------


def test_a_sign_flip_of_a_case_worked_by_hand() -> None:
    """Differences 1, 2, 3 and -1: 5 in all. Of 16 ways to choose signs, 7, 5, 5 and their opposites are as far."""
    assert sign_flip([1, 2, 3, 0], [0, 0, 0, 1]) == 6 / 16


@pytest.mark.parametrize(("a", "b"), [([0.5], [0.5]), ([1.0, 0.0], [0.0, 1.0])])
def test_a_sign_flip_finds_nothing_where_differences_cancel(a: list[float], b: list[float]) -> None:
    assert sign_flip(a, b) == 1.0


@pytest.mark.parametrize("rows", [2, 6, 13])
def test_a_sign_flip_is_the_exact_permutation_test_of_scipy(rows: int) -> None:
    random = np.random.default_rng(rows)
    a, b = random.exponential(size=rows), random.exponential(size=rows) * 1.8
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip(a, b) == pytest.approx(theirs.pvalue, rel=1e-12)


def test_many_rows_are_flipped_at_random_and_come_near_the_exact_test() -> None:
    """13 rows that differ are counted out; with 8,191 resamples they are drawn."""
    random = np.random.default_rng(4)
    a, b = random.normal(0.4, 1, 13), np.zeros(13)
    exact, drawn = sign_flip(a, b, resamples=8192), sign_flip(a, b, resamples=8191)
    assert 0.05 < exact < 0.9
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 8191))


def test_a_sign_flip_of_right_and_wrong_answers_is_mcnemars_test() -> None:
    a, b = answers(20, 0.8, 0.6)
    assert sign_flip(a, b, resamples=2**16) == pytest.approx(mcnemar_exact(a, b).p_value, rel=1e-12)


def test_a_drawn_p_value_is_never_0() -> None:
    assert sign_flip(np.arange(1.0, 60.0), np.zeros(59), resamples=999) == 1 / 1000


@pytest.mark.parametrize(("a", "b", "says"), [([], [], "0 and 0 rows"), ([1.0], [1.0, 2.0], "1 and 2 rows")])
def test_a_sign_flip_refuses_rows_that_make_no_pairs(a: list[float], b: list[float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        sign_flip(a, b)


# ---- Holm -----------------------------------------------------------------------------------------------------


def test_holm_of_a_case_worked_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 are 0.02, 0.03, 0.06, 0.04, and the last may not fall."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-14)


def test_holm_keeps_one_p_value_and_goes_to_1_at_most() -> None:
    assert holm([0.2]).tolist() == [0.2]
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_holm_is_that_of_statsmodels() -> None:
    for count in (2, 5, 120):
        p = np.random.default_rng(count).random(count) ** 4
        p[:2] = p[1]  # ties
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], rel=1e-12)


@pytest.mark.parametrize("wrong", [[-0.1], [1.1], [math.nan], [[0.1]]])
def test_holm_refuses_what_is_no_probability(wrong: list[float]) -> None:
    with pytest.raises(UsageError, match="not p-values"):
        holm(wrong)


# ---- the bootstrap --------------------------------------------------------------------------------------------


def test_the_difference_is_that_of_the_means_and_lies_in_its_interval() -> None:
    found = paired_difference([1, 1, 1, 0], [0, 1, 0, 0])
    assert found.difference == 0.5
    assert found.low <= 0.5 <= found.high


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_equal_differences_have_an_interval_of_one_number(value: float) -> None:
    found = paired_difference(np.array([0.5, 0.75]) + value, [0.5, 0.75])
    assert (found.difference, found.low, found.high) == (value, value, value)


def test_the_same_seed_gives_the_same_interval_and_another_one_hardly_moves_it() -> None:
    a, b = answers(500, 0.9, 0.85)
    one, same, other = (paired_difference(a, b, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.low == pytest.approx(other.low, abs=0.1 * (one.high - one.low))


@pytest.mark.parametrize("kind", ["few apart", "one-sided", "skewed", "normal"])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_is_scipys_bca(kind: str, confidence: float) -> None:
    """On SciPy's own resamples exactly, and on ours as near as two draws of 20,000 come."""
    values = differences(kind)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, confidence_level=confidence, rng=1)
    expected = tuple(theirs.confidence_interval)
    exact = bca_interval(theirs.bootstrap_distribution, values, confidence=confidence)
    assert exact == pytest.approx(expected, rel=1e-9, abs=1e-12)
    ours = paired_difference(values, np.zeros_like(values), resamples=20_000, confidence=confidence)
    # Means of right and wrong answers are steps of 1 / rows: an end may fall on the next one.
    step = 1 / len(values) if len(np.unique(values)) < 4 else 0
    assert (ours.low, ours.high) == pytest.approx(expected, abs=0.06 * (expected[1] - expected[0]) + step)


def test_few_and_many_distinct_differences_are_drawn_from_one_distribution() -> None:
    """The shortcut for few distinct differences: a whisper of noise forces the long way."""
    values = differences("few apart")
    noisy = values + differences("normal")[0] * 1e-9 * np.arange(400)
    short, long = (paired_difference(v, np.zeros(400), resamples=40_000) for v in (values, noisy))
    width = short.high - short.low
    assert (short.low, short.high) == pytest.approx((long.low, long.high), abs=0.05 * width)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for seed in range(300):
        values = random.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.75, 0.15])
        found = paired_difference(values, np.zeros(200), resamples=2000, seed=seed)
        covered += found.low <= 0.05 <= found.high
    assert 0.91 <= covered / 300 <= 0.99


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([], []), "0 and 0 rows"),
        (([1, 0], [1]), "2 and 1 rows"),
        (([math.nan, 0], [1, 0]), "first rows"),
        (([[1]], [[1]]), "first rows"),
    ],
)
def test_rows_that_make_no_pairs_are_refused(arguments: tuple[list[float], list[float]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        paired_difference(*arguments)


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"confidence": 0}, {"resamples": 0}])
def test_an_interval_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected at least 1, and between 0 and 1"):
        paired_difference([1, 0], [0, 0], **wrong)  # type: ignore[arg-type]


# ---- runs -----------------------------------------------------------------------------------------------------


def run(name: str, answers: list[int], *, index: list[int] | None = None, labels: list[int] | None = None,
        fingerprint: str = STREAM) -> RunScores:  # fmt: skip
    """A run that answered with these classes; the right answer is 0 unless ``labels`` says otherwise."""
    return RunScores(
        name,
        np.array(range(len(answers)) if index is None else index, np.int64),
        np.array([0] * len(answers) if labels is None else labels, np.int64),
        np.eye(3, dtype=np.float32)[answers],
        fingerprint,
    )


def test_three_runs_make_three_pairs_corrected_together() -> None:
    good, fair, bad = run("good", [0] * 10), run("fair", [0] * 6 + [1] * 4), run("bad", [1] * 9 + [0])
    pairs = compare_pairs([good, fair, bad])
    assert [(pair.a, pair.b) for pair in pairs] == [("good", "fair"), ("good", "bad"), ("fair", "bad")]
    assert [pair.difference for pair in pairs] == pytest.approx([0.4, 0.9, 0.5])
    assert [(pair.only_a, pair.only_b) for pair in pairs] == [(4, 0), (9, 0), (6, 1)]
    # 2 / 2^4, 2 / 2^9, 2 (1 + 7) / 2^7; then times 2 and 3, and 1 no more than the one before.
    assert [pair.p_value for pair in pairs] == pytest.approx([1 / 8, 1 / 256, 1 / 8])
    assert [pair.p_holm for pair in pairs] == pytest.approx([1 / 4, 3 / 256, 1 / 4])
    assert all((pair.samples, pair.measure, pair.reason) == (10, "top1", None) for pair in pairs)


def test_rows_are_brought_together_by_sample_not_by_place() -> None:
    one = run("one", [0, 1, 2, 0], index=[5, 3, 9, 7], labels=[0, 0, 0, 0])
    turned = run("turned", [0, 2, 1, 0], index=[7, 9, 3, 5], labels=[0, 0, 0, 0])
    [pair] = compare_pairs([one, turned])
    assert (pair.difference, pair.only_a, pair.only_b) == (0.0, 0, 0)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (run("other", [0, 0], fingerprint="e" * 32), "other streams (fingerprints ffffffffffff and eeeeeeeeeeee)"),
        (run("other", [0, 0, 0]), "other samples (0 only in one, 1 only in other)"),
        (run("other", [0, 0], index=[0, 2]), "other samples (1 only in one, 1 only in other)"),
        (run("other", [0, 0, 0, 0], index=[0, 0, 1, 1]), "other numbers of views (2 and 4 rows)"),
        (run("other", [0, 0], labels=[0, 1]), "other labels"),
    ],
)
def test_runs_on_other_rows_are_marked_with_the_reason_and_have_no_figures(other: RunScores, reason: str) -> None:
    one = run("one", [0, 1])
    [pair] = compare_pairs([one, other])
    assert pair == Pair(
        "one", "other", f"validated on {reason}" if "labels" not in reason else f"validated with {reason}"
    )


def test_a_pair_that_cannot_be_compared_does_not_count_in_the_correction() -> None:
    good, bad, foreign = run("good", [0] * 6), run("bad", [1] * 6), run("foreign", [1] * 6, fingerprint="e" * 32)
    pairs = compare_pairs([good, bad, foreign])
    assert [pair.p_holm for pair in pairs] == [pytest.approx(2 / 64), None, None]


def test_errors_of_values_are_compared_by_their_squares_and_by_signs() -> None:
    def predicted(name: str, values: list[list[float]]) -> RunScores:
        label = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
        return RunScores(name, np.arange(2), label, np.array(values, np.float32), STREAM, "mse")

    exact, off = predicted("exact", [[1, 2], [3, 4]]), predicted("off", [[1, 4], [3, 4]])
    [pair] = compare_pairs([exact, off])
    assert (pair.value_a, pair.value_b, pair.difference) == (0.0, 1.0, -1.0)
    assert (pair.test, pair.p_value, pair.only_a) == (
        "sign flip",
        1.0,
        None,
    )  # one sample differs: either sign is as far
    [foreign] = compare_pairs([exact, run("class", [0, 0])])
    assert foreign.reason == "judged by other measures (mse and top1)"


def test_views_of_a_sample_count_as_one_sample() -> None:
    """Differences 0.5, 0.5 and 0 by hand: of the signs of the two that move, ++ and -- are as far as 1."""
    a = run("a", [0, 0, 0, 1, 0, 1], index=[0, 0, 1, 1, 2, 2])
    b = run("b", [0, 1, 1, 1, 0, 1], index=[0, 0, 1, 1, 2, 2])
    [pair] = compare_pairs([a, b])
    assert (pair.samples, pair.value_a, pair.value_b) == (3, pytest.approx(4 / 6), pytest.approx(2 / 6))
    assert (pair.test, pair.p_value, pair.only_a) == ("sign flip", 0.5, None)


def test_what_is_drawn_once_for_all_pairs_is_what_a_pair_alone_gets() -> None:
    random = np.random.default_rng(11)
    label = random.normal(size=200).astype(np.float32)

    def predicted(name: str, error: float) -> RunScores:
        scores = (label + random.normal(size=200) * error).astype(np.float32)[:, None]
        return RunScores(name, np.arange(200), label, scores, STREAM, "mse")

    runs = [predicted("a", 0.5), predicted("b", 0.55), predicted("c", 0.9)]
    pairs = compare_pairs(runs)
    for pair, (a, b) in zip(pairs, [(0, 1), (0, 2), (1, 2)], strict=True):
        values = runs[a].row_values(), runs[b].row_values()
        alone = paired_difference(*values)
        assert (pair.difference, pair.low, pair.high) == pytest.approx((alone.difference, alone.low, alone.high))
        assert pair.p_value == pytest.approx(sign_flip(*values))
    assert [pair.p_holm for pair in pairs] == pytest.approx(holm([pair.p_value for pair in pairs]).tolist())


def test_intervals_may_be_had_of_each_run_with_the_first_that_fits_it_alone() -> None:
    runs = [run("a", [0] * 9 + [1]), run("other", [0], fingerprint="e" * 32), run("b", [0, 1] * 5), run("c", [1] * 10)]
    every, few = compare_pairs(runs), compare_pairs(runs, every_interval=False)
    assert [(pair.a, pair.b) for pair in few if pair.low is not None] == [("a", "b"), ("a", "c")]
    for one, other in zip(every, few, strict=True):
        assert (one.p_holm, one.difference, one.reason) == (other.p_holm, other.difference, other.reason)
        assert other.low in (None, one.low)


def test_a_run_without_scores_is_named_in_the_reason_of_its_pairs() -> None:
    good, bad = run("good", [0] * 6), run("bad", [1] * 6)
    pairs = compare_pairs([good, Unpaired("half", "it has not finished"), bad])
    assert [pair.reason for pair in pairs] == ["half: it has not finished", None, "half: it has not finished"]
    assert pairs[1].p_holm == pytest.approx(2 / 64)


def test_any_metric_that_is_a_mean_over_rows_can_be_compared() -> None:
    """By hand: log(1 + 2 e^-s) where the right class has the score s and two others 0; ranks for top5."""
    scores = np.array([[0, 0, 0], [2, 0, 0]], np.float32)
    values = {
        measure: RunScores("a", np.arange(2), np.array([0, 0]), scores, STREAM, measure, ("cross_entropy", {}))
        for measure in ("loss", "top5")
    }
    assert values["loss"].row_values() == pytest.approx([math.log(3), math.log(1 + 2 * math.exp(-2))])
    assert values["top5"].row_values().tolist() == [True, True]
    smooth = RunScores(
        "a", np.arange(2), np.array([0, 0]), scores, STREAM, "loss", ("cross_entropy", {"label_smoothing": 0.3})
    )
    assert smooth.row_values()[1] == pytest.approx(math.log(1 + 2 * math.exp(-2)) + 0.2 * 2)


def test_classes_as_targets_are_judged_by_the_greatest_one() -> None:
    target = np.array([[0, 1, 0], [1, 0, 0]], np.float32)
    found = RunScores("a", np.arange(2), target, np.eye(3, dtype=np.float32)[[1, 2]], STREAM, "top1")
    assert found.row_values().tolist() == [True, False]


def test_one_output_against_two_classes_is_right_or_wrong() -> None:
    def logits(name: str, values: list[float]) -> RunScores:
        scores = np.array(values, np.float32)[:, None]
        return RunScores(name, np.arange(3), np.array([0, 1, 1]), scores, STREAM, "label_accuracy")

    [pair] = compare_pairs([logits("a", [-1, 2, 3]), logits("b", [1, 2, -3])])
    assert (pair.only_a, pair.only_b, pair.p_value) == (2, 0, 0.5)


def test_scores_that_are_not_finite_are_marked() -> None:
    broken = RunScores("broken", np.arange(2), np.zeros(2, np.int64), np.full((2, 3), np.nan), STREAM)
    [pair] = compare_pairs([run("one", [0, 1]), broken])
    assert pair.reason == "scores or labels of broken are not finite"


def test_scores_of_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"shapes \(2,\), \(3,\) and \(2, 3\)"):
        RunScores("odd", np.arange(2), np.zeros(3, np.int64), np.zeros((2, 3)), STREAM)
    with pytest.raises(UsageError, match=r"cannot be judged by mse against labels \(2, 2\)"):
        RunScores("odd", np.arange(2), np.zeros((2, 2)), np.zeros((2, 3)), STREAM, "mse")


# ---- run folders ----------------------------------------------------------------------------------------------


def write_run(
    folder: Path, *, loss: str = "cross_entropy", validation: str | None = STREAM, **arrays: np.ndarray
) -> Path:
    """Write a run folder as a finished run leaves it."""
    folder.mkdir()
    record = {
        "format": 1, "name": folder.name, "state": "finished", "config": {"loss": loss}, "fingerprint": "a" * 32,
        "validation_fingerprint": validation, "sessions": [],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    if arrays:
        np.savez(folder / "validation.npz", allow_pickle=False, **arrays)
    return folder


def test_scores_come_back_from_a_run_folder(tmp_path: Path) -> None:
    arrays = {"index": np.arange(3), "label": np.array([2, 0, 1]), "scores": np.eye(3, dtype=np.float32)}
    found = read_scores(write_run(tmp_path / "E1", **arrays))
    assert (found.name, found.fingerprint, found.measure) == ("E1", STREAM, "top1")
    assert found.index.tolist() == [0, 1, 2]
    assert found.row_values().tolist() == [False, False, False]
    assert read_scores(tmp_path / "E1", "top5").row_values().tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("loss", "label", "outputs", "measure"),
    [
        ("cross_entropy", np.zeros(2, np.int64), 3, "top1"),
        ("bce", np.zeros(2, np.int64), 3, "top1"),
        ("bce", np.zeros(2, np.int64), 1, "label_accuracy"),
        ("bce", np.zeros((2, 3), np.float32), 3, "label_accuracy"),
        ("mse", np.zeros(2, np.int64), 1, "mse"),
        ("mse", np.zeros((2, 3), np.float32), 3, "mse"),
        ("my_losses:focal", np.zeros(2, np.int64), 3, "top1"),
    ],
)
def test_the_loss_decides_how_rows_are_judged(
    tmp_path: Path, loss: str, label: np.ndarray, outputs: int, measure: str
) -> None:
    arrays = {"index": np.arange(2), "label": label, "scores": np.zeros((2, outputs), np.float32)}
    assert read_scores(write_run(tmp_path / "E1", loss=loss, **arrays)).measure == measure


def test_a_run_without_scores_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it was not validated"):
        read_scores(write_run(tmp_path / "E1", validation=None))
    with pytest.raises(UsageError, match="it has not finished"):
        read_scores(write_run(tmp_path / "E2"))
    with pytest.raises(UsageError, match="not a run folder"):
        read_scores(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_damaged_scores_are_not_the_callers_mistake(tmp_path: Path, content: bytes) -> None:
    folder = write_run(tmp_path / "E1")
    (folder / "validation.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"validation\.npz cannot be read"):
        read_scores(folder)


def test_scores_that_lack_an_array_or_do_not_fit_are_not_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(write_run(tmp_path / "E1", index=np.arange(2)))
    arrays = {"index": np.arange(2), "label": np.zeros((2, 2)), "scores": np.zeros((2, 3))}
    with pytest.raises(DataError, match="cannot be judged by mse"):
        read_scores(write_run(tmp_path / "E2", **arrays))

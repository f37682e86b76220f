"""Metrics against numbers worked out by hand, whatever the batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestream.errors import UnknownNameError, UsageError
from featurestream_consumer.metrics import (
    METRICS,
    Meter,
    Metric,
    build_metrics,
    default_metrics,
    higher_is_better,
)


def value(name: str, scores: torch.Tensor, targets: torch.Tensor) -> float:
    metric = METRICS[name]
    return metric.compute(metric.update(metric.init(), scores, targets, torch.zeros(scores.shape[0])))


def test_top1_is_the_share_of_rows_whose_class_has_the_highest_score() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.3, 0.4, 0.3], [0.0, 0.1, 0.9]])
    assert value("top1", scores, torch.tensor([0, 1, 2, 2])) == 0.75


def test_top5_counts_the_fifth_and_not_the_sixth() -> None:
    scores = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 6)
    assert value("top5", scores, torch.arange(6)) == pytest.approx(5 / 6)


def test_of_equal_scores_the_first_class_counts_as_the_highest() -> None:
    """A head that gives every class the same score is right as often as chance, not always."""
    scores = torch.zeros(10, 10)
    assert value("top1", scores, torch.arange(10)) == 0.1
    assert value("top5", scores, torch.arange(10)) == 0.5


def test_top1_takes_one_hot_targets_too() -> None:
    assert value("top1", torch.tensor([[0.1, 0.9], [0.9, 0.1]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])) == 0.5


def test_label_accuracy_is_the_share_of_labels_on_the_right_side_of_zero() -> None:
    scores = torch.tensor([[1.0, -1.0, 2.0, 0.0], [-1.0, -1.0, -1.0, 3.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    assert value("label_accuracy", scores, targets) == 0.75
    assert value("label_accuracy", torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [0.0]])) == 0.5


def test_errors_of_values_are_means_over_rows_and_outputs() -> None:
    scores, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    assert value("mse", scores, targets) == 2.5  # (1 + 0 + 0 + 9) / 4
    assert value("mae", scores, targets) == 1.0  # (1 + 0 + 0 + 3) / 4


def test_top1_of_a_single_output_is_refused_rather_than_always_right() -> None:
    with pytest.raises(UsageError, match='metric "top1" needs one output a class, but the head has 1'):
        value("top1", torch.zeros(2, 1), torch.tensor([0, 0]))


@settings(deadline=None, max_examples=40)  # a machine that is busy is not a wrong metric
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3)), min_size=1, max_size=30),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_a_metric_is_that_of_all_rows_whatever_the_batches(rows: list[tuple[int, int]], sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(rows))
    scores = torch.randn(len(rows), 7, generator=generator).round(decimals=1)  # rounded: equal scores happen
    classes = torch.tensor([row[0] for row in rows])
    loss = torch.tensor([row[1] / 7 for row in rows])
    one_hot = torch.nn.functional.one_hot(classes, 7).float()
    for name, metric in METRICS.items():
        targets = classes if name in ("top1", "top5", "loss") else one_hot
        whole = metric.compute(metric.update(metric.init(), scores, targets, loss))
        state, first, turn = metric.init(), 0, 0
        while first < len(rows):
            last = first + sizes[turn % len(sizes)]
            state = metric.update(state, scores[first:last], targets[first:last], loss[first:last])
            first, turn = last, turn + 1
        assert metric.compute(state) == pytest.approx(whole, rel=1e-12, abs=1e-12), name


def test_the_defaults_fit_the_loss_and_name_the_metric_to_compare_by_first() -> None:
    assert default_metrics("cross_entropy", 10) == ("top1", "top5", "loss")
    assert default_metrics("cross_entropy", 5) == ("top1", "loss")
    assert default_metrics("bce", 10) == ("top1", "top5", "loss")
    assert default_metrics("bce", 10, class_labels=False) == ("label_accuracy", "loss")
    assert default_metrics("bce", 1) == ("label_accuracy", "loss")
    assert default_metrics("mse", 1) == ("mse", "mae", "loss")
    assert default_metrics("my:loss", 3) == ("loss",)


def test_more_is_better_for_shares_and_less_for_losses() -> None:
    assert [name for name in METRICS if higher_is_better(name)] == ["top1", "top5", "label_accuracy"]


def test_an_unknown_metric_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown metric "top11"; did you mean "top1"\?'):
        build_metrics(["top11"])


def test_a_metric_from_the_users_module_must_be_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metrics_a.py").write_text(
        "from featurestream_consumer.metrics import METRICS\nBEST = METRICS['top1']\nWORST = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(build_metrics(["my_metrics_a:BEST"])["my_metrics_a:BEST"], Metric)
    with pytest.raises(UsageError, match='metric "my_metrics_a:WORST" names a int'):
        build_metrics(["my_metrics_a:WORST"])


def test_a_meter_goes_on_from_its_saved_state() -> None:
    scores, classes, loss = torch.eye(4), torch.tensor([0, 1, 0, 0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    whole, first, second = (Meter(build_metrics(["top1", "loss"])) for _ in range(3))
    whole.update(scores, classes, loss)
    first.update(scores[:3], classes[:3], loss[:3])
    second.load_state_dict(first.state_dict())
    second.update(scores[3:], classes[3:], loss[3:])
    assert second.compute() == whole.compute() == {"top1": 0.5, "loss": 2.5}
    assert second.rows == 4
    second.reset()
    assert second.rows == 0

"""Losses against numbers worked out by hand, and the labels that they refuse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from featurestream.errors import DataError, UnknownNameError, UsageError
from featurestream_consumer.losses import LOSSES, build_loss, outputs_for

LOG2 = math.log(2)


def test_cross_entropy_of_equal_scores_is_the_log_of_the_number_of_classes() -> None:
    loss = build_loss("cross_entropy", {})
    assert loss(torch.zeros(2, 4), torch.tensor([0, 3])).tolist() == pytest.approx([math.log(4)] * 2)


def test_cross_entropy_is_minus_the_log_of_the_softmax_of_the_class() -> None:
    # softmax(log 3, 0) = (3/4, 1/4)
    scores = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    assert build_loss("cross_entropy", {})(scores, torch.tensor([0, 1])).tolist() == pytest.approx(
        [math.log(4 / 3), math.log(4)]
    )


def test_label_smoothing_mixes_the_target_with_the_uniform_one() -> None:
    # With s = 0.2 and two classes the target of class 0 is (0.9, 0.1): 0.9 log(4/3) + 0.1 log 4.
    scores = torch.tensor([[math.log(3), 0.0]])
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)
    assert build_loss("cross_entropy", {"label_smoothing": 0.2})(scores, torch.tensor([0])).tolist() == pytest.approx(
        [expected]
    )


def test_mse_is_the_mean_squared_distance_of_a_rows_outputs() -> None:
    loss = build_loss("mse", {})
    targets = loss.targets(torch.tensor([[0.0, 0.0], [1.0, 5.0]]), 2)
    assert loss(torch.tensor([[1.0, 3.0], [1.0, 3.0]]), targets).tolist() == [5.0, 2.0]


def test_mse_takes_one_number_a_row_for_one_output_also_whole_ones() -> None:
    loss = build_loss("mse", {})
    assert loss.targets(torch.tensor([2, 7]), 1).tolist() == [[2.0], [7.0]]


def test_bce_of_a_score_of_zero_is_log_two_whatever_the_target() -> None:
    loss = build_loss("bce", {})
    assert loss(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [0.5, 0.5]])).tolist() == pytest.approx([LOG2, LOG2])


def test_bce_compares_the_sigmoid_with_the_target() -> None:
    # sigmoid(log 3) = 3/4: -log(3/4) for target 1, -log(1/4) for target 0
    loss = build_loss("bce", {})
    scores = torch.tensor([[math.log(3)], [math.log(3)]])
    assert loss(scores, loss.targets(torch.tensor([1, 0]), 1)).tolist() == pytest.approx([math.log(4 / 3), math.log(4)])


def test_bce_takes_class_numbers_as_one_target_a_class() -> None:
    assert build_loss("bce", {}).targets(torch.tensor([2, 0]), 3).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_has_a_finite_gradient_and_is_the_same_for_a_row_alone(name: str) -> None:
    loss = build_loss(name, {})
    scores = torch.tensor([[3.0, -40.0, 0.1], [80.0, 0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0]]) if name == "mse" else torch.tensor([1, 2])
    targets = loss.targets(labels, 3)
    loss(scores, targets).mean().backward()
    assert scores.grad is not None
    assert bool(torch.isfinite(scores.grad).all())
    assert loss(scores, targets)[1:].tolist() == loss(scores[1:], targets[1:]).tolist()


@pytest.mark.parametrize(
    ("name", "labels", "outputs", "message"),
    [
        ("cross_entropy", torch.tensor([0, 10]), 10, "class number 10, but the head's 10 outputs stand for 0 to 9"),
        ("cross_entropy", torch.tensor([-1, 0]), 10, "row 0 of the batch has the class number -1"),
        ("cross_entropy", torch.tensor([0.5]), 10, "are float32 (rows,); the losses mse (values) and bce"),
        ("cross_entropy", torch.tensor([[1, 0]]), 2, "the labels are int64 (rows, 2)"),
        ("bce", torch.tensor([0, 3]), 3, "row 1 of the batch has the class number 3"),
        ("bce", torch.tensor([[0.0, 1.5]]), 2, "has the label [0.0, 1.5], but bce needs targets from 0 to 1"),
        ("bce", torch.tensor([0, 2]), 1, "row 1 of the batch has the label 2, but bce needs targets from 0 to 1"),
        ("bce", torch.tensor([[0.0, math.nan]]), 2, "but bce needs targets from 0 to 1"),
        ("mse", torch.tensor([1.0, math.nan]), 1, "row 1 of the batch has the label nan, which is not a finite number"),
        ("mse", torch.tensor([1, 2]), 10, "mse compares 10 outputs with a label of 1 numbers (int64 (rows,))"),
    ],
)  # fmt: skip
def test_labels_that_a_loss_cannot_take_are_named_with_the_value(
    name: str, labels: torch.Tensor, outputs: int, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        build_loss(name, {}).targets(labels, outputs)
    assert message in str(caught.value)


def test_an_unknown_loss_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown loss "crossentropy"; did you mean "cross_entropy"\?'):
        build_loss("crossentropy", {})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"smoothing": 0.1}, 'loss "cross_entropy" takes no argument "smoothing"; did you mean "label_smoothing"?'),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 is not a share of the target; expected [0, 1)"),
        ({"label_smoothing": "a"}, "loss \"cross_entropy\" refuses label_smoothing='a'"),
    ],
)
def test_an_argument_that_a_loss_refuses_is_named(args: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_loss("cross_entropy", args)
    assert message in str(caught.value)


def test_a_loss_from_the_users_module_gives_a_number_a_row_or_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_losses_a.py").write_text(
        "def rows(scores, labels, *, scale=1.0):\n    return scale * scores.sum(1)\n"
        "def mean(scores, labels):\n    return scores.mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    labels = torch.tensor([1, 2])
    assert build_loss("my_losses_a:rows", {"scale": 2})(torch.ones(2, 3), labels).tolist() == [6.0, 6.0]
    with pytest.raises(UsageError, match=r"returned the shape \(\) for 2 rows; expected one number a row"):
        build_loss("my_losses_a:mean", {})(torch.ones(2, 3), labels)


def test_the_number_of_outputs_is_that_of_the_classes_or_of_a_labels_numbers() -> None:
    assert outputs_for("cross_entropy", classes=10, label_numbers=1) == 10
    assert outputs_for("bce", classes=10, label_numbers=1) == 10
    assert outputs_for("bce", classes=None, label_numbers=7) == 7
    assert outputs_for("mse", classes=10, label_numbers=1) == 1
    assert outputs_for("mse", classes=None, label_numbers=3) == 3
    with pytest.raises(UsageError, match="cross_entropy needs class numbers, but the stream's labels are values"):
        outputs_for("cross_entropy", classes=None, label_numbers=3)
    with pytest.raises(UsageError, match="the stream has 1 class"):
        outputs_for("cross_entropy", classes=1, label_numbers=1)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [2, 3, 10, 16, 17, 63, 100])
def test_cross_entropy_and_its_gradient_are_torchs_for_any_number_of_classes(classes, label_smoothing) -> None:
    generator = torch.Generator().manual_seed(classes)
    scores_BC = (5 * torch.randn(37, classes, generator=generator)).requires_grad_()
    classes_B = torch.randint(0, classes, (37,), generator=generator)
    found = build_loss("cross_entropy", {"label_smoothing": label_smoothing})(scores_BC, classes_B)
    expected = functional.cross_entropy(scores_BC, classes_B, reduction="none", label_smoothing=label_smoothing)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss_B.sum(), scores_BC)[0] for loss_B in (found, expected)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("classes", [2, 5, 10, 40])
def test_a_rows_cross_entropy_has_the_same_bits_wherever_it_stands(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    scores_BC = (5 * torch.randn(111, classes, generator=generator)).requires_grad_()
    classes_B = torch.randint(0, classes, (111,), generator=generator)
    loss = build_loss("cross_entropy", {"label_smoothing": 0.1})
    together_B = loss(scores_BC, classes_B)
    together_BC = torch.autograd.grad(together_B.sum(), scores_BC)[0]
    for first, last in ((0, 1), (1, 38), (38, 111), (5, 12)):
        part_BC = scores_BC.detach()[first:last].clone().requires_grad_()
        alone_B = loss(part_BC, classes_B[first:last])
        assert torch.equal(alone_B, together_B[first:last])
        assert torch.equal(torch.autograd.grad(alone_B.sum(), part_BC)[0], together_BC[first:last])

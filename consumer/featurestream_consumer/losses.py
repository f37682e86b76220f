"""Losses by name: what a head is trained to make small, one number a row.

One number a row, not a mean, so that the same function serves training (the mean over a batch), evaluation (the mean
over a whole validation stream, whatever its batches) and several heads at once. From outside,
``package.module:function`` works: ``function(scores_BC, labels_B, **arguments) -> loss_B``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from featurestream.errors import DataError, UsageError
from featurestream.lookup import look_up
from featurestream_consumer.arguments import call, check_arguments

#: float32 numbers in the widest vectors of a CPU, and up to how many classes it pays to fill them.
VECTOR: Final = 16
FEW_CLASSES: Final = 64

# ---- the functions --------------------------------------------------------------------------------------------


def cross_entropy(scores_BC: Tensor, classes_B: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return loss_B = -log softmax(scores)[class].

    With ``label_smoothing`` s in [0, 1) the target is (1 - s) of the class plus s spread over all C classes: C.
    Szegedy et al.: Rethinking the Inception architecture, 2016, arXiv:1512.00567, section 7.
    """
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"label_smoothing={label_smoothing!r} is not a share of the target", hint="expected [0, 1)")
    log_BC = functional.log_softmax(_whole_vectors(scores_BC), 1)
    loss_B = functional.nll_loss(log_BC, classes_B, reduction="none")
    if not label_smoothing:
        return loss_B
    return (1 - label_smoothing) * loss_B - label_smoothing * log_BC[:, : scores_BC.shape[1]].mean(1)


def _whole_vectors(scores_BC: Tensor) -> Tensor:
    """Return the scores with classes that are impossible behind them, up to a whole number of the CPU's vectors.

    torch's softmax of 10 classes takes four times as long as of 16. With many classes the rest does not count.
    """
    classes = scores_BC.shape[1]
    if scores_BC.device.type != "cpu" or classes > FEW_CLASSES or classes % VECTOR == 0:
        return scores_BC
    return functional.pad(scores_BC, (0, VECTOR - classes % VECTOR), value=-math.inf)


def mse(scores_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """Return loss_B: the squared distance, averaged over the row's outputs."""
    return (scores_BC - targets_BC).square().mean(1)


def bce(scores_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """Return loss_B: the binary cross-entropy of the logits against targets in [0, 1], averaged over the outputs.

    Against class numbers it is one-against-all, each class a target of 0 or 1: R. Wightman et al.: ResNet strikes
    back, 2021, arXiv:2110.00476, section 2.
    """
    return functional.binary_cross_entropy_with_logits(scores_BC, targets_BC, reduction="none").mean(1)


# ---- labels to targets, checked -------------------------------------------------------------------------------


def class_targets(labels: Tensor, outputs: int) -> Tensor:
    """Return class numbers int64 (rows,). Raises DataError for values, several labels a row, or a class number that
    no output stands for."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"cross_entropy needs one class number a row, but the labels are {_shown(labels)}",
            hint="the losses mse (values) and bce (targets in [0, 1]) fit them",
        )
    return _in_range(labels.to(torch.int64), outputs)


def value_targets(labels: Tensor, outputs: int) -> Tensor:
    """Return float32 (rows, outputs). Raises DataError for labels of another width, or that are not finite."""
    values = labels.to(torch.float32).reshape(labels.shape[0], -1)
    _check_width(labels, values, outputs, "mse")
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).any(1).nonzero()[0])
        raise DataError(
            f"row {row} of the batch has the label {labels[row].tolist()}, which is not a finite number",
            hint="correct the labels of the stream",
        )
    return values


def share_targets(labels: Tensor, outputs: int) -> Tensor:
    """Return float32 (rows, outputs) in [0, 1]; class numbers become one-hot rows where there are several outputs.

    Raises DataError for labels of another width, or outside [0, 1].
    """
    if labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool and outputs > 1:
        return functional.one_hot(_in_range(labels.to(torch.int64), outputs), outputs).to(torch.float32)
    shares = labels.to(torch.float32).reshape(labels.shape[0], -1)
    _check_width(labels, shares, outputs, "bce")
    if shares.numel() and not bool(((shares >= 0) & (shares <= 1)).all()):
        row = int((~((shares >= 0) & (shares <= 1))).any(1).nonzero()[0])
        raise DataError(
            f"row {row} of the batch has the label {labels[row].tolist()}, but bce needs targets from 0 to 1",
            hint="the loss mse fits values of any size",
        )
    return shares


def any_targets(labels: Tensor, outputs: int) -> Tensor:  # noqa: ARG001 - a loss of the user's judges its labels itself
    """Return the labels as they are."""
    return labels


def _in_range(classes_B: Tensor, outputs: int) -> Tensor:
    wrong = (classes_B < 0) | (classes_B >= outputs)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"row {row} of the batch has the class number {int(classes_B[row])}, "
            f"but the head's {outputs} outputs stand for 0 to {outputs - 1}",
            hint="the stream's labels and its number of classes do not agree",
            row=row,
            label=int(classes_B[row]),
        )
    return classes_B


def _check_width(labels: Tensor, values: Tensor, outputs: int, loss: str) -> None:
    if values.shape[1] != outputs:
        fits = "; the loss cross_entropy fits class numbers" if not labels.is_floating_point() else ""
        raise DataError(
            f"{loss} compares {outputs} outputs with a label of {values.shape[1]} numbers ({_shown(labels)})",
            hint=f"the head must have as many outputs as a label has numbers{fits}",
        )


def _shown(labels: Tensor) -> str:
    shape = f"(rows, {', '.join(map(str, labels.shape[1:]))})" if labels.ndim > 1 else "(rows,)"
    return f"{str(labels.dtype).removeprefix('torch.')} {shape}"


# ---- by name --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LossKind:
    """A loss with what goes with it.

    Attributes:
        function: ``(scores_BC, targets, **arguments) -> loss_B``.
        targets: ``(labels, outputs) -> targets``: the check and the conversion of a batch's labels, on the CPU.
        class_outputs: one output a class where the labels are class numbers; else one output a label's number.
        row_by_row: each row's loss and gradient has the same bits whatever rows stand above and below it. bce has not:
            torch computes logarithms eight or sixteen at a time, and what is left over with another formula.
    """

    function: Callable[..., Tensor]
    targets: Callable[[Tensor, int], Tensor] = any_targets
    class_outputs: bool = True
    row_by_row: bool = False


LOSSES: Final[dict[str, LossKind]] = {
    "cross_entropy": LossKind(cross_entropy, class_targets, row_by_row=True),
    "mse": LossKind(mse, value_targets, class_outputs=False, row_by_row=True),
    "bce": LossKind(bce, share_targets),
}


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss with its arguments set: ``loss(scores_BC, targets) -> loss_B`` (float32, one number a row)."""

    name: str
    kind: LossKind
    args: Mapping[str, Any] = field(default_factory=dict)

    def targets(self, labels: Tensor, outputs: int) -> Tensor:
        """Return what the loss compares ``labels`` (on the CPU) as. Raises DataError for labels that do not fit."""
        return self.kind.targets(labels, outputs)

    def __call__(self, scores_BC: Tensor, targets: Tensor) -> Tensor:
        """Return loss_B. Raises UsageError when a loss of the user's returns anything but one number a row."""
        loss_B = self.kind.function(scores_BC, targets, **self.args)
        if loss_B.shape != scores_BC.shape[:1]:
            raise UsageError(
                f'loss "{self.name}" returned the shape {tuple(loss_B.shape)} for {scores_BC.shape[0]} rows',
                hint='expected one number a row, as torch\'s losses give it with reduction="none"',
            )
        return loss_B


def build_loss(name: str, args: Mapping[str, Any]) -> Loss:
    """Return the loss ``name`` with ``args``.

    Raises UsageError for an unknown name (with the nearest), an argument that it does not take (with those it
    takes), or a value that it refuses.
    """
    if name not in LOSSES:
        function = look_up("loss", name, {key: kind.function for key, kind in LOSSES.items()})
        check_arguments("loss", name, function, args, supplied=2)
        return Loss(name, LossKind(function), dict(args))
    kind = LOSSES[name]
    # Tried on one row, so that a value it refuses is found before anything is read.
    outputs = 2 if kind.class_outputs else 1
    one_row = (torch.zeros(1, outputs), kind.targets(torch.zeros(1, dtype=torch.int64), outputs))
    call("loss", name, kind.function, one_row, args)
    return Loss(name, kind, dict(args))


def has_class_outputs(loss: str) -> bool:
    """Tell whether the loss called ``loss`` takes one output a class, where labels are class numbers."""
    return LOSSES[loss].class_outputs if loss in LOSSES else True


def outputs_for(loss: str, *, classes: int | None, label_numbers: int) -> int:
    """Return how many outputs a head needs.

    ``classes`` is the stream's number of classes (None where its labels are not class numbers), ``label_numbers``
    how many numbers a label has. Raises UsageError where the loss needs classes and the stream has none.
    """
    if has_class_outputs(loss) and classes is not None:
        if classes < 2:
            raise UsageError(
                f'the stream has {classes} class, which leaves loss "{loss}" nothing to tell apart',
                hint="expected at least 2",
            )
        return classes
    if loss == "cross_entropy":
        raise UsageError(
            "cross_entropy needs class numbers, but the stream's labels are values",
            hint="use --loss mse (values) or --loss bce (targets from 0 to 1)",
        )
    return label_numbers

"""Metrics by name: how good a head's scores are, over any number of rows in any batches.

A metric is three functions. ``init()`` gives an empty state; ``update(state, scores_BC, targets, loss_B)`` takes rows
into it; ``compute(state)`` gives the value. The value is that of all rows taken together, whatever the batches were.
From outside, ``package.module:METRIC`` names a :class:`Metric`. This module needs no torch to be imported, so that
``featurectl compare`` can ask which way a metric is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from featurestream.errors import UsageError
from featurestream.lookup import look_up

if TYPE_CHECKING:
    from torch import Tensor

#: Sum over the rows (a number, or a float64 tensor on the scores' device) and the number of rows.
Sum = tuple[Any, int]


#: ``(scores_BC, targets, loss_B) -> value_B``, each row's value by itself.
RowValue = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True, slots=True)
class Metric:
    """The three functions of a metric, and which way it is better. ``unit`` says what one is of it.

    ``row_value`` is there where the metric is the mean of a value that each row has by itself: then the rows of many
    heads can be valued in one call.
    """

    init: Callable[[], Any]
    update: Callable[[Any, Tensor, Tensor, Tensor], Any]
    compute: Callable[[Any], float]
    higher_is_better: bool
    unit: str
    row_value: RowValue | None = None


# ---- means over rows ------------------------------------------------------------------------------------------


def empty_sum() -> Sum:
    """Return the state of a mean that has seen no row."""
    return (0.0, 0)


def mean(state: Sum) -> float:
    """Return the mean over the rows; not a number where there were none."""
    total, rows = state
    return float(total) / rows if rows else float("nan")


def row_loss(scores_BC: Tensor, targets: Tensor, loss_B: Tensor) -> Tensor:  # noqa: ARG001 - the shared signature
    """Return the rows' losses."""
    return loss_B


def row_top1(scores_BC: Tensor, targets: Tensor, loss_B: Tensor) -> Tensor:  # noqa: ARG001 - the shared signature
    """Tell which rows' class has the highest score; of equal scores the first class counts as the highest."""
    return scores_BC.argmax(1) == _classes(scores_BC, targets, "top1")


def row_top5(scores_BC: Tensor, targets: Tensor, loss_B: Tensor) -> Tensor:  # noqa: ARG001 - the shared signature
    """Tell which rows' class is among the five highest scores; of equal scores the first classes are higher.

    Counted by rank and not by ``topk``, whose choice among equal scores is not defined.
    """
    class_B1 = _classes(scores_BC, targets, "top5")[:, None]
    score_B1 = scores_BC.gather(1, class_B1)
    numbers_C = class_B1.new_ones(scores_BC.shape[1]).cumsum(0) - 1
    higher_BC = (scores_BC > score_B1) | ((scores_BC == score_B1) & (numbers_C < class_B1))
    return higher_BC.sum(1) < 5


def row_label_accuracy(scores_BC: Tensor, targets: Tensor, loss_B: Tensor) -> Tensor:  # noqa: ARG001 - the shared signature
    """Return each row's share of outputs on the right side: a score above 0 where the target is above one half."""
    right_BC = (scores_BC > 0) == (targets.reshape(scores_BC.shape) > 0.5)
    return right_BC.double().mean(1)


def row_squares(scores_BC: Tensor, targets: Tensor, loss_B: Tensor) -> Tensor:  # noqa: ARG001 - the shared signature
    """Return each row's squared error, averaged over its outputs."""
    error_BC = (scores_BC - targets.reshape(scores_BC.shape)).double()
    return error_BC.square().mean(1)


def row_distances(scores_BC: Tensor, targets: Tensor, loss_B: Tensor) -> Tensor:  # noqa: ARG001 - the shared signature
    """Return each row's absolute error, averaged over its outputs."""
    error_BC = (scores_BC - targets.reshape(scores_BC.shape)).double()
    return error_BC.abs().mean(1)


def _classes(scores_BC: Tensor, targets: Tensor, metric: str) -> Tensor:
    if scores_BC.shape[1] < 2:
        raise UsageError(
            f'metric "{metric}" needs one output a class, but the head has {scores_BC.shape[1]}',
            hint="label_accuracy and mse fit a single output",
        )
    if targets.ndim == 1:
        return targets
    return targets.argmax(1)  # one-hot rows, as bce has them


def mean_over_rows(row_value: RowValue, *, higher_is_better: bool, unit: str) -> Metric:
    """Return the metric that is the mean of a value that each row has by itself, added up in float64."""

    def add(state: Sum, scores_BC: Tensor, targets: Tensor, loss_B: Tensor) -> Sum:
        value_B = row_value(scores_BC, targets, loss_B)
        return (state[0] + value_B.double().sum(), state[1] + value_B.shape[0])

    return Metric(empty_sum, add, mean, higher_is_better=higher_is_better, unit=unit, row_value=row_value)


METRICS: Final[dict[str, Metric]] = {
    "top1": mean_over_rows(row_top1, higher_is_better=True, unit="share of rows, 0 to 1"),
    "top5": mean_over_rows(row_top5, higher_is_better=True, unit="share of rows, 0 to 1"),
    "label_accuracy": mean_over_rows(row_label_accuracy, higher_is_better=True, unit="share of labels, 0 to 1"),
    "mse": mean_over_rows(row_squares, higher_is_better=False, unit="squared label units"),
    "mae": mean_over_rows(row_distances, higher_is_better=False, unit="label units"),
    "loss": mean_over_rows(row_loss, higher_is_better=False, unit="the loss's own, mean over rows"),
}


def default_metrics(loss: str, outputs: int, *, class_labels: bool = True) -> tuple[str, ...]:
    """Return the metrics that fit a loss; the first is the one that runs are compared by.

    ``class_labels`` tells whether the stream's labels are class numbers. top5 is left out where it cannot fail.
    """
    if loss == "mse":
        return ("mse", "mae", "loss")
    if loss == "cross_entropy" or (loss == "bce" and class_labels and outputs > 1):
        return ("top1", "top5", "loss") if outputs > 5 else ("top1", "loss")
    if loss == "bce":
        return ("label_accuracy", "loss")
    return ("loss",)


def build_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Return the metrics by name. Raises UnknownNameError with the known ones and the nearest."""
    found = {name: look_up("metric", name, METRICS) for name in names}
    for name, metric in found.items():
        if not isinstance(metric, Metric):
            raise UsageError(
                f'metric "{name}" names a {type(metric).__name__}',
                hint="expected a featurestream_consumer.metrics.Metric",
            )
    return found


def higher_is_better(name: str) -> bool:
    """Tell whether more of ``name`` is better; a metric that is not ours counts as a score, where more is better."""
    metric = METRICS.get(name)
    return metric.higher_is_better if metric else True


class Meter:
    """Several metrics over the same rows: a state for each, and their values by name."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.metrics = dict(metrics)
        self.states = {name: metric.init() for name, metric in self.metrics.items()}
        self.rows = 0

    def update(self, scores_BC: Tensor, targets: Tensor, loss_B: Tensor) -> None:
        """Take rows into every metric; tensors without a graph."""
        for name, metric in self.metrics.items():
            self.states[name] = metric.update(self.states[name], scores_BC, targets, loss_B)
        self.rows += int(scores_BC.shape[0])

    def compute(self) -> dict[str, float]:
        """Return every metric's value over the rows since the start or the last :meth:`reset`."""
        return {name: float(metric.compute(self.states[name])) for name, metric in self.metrics.items()}

    def reset(self) -> None:
        """Forget the rows."""
        self.states = {name: metric.init() for name, metric in self.metrics.items()}
        self.rows = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the states and the number of rows."""
        return {"rows": self.rows, "states": dict(self.states)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; a metric that it lacks starts empty."""
        self.rows = int(state["rows"])
        for name in self.metrics:
            if name in state["states"]:
                self.states[name] = state["states"][name]

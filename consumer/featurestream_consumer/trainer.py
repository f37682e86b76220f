"""Train and evaluate one head on rows that somebody else brings: no Kafka, no files, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from featurestream.errors import DataError, DivergedError, UsageError
from featurestream_consumer.augment import Augmentation, Augmented, augmented_loss
from featurestream_consumer.features import Rows, as_features, as_tensor
from featurestream_consumer.flat import FlatParameters
from featurestream_consumer.losses import Loss
from featurestream_consumer.metrics import Meter, Metric, build_metrics, default_metrics
from featurestream_consumer.normalization import Identity, Normalization
from featurestream_consumer.optimizers import needs_closure
from featurestream_consumer.randomness import OwnRandom

T = TypeVar("T")


class Once:
    """What was made of one batch's rows: trainers that are given the same one make each thing once between them."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def make(self, what: Hashable, make: Callable[[], T]) -> T:
        """Return what was made as ``what``, or make it."""
        if what not in self._made:
            self._made[what] = make()
        made: T = self._made[what]
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A head's scores on a set of rows, in the order in which they came.

    Attributes:
        metrics: every metric's value over all rows.
        indices: int64 (rows,), the samples' indices in the dataset.
        labels: (rows,) or (rows, K), as the stream has them.
        scores: float32 (rows, outputs).
    """

    metrics: dict[str, float]
    indices: NDArray[np.int64]
    labels: NDArray[Any]
    scores: NDArray[np.float32]


class Evaluator:
    """An :class:`Evaluation` in the making: rows are added, then it is computed."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self._meter = Meter(metrics)
        self._indices: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._scores: list[Tensor] = []

    def add(self, scores_BC: Tensor, targets: Tensor, loss_B: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Take rows: their scores, targets and losses on the head's device, labels and indices on the CPU.

        Labels and indices are kept as they are: they must not change afterwards.
        """
        self._meter.update(scores_BC, targets, loss_B)
        self._indices.append(indices)
        self._labels.append(labels)
        self._scores.append(scores_BC.to(torch.float32).cpu())

    def compute(self) -> Evaluation:
        """Return the scores and metrics on all rows. Raises DataError when there were none."""
        if not self._meter.rows:
            raise DataError("there are no rows to validate on", hint="name a validation stream that holds some")
        return Evaluation(
            metrics=self._meter.compute(),
            indices=torch.cat(self._indices).numpy(),
            labels=torch.cat(self._labels).numpy(),
            scores=torch.cat(self._scores).numpy(),
        )


class Trainer:
    """One head with its loss, optimiser and schedule: takes batches, gives losses, and can stop and go on exactly.

    On the CPU, a trainer that was saved with :meth:`state_dict` and loaded into a new one gives the weights that the
    first would have given, bit for bit, dropout included: it draws from a random state of its own
    (:class:`~featurestream_consumer.randomness.OwnRandom`). The number of threads must be the same.

    ``flat`` is given where ``optimizer`` steps the head's parameters as one tensor.

    Attributes:
        head: the module, on the device of its parameters.
        running: the training metrics since they were last taken.
        random: the random numbers that training draws.
        last_loss: the mean loss of the batch before the last step; None before any.
        step_count: optimiser steps made; with LBFGS one a batch.
        rows_seen: rows trained on, counted again when they come again.
        epoch: epochs ended (:meth:`end_epoch`).
    """

    def __init__(
        self,
        head: nn.Module,
        loss: Loss,
        optimizer: Optimizer,
        *,
        in_features: int,
        outputs: int,
        scheduler: LRScheduler | None = None,
        normalization: Normalization | None = None,
        metrics: Iterable[str] | None = None,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        flat: FlatParameters | None = None,
    ) -> None:
        self.head = head
        self.loss = loss
        self.optimizer = optimizer
        self.augmentation = augmentation
        self.flat = flat
        self.scheduler = scheduler
        self.normalization = normalization or Identity()
        self.in_features = in_features
        self.outputs = outputs
        self.device = next(head.parameters()).device
        self.metrics = build_metrics(tuple(metrics or ()) or default_metrics(loss.name, outputs))
        # The first metric is the one that runs are compared by; the others would cost more than they tell each step.
        first = next(iter(self.metrics))
        self.running = Meter({name: metric for name, metric in self.metrics.items() if name in (first, "loss")})
        self.random = OwnRandom(seed, self.device)
        self.needs_closure = needs_closure(optimizer)
        self.last_loss: float | None = None
        self.step_count = 0
        self.rows_seen = 0
        self.epoch = 0

    @property
    def main_metric(self) -> str:
        """The metric that runs are compared by."""
        return next(iter(self.metrics))

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step (of the first group of parameters)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(
        self,
        features: NDArray[Any] | Tensor,
        labels: NDArray[Any] | Tensor,
        *,
        place: str = "",
        once: Once | None = None,
    ) -> float:
        """Train on one batch and return its mean loss, as it was before the step.

        ``features`` (rows, *shape) of any number dtype, ``labels`` as the loss needs them; ``place`` says in errors
        where the rows come from ("batch 17"); ``once`` is shared with other trainers that take the same batch. Raises
        DataError for rows or labels that do not fit, and DivergedError for a loss that is not finite; in both cases
        the weights are as they were.
        """
        features_BD, targets = self.prepare(features, labels, place, once or Once())
        if not self.head.training:
            self.head.train()
        augmented = self.augment(features_BD)
        first: tuple[Tensor, Tensor, float] | None = None

        def compute_gradients() -> float:
            nonlocal first
            self.head.zero_grad(set_to_none=True)
            scores_BC = self.scores(augmented.features)
            loss_B = augmented_loss(self.loss, scores_BC, targets, augmented)
            loss = loss_B.mean()
            value = float(loss.detach())
            if first is None:  # LBFGS comes back for more, and may try a step that it then takes back
                if not math.isfinite(value):
                    raise self.diverged(f"the loss of step {self.step_count + 1}{_at(place)} is {value}")
                first = (scores_BC.detach(), loss_B.detach(), value)
            torch.autograd.backward(loss)
            if self.flat is not None:
                self.flat.collect()
            return value

        with self.random.lent():
            if self.needs_closure:
                self.optimizer.step(compute_gradients)
            else:
                compute_gradients()
                self.optimizer.step()
        if first is None:
            raise UsageError(f"{type(self.optimizer).__name__} made a step without computing a loss")
        scores_BC, loss_B, value = first
        self.running.update(scores_BC, targets, loss_B)
        self.last_loss = value
        self.step_count += 1
        self.rows_seen += int(features_BD.shape[0])
        self.step_scheduler()
        return value

    def prepare(
        self, features: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor | None, place: str, once: Once
    ) -> tuple[Tensor, Tensor]:
        """Return a batch as the head and the loss take it: normalised float32 features_BD, and targets, on its device.

        Raises DataError for rows or labels that do not fit.
        """
        features_BD = once.make(
            ("features", self.device, self.normalization.alike), lambda: self._features(features, place, once)
        )
        if features_BD.shape[1] != self.in_features:
            raise DataError(
                f"rows of {features_BD.shape[1]} features{_at(place)}, but the head takes {self.in_features}",
                hint="the head was made for another tap",
            )
        targets = once.make(
            ("targets", self.device, self.loss.kind.targets, self.outputs),
            lambda: self._targets(labels, features_BD.shape[0], place),
        )
        return features_BD, targets

    def augment(self, features_BD: Tensor) -> Augmented:
        """Return the rows as the head is to see them in this step."""
        if self.augmentation is None:
            return Augmented(features_BD)
        return self.augmentation(features_BD, self.random)

    def take_metrics(self) -> dict[str, float]:
        """Return the training metrics over the rows since the last call (empty when there were none), and start anew.

        They are those of the head as it was at each step, dropout included.
        """
        values = self.running.compute() if self.running.rows else {}
        self.running.reset()
        return values

    def end_epoch(self, validation_loss: float | None = None) -> None:
        """Count an epoch; ReduceLROnPlateau is stepped here, with the mean loss over the validation stream.

        Raises UsageError when that scheduler gets no validation loss.
        """
        if isinstance(self.scheduler, ReduceLROnPlateau):
            if validation_loss is None:
                raise UsageError(
                    "ReduceLROnPlateau needs the validation loss, and there is no validation stream",
                    hint="name one with --validate, or use another scheduler",
                )
            self.scheduler.step(validation_loss)
        self.epoch += 1

    def evaluate(self, batches: Iterable[Rows | tuple[Any, Any, Any]]) -> Evaluation:
        """Return the head's scores and metrics on all rows of ``batches`` (features, labels, sample indices).

        The head is in evaluation mode and left as it was; neither weights nor random state move. Raises DataError
        when there are no rows or they do not fit, DivergedError when a score is not finite.
        """
        evaluator = Evaluator(self.metrics)
        for number, (features, labels, indices) in enumerate(batches):
            scores = self.score(features, labels, place=f"validation batch {number}")
            evaluator.add(*scores, as_tensor(labels).cpu().clone(), as_tensor(indices).to(torch.int64).cpu().clone())
        return evaluator.compute()

    def score(
        self,
        features: NDArray[Any] | Tensor,
        labels: NDArray[Any] | Tensor,
        *,
        place: str = "",
        once: Once | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores_BC, targets and loss_B of rows, without dropout or augmentation; nothing moves.

        Raises DataError for rows or labels that do not fit, DivergedError when a score is not finite.
        """
        was_training = self.head.training
        if was_training:
            self.head.eval()
        try:
            with torch.inference_mode(), self.random.lent(keep=False):
                features_BD, targets = self.prepare(features, labels, place, once or Once())
                scores_BC = self.scores(features_BD)
                return self.check_scores(scores_BC, place), targets, self.loss(scores_BC, targets)
        finally:
            if was_training:
                self.head.train()

    def scores(self, features_BD: Tensor) -> Tensor:
        """Return the head's scores_BC. Raises UsageError where a head of the user's gives another shape."""
        scores_BC: Tensor = self.head(features_BD)
        if scores_BC.shape != (features_BD.shape[0], self.outputs):
            raise UsageError(
                f"the head returned the shape {tuple(scores_BC.shape)} for {features_BD.shape[0]} rows",
                hint=f"expected ({features_BD.shape[0]}, {self.outputs}): one score a row and output",
            )
        return scores_BC

    def check_scores(self, scores_BC: Tensor, place: str) -> Tensor:
        """Return ``scores_BC``. Raises DivergedError when one is not finite."""
        if not bool(torch.isfinite(scores_BC).all()):
            raise self.diverged(f"scores of {place} are not finite after step {self.step_count}")
        return scores_BC

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides how training goes on: tensors, numbers, texts, lists and dicts only.

        As in torch, tensors may be the live ones: save or copy them before the next step.
        """
        return {
            "head": _whole(self.head.state_dict()),
            "optimizer": _whole(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "normalization": self.normalization.state_dict(),
            "random": self.random.state_dict(),
            "running": self.running.state_dict(),
            "step": self.step_count,
            "rows": self.rows_seen,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned. Raises DataError when it is of another head or optimiser."""
        try:
            self.head.load_state_dict(state["head"])
            self._load_optimizer(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            self.normalization.load_state_dict(state["normalization"])
            self.random.load_state_dict(state["random"])
            self.running.load_state_dict(state["running"])
            self.step_count = int(state["step"])
            self.rows_seen = int(state["rows"])
            self.epoch = int(state["epoch"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DataError(
                f"the saved state does not fit this experiment: {error}",
                hint="it was saved with another head, optimiser or scheduler",
            ) from error

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        for saved, own in zip(state["param_groups"], self.optimizer.param_groups, strict=True):
            if saved.keys() != own.keys():  # torch takes any group, and fails at the first step
                raise ValueError(f"the saved optimiser has the settings {', '.join(sorted(saved))}")
        self.optimizer.load_state_dict(state)

    def step_scheduler(self) -> None:
        """Move the learning rate on after a step of the optimiser. Raises UsageError where the schedule is over."""
        if self.scheduler is None or isinstance(self.scheduler, ReduceLROnPlateau):
            return
        try:
            self.scheduler.step()
        except ValueError as error:  # OneCycleLR, one step after its last
            raise UsageError(
                f"{type(self.scheduler).__name__} refuses step {self.step_count}: {error}",
                hint="give the scheduler the run's number of optimiser steps",
            ) from error

    def diverged(self, what: str) -> DivergedError:
        """Return the error that says so: ``what`` is no longer finite."""
        return DivergedError(
            f"{what}: training has diverged (learning rate {self.learning_rate:g})",
            hint="use a smaller learning rate (--optimizer-arg lr=...), or normalise the features "
            "(--normalize standardize)",
            step=self.step_count,
        )

    def _features(self, features: NDArray[Any] | Tensor, place: str, once: Once) -> Tensor:
        features_BD = once.make(("rows", self.device), lambda: as_features(features, self.device))
        if features_BD.shape[0] == 0:
            raise DataError(f"a batch without rows{_at(place)}")
        if features_BD.shape[1] != self.in_features:
            return features_BD  # normalised or not, it does not fit
        return self.normalization(features_BD)

    def _targets(self, labels: NDArray[Any] | Tensor | None, rows: int, place: str) -> Tensor:
        if labels is None:
            raise DataError(f"rows without labels{_at(place)}", hint="the stream was made without labels")
        tensor = as_tensor(labels)
        if tensor.ndim < 1 or tensor.shape[0] != rows:
            raise DataError(f"{rows} rows{_at(place)} with labels of shape {tuple(tensor.shape)}")
        try:
            # Checked before they move: looking at a number on a device would wait for it.
            return self.loss.targets(tensor, self.outputs).to(self.device, non_blocking=True)
        except DataError as error:
            if not place:
                raise
            raise DataError(f"{place}: {error.message}", hint=error.hint, **error.facts) from error


def _whole(state: Any) -> Any:
    """Return the state, every tensor that is a part of another one copied: a file would hold the other one whole."""
    if isinstance(state, Tensor):
        return state if state.untyped_storage().nbytes() == state.nbytes else state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _whole(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_whole(value) for value in state)
    return state


def _at(place: str) -> str:
    return f" ({place})" if place else ""

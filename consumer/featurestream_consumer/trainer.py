"""Train and evaluate one head on rows that somebody else brings: no Kafka, no files, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from featurestream.errors import DataError, DivergedError, UsageError
from featurestream_consumer.features import Rows, as_features, as_tensor
from featurestream_consumer.losses import Loss
from featurestream_consumer.metrics import Meter, build_metrics, default_metrics
from featurestream_consumer.normalization import Identity, Normalization
from featurestream_consumer.optimizers import needs_closure
from featurestream_consumer.randomness import OwnRandom


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


class Trainer:
    """One head with its loss, optimiser and schedule: takes batches, gives losses, and can stop and go on exactly.

    On the CPU, a trainer that was saved with :meth:`state_dict` and loaded into a new one gives the weights that the
    first would have given, bit for bit, dropout included: it draws from a random state of its own
    (:class:`~featurestream_consumer.randomness.OwnRandom`). The number of threads must be the same.

    Attributes:
        head: the module, on the device of its parameters.
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
    ) -> None:
        self.head = head
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.normalization = normalization or Identity()
        self.in_features = in_features
        self.outputs = outputs
        self.device = next(head.parameters()).device
        self.metrics = build_metrics(tuple(metrics or ()) or default_metrics(loss.name, outputs))
        # The first metric is the one that runs are compared by; the others would cost more than they tell each step.
        first = next(iter(self.metrics))
        self._running = Meter({name: metric for name, metric in self.metrics.items() if name in (first, "loss")})
        self._random = OwnRandom(seed, self.device)
        self._needs_closure = needs_closure(optimizer)
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

    def step(self, features: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor, *, place: str = "") -> float:
        """Train on one batch and return its mean loss, as it was before the step.

        ``features`` (rows, *shape) of any number dtype, ``labels`` as the loss needs them; ``place`` says in errors
        where the rows come from ("batch 17"). Raises DataError for rows or labels that do not fit, and DivergedError
        for a loss that is not finite; in both cases the weights are as they were.
        """
        features_BD = self._features(features, place)
        targets = self._targets(labels, features_BD.shape[0], place)
        if not self.head.training:
            self.head.train()
        first: tuple[Tensor, Tensor, float] | None = None

        def compute_gradients() -> float:
            nonlocal first
            self.optimizer.zero_grad(set_to_none=True)
            scores_BC = self._scores(features_BD)
            loss_B = self.loss(scores_BC, targets)
            loss = loss_B.mean()
            value = float(loss.detach())
            if first is None:  # LBFGS comes back for more, and may try a step that it then takes back
                if not math.isfinite(value):
                    raise self._diverged(f"the loss of step {self.step_count + 1}{_at(place)} is {value}")
                first = (scores_BC.detach(), loss_B.detach(), value)
            torch.autograd.backward(loss)
            return value

        with self._random.lent():
            if self._needs_closure:
                self.optimizer.step(compute_gradients)
            else:
                compute_gradients()
                self.optimizer.step()
        if first is None:
            raise UsageError(f"{type(self.optimizer).__name__} made a step without computing a loss")
        scores_BC, loss_B, value = first
        self._running.update(scores_BC, targets, loss_B)
        self.step_count += 1
        self.rows_seen += int(features_BD.shape[0])
        self._step_scheduler()
        return value

    def take_metrics(self) -> dict[str, float]:
        """Return the training metrics over the rows since the last call (empty when there were none), and start anew.

        They are those of the head as it was at each step, dropout included.
        """
        values = self._running.compute() if self._running.rows else {}
        self._running.reset()
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
        meter = Meter(self.metrics)
        indices: list[Tensor] = []
        labels: list[Tensor] = []
        scores: list[Tensor] = []
        was_training = self.head.training
        self.head.eval()
        try:
            with torch.inference_mode(), self._random.lent(keep=False):
                for number, (features, batch_labels, batch_indices) in enumerate(batches):
                    place = f"validation batch {number}"
                    features_BD = self._features(features, place)
                    targets = self._targets(batch_labels, features_BD.shape[0], place)
                    scores_BC = self._scores(features_BD)
                    if not bool(torch.isfinite(scores_BC).all()):
                        raise self._diverged(f"scores of {place} are not finite after step {self.step_count}")
                    meter.update(scores_BC, targets, self.loss(scores_BC, targets))
                    indices.append(as_tensor(batch_indices).to(torch.int64).cpu().clone())
                    labels.append(as_tensor(batch_labels).cpu().clone())
                    scores.append(scores_BC.to(torch.float32).cpu())
        finally:
            self.head.train(was_training)
        if not meter.rows:
            raise DataError("there are no rows to validate on", hint="name a validation stream that holds some")
        return Evaluation(
            metrics=meter.compute(),
            indices=torch.cat(indices).numpy(),
            labels=torch.cat(labels).numpy(),
            scores=torch.cat(scores).numpy(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides how training goes on: tensors, numbers, texts, lists and dicts only.

        As in torch, tensors are the live ones: save or copy them before the next step.
        """
        return {
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "normalization": self.normalization.state_dict(),
            "random": self._random.state_dict(),
            "running": self._running.state_dict(),
            "step": self.step_count,
            "rows": self.rows_seen,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned. Raises DataError when it is of another head or optimiser."""
        try:
            self.head.load_state_dict(state["head"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            self.normalization.load_state_dict(state["normalization"])
            self._random.load_state_dict(state["random"])
            self._running.load_state_dict(state["running"])
            self.step_count = int(state["step"])
            self.rows_seen = int(state["rows"])
            self.epoch = int(state["epoch"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise DataError(
                f"the saved state does not fit this experiment: {error}",
                hint="it was saved with another head, optimiser or scheduler",
            ) from error

    def _features(self, features: NDArray[Any] | Tensor, place: str) -> Tensor:
        features_BD = as_features(features, self.device)
        if features_BD.shape[0] == 0:
            raise DataError(f"a batch without rows{_at(place)}")
        if features_BD.shape[1] != self.in_features:
            raise DataError(
                f"rows of {features_BD.shape[1]} features{_at(place)}, but the head takes {self.in_features}",
                hint="the head was made for another tap",
            )
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

    def _scores(self, features_BD: Tensor) -> Tensor:
        scores_BC: Tensor = self.head(features_BD)
        if scores_BC.shape != (features_BD.shape[0], self.outputs):
            raise UsageError(
                f"the head returned the shape {tuple(scores_BC.shape)} for {features_BD.shape[0]} rows",
                hint=f"expected ({features_BD.shape[0]}, {self.outputs}): one score a row and output",
            )
        return scores_BC

    def _step_scheduler(self) -> None:
        if self.scheduler is None or isinstance(self.scheduler, ReduceLROnPlateau):
            return
        try:
            self.scheduler.step()
        except ValueError as error:  # OneCycleLR, one step after its last
            raise UsageError(
                f"{type(self.scheduler).__name__} refuses step {self.step_count}: {error}",
                hint="give the scheduler the run's number of optimiser steps",
            ) from error

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{what}: training has diverged (learning rate {self.learning_rate:g})",
            hint="use a smaller learning rate (--optimizer-arg lr=...), or normalise the features "
            "(--normalize standardize)",
            step=self.step_count,
        )


def _at(place: str) -> str:
    return f" ({place})" if place else ""

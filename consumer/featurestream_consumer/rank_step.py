"""One optimiser step of a head whose batch lies on several ranks: each has its rows' part of the gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featurestream.errors import UsageError
from featurestream_consumer.augment import augmented_loss
from featurestream_consumer.ranks import Ranks
from featurestream_consumer.trainer import Once, Trainer

#: Modules that look at all rows of a batch together: with a part of the rows they would do something else.
MIXING_ROWS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class RankStep:
    """Steps a trainer that every rank has the like of, as one process would with all rows.

    A rank adds up the gradients of its rows' losses, none where it has no rows; one all-reduce adds the ranks' sums,
    numbers of rows and sums of metrics in one vector, and the sum divided by the rows is the gradient of the batch's
    mean loss. That vector has the same bits on each rank, and so have the weights after the step. Beside one process
    the sums are added in another order, so results differ in the last bits, and the same ranks give the same bits.

    What is drawn at random (dropout, augmentation) is a function of the seed, the step and the rank: not what one
    process draws, but the same each time for the same number of ranks. Rows are mixed, by mixup or by a loss or a head
    of the user's that does so, with those of the same rank only. Raises what :func:`check_splittable` raises.
    """

    def __init__(self, trainer: Trainer, ranks: Ranks, seed: int) -> None:
        self._trainer = trainer
        self._ranks = ranks
        self._seed = seed
        self._parameters: list[Tensor] = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        check_splittable(trainer)
        metrics = trainer.running.metrics.items()
        self._values = {name: metric.row_value for name, metric in metrics if metric.row_value is not None}

    def step(self, features: Tensor | None, labels: NDArray[Any] | None, *, place: str) -> None:
        """Train on one batch, of which this rank has ``features`` (rows, *shape) and ``labels``; None: no rows.

        Raises what :meth:`Trainer.step` raises; DivergedError on all ranks at once.
        """
        trainer = self._trainer
        trainer.random.begin_at(self._seed, trainer.step_count, self._ranks.rank)
        if not trainer.head.training:
            trainer.head.train()
        prepared = None
        if features is not None:
            features_BD, targets = trainer.prepare(features, labels, place, Once())
            prepared = (trainer.augment(features_BD), targets)
        first: tuple[int, float, list[float]] | None = None

        def compute_gradients() -> float:
            nonlocal first
            trainer.head.zero_grad(set_to_none=True)
            sums = [torch.zeros((), dtype=torch.float64, device=trainer.device)] * (1 + len(self._values))
            rows = 0
            if prepared is not None:
                augmented, targets = prepared
                scores_BC = trainer.scores(augmented.features)
                loss_B = augmented_loss(trainer.loss, scores_BC, targets, augmented)
                torch.autograd.backward(loss_B.sum())
                found = (scores_BC.detach(), targets, loss_B.detach())
                sums = [value(*found).double().sum() for value in (_loss, *self._values.values())]
                rows = scores_BC.shape[0]
            if trainer.flat is not None:
                trainer.flat.collect()
            rows, loss, metrics = self._add_up(rows, sums)
            value = loss / rows
            if first is None:  # LBFGS comes back for more, and may try a step that it then takes back
                if not math.isfinite(value):
                    raise trainer.diverged(f"the loss of step {trainer.step_count + 1} ({place}) is {value}")
                first = (rows, value, metrics)
            return value

        with trainer.random.lent():
            if trainer.needs_closure:
                trainer.optimizer.step(compute_gradients)
            else:
                compute_gradients()
                trainer.optimizer.step()
        if first is None:
            raise UsageError(f"{type(trainer.optimizer).__name__} made a step without computing a loss")
        rows, trainer.last_loss, sums = first
        for name, total in zip(self._values, sums, strict=True):
            before, seen = trainer.running.states[name]
            trainer.running.states[name] = (before + total, seen + rows)
        trainer.running.rows += rows
        trainer.step_count += 1
        trainer.rows_seen += rows
        trainer.step_scheduler()

    def _add_up(self, rows: int, sums: list[Tensor]) -> tuple[int, float, list[float]]:
        """Make the ranks' sums of gradients the batch's mean gradient; return its rows and its sums.

        A parameter to which no rank has a gradient keeps none: torch's optimisers then leave it alone.
        """
        parameters, device = self._parameters, self._trainer.device
        present = [parameter.grad is not None for parameter in parameters]
        facts = torch.tensor([rows, *present], dtype=torch.float32, device=device)
        gradients = [(p.detach().new_zeros(p.shape) if p.grad is None else p.grad).reshape(-1) for p in parameters]
        vector = torch.cat([facts, torch.stack(sums).to(torch.float32), *gradients])
        self._ranks.add(vector)
        rows_all, *numbers = vector[: len(facts) + len(sums)].tolist()
        place = len(facts) + len(sums)
        for parameter, there in zip(parameters, numbers[: len(parameters)], strict=True):
            part = vector[place : place + parameter.numel()].view(parameter.shape)
            place += parameter.numel()
            if parameter.grad is not None:
                torch.div(part, rows_all, out=parameter.grad)
            elif there:
                parameter.grad = (part / rows_all).to(parameter.dtype)
        loss, *metrics = numbers[len(parameters) :]
        return int(rows_all), loss, metrics


def _loss(scores_BC: Tensor, targets: Tensor, loss_B: Tensor) -> Tensor:  # noqa: ARG001 - a row value's signature
    return loss_B


def check_splittable(trainer: Trainer) -> None:
    """Raise UsageError for what needs all rows of a batch at once: batch normalisation, some metrics in training."""
    for name, metric in trainer.running.metrics.items():
        if metric.row_value is None:
            raise UsageError(
                f'metric "{name}" has no value of each row, so several processes cannot add theirs up in training',
                hint="name it behind another one with --metric, or train in one process",
            )
    for name, module in trainer.head.named_modules():
        if isinstance(module, MIXING_ROWS):
            raise UsageError(
                f"the head's {type(module).__name__} ({name or 'itself'}) takes means over a batch, and each process "
                "has only a part of its rows",
                hint="train this head in one process, or use LayerNorm",
            )

"""Trainers that step together: heads of one shape in one batched product, each with the result that it has alone.

A head in a group and the same head alone go through the same arithmetic: the group's product is used only where a trial
finds that every bit of it is what :meth:`Trainer.step` computes, for these shapes, this number of heads, these threads.
Everything else is either the trainer's own (normalisation, augmentation, dropout's random numbers, the schedule) or
works on each number, or each row, by itself (loss, metrics, element-wise optimisers).
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from featurestream.errors import DivergedError
from featurestream_consumer.augment import Augmented, augmented_loss
from featurestream_consumer.flat import FlatParameters
from featurestream_consumer.heads.layers import linear_layers
from featurestream_consumer.stack import Stack
from featurestream_consumer.trainer import Once, Trainer

#: With so few of them it is tried first whether grouping can pay: large heads would fill the memory for nothing.
TRIAL_HEADS: Final = 8
TRIAL_REPEATS: Final = 5

Features = NDArray[Any] | Tensor


class Unit(Protocol):
    """Trainers of one batch size and the same taps, which take every batch at the same time.

    Between a step and the next use of one of its trainers by itself (its state, its metrics, the end of its epoch),
    call :meth:`sync`. A trainer that diverges leaves the unit, with the weights that it had before that step.
    """

    trainers: list[Trainer]

    def step(self, features: Features, labels: Features, *, place: str, once: Once) -> dict[Trainer, DivergedError]:
        """Train each on one batch; return those that could not, because their loss is not finite."""

    def score(
        self, features: Features, labels: Features, *, place: str, once: Once
    ) -> dict[Trainer, tuple[Tensor, Tensor, Tensor] | DivergedError]:
        """Return each one's scores_BC, targets and loss_B, as :meth:`Trainer.score` does, or why it has none."""

    def remove(self, trainer: Trainer) -> None:
        """Let one go, with its state."""

    def sync(self) -> None:
        """Bring every trainer's own state up to date."""

    def dissolve(self) -> None:
        """Let all of them go."""


class Lone:
    """A unit of one trainer, which takes its steps itself."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainers = [trainer]

    def step(self, features: Features, labels: Features, *, place: str, once: Once) -> dict[Trainer, DivergedError]:
        """See :class:`Unit`."""
        diverged = _step_alone(self.trainers, features, labels, place, once)
        self.trainers = [trainer for trainer in self.trainers if trainer not in diverged]
        return diverged

    def score(
        self, features: Features, labels: Features, *, place: str, once: Once
    ) -> dict[Trainer, tuple[Tensor, Tensor, Tensor] | DivergedError]:
        """See :class:`Unit`."""
        return _score_alone(self.trainers, features, labels, place, once)

    def remove(self, trainer: Trainer) -> None:
        """See :class:`Unit`."""
        self.trainers.remove(trainer)

    def sync(self) -> None:
        """Do nothing: its trainer is up to date."""

    def dissolve(self) -> None:
        """Let the trainer go."""
        self.trainers = []


class Group:
    """A unit of trainers whose heads have one shape (see :func:`shape_key`).

    Their weights move into one :class:`Stack`; neighbours with equal settings of an element-wise optimiser are stepped
    together.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        # Equal settings next to each other: the fewer slices, the fewer calls.
        self.trainers = sorted(trainers, key=lambda trainer: repr((_settings(trainer), trainer.loss.args)))
        self._flats = {trainer: trainer.flat or FlatParameters(trainer.head) for trainer in self.trainers}
        self._stack: Stack
        self._slices: list[_Slice] = []
        self._optimizers: list[Optimizer] = []
        self._stable: dict[int, bool] = {}
        self._metric_sums: dict[str, Tensor] = {}  # float64 (K,); empty: the trainers' own are up to date
        self._metric_rows = 0
        self._build()

    # ---- what a unit does -------------------------------------------------------------------------------------------

    def step(self, features: Features, labels: Features, *, place: str, once: Once) -> dict[Trainer, DivergedError]:
        """See :class:`Unit`."""
        prepared = [trainer.prepare(features, labels, place, once) for trainer in self._representatives]
        rows, targets = prepared[0][0].shape[0], prepared[0][1]
        if not self.is_stable(rows):
            return self._step_one_by_one(features, labels, place, once)
        augmented = None
        if self._augments:
            augmented = [trainer.augment(prepared[self._source[trainer]][0]) for trainer in self.trainers]
            features_KBD = torch.stack([each.features for each in augmented])
        else:
            features_KBD = self._stacked([features_BD for features_BD, _ in prepared])
        scores_KBC = self._stack.scores(features_KBD, self._generators)
        loss_KB = self._losses(scores_KBC, targets, augmented, once)
        found = loss_KB.detach().mean(1).tolist()
        diverged = {
            trainer: trainer.diverged(f"the loss of step {trainer.step_count + 1} ({place}) is {value}")
            for trainer, value in zip(self.trainers, found, strict=True)
            if not math.isfinite(value)
        }
        if diverged:
            # Out before the weights move. Their places in the stack are stepped with the others' and then forgotten.
            self.sync()
            for trainer in diverged:
                self._release(trainer)
        torch.autograd.backward(loss_KB, torch.full_like(loss_KB, 1 / rows))  # of each head's mean
        for piece in self._slices:
            piece.take_settings()
            piece.step_alone(diverged)
        for optimizer in self._optimizers:
            optimizer.step()
        for piece in self._slices:
            piece.step_scheduler(diverged)
        self._add_metrics(scores_KBC.detach(), targets, loss_KB.detach(), once)
        for trainer, value in zip(self.trainers, found, strict=True):
            if trainer not in diverged:
                trainer.last_loss = value
                trainer.step_count += 1
                trainer.rows_seen += rows
        if diverged:
            self.sync(except_for=diverged)
            self.trainers = [trainer for trainer in self.trainers if trainer not in diverged]
            self._rebuild()
        return diverged

    def score(
        self, features: Features, labels: Features, *, place: str, once: Once
    ) -> dict[Trainer, tuple[Tensor, Tensor, Tensor] | DivergedError]:
        """See :class:`Unit`."""
        rows = len(features)
        if not self.is_stable(rows):
            return _score_alone(self.trainers, features, labels, place, once)
        with torch.inference_mode():
            prepared = [trainer.prepare(features, labels, place, once) for trainer in self._representatives]
            targets = prepared[0][1]
            scores_KBC = self._stack.scores(self._stacked([features_BD for features_BD, _ in prepared]), None)
            finite = torch.isfinite(scores_KBC).all(2).all(1).tolist()
            loss_KB = self._losses(scores_KBC, targets, None, once)
        return {
            trainer: (scores_BC, targets, loss_B)
            if fine
            else trainer.diverged(f"scores of {place} are not finite after step {trainer.step_count}")
            for trainer, scores_BC, loss_B, fine in zip(self.trainers, scores_KBC, loss_KB, finite, strict=True)
        }

    def remove(self, trainer: Trainer) -> None:
        """See :class:`Unit`."""
        self.sync()
        self._release(trainer)
        self.trainers.remove(trainer)
        self._rebuild()

    def sync(self, *, except_for: dict[Trainer, DivergedError] | None = None) -> None:
        """See :class:`Unit`."""
        gone = except_for or {}
        for piece in self._slices:
            piece.sync(gone)
        for place, trainer in enumerate(self.trainers if self._metric_sums else []):
            if trainer not in gone:
                for name, sum_K in self._metric_sums.items():
                    rows = trainer.running.states[name][1] + self._metric_rows
                    trainer.running.states[name] = (sum_K[place].clone(), rows)
                trainer.running.rows += self._metric_rows
        self._metric_sums = {}
        self._metric_rows = 0

    def dissolve(self) -> None:
        """See :class:`Unit`."""
        self.sync()
        for trainer in self.trainers:
            self._release(trainer)
        self.trainers = []

    # ---- whether it is right, and whether it pays -------------------------------------------------------------------

    def is_stable(self, rows: int) -> bool:
        """Tell whether every bit of the scores and gradients for batches of ``rows`` is what each head has alone."""
        if rows not in self._stable:
            self._stable[rows] = self._stack.keeps_places(rows) and self._try(rows)
        return self._stable[rows]

    def speedup(self, rows: int) -> float:
        """Return how many times faster scores and gradients are than one head at a time."""
        features_BD, upstream_KBC = self._trial_rows(rows)
        states = [generator.get_state() for generator in self._generators]

        def together() -> None:
            scores_KBC = self._stack.scores(self._trial_inputs(features_BD), self._generators)
            torch.autograd.backward(scores_KBC, upstream_KBC)

        def alone() -> None:
            for trainer, upstream_BC in zip(self.trainers, upstream_KBC, strict=True):
                with trainer.random.lent(keep=False):
                    torch.autograd.backward(trainer.head(features_BD), upstream_BC)
                trainer.head.zero_grad(set_to_none=True)

        # In turn, and the best of each: what else the machine does meanwhile slows some of them down.
        times = [(_time(alone, features_BD.device), _time(together, features_BD.device)) for _ in range(TRIAL_REPEATS)]
        ratio = min(one for one, _ in times) / min(other for _, other in times)
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
        return ratio

    def _try(self, rows: int) -> bool:
        features_BD, upstream_KBC = self._trial_rows(rows)
        expected: list[Tensor] = []
        for trainer, upstream_BC in zip(self.trainers, upstream_KBC, strict=True):
            trainer.head.train()
            trainer.head.zero_grad(set_to_none=True)
            with trainer.random.lent(keep=False):
                scores_BC = trainer.head(features_BD)
                torch.autograd.backward(scores_BC, upstream_BC)
            self._flats[trainer].collect()
            expected.append(scores_BC.detach())
        gradients = [gradient.clone() for gradient in self._stack.gradients]
        inputs_KBD, states = self._trial_inputs(features_BD), [each.get_state() for each in self._generators]
        while True:
            scores_KBC = self._stack.scores(inputs_KBD, self._generators)
            torch.autograd.backward(scores_KBC, upstream_KBC)
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)
            # Where heads differ in which units they drop, the scores tell; where gradients are summed up, the others.
            if not all(map(_same_bits, expected, scores_KBC)):
                return False
            pairs = zip(gradients, self._stack.gradients, strict=True)
            wrong = self._stack.layers_of([not _same_bits(one, other) for one, other in pairs])
            if not wrong:
                return wrong is not None
            if not self._stack.take_next_way(rows, wrong):
                return False

    def _trial_rows(self, rows: int) -> tuple[Tensor, Tensor]:
        one, generator = self.trainers[0], torch.Generator().manual_seed(rows)
        features_BD = torch.randn(rows, one.in_features, generator=generator).to(one.device)
        return features_BD, torch.randn(len(self.trainers), rows, one.outputs, generator=generator).to(one.device)

    def _trial_inputs(self, features_BD: Tensor) -> Tensor:
        features_KBD = features_BD.expand(len(self.trainers), -1, -1)
        return features_KBD.contiguous() if self._augments or len(self._representatives) > 1 else features_KBD

    # ---- how it is built --------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._stable = {}
        self._generators = [trainer.random.generator for trainer in self.trainers]
        self._augments = any(trainer.augmentation is not None for trainer in self.trainers)
        # One trainer for each normalisation: what it prepares serves all that share it.
        numbers: dict[Hashable, int] = {}
        self._representatives: list[Trainer] = []
        self._source: dict[Trainer, int] = {}
        for trainer in self.trainers:
            alike = trainer.normalization.alike
            if alike not in numbers:
                numbers[alike] = len(self._representatives)
                self._representatives.append(trainer)
            self._source[trainer] = numbers[alike]
        layers = [linear_layers(trainer.head) or [] for trainer in self.trainers]
        self._stack = Stack([self._flats[trainer] for trainer in self.trainers], layers)
        self._slices = [
            _Slice(self.trainers[first:last], self._flats, self._stack, first)
            for first, last in _runs([_settings(trainer) for trainer in self.trainers])
        ]
        self._optimizers = _optimizers_for(self._slices)
        self._loss_runs = _runs([dict(trainer.loss.args) for trainer in self.trainers])

    def _rebuild(self) -> None:
        if self.trainers:
            self._build()

    def _release(self, trainer: Trainer) -> None:
        """Give a trainer, whose state is up to date, weights of its own."""
        self._flats[trainer].take_back()

    def _step_one_by_one(
        self, features: Features, labels: Features, place: str, once: Once
    ) -> dict[Trainer, DivergedError]:
        """Step each by itself: the last batch of a pass has fewer rows, for which the product may not be stable."""
        stable, ways = self._stable, self._stack.ways
        trainers = list(self.trainers)
        self.dissolve()
        diverged = _step_alone(trainers, features, labels, place, once)
        self.trainers = [trainer for trainer in trainers if trainer not in diverged]
        self._rebuild()
        if not diverged:
            self._stable, self._stack.ways = stable, ways
        return diverged

    # ---- the parts of a step ----------------------------------------------------------------------------------------

    def _stacked(self, prepared: Sequence[Tensor]) -> Tensor:
        if len(prepared) == 1:
            return prepared[0].expand(len(self.trainers), -1, -1)
        return torch.stack([prepared[self._source[trainer]] for trainer in self.trainers])

    def _losses(self, scores_KBC: Tensor, targets: Tensor, augmented: Sequence[Augmented] | None, once: Once) -> Tensor:
        """Return loss_KB; heads with the same loss and arguments get theirs in one call, rows under rows."""
        sizes = [last - first for first, last in self._loss_runs]
        losses: list[Tensor] = []
        for (first, last), part_KBC in zip(self._loss_runs, torch.split(scores_KBC, sizes), strict=True):
            loss = self.trainers[first].loss
            pair = None if augmented is None else augmented[first:last]
            if not loss.kind.row_by_row:  # or one of the user's, which may look at all rows of a batch
                for place, scores_BC in enumerate(part_KBC):
                    losses.append(
                        augmented_loss(loss, scores_BC, targets, None if pair is None else pair[place]).unsqueeze(0)
                    )
                continue
            flat_scores = part_KBC.flatten(0, 1)
            loss_KB = loss(flat_scores, _repeated(targets, last - first, once)).view(last - first, -1)
            if pair is not None and pair[0].partner is not None:
                partners = torch.cat([targets[each.partner] for each in pair])
                other_KB = loss(flat_scores, partners).view(last - first, -1)
                share_K1 = loss_KB.new_tensor([[each.share] for each in pair])
                rest_K1 = loss_KB.new_tensor([[1 - each.share] for each in pair])
                loss_KB = share_K1 * loss_KB + rest_K1 * other_KB
            losses.append(loss_KB)
        return losses[0] if len(losses) == 1 else torch.cat(losses)

    def _add_metrics(self, scores_KBC: Tensor, targets: Tensor, loss_KB: Tensor, once: Once) -> None:
        """Add the rows to the training metrics of every head, in a few calls for all of them."""
        heads, rows = loss_KB.shape
        for name, metric in self.trainers[0].running.metrics.items():
            if name not in self._metric_sums:
                totals = [trainer.running.states[name][0] for trainer in self.trainers]
                self._metric_sums[name] = torch.stack(
                    [torch.as_tensor(total, dtype=torch.float64, device=loss_KB.device) for total in totals]
                )
            if metric.row_value is not None:  # else shape_key has kept the head out of any group
                value = metric.row_value(scores_KBC.flatten(0, 1), _repeated(targets, heads, once), loss_KB.flatten())
                self._metric_sums[name] += value.view(heads, rows).double().sum(1)
        self._metric_rows += rows


class _Slice:
    """Neighbours in a stack with equal settings: one step for all of them, or the trainer's own where it takes it."""

    def __init__(
        self, trainers: Sequence[Trainer], flats: dict[Trainer, FlatParameters], stack: Stack, first: int
    ) -> None:
        self._trainers = trainers
        self.leader = trainers[0]
        self._flats = [flats[trainer] for trainer in trainers]
        self._parameters: list[torch.nn.Parameter] = []
        self._state: dict[Tensor, Any] = {}
        self.settings: dict[str, Any] | None = None
        if self.leader.flat is not None:
            for values, gradients in zip(stack.values, stack.gradients, strict=True):
                parameter = torch.nn.Parameter(values[first : first + len(trainers)].view(-1))
                parameter.grad = gradients[first : first + len(trainers)].view(-1)
                self._parameters.append(parameter)
            self.settings = {**self.leader.optimizer.param_groups[0], "params": self._parameters}

    def step_alone(self, gone: dict[Trainer, DivergedError]) -> None:
        """Step an optimiser of the trainer's own; a trainer that is gone has left what it had here."""
        if self.settings is None and self.leader not in gone:
            self._flats[0].attach()
            self.leader.optimizer.step()

    def take_settings(self) -> None:
        """Take over the settings of the next step: the schedule may have moved any of them."""
        if self.settings is not None:
            self.settings.update({**self.leader.optimizer.param_groups[0], "params": self._parameters})

    def step_scheduler(self, gone: dict[Trainer, DivergedError]) -> None:
        """Move the schedule on after a step of the optimiser."""
        if all(trainer in gone for trainer in self._trainers):
            return
        if self.settings is not None:
            self.leader.optimizer._opt_called = True  # type: ignore[attr-defined]  # else its schedule would warn
        self.leader.step_scheduler()

    def sync(self, gone: dict[Trainer, DivergedError]) -> None:
        """Give every trainer that is not gone the state and the settings that the slice has for it."""
        if self.settings is None:
            return
        states = [self._state.get(parameter, {}) for parameter in self._parameters]
        leading = self.leader.optimizer.param_groups[0]
        for place, (trainer, flat) in enumerate(zip(self._trainers, self._flats, strict=True)):
            if trainer in gone:
                continue
            own: dict[str, Any] = {}
            for key, value in states[0].items():
                if _is_stacked(value, self._parameters[0]):
                    own[key] = torch.cat([state[key].view(len(self._trainers), -1)[place] for state in states])
                else:  # a count, the same for every parameter
                    own[key] = value.clone() if isinstance(value, Tensor) else value
            if own:
                trainer.optimizer.state[flat.parameter] = own
            if trainer is self.leader:
                continue
            group = trainer.optimizer.param_groups[0]
            group.update({key: value for key, value in leading.items() if key != "params"})
            if trainer.scheduler is not None and self.leader.scheduler is not None:
                trainer.scheduler.load_state_dict(self.leader.scheduler.state_dict())

    def join(self, optimizer: Optimizer) -> None:
        """Be stepped by ``optimizer``, which takes over what the trainers' own have remembered so far."""
        self._state = optimizer.state
        pairs = zip(self._trainers, self._flats, strict=True)
        states = [trainer.optimizer.state.get(flat.parameter, {}) for trainer, flat in pairs]
        for key, value in states[0].items():
            if _is_stacked(value, self._flats[0].parameter):
                parts = [flat.split(state[key]) for flat, state in zip(self._flats, states, strict=True)]
                for parameter, part in zip(self._parameters, zip(*parts, strict=True), strict=True):
                    self._state[parameter][key] = torch.cat(part)
            else:
                for parameter in self._parameters:
                    self._state[parameter][key] = value.clone() if isinstance(value, Tensor) else value


def form_units(trainers: Sequence[Trainer], rows: int) -> list[Unit]:
    """Return units for trainers of one batch size, ``rows``, and the same taps: groups where that is exact and pays.

    Which heads are grouped changes how long a step takes and nothing else.
    """
    units: list[Unit] = []
    by_shape: dict[Hashable, list[Trainer]] = defaultdict(list)
    for trainer in trainers:
        key = shape_key(trainer)
        if key is None:
            units.append(Lone(trainer))
        else:
            by_shape[key].append(trainer)
    for alike in by_shape.values():
        units += _group_of(alike, rows)
    return units


def shape_key(trainer: Trainer) -> Hashable | None:
    """Return what trainers must have in common to be grouped; None for one that takes its steps alone.

    Widths, activations, biases, device, outputs, the loss and the kind of augmentation are shared. Weights, seeds,
    dropout, optimisers and their settings, schedules, the arguments of loss and augmentation, normalisation are not.
    """
    layers = linear_layers(trainer.head)
    metrics = trainer.running.metrics
    if layers is None or trainer.needs_closure or any(metric.row_value is None for metric in metrics.values()):
        return None
    if any(not p.requires_grad or p.dtype != torch.float32 for p in trainer.head.parameters()):
        return None
    return (
        tuple(
            (layer.linear.in_features, layer.linear.out_features, layer.linear.bias is not None, type(layer.activation))
            for layer in layers
        ),
        str(trainer.device),
        trainer.outputs,
        trainer.loss.name,
        trainer.augmentation and trainer.augmentation.name,
        tuple(metrics),
    )


def _group_of(trainers: Sequence[Trainer], rows: int) -> list[Unit]:
    if len(trainers) > 1:
        trial = Group(trainers[:TRIAL_HEADS])
        fits = trial.is_stable(rows) and trial.speedup(rows) > 1
        trial.dissolve()
        if fits:
            group = Group(trainers)
            if group.is_stable(rows):
                return [group]
            group.dissolve()
    return [Lone(trainer) for trainer in trainers]


def _step_alone(
    trainers: Sequence[Trainer], features: Features, labels: Features, place: str, once: Once
) -> dict[Trainer, DivergedError]:
    diverged: dict[Trainer, DivergedError] = {}
    for trainer in trainers:
        try:
            trainer.step(features, labels, place=place, once=once)
        except DivergedError as error:
            diverged[trainer] = error
    return diverged


def _score_alone(
    trainers: Sequence[Trainer], features: Features, labels: Features, place: str, once: Once
) -> dict[Trainer, tuple[Tensor, Tensor, Tensor] | DivergedError]:
    found: dict[Trainer, tuple[Tensor, Tensor, Tensor] | DivergedError] = {}
    for trainer in trainers:
        try:
            found[trainer] = trainer.score(features, labels, place=place, once=once)
        except DivergedError as error:
            found[trainer] = error
    return found


def _settings(trainer: Trainer) -> object:
    """Return what must be equal for two heads to be stepped as one tensor; for one that must not, itself."""
    optimizer, scheduler = trainer.optimizer, trainer.scheduler
    foreign = scheduler is not None and not type(scheduler).__module__.startswith("torch.")
    if trainer.flat is None or foreign or isinstance(scheduler, ReduceLROnPlateau):
        return id(trainer)
    state = optimizer.state.get(trainer.flat.parameter, {})
    counts = {
        key: value.tolist() if isinstance(value, Tensor) else value
        for key, value in state.items()
        if not _is_stacked(value, trainer.flat.parameter)
    }
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    schedule = None if scheduler is None else (type(scheduler).__name__, scheduler.state_dict())
    return (type(optimizer).__name__, group, counts, schedule)


def _is_stacked(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _optimizers_for(slices: Sequence[_Slice]) -> list[Optimizer]:
    """Return one optimiser for all slices of a kind: calling one costs more than stepping a slice of small heads."""
    by_kind: dict[type, list[_Slice]] = defaultdict(list)
    for piece in slices:
        if piece.settings is not None:
            by_kind[type(piece.leader.optimizer)].append(piece)
    optimizers: list[Optimizer] = []
    for alike in by_kind.values():
        optimizer = copy.copy(alike[0].leader.optimizer)
        optimizer.state = defaultdict(dict)
        optimizer.param_groups = [piece.settings for piece in alike if piece.settings is not None]
        for piece in alike:
            piece.join(optimizer)
        optimizers.append(optimizer)
    return optimizers


def _runs(values: Sequence[object]) -> list[tuple[int, int]]:
    """Return the stretches (first, last exclusive) of equal neighbours."""
    starts = [place for place in range(len(values)) if place == 0 or values[place] != values[place - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))


def _repeated(targets: Tensor, times: int, once: Once) -> Tensor:
    return once.make(("repeated", id(targets), times), lambda: targets.expand(times, *targets.shape).flatten(0, 1))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    # As integers: 0 and -0 compare equal as numbers, and a NaN does not compare equal to itself.
    return torch.equal(one.detach().contiguous().view(torch.int32), other.detach().contiguous().view(torch.int32))


def _time(work: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began

"""What a fork's trainer begins with: the parent's state where it still means something, a new one's where it does not.

From the fork on, everything goes as the fork's configuration says. So the parent's state of a part is taken over where
that part is configured as it was, and begun anew where it is not; nothing here reads or writes a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from featurestream.errors import UsageError
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.experiment import Sizes
from featurestream_consumer.heads import build_head
from featurestream_consumer.heads.layers import LAYERED
from featurestream_consumer.optimizers import (
    build_optimizer,
    find_optimizer,
    find_scheduler,
    needs_closure,
    scheduler_arguments,
)

#: Arguments by which an optimiser decides how much it remembers; LBFGS counts on having room for as many.
SIZING: Final = frozenset({"history_size"})


@dataclass(frozen=True, slots=True)
class ForkState:
    """The state of a fork's trainer, and where its parts are from.

    Attributes:
        state: as :meth:`Trainer.load_state_dict` takes it.
        taken_over: what is the parent's: ``head.0.weight``, ``optimizer``, ``scheduler``, ``random``, ``metrics``.
        begun_anew: what is not.
    """

    state: dict[str, Any]
    taken_over: tuple[str, ...]
    begun_anew: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Optimiser steps of the parent's whole run, of the fork's with its parent's, and of the part that the fork makes.

    None where the range is endless.
    """

    parent: int | None
    whole: int | None
    left: int | None


def fork_state(
    state: Mapping[str, Any],
    old: TrainConfig,
    new: TrainConfig,
    sizes: tuple[Sizes, Sizes],
    lengths: Lengths,
) -> ForkState:
    """Return what the fork ``new`` makes of the trainer's state of its parent ``old``; ``sizes`` are theirs, in order.

    A layer is taken over where the names and shapes of all its weights are equal. Of the linear and the mlp head the
    linear layers are named by their number, so that dropout may come or go between them. The optimiser's state
    (momenta) is kept for a head that is the same and an optimiser that remembers the same things; a schedule goes on
    where it, its length, the optimiser and its learning rate are as they were, and else begins over the steps that are
    left. Raises UsageError where nothing of the head would be taken over.
    """
    keeps_optimizer = find_optimizer(old.optimizer) is find_optimizer(new.optimizer)
    keeps_schedule = keeps_optimizer and _same_schedule(old, new, lengths)
    trainer = sizes[1].build(new, total_steps=lengths.whole if keeps_schedule else lengths.left)
    own = trainer.state_dict()
    taken: list[str] = []
    anew: list[str] = []

    def choose(part: str, theirs: Any, mine: Any, *, kept: bool) -> Any:
        (taken if kept else anew).append(part)
        return theirs if kept else mine

    parent = build_head(
        old.head, in_features=sizes[0].in_features, outputs=sizes[0].outputs, args=old.head_args, seed=old.seed
    )
    by_layer = {old.head, new.head} <= LAYERED
    head = _head_state(
        (state["head"], _roles(parent, by_layer=by_layer)), (own["head"], _roles(trainer.head, by_layer=by_layer))
    )
    if not {name for name, _ in trainer.head.named_parameters()} & set(head.taken):
        raise UsageError(
            f"nothing of the head {old.head} {old.head_args} fits into {new.head} {new.head_args}: "
            "the fork would begin with new weights",
            hint="train an experiment of its own: featurectl train",
        )
    taken += [f"head.{name}" for name in head.taken]
    anew += [f"head.{name}" for name in head.anew]
    result = dict(state) | {"head": head.state}

    stepped = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    theirs, mine = state["optimizer"], own["optimizer"]
    counts = [[len(group["params"]) for group in each["param_groups"]] for each in (theirs, mine)]
    keeps_memory = keeps_optimizer and head.same and counts[0] == counts[1] and _remember_alike(old, new, stepped)
    result["optimizer"] = {
        "state": choose("optimizer", theirs["state"], mine["state"], kept=keeps_memory),
        "param_groups": mine["param_groups"],
    }
    if keeps_schedule and len(counts[0]) == len(counts[1]):
        result["optimizer"]["param_groups"] = _settings(theirs["param_groups"], mine["param_groups"], old, new, stepped)
    if trainer.scheduler is None:
        result["scheduler"] = None
    else:
        result["scheduler"] = choose("scheduler", state["scheduler"], own["scheduler"], kept=keeps_schedule)
    result["random"] = choose("random", state["random"], own["random"], kept=old.seed == new.seed)
    measured = [
        (config.loss, config.loss_args, config.metrics, size.outputs)
        for config, size in zip((old, new), sizes, strict=True)
    ]
    result["running"] = choose("metrics", state["running"], own["running"], kept=measured[0] == measured[1])
    trainer.load_state_dict(result)  # what cannot be gone on with is found here, before anything is written
    return ForkState(result, tuple(taken), tuple(anew))


@dataclass(frozen=True, slots=True)
class _Head:
    state: dict[str, Tensor]
    taken: list[str]
    anew: list[str]
    same: bool


def _head_state(
    theirs: tuple[Mapping[str, Tensor], Mapping[str, str]], mine: tuple[Mapping[str, Tensor], Mapping[str, str]]
) -> _Head:
    """Return the head's state from the parent's and the fork's own, each with the roles of its names.

    A layer is taken over whole or not at all: the bias of other weights means nothing.
    """
    found = {role: theirs[0][name] for name, role in theirs[1].items()}
    unfit = {
        _layer(name)
        for name, role in mine[1].items()
        if role not in found or (found[role].shape, found[role].dtype) != (mine[0][name].shape, mine[0][name].dtype)
    }
    taken = [name for name in mine[1] if _layer(name) not in unfit]
    state = {name: found[role] if name in taken else mine[0][name] for name, role in mine[1].items()}
    anew = [name for name in state if name not in taken]
    return _Head(state, taken, anew, not anew and list(theirs[1].values()) == list(mine[1].values()))


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _roles(head: nn.Module, *, by_layer: bool) -> dict[str, str]:
    """Return what each name in the head's state stands for: itself, or a number among the linear layers."""
    if not by_layer:
        return {name: name for name in head.state_dict()}
    linear = [prefix for prefix, module in head.named_modules() if isinstance(module, nn.Linear)]
    roles: dict[str, str] = {}
    for name in head.state_dict():
        prefix, _, kind = name.rpartition(".")
        roles[name] = f"{linear.index(prefix)}.{kind}"
    return roles


def _same_schedule(old: TrainConfig, new: TrainConfig, lengths: Lengths) -> bool:
    if old.scheduler is None or new.scheduler is None:
        return old.scheduler == new.scheduler
    if find_scheduler(old.scheduler) is not find_scheduler(new.scheduler):
        return False
    if scheduler_arguments(old.scheduler, old.scheduler_args, lengths.parent) != scheduler_arguments(
        new.scheduler, new.scheduler_args, lengths.whole
    ):
        return False
    one = [nn.Parameter(torch.zeros(1, 1))]
    rates = [
        [group["lr"] for group in build_optimizer(config.optimizer, one, config.optimizer_args).param_groups]
        for config in (old, new)
    ]
    return rates[0] == rates[1]


def _remember_alike(old: TrainConfig, new: TrainConfig, like: Sequence[nn.Parameter]) -> bool:
    """Tell whether the optimiser keeps the same things in its state with the old and with the new arguments."""
    changed = {
        key
        for key in {*old.optimizer_args, *new.optimizer_args}
        if old.optimizer_args.get(key) != new.optimizer_args.get(key)
    }
    if not changed or changed & SIZING:
        return not changed
    if needs_closure(build_optimizer(new.optimizer, _scratch(like), new.optimizer_args)):
        return True  # what LBFGS has in its state tells how far it came in a step, not how it was set
    return _memory(old, like) == _memory(new, like)


def _memory(config: TrainConfig, like: Sequence[nn.Parameter]) -> list[set[str]]:
    """Return the names in the optimiser's state after a step on parameters of the same shapes."""
    scratch = _scratch(like)
    optimizer = build_optimizer(config.optimizer, scratch, config.optimizer_args)
    for parameter in scratch:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return [set(state) for state in optimizer.state.values()]


def _scratch(like: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones_like(parameter)) for parameter in like]


def _settings(
    theirs: Sequence[Mapping[str, Any]],
    mine: Sequence[Mapping[str, Any]],
    old: TrainConfig,
    new: TrainConfig,
    like: Sequence[nn.Parameter],
) -> list[dict[str, Any]]:
    """Return the parent's settings as they stand now, those excepted that the fork's arguments decide otherwise."""
    fresh = [
        build_optimizer(
            config.optimizer, [nn.Parameter(torch.zeros_like(each)) for each in like], config.optimizer_args
        )
        for config in (old, new)
    ]
    result: list[dict[str, Any]] = []
    for number, group in enumerate(mine):
        before, after = (optimizer.param_groups[number] for optimizer in fresh)
        changed = {key: after[key] for key in after if key != "params" and before.get(key) != after[key]}
        result.append(dict(theirs[number]) | changed | {"params": group["params"]})
    return result

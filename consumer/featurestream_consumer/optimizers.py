"""Optimisers and learning-rate schedulers by name: all of torch.optim, and ``package.module:function``.

A scheduler is stepped after every optimiser step, never after an epoch: an experiment may start anywhere in a
stream, and its epochs are its own. So ``StepLR`` with ``step_size=1000`` takes its step after a thousand batches. The
one exception is ``ReduceLROnPlateau``, which looks at the validation loss and is stepped at the end of every epoch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from featurestream.errors import UsageError
from featurestream.lookup import look_up
from featurestream_consumer.arguments import call, check_arguments

T = TypeVar("T")

#: Names that torch has and a head cannot use, with the reason.
REFUSED_OPTIMIZERS: Final = {
    "SparseAdam": "it needs sparse gradients, which heads do not have; Adam fits",
}
REFUSED_SCHEDULERS: Final = {
    "LambdaLR": "it needs a Python function; write one that builds it and name it package.module:function",
    "MultiplicativeLR": "it needs a Python function; write one that builds it and name it package.module:function",
    "SequentialLR": "it is made of schedulers; write a function that builds it and name it package.module:function",
    "ChainedScheduler": "it is made of schedulers; write a function that builds it and name it package.module:function",
}
#: Arguments that are the length of the whole run in optimiser steps; filled in where the run knows it.
RUN_LENGTH: Final = ("T_max", "total_steps")

#: Optimisers whose step on a number looks at nothing but that number, its gradient and its own state: heads with
#: equal settings can be stepped as one long tensor, and every bit is as it would be alone (a test shows it for each).
#: The others take norms or products over a parameter (Adafactor, Muon) or over all of them (LBFGS).
ELEMENT_WISE: Final = frozenset(
    {"SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "Adagrad", "Adadelta", "ASGD"}
)  # fmt: skip
#: Those for which torch has a kernel on the CPU that reads and writes every number once, where plain AdamW goes over
#: them ten times. It is used where the arguments do not choose otherwise.
FUSED_ON_CPU: Final = frozenset({"SGD", "Adam", "AdamW", "Adagrad"})
CHOOSES_KERNEL: Final = frozenset({"fused", "foreach", "capturable", "differentiable"})

OPTIMIZERS: Final[dict[str, Callable[..., Optimizer]]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
}
SCHEDULERS: Final[dict[str, Callable[..., LRScheduler]]] = {
    name: kind
    for name, kind in vars(lr_scheduler).items()
    if inspect.isclass(kind) and issubclass(kind, LRScheduler) and not name.startswith(("_", "LRScheduler"))
}


def find_optimizer(name: str) -> Callable[..., Optimizer]:
    """Return the class of torch.optim called ``name`` in any case, or what ``package.module:function`` names.

    Raises UnknownNameError with the known names and the nearest, UsageError for one that cannot train a head.
    """
    return _find("optimiser", name, OPTIMIZERS, REFUSED_OPTIMIZERS)


def find_scheduler(name: str) -> Callable[..., LRScheduler]:
    """Return the class of torch.optim.lr_scheduler called ``name`` in any case, as :func:`find_optimizer`."""
    return _find("scheduler", name, SCHEDULERS, REFUSED_SCHEDULERS)


def check_optimizer(name: str, args: Mapping[str, Any]) -> None:
    """Raise UsageError for what :func:`build_optimizer` would refuse; one of torch's is tried on a parameter."""
    if ":" in name:
        check_arguments("optimiser", name, find_optimizer(name), args, supplied=1)
    else:
        build_optimizer(name, [nn.Parameter(torch.zeros(1, 1))], args)


def check_scheduler(name: str, args: Mapping[str, Any], *, run_length_known: bool = True) -> None:
    """Raise UsageError for what :func:`build_scheduler` would refuse; one of torch's is tried on a parameter."""
    if ":" in name:
        check_arguments("scheduler", name, find_scheduler(name), args, supplied=1)
    else:
        trial = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        build_scheduler(name, trial, args, total_steps=1_000_000 if run_length_known else None)


def build_optimizer(name: str, params: Iterable[nn.Parameter], args: Mapping[str, Any]) -> Optimizer:
    """Return a new optimiser over ``params``.

    Raises UsageError for an unknown name (with the nearest), an argument that it does not take (with those it
    takes), or a value that it refuses (in torch's words).
    """
    kind = find_optimizer(name)
    listed = list(params)
    filled = dict(args)
    on_cpu = all(parameter.device.type == "cpu" and parameter.is_floating_point() for parameter in listed)
    if kind in map(OPTIMIZERS.get, FUSED_ON_CPU) and on_cpu and not CHOOSES_KERNEL & set(args):
        filled["fused"] = True
    return call("optimiser", name, kind, (listed,), filled, shown=args)


def is_element_wise(name: str) -> bool:
    """Tell whether the optimiser called ``name`` is one of :data:`ELEMENT_WISE`."""
    return find_optimizer(name) in map(OPTIMIZERS.get, ELEMENT_WISE)


def build_scheduler(
    name: str, optimizer: Optimizer, args: Mapping[str, Any], *, total_steps: int | None = None
) -> LRScheduler:
    """Return a new scheduler on ``optimizer``, to be stepped after every optimiser step (see the module).

    ``total_steps`` is the run's number of optimiser steps where it is known: it becomes CosineAnnealingLR's ``T_max``
    and OneCycleLR's ``total_steps`` unless ``args`` say otherwise. Raises UsageError as :func:`build_optimizer` does,
    and for a ReduceLROnPlateau that looks for a maximum: what it is given is a loss.
    """
    kind = find_scheduler(name)
    if kind is ReduceLROnPlateau and args.get("mode", "min") != "min":
        raise UsageError(
            f"ReduceLROnPlateau cannot have mode={args['mode']!r}: it is given the validation loss, which is to fall",
            hint="leave mode at min",
        )
    filled = scheduler_arguments(name, args, total_steps)
    return call("scheduler", name, kind, (optimizer,), filled)


def scheduler_arguments(name: str, args: Mapping[str, Any], total_steps: int | None) -> dict[str, Any]:
    """Return the arguments that the scheduler called ``name`` is built with: ``args``, and the run's length where it
    takes one, it is known, and ``args`` do not say otherwise."""
    filled = dict(args)
    if total_steps is not None and ":" not in name and not {"total_steps", "epochs", "steps_per_epoch"} & set(args):
        accepted = inspect.signature(find_scheduler(name)).parameters
        for argument in RUN_LENGTH:
            if argument in accepted:
                filled.setdefault(argument, total_steps)
    return filled


def needs_closure(optimizer: Optimizer) -> bool:
    """Tell whether ``step`` must be given a function that computes the loss anew (LBFGS)."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def _find(kind: str, name: str, table: Mapping[str, T], refused: Mapping[str, str]) -> T:
    by_lower = {known.lower(): known for known in table}
    name = by_lower.get(name.lower(), name)
    if name in refused:
        raise UsageError(f'{kind} "{name}" cannot be used by name', hint=refused[name])
    return look_up(kind, name, {known: found for known, found in table.items() if known not in refused})

"""Heads by name: what an experiment trains.

A head is a torch module from ``features_BD`` (float32; a map comes flattened) to ``scores_BC`` (float32; logits for
the classification losses, values for regression). To add one, write a module with a ``build(in_features, outputs,
**arguments)`` and put it into ``HEADS``; from outside, ``package.module:function`` with the same signature works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import RLock
from typing import Any, Final

import torch
from torch import nn

from featurestream.errors import UsageError
from featurestream.lookup import look_up
from featurestream_consumer.arguments import call, check_arguments
from featurestream_consumer.heads import linear, mlp
from featurestream_consumer.memory import check_memory

WORTH_A_LOOK: Final = 1_000_000  # features and outputs from which on a head may not fit

HEADS: Final[dict[str, Callable[..., nn.Module]]] = {
    "linear": linear.build,
    "mlp": mlp.build,
}

# torch has one random state for all threads; a head of the user's may build another one inside.
_drawing: Final = RLock()


def check_head(name: str, args: Mapping[str, Any]) -> None:
    """Raise UsageError (an unknown name, a wrong argument) for what :func:`build_head` would refuse."""
    if name in HEADS:
        build_head(name, in_features=1, outputs=2, args=args, seed=0)
    else:
        check_arguments("head", name, look_up("head", name, HEADS), args, supplied=2)


def build_head(name: str, *, in_features: int, outputs: int, args: Mapping[str, Any], seed: int) -> nn.Module:
    """Return a new head on the CPU, its weights drawn from ``seed`` alone.

    Torch's own random state is neither read nor moved, so the same seed gives the same weights whatever ran before,
    in a process that trains one head or sixty, and whatever heads other threads build. Raises UsageError for an
    unknown name (with the nearest), an argument that the head does not take (with those it takes), and sizes below 1.
    """
    builder = look_up("head", name, HEADS)
    if in_features < 1 or outputs < 1:
        raise UsageError(
            f'head "{name}" cannot map {in_features} features to {outputs} outputs', hint="both must be at least 1"
        )
    if name in HEADS:
        _check_memory(name, builder, in_features, outputs, args)
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        head = call("head", name, builder, (in_features, outputs), args)
    if not isinstance(head, nn.Module):
        raise UsageError(
            f'head "{name}" returned {type(head).__name__}', hint="expected a torch.nn.Module, features_BD -> scores_BC"
        )
    if not any(parameter.requires_grad for parameter in head.parameters()):
        raise UsageError(f'head "{name}" has no parameters to train')
    return head


def _check_memory(
    name: str, builder: Callable[..., nn.Module], in_features: int, outputs: int, args: Mapping[str, Any]
) -> None:
    """Raise UsageError for a head that this machine's memory cannot hold: weights, gradients, an optimiser's state."""
    if in_features + outputs < WORTH_A_LOOK:
        return
    with torch.device("meta"):  # which takes no memory
        head = call("head", name, builder, (in_features, outputs), args)
    needed = 4 * sum(parameter.numel() * parameter.element_size() for parameter in head.parameters())
    check_memory(f'head "{name}" from {in_features:,} features to {outputs:,} outputs', needed)

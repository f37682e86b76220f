"""A head as the linear layers that it is made of, where it is made of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor, nn

from featurestream_consumer.heads.mlp import ACTIVATIONS

#: Heads that :func:`linear_layers` understands: ours, whose modules have no hooks and no state but their weights.
LAYERED: Final = frozenset({"linear", "mlp"})


class LinearLayer(NamedTuple):
    """One linear layer and what follows it.

    Attributes:
        linear: weights (outputs, inputs) and perhaps a bias (outputs,).
        activation: what is done to its outputs, if anything.
        dropout: the probability with which they are then dropped; 0 where they are not.
    """

    linear: nn.Linear
    activation: Callable[[Tensor], Tensor] | None
    dropout: float


def linear_layers(head: nn.Module) -> list[LinearLayer] | None:
    """Return the layers of a head in order, or None where it holds anything but linear layers, activations, dropout."""
    found: list[LinearLayer] = []
    for module in head if type(head) is nn.Sequential else [head]:
        if type(module) is nn.Linear:
            found.append(LinearLayer(module, None, 0.0))
        elif not found:
            return None
        elif type(module) in ACTIVATIONS.values() and found[-1].activation is None:
            found[-1] = found[-1]._replace(activation=module)
        elif type(module) is nn.Dropout and not found[-1].dropout:
            found[-1] = found[-1]._replace(dropout=module.p)
        else:
            return None
    return found or None

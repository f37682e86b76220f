"""The MLP head: linear layers with an activation, and dropout, between them.

As a probe beside the linear one: J. Hewitt, P. Liang: Designing and interpreting probes with control tasks, 2019,
arXiv:1909.03368. Dropout: N. Srivastava et al., JMLR 15 (2014), https://jmlr.org/papers/v15/srivastava14a.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import nn

from featurestream.errors import UsageError
from featurestream.lookup import look_up

ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def build(
    in_features: int,
    outputs: int,
    *,
    hidden: int | Sequence[int] = 256,
    dropout: float = 0.0,
    activation: str = "relu",
) -> nn.Sequential:
    """Return ``features_BD -> scores_BC`` through hidden layers of the widths ``hidden``.

    Each hidden layer is linear, ``activation``, then dropout with probability ``dropout`` (no layer where it is 0).
    The layers are numbered as they stand: ``0.weight``, ``0.bias``, ``2.weight``, ... Raises UsageError for a width
    below 1, a probability outside [0, 1), or an unknown activation.
    """
    widths = [hidden] if isinstance(hidden, int) else list(hidden)
    if not widths or any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
        raise UsageError(
            f'head "mlp" cannot have hidden={hidden!r}',
            hint="expected one width or several, each at least 1: hidden=256, hidden=512,128",
        )
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UsageError(f'head "mlp" cannot have dropout={dropout!r}', hint="expected a probability in [0, 1)")
    act = look_up("activation", activation, ACTIVATIONS)
    layers: list[nn.Module] = []
    width_in = in_features
    for width in widths:
        layers += [nn.Linear(width_in, width), act()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width_in = width
    return nn.Sequential(*layers, nn.Linear(width_in, outputs))

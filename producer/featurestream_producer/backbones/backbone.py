"""A frozen model with everything that a stream has to say about it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from featurestream_producer.preset import Preset
from featurestream_producer.weights import WeightsReport


@dataclass(frozen=True, eq=False)
class Backbone:
    """``model`` is in eval mode, on the CPU, and no parameter of it asks for a gradient.

    ``preset_known``: the preset is what the weights want, or nearly always what their kind wants; not a mere default.
    """

    name: str
    model: nn.Module
    preset: Preset
    weights: WeightsReport
    preset_known: bool = True


def freeze(model: nn.Module) -> nn.Module:
    """Return the model in eval mode, without gradients."""
    return model.eval().requires_grad_(False)

"""The linear layers of several heads as one: weights in one matrix, a row a head, and one product for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from featurestream_consumer.flat import FlatParameters
from featurestream_consumer.heads.layers import LinearLayer

#: Numbers that torch's loops take at a time: two vectors of the widest kind, 512 bits.
BLOCK: Final = 32
#: Numbers for each of which torch takes another thread (at::internal::GRAIN_SIZE).
GRAIN: Final = 32768


class Stack:
    """K heads of one shape, whose parameters move into the rows of one matrix and live there.

    Attributes:
        weights: float32 (K, size), a row a head, laid out as :class:`FlatParameters` says.
        gradients: (K, size), filled by a backward pass through :meth:`scores`.
    """

    def __init__(self, flats: Sequence[FlatParameters], layers: Sequence[Sequence[LinearLayer]]) -> None:
        size = flats[0].size
        self.weights = torch.empty(len(flats), size, device=flats[0].parameter.device)
        self.gradients = torch.zeros_like(self.weights)
        for flat, row, gradient in zip(flats, self.weights.zero_(), self.gradients, strict=True):
            flat.bind(row, gradient)
        values, gradients = iter(flats[0].views(self.weights)), iter(flats[0].views(self.gradients))
        self._layers = [
            _StackedLinear(layer.linear, values, gradients, layer.activation, [own[number].dropout for own in layers])
            for number, layer in enumerate(layers[0])
        ]

    def keeps_places(self, rows: int) -> bool:
        """Tell whether every number goes through an activation as it does in a batch of its head alone.

        torch computes exp, tanh and the like for whole vectors of numbers at a time, and for what is left over with
        another formula: where nothing is left over, in no thread, the place of a number does not matter. relu is
        exact anywhere.
        """
        widths = [layer.width for layer in self._layers if type(layer.activation) not in (type(None), nn.ReLU)]
        heads = self.weights.shape[0]
        return all(
            _leaves_nothing_over(rows * width) and _leaves_nothing_over(heads * rows * width) for width in widths
        )

    def scores(self, features_KBD: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
        """Return scores_KBC. With ``generators``, one a head, units are dropped as each head alone would drop them."""
        hidden_KBH = features_KBD
        for layer in self._layers:
            hidden_KBH = layer(hidden_KBH, generators)
        return hidden_KBH


def _leaves_nothing_over(numbers: int) -> bool:
    """Tell whether all threads that share ``numbers`` get whole blocks of vectors."""
    threads = min(torch.get_num_threads(), -(-numbers // GRAIN))
    return numbers % (threads * BLOCK) == 0


class _StackedLinear:
    """One layer of all heads."""

    def __init__(
        self, linear: nn.Linear, values: Any, gradients: Any, activation: Any, dropouts: Sequence[float]
    ) -> None:
        # Leaves of their own: autograd needs one that asks for a gradient, or it would record nothing.
        self._weight_KOI = next(values).detach().requires_grad_()
        self._weight_gradient = next(gradients)
        self._bias_KO = next(values) if linear.bias is not None else None
        self._bias_gradient = next(gradients) if linear.bias is not None else None
        self.activation = activation
        self.width = linear.out_features
        self._dropouts = dropouts

    def __call__(self, inputs_KBI: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
        outputs_KBO: Tensor = _Product.apply(
            inputs_KBI, self._weight_KOI, self._bias_KO, self._weight_gradient, self._bias_gradient
        )
        if self.activation is not None:
            outputs_KBO = self.activation(outputs_KBO)
        if generators is not None and any(self._dropouts):
            outputs_KBO = outputs_KBO * self._keep(outputs_KBO, generators)
        return outputs_KBO

    def _keep(self, outputs_KBO: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return 0 for a unit that is dropped, 1 / (1 - p) for one that is kept: torch's dropout, number by number."""
        keep_KBO = torch.ones_like(outputs_KBO, requires_grad=False)
        for keep_BO, p, generator in zip(keep_KBO, self._dropouts, generators, strict=True):
            if p:
                keep_BO.bernoulli_(1 - p, generator=generator).div_(1 - p)
        return keep_KBO


class _Product(torch.autograd.Function):
    """outputs_KBO = inputs_KBI @ weight_KOI' + bias_KO, whose backward pass writes gradients where the optimiser reads.

    Left to autograd, they would be new tensors, to be copied into the rows of the heads in one more pass over them.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes arguments by place
        ctx: Any,
        inputs_KBI: Tensor,
        weight_KOI: Tensor,
        bias_KO: Tensor | None,
        weight_gradient: Tensor,
        bias_gradient: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(inputs_KBI, weight_KOI)
        ctx.gradients = (weight_gradient, bias_gradient)
        if bias_KO is None:
            return torch.bmm(inputs_KBI, weight_KOI.mT)
        return torch.baddbmm(bias_KO.unsqueeze(1), inputs_KBI, weight_KOI.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_KBO: Tensor) -> tuple[Tensor | None, ...]:
        inputs_KBI, weight_KOI = ctx.saved_tensors
        weight_gradient, bias_gradient = ctx.gradients
        torch.bmm(gradient_KBO.mT, inputs_KBI, out=weight_gradient)
        if bias_gradient is not None:
            torch.sum(gradient_KBO, 1, out=bias_gradient)
        inputs_gradient = torch.bmm(gradient_KBO, weight_KOI) if ctx.needs_input_grad[0] else None
        return inputs_gradient, None, None, None, None

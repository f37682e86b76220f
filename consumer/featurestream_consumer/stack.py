"""The linear layers of several heads as one: each weight of all heads in one tensor, one product for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from featurestream_consumer.flat import ALIGNMENT, FlatParameters
from featurestream_consumer.heads.layers import LinearLayer

#: Numbers that torch's loops take at a time: two vectors of the widest kind, 512 bits.
BLOCK: Final = 32
#: Numbers for each of which torch takes another thread (at::internal::GRAIN_SIZE).
GRAIN: Final = 32768
#: Outputs that the library's product computes at a time. What is left over after the last whole block it may add up in
#: another order for many heads in one call than for one head, but not where a call has nothing but the rest.
OUTPUTS: Final = 8


class Way(IntEnum):
    """How a layer's weights get their gradients, the fastest first. Which of them is exact, only a trial tells."""

    ONE_CALL = 0
    REST_APART = 1
    HEAD_BY_HEAD = 2


class Stack:
    """K heads of one shape, whose parameters move into the rows of matrices, one for each parameter, and live there.

    A matrix for each, and not one with a row a head: torch computes a batched product in one call only where the
    results of all heads lie next to each other; where they lie apart, it calls once for each head.

    Attributes:
        values: float32 (K, width) for each parameter, padded as :class:`FlatParameters` says.
        gradients: the same for their gradients, filled by a backward pass through :meth:`scores`.
        ways: for a number of rows, the layers whose weights do not get their gradients in one call.
    """

    def __init__(self, flats: Sequence[FlatParameters], layers: Sequence[Sequence[LinearLayer]]) -> None:
        self.heads = len(flats)
        self.ways: dict[int, dict[int, Way]] = {}
        device = flats[0].parameter.device
        self.values = [torch.zeros(self.heads, width, device=device) for width in flats[0].widths]
        self.gradients = [torch.zeros_like(values) for values in self.values]
        for place, flat in enumerate(flats):
            flat.lend([values[place] for values in self.values], [each[place] for each in self.gradients])
        shapes = flats[0].shapes
        values = iter(_as_shapes(self.values, shapes))
        gradients = iter(_as_shapes(self.gradients, shapes))
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
        return all(
            _leaves_nothing_over(rows * width) and _leaves_nothing_over(self.heads * rows * width) for width in widths
        )

    def scores(self, features_KBD: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
        """Return scores_KBC. With ``generators``, one a head, units are dropped as each head alone would drop them."""
        ways = self.ways.get(features_KBD.shape[1], {})
        hidden_KBH = features_KBD
        for number, layer in enumerate(self._layers):
            hidden_KBH = layer(hidden_KBH, generators, ways.get(number, Way.ONE_CALL))
        return hidden_KBH

    def layers_of(self, wrong: Sequence[bool]) -> set[int] | None:
        """Return the layers whose weights are marked in ``wrong``, a mark for each parameter; None for a bias."""
        marks = iter(wrong)
        found: set[int] = set()
        for number, layer in enumerate(self._layers):
            if next(marks):
                found.add(number)
            if layer.has_bias and next(marks):
                return None
        return found

    def take_next_way(self, rows: int, layers: Iterable[int]) -> bool:
        """Let the weights of ``layers`` get their gradients in the next way; tell whether there was one for each."""
        ways = self.ways.setdefault(rows, {})
        for layer in layers:
            if ways.get(layer) is Way.HEAD_BY_HEAD:
                return False
            ways[layer] = Way(ways.get(layer, Way.ONE_CALL) + 1)
        return True


def _as_shapes(matrices: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return the matrices (K, width) without their padding, each (K, *shape)."""
    pairs = zip(matrices, shapes, strict=True)
    return [matrix[:, : shape.numel()].view(matrix.shape[0], *shape) for matrix, shape in pairs]


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
        self.has_bias = linear.bias is not None
        self.activation = activation
        self.width = linear.out_features
        self._dropouts = dropouts

    def __call__(self, inputs_KBI: Tensor, generators: Sequence[torch.Generator] | None, way: Way) -> Tensor:
        outputs_KBO: Tensor = _Product.apply(
            inputs_KBI,
            self._weight_KOI,
            self._bias_KO,
            self._weight_gradient,
            self._bias_gradient,
            type(self.activation) is nn.ReLU,
            way,
        )
        if type(self.activation) not in {type(None), nn.ReLU}:
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
    """relu(inputs_KBI @ weight_KOI' + bias_KO), whose backward pass writes gradients where the optimiser reads.

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
        relu: bool,
        way: Way,
    ) -> Tensor:
        if bias_KO is None:
            outputs_KBO = torch.bmm(inputs_KBI, weight_KOI.mT)
        else:
            outputs_KBO = torch.baddbmm(bias_KO.unsqueeze(1), inputs_KBI, weight_KOI.mT)
        if relu:
            outputs_KBO.relu_()
        ctx.save_for_backward(inputs_KBI, weight_KOI, outputs_KBO if relu else None)
        ctx.gradients = (weight_gradient, bias_gradient, way)
        return outputs_KBO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_KBO: Tensor) -> tuple[Tensor | None, ...]:
        inputs_KBI, weight_KOI, relu_KBO = ctx.saved_tensors
        weight_gradient, bias_gradient, way = ctx.gradients
        if relu_KBO is not None:
            gradient_KBO = torch.ops.aten.threshold_backward(gradient_KBO, relu_KBO, 0)
        gradient_KOB, apart = gradient_KBO.mT, way is Way.HEAD_BY_HEAD
        if weight_gradient.is_contiguous() != apart:
            torch.bmm(gradient_KOB, inputs_KBI, out=weight_gradient)
        else:
            weight_gradient.copy_(torch.bmm(gradient_KOB, inputs_KBI, out=_buffer(weight_gradient, apart)))
        if way is Way.REST_APART:
            rest = gradient_KOB.shape[1] // OUTPUTS * OUTPUTS
            weight_gradient[:, rest:] = torch.bmm(gradient_KOB[:, rest:], inputs_KBI)
        if bias_gradient is not None:
            torch.sum(gradient_KBO, 1, out=bias_gradient)
        inputs_gradient = torch.bmm(gradient_KBO, weight_KOI) if ctx.needs_input_grad[0] else None
        return inputs_gradient, None, None, None, None, None, None


def _buffer(like: Tensor, apart: bool) -> Tensor:
    """Return room for a result (K, ...) of ``like``'s shape; with ``apart`` the heads' do not touch each other.

    That decides whether torch calls its library once for all of them or for each.
    """
    heads, numbers = like.shape[0], like[0].numel()
    return like.new_empty(heads, numbers + ALIGNMENT * apart)[:, :numbers].view(like.shape)

"""A head's parameters as one long tensor, of which the module's own are views.

An element-wise optimiser steps the long tensor in one call instead of four. And the rows of many heads of one shape lie
in one matrix, with the same distance from each to the next: batched products read them as they lie, and neighbours are
stepped together.

::

    |0.weight .............|0.bias ...|pad|2.weight ......|2.bias .|pad|
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Every parameter begins and ends at a multiple of this: 16 float32 numbers are the 64 bytes of a cache line and of the
#: widest vectors. So kernels treat a number alike wherever its head lies: fused ones, whose last bits differ between a
#: vector and what is left over after the last one, never have a rest.
ALIGNMENT = 16


class FlatParameters:
    """The parameters of a head, laid end to end with padding between them.

    Attributes:
        parameter: float32 (size,), what an optimiser is given; its ``grad`` is :attr:`gradient`.
        gradient: (size,), filled by :meth:`collect`, or by whoever has the views of it.
        size: numbers with the padding, which stays 0.
    """

    def __init__(self, head: nn.Module) -> None:
        self._parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
        self._places: list[tuple[int, torch.Size]] = []
        size = 0
        for parameter in self._parameters:
            self._places.append((size, parameter.shape))
            size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        self.size = size
        self.parameter = nn.Parameter(torch.zeros(size, device=self._parameters[0].device))
        self.bind(self.parameter.detach(), torch.zeros_like(self.parameter))

    def bind(self, weights: Tensor, gradient: Tensor) -> None:
        """Move the parameters into ``weights`` (size,), where they then live; gradients go to ``gradient`` (size,)."""
        for parameter, view in zip(self._parameters, self.views(weights), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = None
        self.gradient = gradient
        self._gradients = self.views(gradient)
        self.parameter.data = weights
        self.parameter.grad = gradient

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the parts of ``flat`` (..., size) that stand for the parameters, each (..., *shape)."""
        rows = flat.shape[:-1]
        return [flat[..., start : start + shape.numel()].view(*rows, *shape) for start, shape in self._places]

    def attach(self) -> None:
        """Put the gradients, as they lie in :attr:`gradient`, where an optimiser of the module's parameters looks."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def collect(self) -> None:
        """Take the gradients that a backward pass has left at the module's parameters."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if parameter.grad is None:
                gradient.zero_()
            else:
                gradient.copy_(parameter.grad)
                parameter.grad = None

"""A head's parameters as one long tensor, of which the module's own are views.

An element-wise optimiser steps the long tensor in one call instead of four.

::

    |0.weight .............|0.bias ...|pad|2.weight ......|2.bias .|pad|
"""

from __future__ import annotations

from collections.abc import Sequence

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
        gradient: (size,), filled by :meth:`collect`.
        shapes: the parameters' own shapes, in order.
        widths: numbers of each parameter with its padding, which stays 0.
    """

    def __init__(self, head: nn.Module) -> None:
        self._parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
        self.shapes = [parameter.shape for parameter in self._parameters]
        self.widths = [-(-shape.numel() // ALIGNMENT) * ALIGNMENT for shape in self.shapes]
        self.parameter = nn.Parameter(torch.zeros(sum(self.widths), device=self._parameters[0].device))
        self.gradient = torch.zeros_like(self.parameter)
        self.parameter.grad = self.gradient
        self.take_back()

    def lend(self, values: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Move the parameters into ``values``, a tensor (width,) for each; gradients go to ``gradients``.

        Until :meth:`take_back`, :attr:`parameter` is not the head's.
        """
        for parameter, shape, value in zip(self._parameters, self.shapes, values, strict=True):
            own = _unpadded(value, shape)
            own.copy_(parameter.detach())
            parameter.data = own
            parameter.grad = None
        self._gradients = [_unpadded(each, shape) for each, shape in zip(gradients, self.shapes, strict=True)]

    def take_back(self) -> None:
        """Move the parameters into :attr:`parameter` from wherever they lie."""
        self.lend(self.split(self.parameter.detach()), self.split(self.gradient))

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Return the parts of ``flat`` (size,) that stand for the parameters, each (width,)."""
        return torch.split(flat, self.widths)

    def attach(self) -> None:
        """Put the gradients where an optimiser of the module's parameters looks."""
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


def _unpadded(value: Tensor, shape: torch.Size) -> Tensor:
    return value[: shape.numel()].view(shape)

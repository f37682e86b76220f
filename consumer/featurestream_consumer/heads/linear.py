"""The linear head: one matrix and a bias, the usual probe of what a layer holds.

G. Alain, Y. Bengio: Understanding intermediate layers using linear classifier probes, 2016, arXiv:1610.01644.
"""

from __future__ import annotations

from torch import nn


def build(in_features: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return ``features_BD -> scores_BC``, weights ``weight`` (outputs, in_features) and ``bias`` (outputs,)."""
    return nn.Linear(in_features, outputs, bias=bias)

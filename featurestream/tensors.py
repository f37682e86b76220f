"""Features as torch tensors, without a copy."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from featurestream.record import Record


def tensor_of(record: Record) -> torch.Tensor:
    """Return a record's features as a torch tensor (rows, *shape) in the stream's dtype, sharing the payload's memory.

    The memory may belong to an immutable ``bytes``: do not write into it.
    """
    return as_tensor(record.payload, record.dtype, (record.rows, *record.shape))


def as_tensor(payload: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return raw little-endian bytes as a torch tensor of ``shape``, sharing their memory; see :func:`tensor_of`."""
    if payload.nbytes == 0:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    _hush_torch()
    return torch.from_numpy(payload).view(getattr(torch, dtype)).reshape(shape)


@functools.cache
def _hush_torch() -> None:
    """Let torch say, unheard, what it says once in a process: that an array is not writable.

    The contract of :func:`tensor_of` says what that means for callers. Filters around every call would not do:
    `warnings.catch_warnings` is not safe where several threads read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.from_numpy(np.frombuffer(b"\0", np.uint8))

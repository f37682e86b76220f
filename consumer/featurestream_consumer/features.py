"""Features and labels as a head takes them: float32 rows on its device, whatever the stream carried."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestream.errors import DataError

#: Where torch begins the tensors that it allocates.
ALIGNMENT_BYTES = 64


class Rows(NamedTuple):
    """Rows that a head is trained or validated on; any tuple of the three will do.

    Attributes:
        features: (rows, *shape) of any number dtype, NumPy or torch; a buffer that is not writable is never written.
        labels: (rows,) class numbers, or (rows,) or (rows, K) targets.
        indices: int64 (rows,), the samples' indices in the dataset.
    """

    features: NDArray[Any] | Tensor
    labels: NDArray[Any] | Tensor
    indices: NDArray[np.int64] | Tensor


def as_tensor(values: NDArray[Any] | Tensor) -> Tensor:
    """Return ``values`` as a tensor, sharing memory where that is safe.

    A NumPy array that is not writable (a view of a record) is copied: torch has no read-only tensors.
    """
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def as_features(features: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Return ``features`` (rows, *shape) as float32 features_BD (rows, prod(shape)) on ``device``.

    Moved first and widened there: half the bytes to copy for float16. Raises DataError where there is no axis of
    rows.
    """
    tensor = as_tensor(features)
    if tensor.ndim < 1:
        raise DataError("features without an axis of rows", hint="expected (rows, *shape)")
    rows, width = tensor.shape[0], math.prod(tensor.shape[1:])
    features_BD = tensor.to(device, non_blocking=True).to(torch.float32).reshape(rows, width)
    # Rows may lie anywhere in the record they came in, and where a matrix begins may decide the last bits of a product.
    return features_BD if features_BD.data_ptr() % ALIGNMENT_BYTES == 0 else features_BD.clone()

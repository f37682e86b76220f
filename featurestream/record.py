"""One batch of one tap: what a record on the log holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import UsageError

if TYPE_CHECKING:
    import torch

#: Bytes of one number of each dtype that the wire format knows. All are little-endian and in C order.
ITEM_BYTES: Final[dict[str, int]] = {"float16": 2, "bfloat16": 2, "float32": 4, "uint8": 1, "int64": 8}


@dataclass(frozen=True, slots=True)
class MissingSample:
    """A sample whose image could not be decoded: it has no row, and is listed instead."""

    index: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """The features of one batch at one tap, with the identity of every row.

    All taps of a batch have the same rows. ``features`` are held as raw bytes, so that a record costs no copy in
    either direction: :meth:`numpy` and :meth:`tensor` are views.

    Attributes:
        stream: the stream's name.
        fingerprint: the stream's fingerprint (see :mod:`featurestream.manifest`).
        tap: the tap's name.
        batch: the batch's number, counted over the whole stream from 0.
        pass_number: the pass that the batch belongs to.
        views: views of a sample in a pass; the views of a sample are adjacent rows.
        dtype: a key of :data:`ITEM_BYTES`.
        shape: the shape of one row.
        payload: the numbers, uint8 (rows * prod(shape) * item bytes,), row after row.
        indices: int64 (rows,), the sample's index in the dataset.
        ids: (rows,), the sample's id: its path relative to the dataset's root.
        labels: int64 (rows,) class numbers, float32 (rows,) values or (rows, K) targets, or None.
        missing: the batch's samples that have no row.
        extracted_ns: when the features were computed, nanoseconds since the epoch by the producer's clock.
    """

    stream: str
    fingerprint: str
    tap: str
    batch: int
    pass_number: int
    views: int
    dtype: str
    shape: tuple[int, ...]
    payload: NDArray[np.uint8]
    indices: NDArray[np.int64]
    ids: tuple[str, ...]
    labels: NDArray[Any] | None
    missing: tuple[MissingSample, ...] = ()
    extracted_ns: int = 0
    extra: dict[str, Any] = field(default_factory=dict)  # header keys of later writers, kept as they came

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise UsageError(
                f'a record cannot hold numbers of dtype "{self.dtype}"', hint=f"known: {', '.join(ITEM_BYTES)}"
            )
        expected = self.rows * self.row_bytes
        if self.payload.nbytes != expected:
            raise UsageError(
                f"the payload of batch {self.batch}, tap {self.tap} has {self.payload.nbytes} bytes, "
                f"but {self.rows} rows of {self.shape} {self.dtype} take {expected}"
            )
        if self.indices.shape[0] != self.rows or (self.labels is not None and self.labels.shape[0] != self.rows):
            raise UsageError(
                f"batch {self.batch}, tap {self.tap} has {self.rows} ids, {self.indices.shape[0]} sample indices "
                f"and {0 if self.labels is None else self.labels.shape[0]} labels; each row has one of each"
            )

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.ids)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's numbers."""
        return int(np.prod(self.shape, dtype=np.int64)) * ITEM_BYTES[self.dtype]

    def numpy(self) -> NDArray[Any]:
        """Return the features as (rows, *shape): a read-only view of the payload.

        NumPy has no bfloat16: such features come as float32, which holds every bfloat16 exactly (this one copies).
        """
        if self.dtype == "bfloat16":
            return widen_bfloat16(self.payload).reshape(self.rows, *self.shape)
        return self.payload.view(np.dtype(self.dtype).newbyteorder("<")).reshape(self.rows, *self.shape)

    def tensor(self) -> torch.Tensor:
        """Return the features as a torch tensor (rows, *shape) in the stream's dtype, sharing the payload's memory.

        The memory may belong to an immutable ``bytes``: do not write into it.
        """
        return as_tensor(self.payload, self.dtype, (self.rows, *self.shape))


def widen_bfloat16(payload: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the float32 numbers of raw bfloat16 bytes: bfloat16 is the upper half of a float32."""
    upper = payload.view("<u2").astype("<u4")
    return (upper << 16).view("<f4")


def as_tensor(payload: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a torch view of raw little-endian bytes; see :meth:`Record.tensor`."""
    import warnings

    import torch

    if payload.nbytes == 0:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    with warnings.catch_warnings():
        # torch warns once for every buffer that is not writable; the contract above says what that means for callers.
        warnings.filterwarnings("ignore", message="The given (buffer|NumPy array) is not writable")
        return torch.from_numpy(payload).view(getattr(torch, dtype)).reshape(shape)

"""Which samples rows are: the index, id and label of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import RecordError, UsageError

#: The largest batch, pass, sample index or size: the largest integer that a reader in any language holds exactly.
MAX_NUMBER: Final = 2**53 - 1

_COLUMNS: Final = ("indices", "ids", "labels")
_LABEL_FORMS: Final = ((np.dtype(np.int64), 1), (np.dtype(np.float32), 1), (np.dtype(np.float32), 2))


class Identity:
    """The sample behind each of some rows. Those that are read from a log are decoded when they are first asked for.

    Attributes:
        rows: the number of rows.
        indices: int64 (rows,), the sample's index in the dataset.
        ids: (rows,), the sample's id.
        labels: int64 (rows,) class numbers, float32 (rows,) values or (rows, K) targets, or None.
    """

    __slots__ = ("ids", "indices", "labels", "rows")

    rows: int
    indices: NDArray[np.int64]
    ids: tuple[str, ...]
    labels: NDArray[Any] | None

    def __init__(self, indices: NDArray[np.int64], ids: tuple[str, ...], labels: NDArray[Any] | None) -> None:
        self.rows = len(ids)
        self.indices = indices
        self.ids = ids
        self.labels = labels

    def __reduce__(self) -> tuple[type[Identity], tuple[Any, ...]]:
        # What goes to another process is decoded: the bytes that it would come from belong to this one.
        return Identity, (self.indices, self.ids, self.labels)

    def same(self, other: Identity) -> bool:
        """Whether the rows are the same samples, with the same labels, in the same order."""
        return (
            self.ids == other.ids
            and np.array_equal(self.indices, other.indices)
            and _same_labels(self.labels, other.labels)
        )


class JoinedIdentity(Identity):
    """The rows ``first`` to ``last`` (exclusive) of one or more others, one after the other."""

    __slots__ = ("_parts",)

    def __init__(self, parts: Sequence[tuple[Identity, int, int]]) -> None:
        self.rows = sum(last - first for _, first, last in parts)
        self._parts = parts

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # A slot that has not been filled comes here, once.
            if name not in _COLUMNS:
                raise AttributeError(name)
            pieces = [(getattr(part, name), first, last) for part, first, last in self._parts]
            value = _join(name, [None if piece is None else piece[first:last] for piece, first, last in pieces])
            setattr(self, name, value)
            return value


def _join(name: str, pieces: list[Any]) -> Any:
    if len(pieces) == 1:
        return pieces[0]
    if name == "ids":
        return tuple(id_ for piece in pieces for id_ in piece)
    if name == "indices":
        return np.concatenate(pieces)
    # The labels of a batch from which every sample is missing have no rows, and so no kind.
    labels = [piece for piece in pieces if piece is None or len(piece)]
    kinds = {None if piece is None else (piece.dtype, piece.shape[1:]) for piece in labels}
    if len(kinds) > 1:
        raise RecordError(
            "batches that follow each other have labels of different kinds, or some have none",
            hint="another program may have written to this stream; see them with featurectl peek",
        )
    return pieces[0] if not labels or labels[0] is None else np.concatenate(labels)


def check_indices(indices: NDArray[np.int64], where: str) -> None:
    """Raise UsageError where a sample index is not one; ``where`` says whose they are."""
    # All bits of all numbers together, in one look: below 2^53 where each number is, negative where one is.
    if not 0 <= np.bitwise_or.reduce(indices) <= MAX_NUMBER:
        raise UsageError(
            f"the sample indices of {where} go from {indices.min()} to {indices.max()}, expected 0 to 2^53 - 1"
        )


def check_labels(labels: NDArray[Any] | None, where: str) -> None:
    """Raise UsageError where labels are of a kind that there is not, or infinite; ``where`` says whose they are."""
    if labels is None:
        return
    if (labels.dtype, labels.ndim) not in _LABEL_FORMS or (labels.ndim == 2 and labels.shape[1] == 0):
        raise UsageError(
            f"the labels of {where} are {labels.dtype} {labels.shape}",
            hint="expected int64 (rows,), float32 (rows,) or float32 (rows, K)",
        )
    if labels.dtype == np.float32 and np.isinf(labels).any():
        raise UsageError(f"the labels of {where} hold an infinite number", hint="a target that is not known is NaN")


def _same_labels(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")

"""What a reader gets: rows with their features at every tap, and the grouping of records into batches of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurestream.errors import FingerprintError, UsageError
from featurestream.identity import Identity, JoinedIdentity
from featurestream.position import Position
from featurestream.record import ITEM_BYTES, NUMPY_DTYPES, MissingSample, Record, widen_bfloat16

if TYPE_CHECKING:
    import pandas as pd
    import torch


class TapRows(msgspec.Struct, frozen=True, eq=False):
    """The rows of one tap: raw little-endian numbers, uint8 (rows, bytes of a row), with their dtype and row shape."""

    payload: NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]

    def rows(self, first: int, last: int) -> TapRows:
        """Return rows ``first`` to ``last`` (exclusive) as a view."""
        return TapRows(self.payload[first:last], self.dtype, self.shape)

    def numpy(self) -> NDArray[Any]:
        """Return (rows, *shape): a view, except that bfloat16 is widened to float32, which NumPy has."""
        shape = self.shape
        if self.dtype == "bfloat16":
            return widen_bfloat16(self.payload.reshape(-1)).reshape(-1, *shape)
        numbers = self.payload.view(NUMPY_DTYPES[self.dtype])  # (rows, numbers of a row)
        return numbers if len(shape) == 1 else numbers.reshape(len(numbers), *shape)

    def tensor(self) -> torch.Tensor:
        """Return a torch view (rows, *shape) in the stream's dtype. Do not write into it."""
        from featurestream.tensors import as_tensor

        return as_tensor(self.payload.reshape(-1), self.dtype, (self.payload.shape[0], *self.shape))


class FeatureBatch(msgspec.Struct, frozen=True, eq=False):
    """Rows of one pass, in the stream's order, with the features of every tap that is read.

    Attributes:
        position: the place of the first row.
        next_position: the place of the row after the last: where a reader that has used this batch goes on.
        pass_number: the pass that the rows belong to.
        identity: whose the rows are: see :attr:`indices`, :attr:`ids` and :attr:`labels`.
        taps: the features by tap name; see :meth:`numpy` and :meth:`tensor`.
        missing: samples of these batches that have no row, because their image could not be decoded.
    """

    position: Position
    next_position: Position
    pass_number: int
    identity: Identity
    taps: Mapping[str, TapRows]
    missing: tuple[MissingSample, ...] = ()

    @property
    def indices(self) -> NDArray[np.int64]:
        """The sample's index in the dataset, int64 (rows,)."""
        return self.identity.indices

    @property
    def ids(self) -> tuple[str, ...]:
        """The sample's id, (rows,)."""
        return self.identity.ids

    @property
    def labels(self) -> NDArray[Any] | None:
        """Class numbers, int64 (rows,); or values, float32 (rows,), or targets, float32 (rows, K); or None."""
        return self.identity.labels

    def __len__(self) -> int:
        return self.identity.rows

    def tap(self, name: str | None = None) -> TapRows:
        """Return the rows of a tap; the name may be left out where one tap is read."""
        if name is None:
            if len(self.taps) != 1:
                raise UsageError("several taps are read: say which one", hint=f"one of {', '.join(self.taps)}")
            return next(iter(self.taps.values()))
        if name not in self.taps:
            raise UsageError(f'tap "{name}" is not read here', hint=f"read are {', '.join(self.taps)}")
        return self.taps[name]

    def numpy(self, tap: str | None = None) -> NDArray[Any]:
        """Return a tap's features as NumPy, (rows, *shape)."""
        return self.tap(tap).numpy()

    def tensor(self, tap: str | None = None) -> torch.Tensor:
        """Return a tap's features as a torch tensor, (rows, *shape), in the stream's dtype. Do not write into it."""
        return self.tap(tap).tensor()

    def rows(self, first: int, last: int) -> FeatureBatch:
        """Return rows ``first`` to ``last`` (exclusive) of a batch that is one record's, as views."""
        whole = last == len(self)
        start = self.position.row
        return FeatureBatch(
            Position(self.position.batch, start + first),
            self.next_position if whole else Position(self.position.batch, start + last),
            self.pass_number,
            JoinedIdentity([(self.identity, first, last)]),
            taps={name: tap.rows(first, last) for name, tap in self.taps.items()},
            missing=self.missing if whole else (),
        )

    def labelled(self, labels: NDArray[Any]) -> FeatureBatch:
        """Return the same rows with other labels."""
        identity = Identity(self.indices, self.ids, labels)
        return FeatureBatch(self.position, self.next_position, self.pass_number, identity, self.taps, self.missing)

    def frame(self, tap: str | None = None) -> pd.DataFrame:
        """Return a table with a row a row: index, id, pass, label(s), and the flattened features as f0, f1, ..."""
        import pandas as pd

        columns: dict[str, Any] = {"index": self.indices, "id": list(self.ids), "pass": self.pass_number}
        if self.labels is not None and self.labels.ndim == 1:
            columns["label"] = self.labels
        elif self.labels is not None:
            columns |= {f"label{k}": self.labels[:, k] for k in range(self.labels.shape[1])}
        features = self.numpy(tap).reshape(len(self), -1)
        if features.dtype == np.float16:
            features = features.astype(np.float32)  # pandas cannot sum or print float16 without overflow
        names = [f"f{number}" for number in range(features.shape[1])]
        return pd.concat([pd.DataFrame(columns), pd.DataFrame(features, columns=names)], axis=1)


TapPart = tuple[Identity, TapRows]


def part_of(record: Record) -> TapPart:
    """Return whose a record's rows are, and the rows."""
    return record.identity, TapRows(record.payload.reshape(record.rows, record.row_bytes), record.dtype, record.shape)


def join(
    batch: int, pass_number: int, parts: Mapping[str, TapPart], missing: tuple[MissingSample, ...] = ()
) -> FeatureBatch:
    """Return the rows of one batch from what its records hold, by tap.

    Raises FingerprintError where they do not hold the same rows: they are not of one extraction then.
    """
    first: Identity | None = None
    taps = {}
    for tap, (identity, rows) in parts.items():
        taps[tap] = rows
        if first is None:
            first = identity
        elif not identity.same(first):
            raise FingerprintError(
                f"batch {batch} has other rows at tap {tap} than at tap {next(iter(taps))}",
                hint="the taps' topics are not of one extraction; publish the stream again under a new name",
                batch=batch,
            )
    if first is None:
        raise UsageError("a batch has at least one tap")
    return FeatureBatch(Position(batch), Position(batch + 1), pass_number, first, taps, missing)


def concatenate(parts: Sequence[FeatureBatch]) -> FeatureBatch:
    """Return the rows of several batches as one, in the order given. One batch comes back as it is, without a copy."""
    if not parts:
        raise UsageError("there is nothing to put together: no batch was given")
    if len(parts) == 1:
        return parts[0]
    first, last = parts[0], parts[-1]
    return FeatureBatch(
        first.position,
        last.next_position,
        first.pass_number,
        JoinedIdentity([(part.identity, 0, len(part)) for part in parts]),
        taps={
            name: TapRows(np.concatenate([part.taps[name].payload for part in parts]), tap.dtype, tap.shape)
            for name, tap in first.taps.items()
        },
        missing=tuple(sample for part in parts for sample in part.missing),
    )


class Regrouper:
    """The same rows in the same order in batches of ``size`` rows, from the batches that are added one by one.

    A batch never spans two passes: the last one of a pass may be smaller. Rows are views where a batch lies in one
    record, and copied where it spans several.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._parts: list[FeatureBatch] = []
        self._held = 0

    def add(self, batch: FeatureBatch) -> Iterator[FeatureBatch]:
        """Take a batch and yield what it completes. Exhaust the iterator before the next one is added."""
        if self._parts and batch.pass_number != self._parts[0].pass_number:
            yield from self.rest()
        first = 0
        while len(batch) - first >= self.size - self._held:
            last = first + self.size - self._held
            whole = concatenate([*self._parts, batch.rows(first, last)])
            self._parts, self._held, first = [], 0, last
            yield whole
        if first < len(batch) or not len(batch):  # a batch without rows still says what is missing
            self._parts.append(batch.rows(first, len(batch)))
            self._held += len(self._parts[-1])

    def rest(self) -> Iterator[FeatureBatch]:
        """Yield the rows that no batch has been made of yet: the last batch of a pass, or of a range."""
        if self._parts:
            parts, self._parts, self._held = self._parts, [], 0
            yield concatenate(parts)


def regroup(batches: Iterable[FeatureBatch], size: int) -> Iterator[FeatureBatch]:
    """Yield the rows of ``batches`` in batches of ``size`` rows, as a :class:`Regrouper` makes them."""
    grouping = Regrouper(size)
    for batch in batches:
        yield from grouping.add(batch)
    yield from grouping.rest()


def row_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of one row."""
    return int(np.prod(tuple(shape), dtype=np.int64)) * ITEM_BYTES[dtype]

"""The lists of a header, one entry a row: decoded when they are asked for."""

from __future__ import annotations

import struct
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurestream.errors import RecordError, UsageError
from featurestream.identity import Identity, check_indices, check_labels
from featurestream.wire.layout import DAMAGED, NULL
from featurestream.wire.packed import all_of, unpack

_LISTS: Final = ("indices", "ids", "labels")
_INTEGERS: Final = msgspec.msgpack.Decoder(list[int])
_TEXTS: Final = msgspec.msgpack.Decoder(tuple[str, ...])


class PackedIdentity(Identity):
    """The identity of a record's rows, as its header holds it: three msgpack lists, the labels null where none are."""

    __slots__ = ("_packed", "_place", "_where")

    def __init__(
        self, rows: int, packed: tuple[bytes, bytes, bytes], where: tuple[int, str], place: tuple[str, int, int] | None
    ) -> None:
        self.rows = rows
        self._packed = packed
        self._where = where
        self._place = place

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # A slot that has not been filled comes here, once.
            if name not in _LISTS:
                raise AttributeError(name)
            try:
                value = self._decoded(name)
            except RecordError as error:
                raise error if self._place is None else error.at(*self._place) from error
            setattr(self, name, value)
            return value

    def same(self, other: Identity) -> bool:
        """Whether the rows are the same samples, with the same labels, in the same order."""
        # The same writer packs the same rows into the same bytes.
        return (isinstance(other, PackedIdentity) and self._packed == other._packed) or super().same(other)

    def _decoded(self, name: str) -> Any:
        packed = self._packed[_LISTS.index(name)]
        try:
            if name == "labels":
                labels = _labels(packed)
                if labels is not None and labels.dtype.kind == "f":  # integers may be any
                    check_labels(labels, self._batch())
                return labels
            if name == "ids":
                return _texts(packed)
            indices = _integers(packed, "indices")
            check_indices(indices, self._batch())
            return indices
        except UsageError as error:
            raise RecordError(error.message, hint=error.hint or DAMAGED) from error

    def _batch(self) -> str:
        return "batch {}, tap {}".format(*self._where)


def _texts(packed: bytes) -> tuple[str, ...]:
    try:
        return _TEXTS.decode(packed)
    except ValueError as error:
        raise RecordError("the header's ids are not all texts", hint=DAMAGED) from error


def _integers(packed: bytes, key: str) -> NDArray[np.int64]:
    try:
        return _int64(_INTEGERS.decode(packed), key)
    except ValueError as error:
        raise RecordError(f"the header's {key} are not all integers", hint=DAMAGED) from error


def _int64(values: list[int], key: str) -> NDArray[np.int64]:
    numbers = np.empty(len(values), np.int64)
    try:
        struct.pack_into(f"={len(values)}q", numbers.data, 0, *values)  # half the time of numpy.array(values)
    except struct.error as error:
        raise RecordError(f"the header's {key} hold a number beyond 64 bits with sign", hint=DAMAGED) from error
    return numbers


def _float32(values: list[Any]) -> NDArray[np.float32]:
    if not all_of(float, values):
        raise RecordError("the header's labels are not all integers, all floats or all lists of floats", hint=DAMAGED)
    numbers = np.empty(len(values), np.float32)
    try:
        struct.pack_into(f"={len(values)}f", numbers.data, 0, *values)
    except OverflowError as error:
        raise RecordError("the header's labels hold a number beyond float32", hint=DAMAGED) from error
    return numbers


def _labels(packed: bytes) -> NDArray[Any] | None:
    """Return int64 (rows,) of integers, float32 (rows,) of floats, float32 (rows, K) of lists of floats, or None.

    The labels of a batch without rows are int64 (0,), whatever the stream's are: an empty list has no type.
    """
    if packed == NULL:
        return None
    try:
        return _int64(_INTEGERS.decode(packed), "labels")
    except ValueError:
        labels = unpack(packed)
    if type(labels[0]) is not list:
        return _float32(labels)
    width = len(labels[0])
    if not all_of(list, labels) or [*map(len, labels)].count(width) != len(labels):
        raise RecordError("the header's labels are not all lists of one length", hint=DAMAGED)
    return _float32([*chain.from_iterable(labels)]).reshape(len(labels), width)

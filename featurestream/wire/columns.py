"""The lists of a header, one entry a row: decoded when they are asked for."""

from __future__ import annotations

import struct
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import RecordError, UsageError
from featurestream.identity import Identity, check_indices, check_labels
from featurestream.wire.layout import DAMAGED
from featurestream.wire.packed import all_of, unpack

_LISTS: Final = ("indices", "ids", "labels")
#: Numbers that all take the same bytes, by msgpack's type byte before each.
_NUMBERS: Final = {
    0xCA: ">f4",
    0xCC: ">u1",
    0xCD: ">u2",
    0xCE: ">u4",
    0xD0: ">i1",
    0xD1: ">i2",
    0xD2: ">i4",
    0xD3: ">i8",
}


class PackedIdentity(Identity):
    """The identity of a record's rows, as its header holds it: three msgpack lists, the labels null where none are."""

    __slots__ = ("_packed", "_place", "_where")

    def __init__(
        self, rows: int, packed: tuple[Any, Any, Any], where: tuple[int, str], place: tuple[str, int, int] | None
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
        return (isinstance(other, PackedIdentity) and self._bytes() == other._bytes()) or super().same(other)

    def _bytes(self) -> list[bytes | None]:
        # As bytes they are compared in one call, as views byte by byte.
        return [None if packed is None else bytes(packed) for packed in self._packed]

    def _decoded(self, name: str) -> Any:
        packed = self._packed[_LISTS.index(name)]
        value = None if name == "ids" else _even(packed, self.rows)
        if value is None:
            value = unpack(packed)
        where = "batch {}, tap {}".format(*self._where)
        try:
            if name == "ids":
                if not all_of(str, value):
                    raise RecordError("the header's ids are not all texts", hint=DAMAGED)
                return tuple(value)
            if name == "indices":
                indices = _int64(value, "indices")
                check_indices(indices, where)
                return indices
            labels = _labels(value)
            check_labels(labels, where)
            return labels
        except UsageError as error:
            raise RecordError(error.message, hint=error.hint or DAMAGED) from error


def _even(packed: Any, rows: int) -> NDArray[Any] | None:
    """Return a packed list of numbers that all take the same bytes; None for any other list, or a thing that is none.

    Labels below 128 take one byte each, those of a regression five: such a list is an array of NumPy's already.
    """
    if not rows or not isinstance(packed, memoryview):
        return None
    head = {0xDC: 3, 0xDD: 5}.get(packed[0], 1)
    size, rest = divmod(len(packed) - head, rows)
    if rest or size < 1:
        return None
    content = np.frombuffer(packed, np.uint8, offset=head)
    if size == 1:
        return content.astype(np.int64) if content.max() < 0x80 else None
    kind = _NUMBERS.get(int(content[0]))
    if kind is None or size != 1 + np.dtype(kind).itemsize or not (content[::size] == content[0]).all():
        return None
    numbers = np.ndarray(rows, kind, packed, head + 1, size)
    return numbers.astype(np.float32 if kind == ">f4" else np.int64)


def _int64(values: Any, key: str) -> NDArray[np.int64]:
    if isinstance(values, np.ndarray) and values.dtype == np.int64:
        return values
    if not all_of(int, values):
        raise RecordError(f"the header's {key} are not all integers", hint=DAMAGED)
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


def _labels(labels: Any) -> NDArray[Any] | None:
    """Return int64 (rows,) of integers, float32 (rows,) of floats, float32 (rows, K) of lists of floats, or None.

    The labels of a batch without rows are int64 (0,), whatever the stream's are: an empty list has no type.
    """
    if labels is None or isinstance(labels, np.ndarray):
        return labels
    if not labels or type(labels[0]) is int:
        return _int64(labels, "labels")
    if type(labels[0]) is not list:
        return _float32(labels)
    width = len(labels[0])
    if not all_of(list, labels) or [*map(len, labels)].count(width) != len(labels):
        raise RecordError("the header's labels are not all lists of one length", hint=DAMAGED)
    return _float32([*chain.from_iterable(labels)]).reshape(len(labels), width)

"""Records read from bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import RecordError, UsageError
from featurestream.record import Record
from featurestream.wire.header import record_of
from featurestream.wire.layout import DAMAGED, FORMAT, checksum_of
from featurestream.wire.value import VALUE, split_value


def decode(value: bytes | memoryview | NDArray[np.uint8] | None) -> Record:
    """Return the record that a value holds, all of it checked; its payload is a view of the value's memory.

    (A payload that another writer left unaligned is the one that is copied.) Every value that is not a record is a
    RecordError, found in this order: the format number, the outer array, the checksum, the header. The caller, who
    knows the place, adds it with :meth:`RecordError.at`. Memory is taken in proportion to the bytes that are there,
    never to a length that they claim.
    """
    record = open_record(value)
    identity = record.identity
    for read in ("indices", "ids", "labels"):
        getattr(identity, read)
    return record


def open_record(
    value: bytes | memoryview | NDArray[np.uint8] | None, place: tuple[str, int, int] | None = None
) -> Record:
    """Return the record that a value holds, as :func:`decode` does, but ``indices``, ``ids`` and ``labels`` unopened.

    Each of these lists is decoded when it is first asked for, which few readers do for all of them and for every tap.
    The checksum, the header's form and the lists' lengths are checked at once; a list that holds what it should not,
    which only a faulty writer leaves behind a right checksum, is a RecordError then, with ``place`` (topic, lane,
    offset).
    """
    packed, payload = _checked(value)
    return record_of(packed, payload, place)


def _checked(value: bytes | memoryview | NDArray[np.uint8] | None) -> tuple[bytes, NDArray[np.uint8]]:
    """Return the header and the payload of a value whose checksum is right."""
    checksum, header, payload = _split(value)
    found = checksum_of(header, payload)
    if found != checksum:
        raise RecordError(f"the checksum is {found:016x}, but the record says {checksum:016x}", hint=DAMAGED)
    return bytes(header), np.frombuffer(payload, np.uint8)


def _split(value: bytes | memoryview | NDArray[np.uint8] | None) -> tuple[int, memoryview, memoryview]:
    """Return the checksum, the header's bytes and the payload's bytes of a value."""
    if type(value) is bytes:
        try:
            parts = VALUE.decode(value)
        except ValueError:  # all of the library's own are; what is wrong is found below
            pass
        else:
            if parts.format == FORMAT:
                return parts.checksum, parts.header, parts.payload
    if value is None:
        raise RecordError("the record has no value", hint="a tap's topic holds no tombstones; " + DAMAGED)
    data = (value.data if isinstance(value, np.ndarray) else memoryview(value)).toreadonly()
    if data.format != "B" or data.ndim != 1 or not data.c_contiguous:
        raise UsageError(f"a record's value is bytes, got {data.format!r} of shape {data.shape}")
    return split_value(data)

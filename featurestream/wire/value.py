"""A value taken apart into its checksum, its header and its payload."""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurestream.errors import RecordError
from featurestream.wire.layout import ARRAYS, DAMAGED, FORMAT, other_format

_BINS: Final = {0xC4: struct.Struct(">B"), 0xC5: struct.Struct(">H"), 0xC6: struct.Struct(">I")}
_INTEGERS: Final = {
    0xCC: struct.Struct(">B"), 0xCD: struct.Struct(">H"), 0xCE: struct.Struct(">I"), 0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"), 0xD1: struct.Struct(">h"), 0xD2: struct.Struct(">i"), 0xD3: struct.Struct(">q"),
}  # fmt: skip


class _Value(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    format: int
    checksum: int
    header: memoryview  # views: nothing is copied
    payload: memoryview


#: Takes a value apart in one call; a ValueError says only that it is none.
VALUE: Final = msgspec.msgpack.Decoder(_Value)


def split_value(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """Return the checksum, the header's bytes and the payload's bytes of a value."""
    items, at = _array(data)
    number, at = integer_at(data, at, "format number")
    if number != FORMAT:
        raise other_format(number)
    if items != 4:
        raise RecordError(
            f"the value is an array of {items}, expected [format, checksum, header, payload]", hint=DAMAGED
        )
    checksum, at = integer_at(data, at, "checksum")
    length, at = number_at(data, at, _BINS, "header", "a bin")
    header, at = _slice(data, at, length, "header")
    return checksum, header, _payload(data, at)


def _payload(data: memoryview, at: int) -> memoryview:
    length, at = number_at(data, at, _BINS, "payload", "a bin")
    payload, at = _slice(data, at, length, "payload")
    if at != len(data):
        raise RecordError(f"the value goes on for {len(data) - at} bytes after the record's end", hint=DAMAGED)
    return payload


def _array(data: memoryview) -> tuple[int, int]:
    if len(data) and 0x90 <= data[0] <= 0x9F:
        return data[0] - 0x90, 1
    return number_at(data, 0, ARRAYS, "value", "an array")


def integer_at(data: memoryview, at: int, what: str) -> tuple[int, int]:
    """Return the integer at ``at``, and where it ends."""
    if at < len(data) and data[at] <= 0x7F:
        return data[at], at + 1
    return number_at(data, at, _INTEGERS, what, "an integer")


def number_at(
    data: memoryview | bytes, at: int, kinds: dict[int, struct.Struct], what: str, expected: str
) -> tuple[int, int]:
    """Return the number after the type byte at ``at``, and where it ends."""
    if at >= len(data):
        raise RecordError(f"the bytes end after {len(data)}, where the {what} should start", hint=DAMAGED)
    kind = kinds.get(data[at])
    if kind is None:
        raise RecordError(
            f"the {what} starts with msgpack's type byte {data[at]:02x}, expected {expected}", hint=DAMAGED
        )
    stop = at + 1 + kind.size
    if stop > len(data):
        raise RecordError(f"the bytes end after {len(data)}, inside the start of the {what}", hint=DAMAGED)
    return kind.unpack_from(data, at + 1)[0], stop


def _slice(data: memoryview, at: int, length: int, what: str) -> tuple[memoryview, int]:
    if length > len(data) - at:
        raise RecordError(
            f"the {what} says that it has {length} bytes, but {len(data) - at} are left in the value", hint=DAMAGED
        )
    return data[at : at + length], at + length


def aligned(payload: NDArray[np.uint8], item_bytes: int) -> NDArray[np.uint8]:
    """Return the payload itself where its numbers are aligned in memory, as our own writer leaves them; else a copy."""
    if payload.nbytes % item_bytes or payload.view(f"u{item_bytes}").flags.aligned:
        return payload
    copied = payload.copy()
    copied.flags.writeable = False
    return copied

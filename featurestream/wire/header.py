"""A record's header: a msgpack map that may hold anything, checked key by key."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurestream.errors import RecordError, UsageError
from featurestream.record import ITEM_BYTES, MissingSample, Record
from featurestream.wire.columns import PackedIdentity
from featurestream.wire.layout import (
    ARRAYS,
    DAMAGED,
    HEADER_KEYS,
    KNOWN_KEYS,
    LONGEST_TEXT,
    MAPS,
    MUST_UNDERSTAND,
    NULL,
    PAD,
    UPGRADE,
    clip,
)  # fmt: skip
from featurestream.wire.packed import all_of, not_msgpack, unpack
from featurestream.wire.value import aligned, number_at

Header = dict[str, msgspec.Raw]

_MAP: Final = msgspec.msgpack.Decoder(Header)
_TEXT: Final = msgspec.msgpack.Decoder(str)
_INTEGER: Final = msgspec.msgpack.Decoder(int)
_INTEGERS: Final = msgspec.msgpack.Decoder(tuple[int, ...])
_REQUIRED: Final = frozenset(HEADER_KEYS)


def record_of(packed: bytes, payload: NDArray[np.uint8], place: tuple[str, int, int] | None) -> Record:
    """Return the record of a packed header and a payload, both of which may still say anything.

    Types are checked here; what the values may be is a record's own rule.
    """
    try:
        return _record(_unpacked(packed), payload, place)
    except UsageError as error:
        raise RecordError(error.message, hint=error.hint or DAMAGED) from error


def _unpacked(packed: bytes) -> Header:
    """Return the header's map: each value as it is packed.

    Nothing is built from a value before its key is known: skipping takes no memory, and proves that every length is
    backed by bytes.
    """
    entries = _map(packed)
    try:
        header = _MAP.decode(packed)
    except msgspec.ValidationError as error:
        raise RecordError("the header has a key that is not a text", hint=DAMAGED) from error
    except (ValueError, RecursionError) as error:  # all of the library's own are ValueErrors
        raise not_msgpack(error) from error
    if len(header) != entries:
        raise RecordError(f"the header has {entries} keys, one of them twice", hint=DAMAGED)
    return header


def _map(packed: bytes) -> int:
    """Return the number of entries that the header's map claims to have."""
    if len(packed) and 0x80 <= packed[0] <= 0x8F:
        return packed[0] - 0x80
    entries, _ = number_at(packed, 0, MAPS, "header", "a map")
    return entries


def _record(header: Header, payload: NDArray[np.uint8], place: tuple[str, int, int] | None) -> Record:
    later = _check_keys(header)
    batch, tap = _whole(header, "batch"), _text(header, "tap")
    lists = (bytes(header["indices"]), bytes(header["ids"]), bytes(header["labels"]))
    rows, listed = _whole(header, "rows"), _length("ids", lists[1], "a list of texts")
    if rows != listed:
        raise RecordError(f"the header says rows {rows}, but lists {listed} ids", hint=DAMAGED)
    indices = _length("indices", lists[0], "a list of integers")
    labels = None if lists[2] == NULL else _length("labels", lists[2], "null or a list")
    if indices != rows or labels not in (None, rows):
        raise RecordError(
            f"batch {batch}, tap {tap} has {rows} ids, {indices} sample indices "
            f"and {'no' if labels is None else labels} labels; each row has one of each",
            hint=DAMAGED,
        )
    dtype = _text(header, "dtype")
    return Record.of(
        PackedIdentity(rows, lists, (batch, tap), place),
        stream=_text(header, "stream"),
        fingerprint=_text(header, "fingerprint"),
        tap=tap,
        batch=batch,
        pass_number=_whole(header, "pass"),
        views=_whole(header, "views"),
        dtype=dtype,
        shape=_shape(header),
        payload=aligned(payload, ITEM_BYTES.get(dtype, 1)),
        missing=_missing(header),
        extracted_ns=_whole(header, "extracted_at"),
        extra={key: unpack(bytes(header[key])) for key in later},
    )


def _check_keys(header: Header) -> list[str]:
    """Return the keys that go into a record's ``extra``: those of later writers, and must_understand."""
    if not header.keys() >= _REQUIRED:
        absent = [key for key in HEADER_KEYS if key not in header]
        # A later writer may have replaced a key by another: say so rather than that the record is damaged.
        _check_must_understand(header)
        raise RecordError(f"the header lacks {', '.join(absent)}", hint=DAMAGED)
    if len(header) == len(HEADER_KEYS) + (PAD in header):
        return []
    _check_must_understand(header)
    return [key for key in header if key not in _REQUIRED and key != PAD]


def _check_must_understand(header: Header) -> None:
    if MUST_UNDERSTAND not in header:
        return
    packed = bytes(header[MUST_UNDERSTAND])
    _length(MUST_UNDERSTAND, packed, "a list of texts")
    keys = unpack(packed)
    if not all_of(str, keys):
        raise RecordError(f"the header's {MUST_UNDERSTAND} is not all texts", hint=DAMAGED)
    unknown = [f'"{key}"' for key in keys if key not in KNOWN_KEYS]
    if unknown:
        names = clip(", ".join(unknown))
        raise RecordError(
            f"a reader of this record must understand {names}, which this featurestream does not", hint=UPGRADE
        )


def _text(header: Header, key: str) -> str:
    try:
        value = _TEXT.decode(header[key])
    except ValueError:
        value = None
    if value is None or len(value) > LONGEST_TEXT:
        raise _wrong(key, bytes(header[key]), f"a text of at most {LONGEST_TEXT} characters")
    return value


def _whole(header: Header, key: str) -> int:
    try:
        return _INTEGER.decode(header[key])
    except ValueError:
        raise _wrong(key, bytes(header[key]), "an integer") from None


def _shape(header: Header) -> tuple[int, ...]:
    try:
        return _INTEGERS.decode(header["shape"])
    except ValueError:
        _length("shape", bytes(header["shape"]), "a list of integers")
        raise RecordError("the header's shape is not all integers", hint=DAMAGED) from None


def _length(key: str, packed: bytes, expected: str) -> int:
    """Return the length of a list, without unpacking it."""
    first = packed[0]
    if 0x90 <= first <= 0x9F:
        return first - 0x90
    if first in ARRAYS:
        return int(ARRAYS[first].unpack_from(packed, 1)[0])
    raise _wrong(key, packed, expected)


def _missing(header: Header) -> tuple[MissingSample, ...]:
    packed = bytes(header["missing"])
    if not _length("missing", packed, "a list of [index, id, reason]"):
        return ()
    missing = unpack(packed)
    for sample in missing:
        if not isinstance(sample, list) or [*map(type, sample)] != [int, str, str]:
            raise RecordError('an entry of "missing" in the header is not [index, id, reason]', hint=DAMAGED)
    return tuple(MissingSample(*sample) for sample in missing)


def _wrong(key: str, packed: bytes, expected: str) -> RecordError:
    return RecordError(f'the header\'s "{key}" is {_name(packed)}, expected {expected}', hint=DAMAGED)


def _name(packed: bytes) -> str:
    """Return what a msgpack value is, and a short one itself."""
    first = packed[0]
    if 0x90 <= first <= 0x9F or first in ARRAYS:
        return "a list"
    if 0x80 <= first <= 0x8F or first in MAPS:
        return "a map"
    value = unpack(packed)
    names = {bytes: "a bin", bool: "a boolean", type(None): "null", str: "a text"}
    name = names.get(type(value))
    if name is None:
        return f"the number {value}"
    return f'the text "{clip(value)}"' if isinstance(value, str) else name

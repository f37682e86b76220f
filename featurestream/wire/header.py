"""A record's header: a msgpack map that may hold anything, checked key by key."""

from __future__ import annotations

from typing import Any, Final

import msgpack
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
    MAPS,
    MUST_UNDERSTAND,
    PAD,
    UPGRADE,
    clip,
)  # fmt: skip
from featurestream.wire.packed import all_of, not_msgpack, refuse_extension, unpack
from featurestream.wire.value import aligned, number_at

_NESTED: Final = frozenset([*range(0x80, 0xA0), *ARRAYS, *MAPS])
_LONGEST_TEXT: Final = 100  # names are no longer, fingerprints and dtypes shorter
_REQUIRED: Final = frozenset(HEADER_KEYS)


def unpack_header(packed: bytes) -> dict[str, Any]:
    """Return the header's map: texts and numbers as they are, lists and maps as a view of their bytes.

    An unpacker takes the memory for a list before it reads the list, so lists within lists that all claim the header's
    length would take its square. Skipping takes none, and proves that every length is backed by bytes.
    """
    header: dict[str, Any] = {}
    entries = _map(packed)
    view = memoryview(packed)
    size = len(packed)
    unpacker = msgpack.Unpacker(
        max_buffer_size=size, read_size=size, ext_hook=refuse_extension, max_ext_len=0, strict_map_key=True
    )
    unpacker.feed(packed)
    try:
        unpacker.read_map_header()
        for _ in range(entries):
            if packed[unpacker.tell()] in _NESTED:
                raise RecordError("the header has a list or a map as a key, expected text", hint=DAMAGED)
            key = unpacker.unpack()
            if type(key) is not str:
                raise RecordError(f"the header has the key {clip(repr(key))}, expected text", hint=DAMAGED)
            if key in header:
                raise RecordError(f'the header has the key "{clip(key)}" twice', hint=DAMAGED)
            at = unpacker.tell()
            if packed[at] in _NESTED:
                unpacker.skip()
                header[key] = view[at : unpacker.tell()]
            else:
                header[key] = unpacker.unpack()
    except (msgpack.OutOfData, IndexError) as error:
        raise RecordError(f"the header's {size} bytes end inside its map", hint=DAMAGED) from error
    except (msgpack.UnpackException, ValueError, RecursionError) as error:
        raise not_msgpack(error) from error
    if unpacker.tell() != size:
        raise RecordError(f"the header goes on for {size - unpacker.tell()} bytes after its map", hint=DAMAGED)
    return header


def _map(packed: bytes) -> int:
    """Return the number of entries that the header's map claims to have."""
    if len(packed) and 0x80 <= packed[0] <= 0x8F:
        return packed[0] - 0x80
    entries, _ = number_at(packed, 0, MAPS, "header", "a map")
    return entries


def record_of(header: dict[str, Any], payload: NDArray[np.uint8], place: tuple[str, int, int] | None) -> Record:
    """Return the record of a header and a payload, both of which may still say anything.

    Types are checked here; what the values may be is a record's own rule.
    """
    later = _check_keys(header)
    batch, tap = _whole(header, "batch"), _text(header, "tap")
    rows, listed = _whole(header, "rows"), _length(header, "ids", "a list of texts")
    if rows != listed:
        raise RecordError(f"the header says rows {rows}, but lists {listed} ids", hint=DAMAGED)
    indices = _length(header, "indices", "a list of integers")
    labels = None if header["labels"] is None else _length(header, "labels", "null or a list")
    if indices != rows or labels not in (None, rows):
        raise RecordError(
            f"batch {batch}, tap {tap} has {rows} ids, {indices} sample indices "
            f"and {'no' if labels is None else labels} labels; each row has one of each",
            hint=DAMAGED,
        )
    _length(header, "shape", "a list of integers")
    shape = unpack(header["shape"])
    if not all_of(int, shape):
        raise RecordError("the header's shape is not all integers", hint=DAMAGED)
    dtype = _text(header, "dtype")
    try:
        return Record.of(
            PackedIdentity(rows, (header["indices"], header["ids"], header["labels"]), (batch, tap), place),
            stream=_text(header, "stream"),
            fingerprint=_text(header, "fingerprint"),
            tap=tap,
            batch=batch,
            pass_number=_whole(header, "pass"),
            views=_whole(header, "views"),
            dtype=dtype,
            shape=tuple(shape),
            payload=aligned(payload, ITEM_BYTES.get(dtype, 1)),
            missing=_missing(header),
            extracted_ns=_whole(header, "extracted_at"),
            extra={key: unpack(header[key]) for key in later},
        )
    except UsageError as error:
        raise RecordError(error.message, hint=error.hint or DAMAGED) from error


def _check_keys(header: dict[str, Any]) -> list[str]:
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


def _check_must_understand(header: dict[str, Any]) -> None:
    if MUST_UNDERSTAND not in header:
        return
    _length(header, MUST_UNDERSTAND, "a list of texts")
    keys = unpack(header[MUST_UNDERSTAND])
    if not all_of(str, keys):
        raise RecordError(f"the header's {MUST_UNDERSTAND} is not all texts", hint=DAMAGED)
    unknown = [f'"{key}"' for key in keys if key not in KNOWN_KEYS]
    if unknown:
        names = clip(", ".join(unknown))
        raise RecordError(
            f"a reader of this record must understand {names}, which this featurestream does not", hint=UPGRADE
        )


def _text(header: dict[str, Any], key: str) -> str:
    value = header[key]
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise _wrong(key, value, f"a text of at most {_LONGEST_TEXT} characters")
    return value


def _whole(header: dict[str, Any], key: str) -> int:
    value = header[key]
    if type(value) is not int:  # True is an int to isinstance
        raise _wrong(key, value, "an integer")
    return value


def _length(header: dict[str, Any], key: str, expected: str) -> int:
    """Return the length of a list, without unpacking it."""
    value = header[key]
    if isinstance(value, memoryview):
        first: int = value[0]
        if 0x90 <= first <= 0x9F:
            return first - 0x90
        if first in ARRAYS:
            return int(ARRAYS[first].unpack_from(value, 1)[0])
    raise _wrong(key, value, expected)


def _missing(header: dict[str, Any]) -> tuple[MissingSample, ...]:
    if not _length(header, "missing", "a list of [index, id, reason]"):
        return ()
    missing = unpack(header["missing"])
    for sample in missing:
        if not isinstance(sample, list) or [*map(type, sample)] != [int, str, str]:
            raise RecordError('an entry of "missing" in the header is not [index, id, reason]', hint=DAMAGED)
    return tuple(MissingSample(*sample) for sample in missing)


def _wrong(key: str, value: object, expected: str) -> RecordError:
    return RecordError(f'the header\'s "{key}" is {_name(value)}, expected {expected}', hint=DAMAGED)


def _name(value: object) -> str:
    """Return what a msgpack value is, and a short one itself."""
    if isinstance(value, memoryview):
        return "a list" if 0x90 <= value[0] <= 0x9F or value[0] in ARRAYS else "a map"
    names = {bytes: "a bin", bool: "a boolean", type(None): "null", str: "a text"}
    name = names.get(type(value))
    if name is None:
        return f"the number {value}"
    return f'the text "{clip(value)}"' if isinstance(value, str) else name

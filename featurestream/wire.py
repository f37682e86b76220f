"""The bytes of a record on Kafka: its value and its headers.

A value is ONE standard msgpack array, ``[format, checksum, header, payload]``, which any msgpack library reads. As our
writer lays it out::

    byte 0       94                      an array of four
         1       01                      format: what stands first in every format there will be
         2       cf  checksum (8 bytes)  uint64: xxh3-64 over the header's bytes, then the payload's
        11       c6  H (4 bytes)         bin 32
        16       the header (H bytes)    a msgpack map; its key "pad" makes H leave 11 when divided by 16
        16 + H   c6  P (4 bytes)         bin 32
        21 + H   the payload (P bytes)   starts at a multiple of 16: raw numbers, little-endian, C order

``schemas/README.md`` describes the header's keys and the record headers for other languages. Nothing here knows torch
or Kafka; every length is checked before memory is taken.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64

from featurestream.errors import RecordError, UsageError
from featurestream.identity import MAX_NUMBER, Identity, check_indices, check_labels
from featurestream.names import record_key
from featurestream.ports import Headers
from featurestream.record import FINGERPRINT, ITEM_BYTES, MAX_AXES, REASON_BYTES, MissingSample, Record

FORMAT: Final = 1
CONTENT_TYPE: Final = "application/vnd.featurestream.features+msgpack"

#: The header's keys in the order in which they are written. ``pad`` comes last, after the keys of later writers.
HEADER_KEYS: Final = (
    "stream", "fingerprint", "tap", "pass", "batch", "views", "rows", "dtype", "shape", "indices", "ids", "labels",
    "missing", "extracted_at",
)  # fmt: skip
MUST_UNDERSTAND: Final = "must_understand"
PAD: Final = "pad"
RECORD_HEADERS: Final = ("content-type", "format", "fingerprint", "pass", "batch", "rows")

#: What a record may take of the client's stock limit of 1,000,000 bytes; the rest is for headers that others add.
RECORD_LIMIT: Final = 999_000
# A broker compares value + key + headers + 72 with its limit, a client + 36 with its own; a header takes 2 more.
_KAFKA_BYTES: Final = 72
_KAFKA_HEADER_BYTES: Final = 2

_ALIGN: Final = 16
_PREFIX: Final = struct.Struct(">BBBQBI")
_BIN_32: Final = struct.Struct(">BI")
_ARRAYS: Final = {0xDC: struct.Struct(">H"), 0xDD: struct.Struct(">I")}
_MAPS: Final = {0xDE: struct.Struct(">H"), 0xDF: struct.Struct(">I")}
_BINS: Final = {0xC4: struct.Struct(">B"), 0xC5: struct.Struct(">H"), 0xC6: struct.Struct(">I")}
_INTEGERS: Final = {
    0xCC: struct.Struct(">B"), 0xCD: struct.Struct(">H"), 0xCE: struct.Struct(">I"), 0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"), 0xD1: struct.Struct(">h"), 0xD2: struct.Struct(">i"), 0xD3: struct.Struct(">q"),
}  # fmt: skip
#: The type bytes of lists and maps.
_NESTED: Final = frozenset([*range(0x80, 0xA0), *_ARRAYS, *_MAPS])
_LISTS: Final = ("indices", "ids", "labels")
_LONGEST_TEXT: Final = 100  # names are no longer, fingerprints and dtypes shorter
_LONGEST_NUMBER: Final = 16  # digits
_DAMAGED: Final = "it was not written by featurestream, or was damaged on its way"
_UPGRADE: Final = "upgrade featurestream to read it"
_REQUIRED: Final = frozenset(HEADER_KEYS)
_KNOWN: Final = frozenset([*HEADER_KEYS, MUST_UNDERSTAND, PAD])
_CONTENT_TYPE: Final = CONTENT_TYPE.encode()
_FORMAT: Final = b"%d" % FORMAT


# ---- the value, written ---------------------------------------------------------------------------------------


class Encoder:
    """Writes records, each into the same buffer: the payload is copied once, from the record into that buffer.

    One encoder serves one thread.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)
        # Labels are float32: as such they take 5 bytes instead of 9. A later writer's `extra` may hold doubles.
        self._single = msgpack.Packer(use_single_float=True, autoreset=False)
        self._exact = msgpack.Packer()

    def encode(self, record: Record) -> NDArray[np.uint8]:
        """Return the record's value: a view of the encoder's buffer, valid until the next call.

        The same record gives the same bytes. Raises UsageError where a reader would refuse them: a text that is not
        Unicode, a missing sample's reason that is too long, or something in ``extra`` that msgpack cannot hold.
        """
        header = self._header(record)
        payload = record.payload
        at = _PREFIX.size + len(header)
        start = at + _BIN_32.size
        stop = start + payload.nbytes
        if stop >= 2**32:
            raise UsageError(f"a record of {stop} bytes cannot be written", hint="publish fewer rows a batch")
        if stop > self._buffer.nbytes:
            self._buffer = np.empty(stop + stop // 8, np.uint8)
        buffer = self._buffer.data
        _PREFIX.pack_into(buffer, 0, 0x94, FORMAT, 0xCF, _checksum(header, payload.data), 0xC6, len(header))
        buffer[_PREFIX.size : at] = header
        _BIN_32.pack_into(buffer, at, 0xC6, payload.nbytes)
        self._buffer[start:stop] = payload
        return self._buffer[:stop]

    def _header(self, record: Record) -> bytes:
        if record.extra:
            _check_extra(record.extra)
        fields = _header_fields(record)
        single, exact = self._single, self._exact
        single.reset()
        try:
            single.pack_map_header(len(fields) + len(record.extra) + 1)
            for key, value in fields.items():
                single.pack(key)
                single.pack(value)
            later = [exact.pack(key) + exact.pack(record.extra[key]) for key in sorted(record.extra)]
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"the header of batch {record.batch}, tap {record.tap} cannot be written: {error}",
                hint="texts must be valid Unicode (a file's name that is not UTF-8 cannot be an id), numbers plain int",
            ) from error
        header: bytes = single.bytes() + b"".join(later)
        # The header ends with the key "pad" (4 bytes), a text's length (1) and that many spaces (0 to 15).
        spaces = -(_PREFIX.size + len(header) + 5 + _BIN_32.size) % _ALIGN
        return header + b"\xa3pad" + bytes([0xA0 + spaces]) + b" " * spaces


def encode(record: Record) -> bytes:
    """Return the record's value as bytes of its own. Where many are written, keep an :class:`Encoder`."""
    return Encoder().encode(record).tobytes()


def _header_fields(record: Record) -> dict[str, Any]:
    for sample in record.missing:
        if len(sample.reason.encode("utf-8", "replace")) > REASON_BYTES:
            raise UsageError(
                f"the reason of missing sample {sample.index} is longer than {REASON_BYTES} bytes",
                hint="shorten it with featurestream.record.short_reason",
            )
    values = (
        record.stream, record.fingerprint, record.tap, record.pass_number, record.batch, record.views, record.rows,
        record.dtype, record.shape, record.indices.tolist(), record.ids,
        None if record.labels is None else record.labels.tolist(),
        [(sample.index, sample.id, sample.reason) for sample in record.missing], record.extracted_ns,
    )  # fmt: skip
    return dict(zip(HEADER_KEYS, values, strict=True))


def _check_extra(extra: Mapping[str, Any]) -> None:
    for key in extra:
        if not isinstance(key, str) or (key in _KNOWN and key != MUST_UNDERSTAND):
            raise UsageError(f"{key!r} cannot be a key of a record's extra header fields", hint="it must be a new name")


def _checksum(header: bytes | memoryview, payload: memoryview) -> int:
    both = xxh3_64(header)
    both.update(payload)
    return both.intdigest()


# ---- the value, read ------------------------------------------------------------------------------------------


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
    if value is None:
        raise RecordError("the record has no value", hint="a tap's topic holds no tombstones; " + _DAMAGED)
    data = (value.data if isinstance(value, np.ndarray) else memoryview(value)).toreadonly()
    if data.format != "B" or data.ndim != 1 or not data.c_contiguous:
        raise UsageError(f"a record's value is bytes, got {data.format!r} of shape {data.shape}")
    checksum, packed, payload = _split(data)
    found = _checksum(packed, payload)
    if found != checksum:
        raise RecordError(f"the checksum is {found:016x}, but the record says {checksum:016x}", hint=_DAMAGED)
    return _record(_unpack_header(bytes(packed)), np.frombuffer(payload, np.uint8), place)


def _split(data: memoryview) -> tuple[int, memoryview, memoryview]:
    """Return the checksum, the header's bytes and the payload's bytes of a value."""
    if len(data) >= _PREFIX.size:  # our own writer's layout, read at once
        array, number, kind, checksum, bin_32, length = _PREFIX.unpack_from(data)
        if (array, number, kind, bin_32) == (0x94, FORMAT, 0xCF, 0xC6):
            header, at = _slice(data, _PREFIX.size, length, "header")
            return checksum, header, _payload(data, at)
    items, at = _array(data)
    number, at = _integer(data, at, "format number")
    if number != FORMAT:
        raise _other_format(number)
    if items != 4:
        raise RecordError(
            f"the value is an array of {items}, expected [format, checksum, header, payload]", hint=_DAMAGED
        )
    checksum, at = _integer(data, at, "checksum")
    length, at = _number(data, at, _BINS, "header", "a bin")
    header, at = _slice(data, at, length, "header")
    return checksum, header, _payload(data, at)


def _payload(data: memoryview, at: int) -> memoryview:
    length, at = _number(data, at, _BINS, "payload", "a bin")
    payload, at = _slice(data, at, length, "payload")
    if at != len(data):
        raise RecordError(f"the value goes on for {len(data) - at} bytes after the record's end", hint=_DAMAGED)
    return payload


def _array(data: memoryview) -> tuple[int, int]:
    if len(data) and 0x90 <= data[0] <= 0x9F:
        return data[0] - 0x90, 1
    return _number(data, 0, _ARRAYS, "value", "an array")


def _integer(data: memoryview, at: int, what: str) -> tuple[int, int]:
    if at < len(data) and data[at] <= 0x7F:
        return data[at], at + 1
    return _number(data, at, _INTEGERS, what, "an integer")


def _number(
    data: memoryview | bytes, at: int, kinds: dict[int, struct.Struct], what: str, expected: str
) -> tuple[int, int]:
    """Return the number after the type byte at ``at``, and where it ends."""
    if at >= len(data):
        raise RecordError(f"the bytes end after {len(data)}, where the {what} should start", hint=_DAMAGED)
    kind = kinds.get(data[at])
    if kind is None:
        raise RecordError(
            f"the {what} starts with msgpack's type byte {data[at]:02x}, expected {expected}", hint=_DAMAGED
        )
    stop = at + 1 + kind.size
    if stop > len(data):
        raise RecordError(f"the bytes end after {len(data)}, inside the start of the {what}", hint=_DAMAGED)
    return kind.unpack_from(data, at + 1)[0], stop


def _slice(data: memoryview, at: int, length: int, what: str) -> tuple[memoryview, int]:
    if length > len(data) - at:
        raise RecordError(
            f"the {what} says that it has {length} bytes, but {len(data) - at} are left in the value", hint=_DAMAGED
        )
    return data[at : at + length], at + length


def _other_format(number: int | str) -> RecordError:
    return RecordError(f"the record has format {number}, this featurestream reads format {FORMAT}", hint=_UPGRADE)


def _unpack_header(packed: bytes) -> dict[str, Any]:
    """Return the header's map: texts and numbers as they are, lists and maps as a view of their bytes.

    An unpacker takes the memory for a list before it reads the list, so lists within lists that all claim the header's
    length would take its square. Skipping takes none, and proves that every length is backed by bytes.
    """
    header: dict[str, Any] = {}
    entries = _map(packed)
    view = memoryview(packed)
    size = len(packed)
    unpacker = msgpack.Unpacker(
        max_buffer_size=size, read_size=size, ext_hook=_refuse_extension, max_ext_len=0, strict_map_key=True
    )
    unpacker.feed(packed)
    try:
        unpacker.read_map_header()
        for _ in range(entries):
            if packed[unpacker.tell()] in _NESTED:
                raise RecordError("the header has a list or a map as a key, expected text", hint=_DAMAGED)
            key = unpacker.unpack()
            if type(key) is not str:
                raise RecordError(f"the header has the key {_clip(repr(key))}, expected text", hint=_DAMAGED)
            if key in header:
                raise RecordError(f'the header has the key "{_clip(key)}" twice', hint=_DAMAGED)
            at = unpacker.tell()
            if packed[at] in _NESTED:
                unpacker.skip()
                header[key] = view[at : unpacker.tell()]
            else:
                header[key] = unpacker.unpack()
    except (msgpack.OutOfData, IndexError) as error:
        raise RecordError(f"the header's {size} bytes end inside its map", hint=_DAMAGED) from error
    except (msgpack.UnpackException, ValueError, RecursionError) as error:
        raise _not_msgpack(error) from error
    if unpacker.tell() != size:
        raise RecordError(f"the header goes on for {size - unpacker.tell()} bytes after its map", hint=_DAMAGED)
    return header


def _unpack(value: Any) -> Any:
    """Return a header's value, a list or map of those that were skipped among them."""
    if not isinstance(value, memoryview):
        return value
    try:
        return msgpack.unpackb(value, ext_hook=_refuse_extension, max_ext_len=0)
    except (msgpack.UnpackException, ValueError, RecursionError) as error:
        raise _not_msgpack(error) from error


def _not_msgpack(error: Exception) -> RecordError:
    reason = str(error) or type(error).__name__
    return RecordError(f"the header is not msgpack as a record may hold it: {reason}", hint=_DAMAGED)


def _map(packed: bytes) -> int:
    """Return the number of entries that the header's map claims to have."""
    if len(packed) and 0x80 <= packed[0] <= 0x8F:
        return packed[0] - 0x80
    entries, _ = _number(packed, 0, _MAPS, "header", "a map")
    return entries


def _refuse_extension(code: int, _: bytes) -> Any:
    raise RecordError(f"the header holds msgpack's extension type {code}, expected plain types", hint=_DAMAGED)


class _PackedIdentity(Identity):
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
        return (isinstance(other, _PackedIdentity) and self._bytes() == other._bytes()) or super().same(other)

    def _bytes(self) -> list[bytes | None]:
        # As bytes they are compared in one call, as views byte by byte.
        return [None if packed is None else bytes(packed) for packed in self._packed]

    def _decoded(self, name: str) -> Any:
        value = _unpack(self._packed[_LISTS.index(name)])
        where = "batch {}, tap {}".format(*self._where)
        try:
            if name == "ids":
                if not _all_of(str, value):
                    raise RecordError("the header's ids are not all texts", hint=_DAMAGED)
                return tuple(value)
            if name == "indices":
                indices = _int64(value, "indices")
                check_indices(indices, where)
                return indices
            labels = _labels(value)
            check_labels(labels, where)
            return labels
        except UsageError as error:
            raise RecordError(error.message, hint=error.hint or _DAMAGED) from error


def _record(header: dict[str, Any], payload: NDArray[np.uint8], place: tuple[str, int, int] | None) -> Record:
    """Return the record of a header and a payload, both of which may still say anything.

    Types are checked here; what the values may be is a record's own rule.
    """
    later = _check_keys(header)
    batch, tap = _whole(header, "batch"), _text(header, "tap")
    rows, listed = _whole(header, "rows"), _length(header, "ids", "a list of texts")
    if rows != listed:
        raise RecordError(f"the header says rows {rows}, but lists {listed} ids", hint=_DAMAGED)
    indices = _length(header, "indices", "a list of integers")
    labels = None if header["labels"] is None else _length(header, "labels", "null or a list")
    if indices != rows or labels not in (None, rows):
        raise RecordError(
            f"batch {batch}, tap {tap} has {rows} ids, {indices} sample indices "
            f"and {'no' if labels is None else labels} labels; each row has one of each",
            hint=_DAMAGED,
        )
    _length(header, "shape", "a list of integers")
    shape = _unpack(header["shape"])
    if not _all_of(int, shape):
        raise RecordError("the header's shape is not all integers", hint=_DAMAGED)
    dtype = _text(header, "dtype")
    try:
        return Record.of(
            _PackedIdentity(rows, (header["indices"], header["ids"], header["labels"]), (batch, tap), place),
            stream=_text(header, "stream"),
            fingerprint=_text(header, "fingerprint"),
            tap=tap,
            batch=batch,
            pass_number=_whole(header, "pass"),
            views=_whole(header, "views"),
            dtype=dtype,
            shape=tuple(shape),
            payload=_aligned(payload, ITEM_BYTES.get(dtype, 1)),
            missing=_missing(header),
            extracted_ns=_whole(header, "extracted_at"),
            extra={key: _unpack(header[key]) for key in later},
        )
    except UsageError as error:
        raise RecordError(error.message, hint=error.hint or _DAMAGED) from error


def _check_keys(header: dict[str, Any]) -> list[str]:
    """Return the keys that go into a record's ``extra``: those of later writers, and must_understand."""
    if not header.keys() >= _REQUIRED:
        absent = [key for key in HEADER_KEYS if key not in header]
        # A later writer may have replaced a key by another: say so rather than that the record is damaged.
        _check_must_understand(header)
        raise RecordError(f"the header lacks {', '.join(absent)}", hint=_DAMAGED)
    if len(header) == len(HEADER_KEYS) + (PAD in header):
        return []
    _check_must_understand(header)
    return [key for key in header if key not in _REQUIRED and key != PAD]


def _check_must_understand(header: dict[str, Any]) -> None:
    if MUST_UNDERSTAND not in header:
        return
    _length(header, MUST_UNDERSTAND, "a list of texts")
    keys = _unpack(header[MUST_UNDERSTAND])
    if not _all_of(str, keys):
        raise RecordError(f"the header's {MUST_UNDERSTAND} is not all texts", hint=_DAMAGED)
    unknown = [f'"{key}"' for key in keys if key not in _KNOWN]
    if unknown:
        names = _clip(", ".join(unknown))
        raise RecordError(
            f"a reader of this record must understand {names}, which this featurestream does not", hint=_UPGRADE
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
        if first in _ARRAYS:
            return int(_ARRAYS[first].unpack_from(value, 1)[0])
    raise _wrong(key, value, expected)


def _all_of(kind: type, values: list[Any]) -> bool:
    # The fastest exact answer in Python; isinstance would take True for an int.
    return [*map(type, values)].count(kind) == len(values)


def _int64(values: list[Any], key: str) -> NDArray[np.int64]:
    if not _all_of(int, values):
        raise RecordError(f"the header's {key} are not all integers", hint=_DAMAGED)
    numbers = np.empty(len(values), np.int64)
    try:
        struct.pack_into(f"={len(values)}q", numbers.data, 0, *values)  # half the time of numpy.array(values)
    except struct.error as error:
        raise RecordError(f"the header's {key} hold a number beyond 64 bits with sign", hint=_DAMAGED) from error
    return numbers


def _float32(values: list[Any]) -> NDArray[np.float32]:
    if not _all_of(float, values):
        raise RecordError("the header's labels are not all integers, all floats or all lists of floats", hint=_DAMAGED)
    numbers = np.empty(len(values), np.float32)
    try:
        struct.pack_into(f"={len(values)}f", numbers.data, 0, *values)
    except OverflowError as error:
        raise RecordError("the header's labels hold a number beyond float32", hint=_DAMAGED) from error
    return numbers


def _labels(labels: Any) -> NDArray[Any] | None:
    """Return int64 (rows,) of integers, float32 (rows,) of floats, float32 (rows, K) of lists of floats, or None.

    The labels of a batch without rows are int64 (0,), whatever the stream's are: an empty list has no type.
    """
    if labels is None:
        return None
    if not labels or type(labels[0]) is int:
        return _int64(labels, "labels")
    if type(labels[0]) is not list:
        return _float32(labels)
    width = len(labels[0])
    if not _all_of(list, labels) or [*map(len, labels)].count(width) != len(labels):
        raise RecordError("the header's labels are not all lists of one length", hint=_DAMAGED)
    return _float32([*chain.from_iterable(labels)]).reshape(len(labels), width)


def _missing(header: dict[str, Any]) -> tuple[MissingSample, ...]:
    if not _length(header, "missing", "a list of [index, id, reason]"):
        return ()
    missing = _unpack(header["missing"])
    for sample in missing:
        if not isinstance(sample, list) or [*map(type, sample)] != [int, str, str]:
            raise RecordError('an entry of "missing" in the header is not [index, id, reason]', hint=_DAMAGED)
    return tuple(MissingSample(*sample) for sample in missing)


def _aligned(payload: NDArray[np.uint8], item_bytes: int) -> NDArray[np.uint8]:
    """Return the payload itself where its numbers are aligned in memory, as our own writer leaves them; else a copy."""
    if payload.nbytes % item_bytes or payload.view(f"u{item_bytes}").flags.aligned:
        return payload
    copied = payload.copy()
    copied.flags.writeable = False
    return copied


def _wrong(key: str, value: object, expected: str) -> RecordError:
    return RecordError(f'the header\'s "{key}" is {_name(value)}, expected {expected}', hint=_DAMAGED)


def _name(value: object) -> str:
    """Return what a msgpack value is, and a short one itself."""
    if isinstance(value, memoryview):
        return "a list" if 0x90 <= value[0] <= 0x9F or value[0] in _ARRAYS else "a map"
    names = {bytes: "a bin", bool: "a boolean", type(None): "null", str: "a text"}
    name = names.get(type(value))
    if name is None:
        return f"the number {value}"
    return f'the text "{_clip(value)}"' if isinstance(value, str) else name


def _clip(text: str) -> str:
    """Return the start of a text of others, so that a message stays one that can be read."""
    return text if len(text) <= 80 else text[:80] + "..."


# ---- the record's headers -------------------------------------------------------------------------------------


class RecordHeaders(NamedTuple):
    """What a record's headers say: enough to route, to find gaps and to show lag without touching the value."""

    format: int
    fingerprint: str
    pass_number: int
    batch: int
    rows: int


def headers_of(record: Record) -> list[tuple[str, bytes]]:
    """Return the record's headers: small texts."""
    return _headers(record.fingerprint, record.pass_number, record.batch, record.rows)


def _headers(fingerprint: str, pass_number: int, batch: int, rows: int) -> list[tuple[str, bytes]]:
    return [
        ("content-type", _CONTENT_TYPE),
        ("format", _FORMAT),
        ("fingerprint", fingerprint.encode()),
        ("pass", b"%d" % pass_number),
        ("batch", b"%d" % batch),
        ("rows", b"%d" % rows),
    ]


def parse_headers(headers: Headers | None) -> RecordHeaders:
    """Return what a record's headers say.

    Headers of other names, such as a tracer adds, are passed over. Raises RecordError where one of ours is missing,
    there twice, without a value or not what it should be, and where the record is of another format.
    """
    given = headers or ()
    # Ours and no others, in the order of our writer, each with a value: nearly always, and much faster to take apart.
    names, values = zip(*given, strict=True) if given else ((), ())
    if names != RECORD_HEADERS or {*map(type, values)} != {bytes}:
        found = _pick(given)
        values = tuple(found[name] for name in RECORD_HEADERS)
    content_type, number, fingerprint, pass_number, batch, rows = values
    if content_type != _CONTENT_TYPE:
        raise RecordError(
            f'the record\'s content-type is "{_shown(content_type)}", expected "{CONTENT_TYPE}"', hint=_DAMAGED
        )
    if number != _FORMAT:
        raise _other_format(_shown(number))
    return RecordHeaders(
        FORMAT,
        _fingerprint(fingerprint),
        _header_number("pass", pass_number),
        _header_number("batch", batch),
        _header_number("rows", rows),
    )


@functools.lru_cache(maxsize=256)
def _fingerprint(value: bytes) -> str:
    fingerprint = value.decode("ascii", "replace")
    if not FINGERPRINT.fullmatch(fingerprint):
        raise RecordError(f'the record\'s header "fingerprint" is "{_shown(value)}"', hint=_DAMAGED)
    return fingerprint


def _pick(headers: Headers) -> dict[str, bytes]:
    """Return our headers out of all that a record has."""
    found: dict[str, bytes] = {}
    for name, value in headers:
        if name not in RECORD_HEADERS:
            continue
        if name in found:
            raise RecordError(f'the record has the header "{name}" twice', hint=_DAMAGED)
        if not isinstance(value, bytes):
            raise RecordError(f'the record\'s header "{name}" has no value', hint=_DAMAGED)
        found[name] = value
    absent = [name for name in RECORD_HEADERS if name not in found]
    if absent:
        raise RecordError(f"the record lacks the headers {', '.join(absent)}", hint=_DAMAGED)
    return found


def _header_number(name: str, text: bytes) -> int:
    number = int(text) if len(text) <= _LONGEST_NUMBER and text.isdigit() else -1
    if not 0 <= number <= MAX_NUMBER or text != b"%d" % number:
        raise RecordError(
            f'the record\'s header "{name}" is "{_shown(text)}", expected a number from 0 to 2^53 - 1', hint=_DAMAGED
        )
    return number


def _shown(text: bytes) -> str:
    return _clip(text[:100].decode("ascii", "backslashreplace"))


# ---- how large a record can get -------------------------------------------------------------------------------


def record_bytes_bound(row_bytes: int, rows: int, longest_id_bytes: int, label_values: int, *, views: int = 1) -> int:
    """Return a size that no record of so many rows exceeds, from what is known before anything is extracted.

    It counts all that a client or a broker counts against its limit: value, key, headers and their own bytes. A sample
    that is missing instead of having rows is allowed for; keys of later writers (``extra``) are not.

    Args:
        row_bytes: bytes of one row's numbers.
        rows: rows when no sample is missing.
        longest_id_bytes: UTF-8 bytes (not characters) of the longest sample id.
        label_values: numbers in the label of a row; 0 where there are none.
        views: rows of one sample.
    """
    return _FIXED_BYTES + -(-rows // views) * _sample_bytes(row_bytes, longest_id_bytes, label_values, views)


def rows_that_fit(
    row_bytes: int, longest_id_bytes: int, label_values: int, *, views: int = 1, limit: int = RECORD_LIMIT
) -> int:
    """Return the most rows, a multiple of ``views``, whose record never exceeds ``limit``.

    That is 0 where not even one sample fits. The arguments are those of :func:`record_bytes_bound`.
    """
    samples = (limit - _FIXED_BYTES) // _sample_bytes(row_bytes, longest_id_bytes, label_values, views)
    return max(samples, 0) * views


def _sample_bytes(row_bytes: int, longest_id_bytes: int, label_values: int, views: int) -> int:
    # msgpack: an integer or a double takes up to 9 bytes, a float32 5; the length of a text or a list up to 5.
    label = 5 + 5 * label_values if label_values > 1 else 9 * label_values
    row = row_bytes + 9 + (5 + longest_id_bytes) + label
    missing = 1 + 9 + (5 + longest_id_bytes) + (5 + REASON_BYTES)
    return max(views * row, missing)


def _fixed_bytes() -> int:
    """Return the most that a record takes beside its samples."""
    number = MAX_NUMBER
    lists = ("indices", "ids", "labels", "missing")
    header: dict[str, object] = dict.fromkeys(HEADER_KEYS, number)
    header |= {"stream": "x" * 100, "tap": "x" * 100, "fingerprint": "x" * 64, "dtype": max(ITEM_BYTES, key=len)}
    header |= {"shape": (number,) * MAX_AXES, "extracted_at": 2**63 - 1, PAD: " " * (_ALIGN - 1)}
    header |= dict.fromkeys(lists, ())
    lengths = 4 * len(lists) + 4  # a long list's length takes 4 bytes more than an empty one's; and so may the map's
    value = _PREFIX.size + len(msgpack.packb(header)) + lengths + _BIN_32.size
    headers = _headers("x" * 64, number, number, number)
    return (
        value
        + len(record_key(number, number))
        + sum(len(name) + len(text) + _KAFKA_HEADER_BYTES for name, text in headers)
        + _KAFKA_BYTES
    )


_FIXED_BYTES: Final = _fixed_bytes()

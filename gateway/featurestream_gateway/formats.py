"""The rows of an answer as bytes: JSON, msgpack around the records as they are, and .npy."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

import msgpack
import numpy as np

from featurestream.batch import row_bytes
from featurestream.errors import RecordError
from featurestream.http.records import bin_header
from featurestream.manifest import Manifest
from featurestream.ports import LogRecord
from featurestream.position import Position
from featurestream.record import ITEM_BYTES, Record
from featurestream.wire import open_record
from featurestream_gateway.ranges import BatchPiece, Piece, Range
from featurestream_gateway.readings import Size

Format = Literal["json", "msgpack", "npy"]
Bytes = bytes | memoryview

MEDIA_TYPES: Final[dict[Format, str]] = {
    "json": "application/json",
    "msgpack": "application/msgpack",
    "npy": "application/x-npy",
}
#: What clients call them too.
OTHER_NAMES: Final[dict[str, Format]] = {
    "application/vnd.msgpack": "msgpack", "application/x-msgpack": "msgpack", "application/npy": "npy",
}  # fmt: skip

# At most so many characters a number and its comma have in JSON; a float is written as the double that it is.
_DIGITS: Final = {"float16": 24, "bfloat16": 25, "float32": 25, "uint8": 4, "int64": 21}
_ROW_JSON: Final = 300  # all keys and numbers of a row beside id, label and features
_ROW_NPY: Final = 64
_ENTRY: Final = 24  # msgpack around a record: an array, a time, the length of a bin
_ESCAPED: Final = 6  # characters that one of an id may become in JSON
_UCS4: Final = 4  # bytes of a character in NumPy
_ID: Final = 128  # bytes that an id hardly ever exceeds
_TAPS_1_0: Final = 100  # the header of a .npy of version 1.0 has at most 65,535 bytes
_NUMBERS_AT_ONCE: Final = 16_384  # as Python's own they take 32 bytes each: only for a moment, so many


def choose_format(asked: str | None, accept: str | None) -> Format:
    """Return the format that a parameter names, or else the first one that an Accept header does; else JSON."""
    if asked is not None:
        return next(name for name in get_args(Format) if name == asked)
    types: dict[str, Format] = {media: name for name, media in MEDIA_TYPES.items()} | OTHER_NAMES
    for part in (accept or "").split(","):
        found = types.get(part.partition(";")[0].strip().lower())
        if found is not None:
            return found
    return "json"


def size_of(form: Format, manifest: Manifest, taps: Sequence[str]) -> Size:
    """Return how many bytes batches take in a format, at most."""
    if form == "msgpack":
        return lambda records, _rows: (sum(len(record.value or b"") + _ENTRY for record in records), 0)
    each = _row_size(form, manifest, taps)
    if form == "npy":
        return _NpySize(each)
    # What is no feature in a record is ids, mostly.
    first = row_bytes(manifest.dtype, manifest.tap(taps[0]).shape)
    return lambda records, rows: (_ESCAPED * max(len(records[0].value or b"") - rows * first, 0), each)


def room_of(form: Format, wanted: Range, rows: int, most_bytes: int) -> int:
    """Return the bytes that an answer with so many rows of a range takes at most while it is made.

    ``most_bytes``: of an answer. Ids of more than 128 bytes are not thought of.
    """
    layout = wanted.manifest.layout
    batch_rows = layout.batch_samples * layout.views
    if wanted.stop is not None:
        rows = min(rows, (wanted.stop.batch + 1 - wanted.begin.batch) * batch_rows)
    if form == "msgpack":  # whole records, as they are
        rows = (rows // batch_rows + 2) * batch_rows
    size = min(rows * (_row_size(form, wanted.manifest, wanted.taps) + _ID), most_bytes)
    return size if form == "msgpack" else 2 * size  # beside the records that it is made of


def _row_size(form: Format, manifest: Manifest, taps: Sequence[str]) -> int:
    """Return how many bytes a row takes at most, without its id."""
    facts = [manifest.tap(tap) for tap in taps]
    numbers = sum(tap.numbers for tap in facts)
    labels = manifest.data.label_values
    if form == "msgpack":
        return numbers * ITEM_BYTES[manifest.dtype] + 16 * len(taps) * (labels + 1)
    if form == "npy":
        return numbers * (4 if manifest.dtype == "bfloat16" else ITEM_BYTES[manifest.dtype]) + 8 * labels + _ROW_NPY
    brackets = sum(2 * tap.numbers // tap.shape[-1] for tap in facts if len(tap.shape) > 1)
    return numbers * _DIGITS[manifest.dtype] + 32 * labels + _ROW_JSON + brackets


class _NpySize:
    """The bytes of a .npy: all ids are as wide as the longest, so a batch with a longer one widens those before it."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._rows = 0
        self._width = 0

    def __call__(self, records: Sequence[LogRecord], rows: int) -> tuple[int, int]:
        """Return the bytes that a batch adds, and those of each of its rows."""
        width = max([self._width, *map(len, _opened(records[0]).ids)])
        wider = _UCS4 * (width - self._width) * self._rows
        self._rows += rows
        self._width = width
        return wider, self._each + _UCS4 * width


def encode(form: Format, piece: Piece) -> list[Bytes]:
    """Return an answer's body in parts, none of which is larger than a batch."""
    if form == "msgpack":
        return list(_msgpack(piece))
    if form == "npy":
        return list(_npy(piece))
    return list(_json(piece))


def json_bytes(facts: Any) -> bytes:
    """Return JSON values as compact UTF-8. Numbers that are not finite become null."""
    try:
        text = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    except ValueError:
        text = json.dumps(_finite(facts), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    return text.encode("utf-8", "replace")


def time_json(milliseconds: int) -> str:
    """Return a moment, milliseconds since the epoch, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def place_json(place: Position) -> dict[str, int]:
    """Return a place as JSON values."""
    return {"batch": place.batch, "row": place.row}


def place_text(place: Position) -> str:
    """Return a place in words: ``6:3``."""
    return f"{place.batch}:{place.row}"


def _json(piece: Piece) -> Iterator[bytes]:
    wanted = piece.range
    missing: list[dict[str, Any]] = []
    head = {
        "stream": wanted.manifest.stream,
        "fingerprint": wanted.manifest.fingerprint,
        "taps": list(wanted.taps),
        "from": place_json(wanted.begin),
        "until": place_json(piece.until),
    }
    yield json_bytes(head)[:-1] + b',"rows":['
    between = b""
    for batch in piece.batches:
        records = open_records(batch, wanted.taps)
        for some in _some_rows(batch, wanted):
            yield between + json_bytes(list(_rows(batch, records, some)))[1:-1]
            between = b","
        if not batch.first:
            missing += [
                {"batch": batch.number, "index": one.index, "id": one.id, "reason": one.reason}
                for one in records[0].missing
            ]
    yield b"]," + json_bytes({"missing": missing, "more": piece.more, "next": piece.next})[1:]


def entry_json(batch: BatchPiece, wanted: Range) -> Iterator[bytes]:
    """Yield, in parts, a batch as the original had it: a JSON object with the rows of each tap."""
    before = b"{"
    for record in open_records(batch, wanted.taps):
        yield before + json_bytes(record.tap) + b":["
        between = b""
        for some in _some_rows(batch, wanted):
            yield between + json_bytes(record.numpy()[some].tolist())[1:-1]
            between = b","
        yield b"]"
        before = b","
    yield b"}"


def _some_rows(batch: BatchPiece, wanted: Range) -> Iterator[slice]:
    """Yield the rows of a piece of a batch, as many at a time as Python can well have as its own numbers."""
    numbers = sum(wanted.manifest.tap(tap).numbers for tap in wanted.taps)
    at_once = max(_NUMBERS_AT_ONCE // (numbers + 16), 1)
    for first in range(batch.first, batch.last, at_once):
        yield slice(first, min(first + at_once, batch.last))


def open_records(batch: BatchPiece, taps: Sequence[str]) -> list[Record]:
    """Return a batch's records, opened: all of one batch, with the same rows. Raises RecordError where they are not."""
    opened = []
    for raw, tap in zip(batch.records, taps, strict=True):
        record = _opened(raw)
        if (record.batch, record.tap, record.rows) != (batch.number, tap, batch.rows):
            raise RecordError(
                f"expected {batch.rows} rows of batch {batch.number} of tap {tap}, but its value says {record.rows} of "
                f"batch {record.batch} of tap {record.tap}"
            ).at(raw.topic, raw.lane, raw.offset)
        opened.append(record)
    return opened


def _opened(raw: LogRecord) -> Record:
    try:
        if raw.value is None:
            raise RecordError("a tombstone, where a batch should be")
        return open_record(raw.value, (raw.topic, raw.lane, raw.offset))
    except RecordError as error:
        raise error.at(raw.topic, raw.lane, raw.offset) from error


def _rows(batch: BatchPiece, records: Sequence[Record], part: slice) -> Iterator[dict[str, Any]]:
    head = records[0]
    appended = time_json(min(raw.timestamp_ms for raw in batch.records))
    extracted = time_json(head.extracted_ns // 1_000_000)
    features = {record.tap: record.numpy()[part].tolist() for record in records}
    indices, ids = head.indices[part].tolist(), head.ids[part]
    labels = [None] * len(ids) if head.labels is None else head.labels[part].tolist()
    for place in range(len(ids)):
        yield {
            "batch": batch.number,
            "row": part.start + place,
            "pass": head.pass_number,
            "index": indices[place],
            "id": ids[place],
            "label": labels[place],
            "appended_at": appended,
            "extracted_at": extracted,
            "features": {tap: numbers[place] for tap, numbers in features.items()},
        }


def _msgpack(piece: Piece) -> Iterator[bytes]:
    packer = msgpack.Packer()
    entries = [raw for batch in piece.batches for raw in batch.records]
    yield packer.pack_array_header(len(entries))
    for raw in entries:
        value = raw.value or b""
        yield packer.pack_array_header(2) + packer.pack(raw.timestamp_ms) + bin_header(len(value))
        yield value


def _npy(piece: Piece) -> Iterator[Bytes]:
    taps = piece.range.taps
    opened = [(batch, open_records(batch, taps)) for batch in piece.batches]
    dtype = _npy_dtype(piece, [records[0] for _, records in opened])
    file = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (piece.rows,)}
    if len(taps) < _TAPS_1_0:
        np.lib.format.write_array_header_1_0(file, header)
    else:
        np.lib.format.write_array_header_2_0(file, header)
    yield file.getvalue()
    for batch, records in opened:
        head, part = records[0], slice(batch.first, batch.last)
        into = np.empty(batch.last - batch.first, dtype)
        into["batch"], into["row"] = batch.number, np.arange(batch.first, batch.last)
        into["pass"], into["index"], into["id"] = head.pass_number, head.indices[part], head.ids[part]
        if head.labels is not None and "label" in (dtype.names or ()):
            into["label"] = head.labels[part]
        into["appended_ms"] = min(raw.timestamp_ms for raw in batch.records)
        into["extracted_ms"] = head.extracted_ns // 1_000_000
        for record in records:
            into["features"][record.tap] = record.numpy()[part]
        if into.size:
            yield into.view(np.uint8).data


def _npy_dtype(piece: Piece, heads: Sequence[Record]) -> np.dtype[Any]:
    manifest = piece.range.manifest
    width = max([1, *(len(name) for batch, head in zip(piece.batches, heads, strict=True)
                      for name in head.ids[batch.first : batch.last])])  # fmt: skip
    number = "<f4" if manifest.dtype == "bfloat16" else np.dtype(manifest.dtype).newbyteorder("<").str
    labels: dict[str, list[tuple[Any, ...]]] = {
        "none": [],
        "class": [("label", "<i8")],
        "value": [("label", "<f4")],
        "target": [("label", "<f4", (manifest.data.label_values,))],
    }
    taps = [(tap, number, tuple(manifest.tap(tap).shape)) for tap in piece.range.taps]
    fields: list[tuple[Any, ...]] = [
        *((name, "<i8") for name in ("batch", "row", "pass", "index")),
        ("id", f"<U{width}"),
        *labels[manifest.data.label_kind],
        ("appended_ms", "<i8"),
        ("extracted_ms", "<i8"),
        ("features", taps),
    ]
    return np.dtype(fields)


def _plain(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value

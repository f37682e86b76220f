"""What one needs to test against featurestream: records made to measure, and bytes that are none."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgpack
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from featurestream.record import MissingSample, Record
from featurestream.wire import CONTENT_TYPE, FORMAT, HEADER_KEYS, encode

FINGERPRINT: Final = "00112233445566778899aabbccddeeff"
EXTRACTED_NS: Final = 1_769_860_800_000_000_000  # 2026-01-31T12:00:00Z

LabelKind = Literal["none", "class", "value", "target"]


# ---- records --------------------------------------------------------------------------------------------------


def make_record(
    batch: int = 0,
    *,
    rows: int = 4,
    shape: tuple[int, ...] = (8,),
    dtype: str = "float16",
    labels: LabelKind = "class",
    views: int = 1,
    stream: str = "digits-train",
    tap: str = "avgpool",
    pass_number: int = 0,
    fingerprint: str = FINGERPRINT,
    ids: Sequence[str] | None = None,
    missing: Sequence[MissingSample] = (),
    extra: Mapping[str, Any] | None = None,
) -> Record:
    """Return a record whose every number follows from the arguments.

    Batch b holds samples b * (rows / views) and on, ``views`` rows each. Labels are the sample's index modulo 10
    ("class"), its third ("value"), or its index, half and third ("target"). Features differ between samples, views,
    taps and places in the row, and are held exactly by every dtype.
    """
    samples = rows // views
    first = batch * samples
    indices = np.repeat(np.arange(first, first + samples, dtype=np.int64), views)
    return Record(
        stream=stream,
        fingerprint=fingerprint,
        tap=tap,
        batch=batch,
        pass_number=pass_number,
        views=views,
        dtype=dtype,
        shape=shape,
        payload=_features(indices, views, shape, dtype, tap),
        indices=indices,
        ids=tuple(ids) if ids is not None else tuple(f"class{index % 10}/{index:05}.png" for index in indices.tolist()),
        labels=_labels(indices, labels),
        missing=tuple(missing),
        extracted_ns=EXTRACTED_NS + batch,
        extra=dict(extra or {}),
    )


def same_record(one: Record, other: Record) -> bool:
    """Tell whether two records hold the same: every field, and the dtype of every array."""
    plain = ("stream", "fingerprint", "tap", "batch", "pass_number", "views", "dtype", "shape", "ids", "missing")
    return (
        all(getattr(one, name) == getattr(other, name) for name in (*plain, "extracted_ns", "extra"))
        and _same(one.payload, other.payload)
        and _same(one.indices, other.indices)
        and _same(one.labels, other.labels)
    )


def _features(
    indices: NDArray[np.int64], views: int, shape: tuple[int, ...], dtype: str, tap: str
) -> NDArray[np.uint8]:
    place = np.arange(int(np.prod(shape, dtype=np.int64)))
    row = indices * 37 + np.arange(len(indices)) % views * 101 + sum(tap.encode())
    numbers = (row[:, None] + place * 11) % 256  # 0 to 255; the floats are -8 to 7.9375 in steps of 1/16
    if dtype in ("uint8", "int64"):
        return numbers.astype(f"<{np.dtype(dtype).str[1:]}").reshape(-1).view(np.uint8)
    floats = (numbers / 16 - 8).astype("<f4")
    if dtype == "bfloat16":  # the upper half of a float32, which loses nothing of these numbers
        return (floats.reshape(-1).view("<u4") >> 16).astype("<u2").view(np.uint8)
    return floats.astype(np.dtype(dtype).newbyteorder("<")).reshape(-1).view(np.uint8)


def _labels(indices: NDArray[np.int64], kind: LabelKind) -> NDArray[Any] | None:
    if kind == "none":
        return None
    if kind == "class":
        return indices % 10
    if kind == "value":
        return (indices / 3).astype(np.float32)
    return np.stack([indices, indices / 2, indices / 3], axis=1).astype(np.float32)


def _same(one: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


# ---- bytes that are no record ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hostile:
    """A value that is no record, and a part of the message that says so."""

    name: str
    value: bytes
    says: str


@dataclass(frozen=True, slots=True)
class HostileHeaders:
    """Record headers that are not ours, and a part of the message that says so."""

    name: str
    headers: tuple[tuple[str, Any], ...]
    says: str


def seal(header: Mapping[Any, Any] | bytes, payload: bytes) -> bytes:
    """Return a value with a right outer array and a right checksum round any header and payload."""
    packed: bytes = header if isinstance(header, bytes) else msgpack.packb(header)
    checksum = xxh3_64_intdigest(packed + payload)
    return b"".join(
        [
            struct.pack(">BBBQBI", 0x94, FORMAT, 0xCF, checksum, 0xC6, len(packed)),
            packed,
            struct.pack(">BI", 0xC6, len(payload)),
            payload,
        ]
    )


def open_value(value: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header, as a plain dict to change and :func:`seal` again, and the payload of a good value."""
    _, _, header, payload = msgpack.unpackb(value)
    return msgpack.unpackb(header), payload


def hostile_values() -> list[Hostile]:
    """Return values that are no records: what a damaged log, another application or an attacker may leave behind.

    Every one must end in a RecordError whose message contains ``says``, at once, and without taking more memory than
    some multiple of the value's own size.
    """
    return [*_hostile_arrays(), *_hostile_maps(), *_hostile_fields()]


def hostile_headers() -> list[HostileHeaders]:
    """Return record headers that :func:`featurestream.wire.parse_headers` must refuse with a RecordError."""
    good = {
        "content-type": CONTENT_TYPE.encode(), "format": b"1", "fingerprint": FINGERPRINT.encode(),
        "pass": b"0", "batch": b"17", "rows": b"4",
    }  # fmt: skip

    def but(name: str, value: object, says: str) -> HostileHeaders:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        return HostileHeaders(f"{name} is {shown}", tuple((good | {name: value}).items()), says)

    cases = [
        HostileHeaders("no headers", (), "lacks the headers content-type, format, fingerprint, pass, batch, rows"),
        but("content-type", b"application/json", 'content-type is "application/json"'),
        but("content-type", b"\xff\x00" * 500, "content-type is"),
        but("format", b"2", "has format 2, this featurestream reads format 1"),
        but("format", b"01", "has format 01"),
        but("fingerprint", b"", '"fingerprint" is ""'),
        but("fingerprint", b"\xc3\xa9", '"fingerprint" is'),
        but("fingerprint", b"f" * 65, '"fingerprint" is'),
    ]
    for name, value in good.items():
        others = tuple(item for item in good.items() if item[0] != name)
        cases += [
            but(name, None, f'header "{name}" has no value'),
            but(name, 17, f'header "{name}" has no value'),
            HostileHeaders(f"{name} is missing", others, f"lacks the headers {name}"),
            HostileHeaders(f"{name} is there twice", (*good.items(), (name, value)), f'header "{name}" twice'),
        ]
    for name in ("pass", "batch", "rows"):
        texts = (b"", b"-1", b"+1", b"1.0", b" 1", b"007", b"0x10", b"1e3", b"\xd9\xa3", b"%d" % 2**53, b"9" * 5000)
        cases += [but(name, text, f'header "{name}" is') for text in texts]
    return cases


def _hostile_arrays() -> list[Hostile]:
    """What can be wrong outside the header."""
    good = encode(make_record(3))
    packed, numbers = (bytes(part) for part in msgpack.unpackb(good)[2:])
    checksum, frame = good[2:11], good[:11]
    header = good[11 : 16 + len(packed)]
    payload = good[16 + len(packed) :]
    lies = [(length, struct.pack(">BI", 0xC6, length)) for length in (2**32 - 1, 2**31, 2**31 - 1, len(good))]
    tag = "starts with msgpack's type byte"
    return [
        Hostile("nothing", b"", "the bytes end after 0"),
        Hostile("JSON", b'{"format": 1}', f"{tag} 7b, expected an array"),
        Hostile("a text", msgpack.packb("[1, 2, 3, 4]"), "expected an array"),
        Hostile("a map", msgpack.packb({"format": 1}), "expected an array"),
        Hostile("zeros", bytes(64), f"{tag} 00, expected an array"),
        Hostile("Confluent's framing", b"\x00\x00\x00\x00\x07" + good, "expected an array"),
        Hostile("a pickle", b"\x80\x04\x95" + bytes(20), "expected an array"),
        Hostile("an empty array", b"\x90", "where the format number should start"),
        Hostile("an array that is cut in its length", b"\xdd\x00\x00", "inside the start of the value"),
        Hostile("an array of 3", b"\x93" + good[1:], "an array of 3"),
        Hostile("an array of 5", b"\x95" + good[1:] + b"\xc0", "an array of 5"),
        Hostile("an array of 2^32 - 1", b"\xdd\xff\xff\xff\xff" + good[1:], "an array of 4294967295"),
        Hostile("format 0", b"\x94\x00" + good[2:], "format 0, this featurestream reads format 1"),
        Hostile("a future format", b"\x94\x02" + good[2:], "format 2, this featurestream reads format 1; upgrade"),
        Hostile(
            "a future format of another shape", b"\x92\x03\xc4\x01x", "format 3, this featurestream reads format 1"
        ),
        Hostile("a format that needs 64 bits", b"\x94\xcf" + b"\xff" * 8 + good[2:], "format 18446744073709551615"),
        Hostile("a negative format", b"\x94\xd0\xff" + good[2:], "format -1"),
        Hostile("a format of floating point", b"\x94\xca\x3f\x80\x00\x00" + good[2:], "expected an integer"),
        Hostile("a format as text", b"\x94\xa11" + good[2:], "expected an integer"),
        Hostile("a checksum as text", b"\x94\x01\xa11" + header + payload, f"checksum {tag} a1"),
        Hostile("a checksum as null", b"\x94\x01\xc0" + header + payload, f"checksum {tag} c0"),
        Hostile("a wrong checksum", b"\x94\x01\xcf" + bytes(8) + header + payload, "the checksum is"),
        Hostile("a negative checksum", b"\x94\x01\xd3" + b"\xff" * 8 + header + payload, "the record says"),
        Hostile("a bit that flipped in the payload", good[:-1] + bytes([good[-1] ^ 1]), "the checksum is"),
        Hostile("a bit that flipped in the header", good[:40] + bytes([good[40] ^ 1]) + good[41:], "the checksum is"),
        Hostile("header and payload changed places", frame + payload + header, "the checksum is"),
        Hostile("a header that is a text", frame + b"\xdb" + header[1:] + payload, f"header {tag} db, expected a bin"),
        Hostile("a header that is a map", frame + packed + payload, f"header {tag} 8f, expected a bin"),
        Hostile(
            "a payload that is a text", frame + header + b"\xdb" + payload[1:], f"payload {tag} db, expected a bin"
        ),
        Hostile("a payload that is null", frame + header + b"\xc0", f"payload {tag} c0, expected a bin"),
        Hostile("no payload", frame + header, "where the payload should start"),
        *(Hostile(f"a header of {n} bytes", frame + lie + packed + payload, f"{n} bytes") for n, lie in lies),
        *(Hostile(f"a payload of {n} bytes", frame + header + lie + numbers, f"{n} bytes") for n, lie in lies),
        Hostile("a payload that is one byte shorter than it says", good[:-1], "says that it has 64 bytes, but 63"),
        Hostile("a byte after the end", good + b"\x00", "goes on for 1 bytes"),
        Hostile("two values", good + good, f"goes on for {len(good)} bytes"),
        Hostile("a checksum and nothing else", b"\x94\x01" + checksum, "where the header should start"),
    ]


def _hostile_maps() -> list[Hostile]:
    """Headers that are no maps of plain types, each under a right checksum."""
    good = encode(make_record(3))
    header, payload = open_value(good)
    packed: bytes = msgpack.unpackb(good)[2]
    not_plain = "the header is not msgpack as a record may hold it"

    def sealed(name: str, header: Mapping[Any, Any] | bytes, says: str) -> Hostile:
        return Hostile(name, seal(header, payload), says)

    def entry(name: str, key: bytes, value: bytes, says: str) -> Hostile:
        """A header with one entry more, which is already packed."""
        return sealed(name, b"\xde" + struct.pack(">H", len(header) + 1) + packed[1:] + key + value, says)

    later = msgpack.packb("later")
    claims = {"an array": b"\xdd", "a text": b"\xdb", "a bin": b"\xc6", "a map": b"\xdf"}
    bomb = (b"\xdd" + struct.pack(">I", 60_000)) * 1000 + bytes(60_000)  # 480 MB of list, if one believed it
    return [
        sealed("an empty header", b"", "where the header should start"),
        sealed("a header that is a list", b"\x90", "header starts with msgpack's type byte 90, expected a map"),
        sealed("a header that is null", b"\xc0", "expected a map"),
        sealed("an empty map", {}, "the header lacks stream, fingerprint, tap"),
        sealed("a header that is cut", packed[:-20], "Input data was truncated"),
        sealed("a header that goes on", packed + b"\x01", "trailing characters"),
        sealed("an unused type byte", b"\x81\xa1a\xc1", not_plain),
        sealed("a map that claims 2^32 - 1 entries", b"\xdf\xff\xff\xff\xff" + packed[1:], "Input data was truncated"),
        sealed("an id that is not UTF-8", packed.replace(b"class3", b"clas\xff3"), "ids are not all texts"),
        *(
            entry(f"{name} that claims 2^32 - 1", later, kind + b"\xff" * 4, "Input data was truncated")
            for name, kind in claims.items()
        ),
        *(
            entry(f"inputs in {name} that claims 2^32 - 1", msgpack.packb("inputs"), kind + b"\xff" * 4, "truncated")
            for name, kind in claims.items()
        ),
        sealed(
            "a shape that claims 2^32 - 1",
            packed.replace(b"\xa5shape\x91", b"\xa5shape\xdd" + b"\xff" * 4),
            "Input data was truncated",
        ),
        sealed(
            "missing samples that claim 2^32 - 1",
            packed.replace(b"\xa7missing\x90", b"\xa7missing\xdd" + b"\xff" * 4),
            "Input data was truncated",
        ),
        entry("an extension that claims 2^32 - 1", later, b"\xc9" + b"\xff" * 4, not_plain),
        entry("1,000 lists within lists, each claiming the whole header", later, bomb, not_plain),
        entry("100,000 lists within lists", later, b"\x91" * 100_000 + b"\x01", not_plain),
        entry("100,000 maps within maps", later, b"\x81\xa1a" * 100_000 + b"\x01", not_plain),
        entry("an extension", later, b"\xd4\x05\x00", not_plain),
        entry("an empty extension", later, b"\xc7\x00\x05", "extension type 5"),
        entry("a time stamp", later, b"\xd6\xff\x00\x00\x00\x00", not_plain),
        entry("a key that is not UTF-8", b"\xa2\xc3\x28", b"\x01", not_plain),
        entry("half a surrogate pair", later, b"\xa3\xed\xa0\x80", not_plain),
        entry("a key that is a number", b"\x07", b"\x01", "a key that is not a text"),
        entry("a key that is a list", b"\x90", b"\x01", "a key that is not a text"),
        entry("a key that is a bin", b"\xc4\x01a", b"\x01", "a key that is not a text"),
        entry("the batch twice", msgpack.packb("batch"), b"\x04", "has 16 keys, one of them twice"),
    ]


def _hostile_fields() -> list[Hostile]:
    """Headers of the right keys with values that cannot be, each under a right checksum."""
    header, payload = open_value(encode(make_record(3)))
    nan, huge = float("nan"), 2**64 - 1

    def but(key: str, value: object, says: str) -> Hostile:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        return Hostile(f"{key} is {shown}", seal({**header, key: value}, payload), says)

    def row(fields: Mapping[str, object], name: str, says: str) -> Hostile:
        return Hostile(name, seal({**header, **fields}, payload), says)

    cases = [
        Hostile(f"no {key}", seal({k: v for k, v in header.items() if k != key}, payload), f"the header lacks {key}")
        for key in HEADER_KEYS
    ]
    for key in ("stream", "fingerprint", "tap", "dtype"):
        cases += [
            but(key, value, "expected a text of at most 100 characters")
            for value in (None, 7, b"bytes", ["list"], {"a": 1}, True, nan)
        ]
    for key in ("pass", "batch", "views", "rows", "extracted_at"):
        cases += [but(key, value, "expected an integer") for value in (None, "1", 1.0, nan, True, [1], b"1")]
        cases += [but(key, value, "") for value in (-1, -(2**63), huge)]
    for key in ("shape", "indices", "ids", "missing"):
        cases += [but(key, value, "expected a list of") for value in (None, 4, "text", {"a": 1}, nan)]
    for key in ("shape", "indices"):
        cases += [but(key, [value] * 4, "not all integers") for value in (None, 1.0, nan, "1", True, [1])]
    cases += [
        but("stream", "", "cannot name a stream"),
        but("stream", "../../etc", "cannot name a stream"),
        but("tap", "", "cannot name a tap"),
        but("tap", "manifest", "cannot name a tap"),
        but("tap", "experiments", "cannot name a tap"),
        but("fingerprint", "", "is not a fingerprint"),
        but("fingerprint", "f" * 65, "is not a fingerprint"),
        but("batch", 2**53, "batch of a record is 9007199254740992"),
        but("views", 0, "views of a record is 0"),
        but("views", 3, "which 3 views of every sample cannot make"),
        but("rows", 5, "says rows 5, but lists 4 ids"),
        but("rows", 2**63, "but lists 4 ids"),
        but("dtype", "float64", 'dtype "float64"'),
        but("dtype", "object", 'dtype "object"'),
        but("dtype", ">f2", 'dtype ">f2"'),
        but("dtype", "float32", "4 rows of (8,) float32 take 128"),
        but("shape", [], "4 rows of () float16 take 8"),
        but("shape", [9], "4 rows of (9,) float16 take 72"),
        but("shape", [0], "a row of shape (0,) cannot be held"),
        but("shape", [-8], "cannot be held"),
        but("shape", [-2, -4], "cannot be held"),
        but("shape", [2**32, 2**32], "float16 take"),  # 2^64 numbers: 0 in 64 bits
        but("shape", [2**53 - 1] * 8, "float16 take"),
        but("shape", [huge], "cannot be held"),
        but("shape", [1] * 9, "a row of 9 axes cannot be held"),
        but("shape", [1] * 50_000, "a row of 50000 axes cannot be held"),
        but("indices", [0, 1, 2], "4 ids, 3 sample indices"),
        but("indices", [0, 1, 2, -1], "sample indices"),
        but("indices", [0, 1, 2, 2**53], "sample indices"),
        but("indices", [0, 1, 2, huge], "a number beyond 64 bits"),
        but("ids", ["a", "b", "c"], "says rows 4, but lists 3 ids"),
        but("ids", ["a", "b", "c", 4], "ids are not all texts"),
        but("ids", [b"a", b"b", b"c", b"d"], "ids are not all texts"),
        row({"ids": [], "indices": [], "labels": [], "rows": 0}, "a payload of no rows", "0 rows of (8,) float16 take"),
        but("labels", "none", "expected null or a list"),
        but("labels", 3, "expected null or a list"),
        but("labels", {"0": 1}, "expected null or a list"),
        but("labels", [0, 1, 2], "and 3 labels"),
        but("labels", [0, 1, 2, True], "labels are not all integers"),
        but("labels", [0, 1, 2, None], "labels are not all integers"),
        but("labels", [0, 1, 2, 3.0], "labels are not all integers"),
        but("labels", [0.0, 1.0, 2.0, 3], "not all integers, all floats or all lists of floats"),
        but("labels", [0, 1, 2, huge], "a number beyond 64 bits"),
        but("labels", ["0", "1", "2", "3"], "not all integers, all floats or all lists of floats"),
        but("labels", [0.0, 1.0, 2.0, 1e300], "a number beyond float32"),
        but("labels", [0.0, 1.0, 2.0, -float("inf")], "infinite"),
        but("labels", [[0.0], [1.0], [2.0], [3.0, 4.0]], "not all lists of one length"),
        but("labels", [[0.0], [1.0], [2.0], 3.0], "not all lists of one length"),
        but("labels", [[0.0], [1.0], [2.0], [3]], "not all integers, all floats or all lists of floats"),
        but("labels", [[[0.0]], [[1.0]], [[2.0]], [[3.0]]], "not all integers, all floats or all lists of floats"),
        but("labels", [[], [], [], []], "labels of batch 3"),
        *(
            but("missing", [sample], "is not [index, id, reason]")
            for sample in (7, "id", [], [7], [7, "id"], ["7", "id", "why"], [7, "id", None], [True, "id", "why"],
                           [7, "id", "why", 0], {"index": 7, "id": "id", "reason": "why"})
        ),
        but("missing", [[-7, "id", "why"]], "missing sample of batch 3, tap avgpool has index -7"),
        but("must_understand", ["codec"], 'must understand "codec"'),
        but("must_understand", ["batch", "codec", "cipher"], 'must understand "codec", "cipher"'),
        but("must_understand", "codec", "expected a list of texts"),
        but("must_understand", [7], "must_understand is not all texts"),
        but("must_understand", None, "expected a list of texts"),
        row({"must_understand": ["codec"], "codec": 1, "ids": None}, "a later record with other ids", "upgrade"),
    ]  # fmt: skip
    return cases

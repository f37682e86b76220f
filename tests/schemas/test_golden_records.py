"""The golden messages, read three ways: by our decoder, by a second msgpack library, and as their JSON says."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from xxhash import xxh3_64_hexdigest

from featurestream.names import record_key
from featurestream.tensors import tensor_of
from featurestream.wire import decode, encode, headers_of

FOLDER = Path(__file__).parents[2] / "schemas" / "golden" / "feature-record-v1"
NAMES = sorted(file.stem for file in FOLDER.glob("*.msgpack"))
FORMS = {"float16": "<f2", "float32": "<f4", "uint8": "u1", "int64": "<i8"}


def load(name: str) -> tuple[bytes, dict[str, Any]]:
    return (FOLDER / f"{name}.msgpack").read_bytes(), json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def null_for_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [null_for_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def numbers_of(payload: bytes, dtype: str) -> list[float]:
    """Return the payload's numbers without any code of ours."""
    if dtype == "bfloat16":
        return [struct.unpack("<f", b"\0\0" + payload[at : at + 2])[0] for at in range(0, len(payload), 2)]
    return np.frombuffer(payload, FORMS[dtype]).tolist()


def flat(value: Any) -> list[float]:
    return [number for inner in value for number in flat(inner)] if isinstance(value, list) else [value]


def test_the_golden_messages_show_every_kind_of_record() -> None:
    headers = [load(name)[1]["header"] for name in NAMES]

    assert {header["dtype"] for header in headers} == {"float16", "bfloat16", "float32", "uint8", "int64"}
    assert {header["views"] for header in headers} == {1, 2}
    assert {header["rows"] for header in headers} >= {0, 4}
    assert any(header["missing"] for header in headers)
    assert any(not "".join(header["ids"]).isascii() for header in headers)
    assert any("must_understand" in header for header in headers)
    assert {type((header["labels"] or [None])[0]) for header in headers} == {type(None), int, float, list}
    assert sorted(file.stem for file in FOLDER.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_our_decoder_finds_what_the_json_says(name: str) -> None:
    value, says = load(name)
    header = says["header"]

    record = decode(value)

    assert (record.stream, record.tap, record.fingerprint) == (header["stream"], header["tap"], header["fingerprint"])
    assert (record.pass_number, record.batch, record.views) == (header["pass"], header["batch"], header["views"])
    assert (record.dtype, list(record.shape), record.rows) == (header["dtype"], header["shape"], header["rows"])
    assert record.indices.tolist() == header["indices"]
    assert list(record.ids) == header["ids"]
    assert (None if record.labels is None else null_for_nan(record.labels.tolist())) == header["labels"]
    assert [[sample.index, sample.id, sample.reason] for sample in record.missing] == header["missing"]
    assert record.extracted_ns == header["extracted_at"]
    assert record.numpy().tolist() == says["features"]
    assert tensor_of(record).tolist() == says["features"]
    known = {"stream", "fingerprint", "tap", "pass", "batch", "views", "rows", "dtype", "shape", "indices", "ids"}
    assert record.extra == {
        key: header[key] for key in header.keys() - known - {"labels", "missing", "extracted_at", "pad"}
    }


@pytest.mark.parametrize("name", NAMES)
def test_our_encoder_writes_the_same_bytes(name: str) -> None:
    value, _ = load(name)

    assert encode(decode(value)) == value


@pytest.mark.parametrize("name", NAMES)
def test_a_second_msgpack_library_finds_the_same(name: str) -> None:
    value, says = load(name)

    number, checksum, packed, payload = msgspec.msgpack.decode(value)
    header = msgspec.msgpack.decode(packed)

    assert number == says["format"] == 1
    assert f"{checksum:016x}" == says["checksum"] == xxh3_64_hexdigest(packed + payload)
    assert {key: null_for_nan(inner) for key, inner in header.items()} == says["header"]
    assert len(payload) == says["payload_bytes"]
    assert value.endswith(payload)
    assert len(value) - len(payload) == says["payload_start"]
    assert says["payload_start"] % 16 == 0
    assert numbers_of(payload, header["dtype"]) == flat(says["features"])


@pytest.mark.parametrize("name", NAMES)
def test_a_record_put_together_by_a_second_msgpack_library_is_read(name: str) -> None:
    """Its integers, floats and lengths may take other forms than ours; a float is 64 bits there."""
    value, _ = load(name)
    _, _, packed, payload = msgspec.msgpack.decode(value)
    repacked = msgspec.msgpack.encode(msgspec.msgpack.decode(packed))
    checksum = int(xxh3_64_hexdigest(repacked + payload), 16)

    theirs = decode(msgspec.msgpack.encode([1, checksum, repacked, payload]))

    assert encode(theirs) == value


@pytest.mark.parametrize("name", NAMES)
def test_key_and_headers_are_what_the_json_says(name: str) -> None:
    value, says = load(name)
    record = decode(value)

    assert record_key(record.pass_number, record.batch).decode() == says["key"]
    assert {key: text.decode() for key, text in headers_of(record)} == says["record_headers"]

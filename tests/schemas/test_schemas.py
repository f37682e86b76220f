"""The JSON Schemas: they take what we write, refuse what a reader refuses, and agree with the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import numpy as np
import pytest
from pydantic import BaseModel

from featurestream.errors import RecordError
from featurestream.experiments import MetricsChunk, RunRecord
from featurestream.health import Canary, Health
from featurestream.manifest import End, Lease, Manifest, PassRecord, Request, RetentionWarning, Share
from featurestream.record import ITEM_BYTES, MAX_AXES, MAX_NUMBER, MissingSample
from featurestream.testing import make_record, open_value, seal
from featurestream.validation import Validation
from featurestream.wire import HEADER_KEYS, MUST_UNDERSTAND, PAD, decode, encode
from featurestream_producer.inputs import INPUTS_KEY

SCHEMAS = Path(__file__).parents[2] / "schemas"
GOLDEN = SCHEMAS / "golden" / "feature-record-v1"
MODELS = {
    "manifest": Manifest,
    "pass": PassRecord,
    "share": Share,
    "lease": Lease,
    "end": End,
    "canary": Canary,
    "health": Health,
    "retention": RetentionWarning,
    "request": Request,
    "run": RunRecord,
    "metrics": MetricsChunk,
    "validation": Validation,
}


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}-v1.schema.json").read_text("utf-8"))
    return found


HEADER_SCHEMA = schema("feature-record")
HEADER = jsonschema.Draft202012Validator(HEADER_SCHEMA)


@pytest.mark.parametrize("name", ["feature-record", *MODELS])
def test_every_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$id"] == f"{name}-v1.schema.json"


@pytest.mark.parametrize("name", MODELS)
def test_the_schemas_of_the_manifests_topic_are_those_of_the_models(name: str) -> None:
    """Where this fails: run schemas/make_schemas.py, and see whether readers in other languages can live with it."""
    written = schema(name)
    model: type[BaseModel] = MODELS[name]

    assert {key: written[key] for key in written if key not in ("$schema", "$id")} == model.model_json_schema()


def test_the_schema_of_a_header_has_the_keys_that_the_wire_format_has() -> None:
    assert HEADER_SCHEMA["required"] == list(HEADER_KEYS)
    assert list(HEADER_SCHEMA["properties"]) == [*HEADER_KEYS, INPUTS_KEY, MUST_UNDERSTAND, PAD]
    assert HEADER_SCHEMA["properties"]["dtype"]["enum"] == list(ITEM_BYTES)
    assert HEADER_SCHEMA["properties"]["shape"]["maxItems"] == MAX_AXES
    assert HEADER_SCHEMA["$defs"]["number"]["maximum"] == MAX_NUMBER
    assert HEADER_SCHEMA["$defs"]["float32"]["maximum"] == float(np.finfo(np.float32).max)
    assert all("description" in field for field in HEADER_SCHEMA["properties"].values())


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.json")), ids=lambda f: f.stem)
def test_the_schema_takes_the_golden_headers(file: Path) -> None:
    HEADER.validate(json.loads(file.read_text("utf-8"))["header"])


@pytest.mark.parametrize(
    "record",
    [
        make_record(labels="none"),
        make_record(labels="value", views=2, dtype="bfloat16"),
        make_record(labels="target", shape=()),
        make_record(rows=0, missing=[MissingSample(7, "ü.png", "truncated")]),
        make_record(extra={"inputs": [[0, "0123456789abcdef"], [3, "ffffffffffffffff"]]}),
        make_record(2**51 - 1, extra={"codec": {"name": "none"}, "must_understand": ["batch"]}),
    ],
)
def test_the_schema_takes_the_headers_that_we_write(record: Any) -> None:
    HEADER.validate(open_value(encode(record))[0])


REFUSED: list[tuple[str, Any]] = [
    ("stream", ""), ("stream", "a b"), ("stream", "s" * 101), ("stream", 7), ("stream", None),
    ("fingerprint", ""), ("fingerprint", "é"), ("fingerprint", "f" * 65),
    ("tap", "manifest"), ("tap", "experiments"), ("tap", ""), ("tap", ".a"),
    ("pass", -1), ("pass", 1.5), ("pass", "0"), ("pass", True), ("pass", 2**53),
    ("batch", -1), ("batch", None), ("views", 0), ("rows", -1), ("rows", [4]),
    ("dtype", "float64"), ("dtype", 2), ("shape", 8), ("shape", [0]), ("shape", [-8]), ("shape", ["8"]),
    ("shape", [1] * 9),
    ("indices", [0, 1, 2, -1]), ("indices", [0, 1, 2, "3"]), ("indices", [0, 1, 2, 0.5]), ("indices", None),
    ("ids", ["a", "b", "c", 4]), ("ids", "abcd"),
    ("labels", "none"), ("labels", ["0", "1", "2", "3"]), ("labels", [0.5, 1e300, 1.0, 1.0]),
    ("labels", [[], [], [], []]), ("labels", [[0.5], [0.5], [0.5], 0.5]), ("labels", [[[0.5]]] * 4), ("labels", 3),
    ("missing", None), ("missing", [[7, "a"]]), ("missing", [[7, "a", "b", "c"]]), ("missing", [["7", "a", "b"]]),
    ("missing", [[-7, "a", "b"]]), ("missing", [{"index": 7}]),
    ("extracted_at", -1), ("extracted_at", 2**63), ("extracted_at", "now"),
    ("must_understand", "codec"), ("must_understand", [7]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REFUSED, ids=lambda part: str(part)[:30])
def test_what_the_schema_refuses_the_reader_refuses_too(key: str, value: Any) -> None:
    header, payload = open_value(encode(make_record()))
    header[key] = value

    assert not HEADER.is_valid(header)
    with pytest.raises(RecordError):
        decode(seal(header, payload))


@pytest.mark.parametrize("key", HEADER_KEYS)
def test_the_schema_requires_what_the_reader_requires(key: str) -> None:
    header, payload = open_value(encode(make_record()))
    del header[key]

    assert not HEADER.is_valid(header)
    with pytest.raises(RecordError, match=f"the header lacks {key}"):
        decode(seal(header, payload))


def test_schema_and_reader_take_keys_of_later_writers() -> None:
    header, payload = open_value(encode(make_record()))
    header["later"] = [1, {"a": None}]

    HEADER.validate(header)
    assert decode(seal(msgpack.packb(header), payload)).extra == {"later": [1, {"a": None}]}


# ---- the manifest's topic -------------------------------------------------------------------------------------


def manifest_example() -> dict[str, Any]:
    return {
        "format": 1,
        "stream": "digits-train",
        "fingerprint": "00112233445566778899aabbccddeeff",
        "data": {
            "source": "digits/train.csv",
            "samples": 1437,
            "label_kind": "class",
            "label_values": 1,
            "sha256": "ab",
        },
        "transform": {"name": "eval", "size": 64},
        "backbone": {"name": "resnet18", "weights": "random", "weights_sha256": "cd"},
        "taps": [{"name": "avgpool", "spec": "avgpool", "layer": "avgpool", "pool": None, "shape": [512, 1, 1]}],
        "dtype": "float16",
        "seed": 0,
        "batch_samples": 256,
        "lanes": 2,
        "passes": 2,
        "created_at": "2026-01-31T12:00:00+00:00",
    }


CANARY = {
    "device": "cpu",
    "transform": "0123456789abcdef",
    "taps": [{"name": "avgpool", "checksum": "0123456789abcdef", "sketch": [0.5, 1.0]}],
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "manifest": manifest_example(),
    "pass": {
        "number": 0, "samples": 1436, "missing": 1, "first_batch": 0, "last_batch": 5,
        "started_at": "2026-01-31T12:00:00Z", "finished_at": "2026-01-31T12:00:09Z",
        "order_checksum": "0123456789abcdef",
    },
    "lease": {
        "producer": "p1", "host": "node7", "pid": 17, "process_started": 1769860800.5,
        "since": "2026-01-31T12:00:00Z", "heartbeat": "2026-01-31T12:00:05Z", "released": False,
    },
    "share": {"number": 0, "rank": 1, "ranks": 2, "missing": 1, "started_at": "2026-01-31T12:00:00Z"},
    "end": {"passes": 2, "batches": 12, "at": "2026-01-31T12:01:00Z"},
    "canary": CANARY,
    "health": {
        "worker": 0, "workers": 2, "device": "cuda:0", "lanes": [0, 2], "batches": 8, "at": "2026-01-31T12:01:00Z",
        "canary": CANARY,
        "inputs": {
            "numbers": 4096, "mean": [0.1, 0.0, 0.0], "std": [1.0, 1.1, 1.0], "least": [-2.1, -2.0, -1.8],
            "largest": [2.2, 2.4, 2.6], "outside": 0, "expected_mean": [0.485, 0.456, 0.406],
            "expected_std": [0.229, 0.224, 0.225],
        },
        "taps": [
            {
                "name": "avgpool", "rows": 128, "numbers": 65536, "mean": 0.4, "variance": 0.25, "spread": 0.125,
                "freedom": 61440, "zeros": 100, "largest": 12.5, "peak": 11.0, "at_peak": 1, "separability": 3.5,
                "probe_rows": 128,
            }
        ],
        "warnings": ["all inputs are of one colour"],
    },
    "retention": {
        "reader": "E1", "batch": 7, "tap": "avgpool", "share": 0.81, "by": "time", "text": "E1 has not read batch 7",
        "at": "2026-01-31T12:01:00Z",
    },
    "request": {"samples": [3, 1], "host": "node7", "at": "2026-01-31T12:01:00Z"},
    "run": {
        "name": "E1", "id": "0123456789ab", "state": "running", "stream": "digits-train", "host": "node7",
        "folder": "/data/runs/E1", "started_at": "2026-01-31T12:00:00Z", "updated_at": "2026-01-31T12:01:00Z",
        "fingerprint": "00112233445566778899aabbccddeeff", "config": {"head": "mlp", "epochs": 3},
        "start": {"batch": 0, "row": 0}, "position": {"batch": 7, "row": 3}, "epoch": 1, "epochs": 3, "step": 12,
        "rows": 1500, "batches": 7, "rows_per_s": 250.5, "passes": 2, "rereads": 0, "metrics": {"top1": 0.5},
        "main_metric": "top1", "metric_rows": 2, "metric_chunks": 1,
    },
    "metrics": {"first": 64, "rows": [{"kind": "train", "step": 65, "loss": 0.5}]},
    "validation": {
        "fingerprint": "00112233445566778899aabbccddeeff", "rows": 3,
        "index": {"dtype": "int64", "data": "eJxjYIAAAAAIAAE="}, "labels": "0123456789abcdef",
        "values": {"top1": {"dtype": "bool", "data": "eJz7DwAA4ADg"}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_schema_and_its_model_take_the_same_example_and_what_later_writers_add(name: str) -> None:
    validator = jsonschema.Draft202012Validator(schema(name))
    model = MODELS[name]
    example = EXAMPLES[name] | {"added_later": {"by": "someone"}}

    validator.validate(example)
    written = json.loads(model.model_validate_json(json.dumps(example)).model_dump_json())
    validator.validate(written)
    assert "added_later" not in written


@pytest.mark.parametrize("name", MODELS)
def test_a_schema_and_its_model_refuse_the_same(name: str) -> None:
    validator = jsonschema.Draft202012Validator(schema(name))
    model = MODELS[name]
    for key in schema(name)["required"]:
        for wrong in ({k: v for k, v in EXAMPLES[name].items() if k != key}, EXAMPLES[name] | {key: [[]]}):
            assert not validator.is_valid(wrong), key
            with pytest.raises(ValueError, match=key):
                model.model_validate_json(json.dumps(wrong))

"""Add golden messages: for every case below that has no files yet, the bytes of a record and what they mean.

Golden files are added, never changed: they are what readers in other languages were tested against. A case whose
files are there already is left alone; one that would be written differently today is reported, and is a bug.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from featurestream.names import record_key
from featurestream.record import MissingSample, Record
from featurestream.testing import make_record
from featurestream.wire import encode, headers_of

FOLDER = Path(__file__).parent / "golden" / "feature-record-v1"
NON_ASCII_IDS = ["Größe/ä.png", "データ/画像.png", "emoji/🦊.png", "a b/'quoted'.png"]
TRUNCATED = MissingSample(9, "class9/00009.png", "image file is truncated (17 bytes not processed)")

CASES: dict[str, Record] = {
    "float16-map": make_record(17, pass_number=1, rows=2, shape=(2, 3, 3), tap="layer2.0"),
    "bfloat16-vector": make_record(3, dtype="bfloat16", shape=(5,)),
    "float32-value-label": make_record(4, dtype="float32", labels="value", rows=3),
    "float32-multi-target-label": make_record(5, dtype="float32", labels="target", rows=3),
    "unknown-targets": replace(
        make_record(14), labels=np.array([[0.1, np.nan], [np.nan, 1e-45], [-0.0, 3e38], [0.5, 2.0]], np.float32)
    ),
    "negative-class-labels": replace(make_record(6), labels=np.array([-1, 0, 127, -(2**63)], np.int64)),
    "no-labels": make_record(7, labels="none"),
    "two-views": make_record(8, views=2),
    "missing-samples": make_record(
        3, rows=2, missing=[TRUNCATED, MissingSample(8, "class8/ü.png", "cannot identify image file")]
    ),
    "empty-batch": make_record(9, rows=0, missing=[TRUNCATED]),
    "non-ascii-ids": make_record(10, ids=NON_ASCII_IDS),
    "uint8-scalar-rows": make_record(11, dtype="uint8", shape=()),
    "int64-vector": make_record(12, dtype="int64", shape=(3,)),
    "later-writer": make_record(13, extra={"room": {"floor": 2, "open": True}, "must_understand": ["labels", "batch"]}),
}


def meaning(record: Record, value: bytes) -> dict[str, Any]:
    """Return what a reader should find in the value, and what stands around it on the topic."""
    number, checksum, header, payload = msgpack.unpackb(value)
    return {
        "key": record_key(record.pass_number, record.batch).decode(),
        "record_headers": {name: text.decode() for name, text in headers_of(record)},
        "format": number,
        "checksum": f"{checksum:016x}",
        "header": null_for_nan(msgpack.unpackb(header)),
        "payload_start": len(value) - len(payload),
        "payload_bytes": len(payload),
        "features": record.numpy().tolist(),
    }


def null_for_nan(value: Any) -> Any:
    """Return the same with None wherever JSON has no number."""
    if isinstance(value, dict):
        return {key: null_for_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [null_for_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def main() -> int:
    """Add what is not there yet; return 1 where what is there differs."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    differ = []
    for name, record in CASES.items():
        value = encode(record)
        text = json.dumps(meaning(record, value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        for file, content in ((FOLDER / f"{name}.msgpack", value), (FOLDER / f"{name}.json", text.encode())):
            if not file.exists():
                file.write_bytes(content)
            elif file.read_bytes() != content:
                differ.append(file.name)
    if differ:
        sys.stderr.write(f"these would be written differently today, and were left alone: {', '.join(differ)}\n")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())

"""What an experiment said of every validation row, small enough for one record of the run registry.

Scores of every class would not fit; how good each row was does: that is all that paired statistics need. Rows are in
the order of their samples' indices, views of a sample in theirs.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from featurestream.errors import RecordError
from featurestream.manifest import Value, to_json

#: Bytes of the whole record at most: well below the stock limit of a million.
VALIDATION_BYTES: Final = 900_000
ROWS: Final = 50_000_000  # more than any validation stream has: what a record claims is checked before memory is taken


class Packed(Value):
    """Numbers of the rows."""

    dtype: Literal["bool", "float32", "float64", "int64"]
    data: str = Field(description="base64 of zlib of little-endian numbers; of bool eight to a byte, the first highest")

    @classmethod
    def of(cls, values: NDArray[Any]) -> Packed:
        """Return the numbers packed: bool and int64 as they are, others as float32 where that loses nothing."""
        if values.dtype == bool:
            return cls(dtype="bool", data=_pack(np.packbits(values).tobytes()))
        if values.dtype.kind in "iu":
            return cls(dtype="int64", data=_pack(values.astype("<i8").tobytes()))
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is then seen to differ
            single = values.astype("<f4")
        if np.array_equal(single.astype("<f8"), values.astype("<f8"), equal_nan=True):
            return cls(dtype="float32", data=_pack(single.tobytes()))
        return cls(dtype="float64", data=_pack(values.astype("<f8").tobytes()))

    def unpack(self, rows: int) -> NDArray[Any]:
        """Return (rows,) numbers: bool, int64 or float64. Raises RecordError where they are not as many."""
        size = -(-rows // 8) if self.dtype == "bool" else rows * np.dtype(self.dtype).itemsize
        content = _unpack(self.data, size)
        if self.dtype == "bool":
            return np.unpackbits(np.frombuffer(content, np.uint8), count=rows).astype(bool)
        if self.dtype == "int64":
            return np.frombuffer(content, "<i8").astype(np.int64)
        return np.frombuffer(content, "<f4" if self.dtype == "float32" else "<f8").astype(np.float64)


class Validation(Value):
    """How good a finished run was on every validation row."""

    fingerprint: str = Field(description="the validation stream's")
    rows: int = Field(ge=0, le=ROWS)
    index: Packed = Field(description="samples' indices, never falling: the first, then each less the one before")
    labels: str = Field(description="xxh3-64 of the rows' labels, 16 hexadecimal digits; see labels_checksum")
    values: dict[str, Packed] = Field(description="how good each row is, by a metric that is the mean of its rows")
    left_out: list[str] = Field(default_factory=list, description="metrics whose rows did not fit into a record")

    def indices(self) -> NDArray[np.int64]:
        """Return the samples' indices, int64 (rows,)."""
        return np.cumsum(self.index.unpack(self.rows), dtype=np.int64)

    def values_of(self, metric: str) -> NDArray[Any] | None:
        """Return how good each row is, (rows,) bool or float64; None where the metric is not there."""
        packed = self.values.get(metric)
        return None if packed is None else packed.unpack(self.rows)


def pack_validation(
    fingerprint: str,
    indices: NDArray[np.int64],
    labels: NDArray[Any],
    values: Mapping[str, NDArray[Any]],
    *,
    limit: int = VALIDATION_BYTES,
) -> Validation | None:
    """Return rows as one record below ``limit`` bytes; None where not even the first metric's fit into it.

    ``values`` are (rows,) bool or floats by metric, the most important one first: what no longer fits is left out, and
    named. ``labels`` are (rows,) or (rows, K).
    """
    order = np.argsort(indices, kind="stable")
    steps = np.diff(indices[order], prepend=0)
    record = Validation(
        fingerprint=fingerprint,
        rows=len(indices),
        index=Packed.of(steps.astype(np.int64)),
        labels=labels_checksum(labels[order]),
        values={},
    )
    for metric, rows in values.items():
        more = record.model_copy(update={"values": {**record.values, metric: Packed.of(rows[order])}})
        if len(to_json(more)) <= limit - sum(len(name) + 4 for name in values):
            record = more
        else:
            record = record.model_copy(update={"left_out": [*record.left_out, metric]})
    return record if record.values else None


def labels_checksum(labels: ArrayLike) -> str:
    """Return the xxh3-64 of labels (rows,) or (rows, K) as 16 hexadecimal digits.

    Whole numbers count as little-endian int64, whatever their type, others as float64: labels that are equal have
    equal checksums.
    """
    array = np.asarray(labels)
    whole = array.dtype.kind in "iub" or bool(
        (np.isfinite(array) & (array == np.trunc(array)) & (abs(array) < 2**53)).all()
    )
    plain = array.astype("<i8") if whole else array.astype("<f8") + 0.0  # -0 equals 0
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(plain).tobytes())


def _pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 6)).decode()


def _unpack(text: str, size: int) -> bytes:
    try:
        packed = base64.b64decode(text, validate=True)
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(packed, size + 1)
        whole = len(content) == size and (unpacking.eof or not unpacking.decompress(unpacking.unconsumed_tail, 1))
    except (binascii.Error, ValueError, zlib.error) as error:
        raise RecordError(f"numbers of validation rows cannot be unpacked: {error}") from error
    if not whole:
        raise RecordError(f"numbers of validation rows do not take the {size} bytes that they should")
    return content

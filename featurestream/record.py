"""One batch of one tap: what a record on the log holds."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import UsageError
from featurestream.identity import MAX_NUMBER, Identity, check_indices, check_labels
from featurestream.names import check_stream_name, check_tap_name

#: Bytes of one number of each dtype that the wire format knows. All are little-endian and in C order.
ITEM_BYTES: Final[dict[str, int]] = {"float16": 2, "bfloat16": 2, "float32": 4, "uint8": 1, "int64": 8}
#: The same as NumPy has them; it has no bfloat16.
NUMPY_DTYPES: Final = {name: np.dtype(name).newbyteorder("<") for name in ITEM_BYTES if name != "bfloat16"}
#: A row has at most this many axes.
MAX_AXES: Final = 8
#: Manifests make 32 hexadecimal digits; a reader only ever compares them.
FINGERPRINT: Final = re.compile(r"[!-~]{1,64}")
#: Bytes (UTF-8) of the reason of a missing sample: one that is longer would spoil what was planned for a record.
REASON_BYTES: Final = 240


@dataclass(frozen=True, slots=True)
class MissingSample:
    """A sample whose image could not be decoded: it has no row, and is listed instead.

    ``reason`` is text for people, such as :func:`short_reason` makes it of an exception.
    """

    index: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """The features of one batch at one tap, with the identity of every row.

    All taps of a batch have the same rows. ``features`` are held as raw bytes, so that a record costs no copy in
    either direction: :meth:`numpy` and :func:`featurestream.tensors.tensor_of` are views.

    Attributes:
        stream: the stream's name.
        fingerprint: the stream's fingerprint (see :mod:`featurestream.manifest`).
        tap: the tap's name.
        batch: the batch's number, counted over the whole stream from 0.
        pass_number: the pass that the batch belongs to.
        views: views of a sample in a pass; the views of a sample are adjacent rows.
        dtype: a key of :data:`ITEM_BYTES`.
        shape: the shape of one row.
        payload: the numbers, uint8 (rows * prod(shape) * item bytes,), row after row.
        indices: int64 (rows,), the sample's index in the dataset.
        ids: (rows,), the sample's id: its path relative to the dataset's root.
        labels: int64 (rows,) class numbers, float32 (rows,) values or (rows, K) targets, or None. A value or target
            that is not known is NaN; no label is infinite.
        missing: the batch's samples that have no row.
        extracted_ns: when the features were computed, nanoseconds since the epoch by the producer's clock.
        extra: header keys that a later writer added, kept as they came.

    Raises UsageError where they do not belong together, or one of them is not what it should be.
    """

    stream: str
    fingerprint: str
    tap: str
    batch: int
    pass_number: int
    views: int
    dtype: str
    shape: tuple[int, ...]
    payload: NDArray[np.uint8]
    indices: NDArray[np.int64]
    ids: tuple[str, ...]
    labels: NDArray[Any] | None
    missing: tuple[MissingSample, ...] = ()
    extracted_ns: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    identity: Identity = field(init=False, repr=False)

    def __post_init__(self) -> None:
        identity = Identity(self.indices, self.ids, self.labels)
        object.__setattr__(self, "identity", identity)
        self._check()
        where = f"batch {self.batch}, tap {self.tap}"
        indices, labels = self.indices, self.labels
        if indices.dtype != np.int64 or indices.ndim != 1:
            raise UsageError(
                f"the sample indices of {where} are {indices.dtype} {indices.shape}, expected int64 (rows,)"
            )
        if len(indices) != self.rows or (labels is not None and len(labels) != self.rows):
            raise UsageError(
                f"{where} has {self.rows} ids, {len(indices)} sample indices "
                f"and {'no' if labels is None else len(labels)} labels; each row has one of each"
            )
        check_indices(indices, where)
        check_labels(labels, where)

    @classmethod
    def of(
        cls,
        identity: Identity,
        *,
        stream: str,
        fingerprint: str,
        tap: str,
        batch: int,
        pass_number: int,
        views: int,
        dtype: str,
        shape: tuple[int, ...],
        payload: NDArray[np.uint8],
        missing: tuple[MissingSample, ...],
        extracted_ns: int,
        extra: dict[str, Any],
    ) -> Record:
        """Return a record whose ``indices``, ``ids`` and ``labels`` are those of ``identity``: taken when asked for.

        What the fields say is checked as ever; the identity answers for itself.
        """
        record = object.__new__(cls)
        put = object.__setattr__
        put(record, "identity", identity)
        put(record, "stream", stream)
        put(record, "fingerprint", fingerprint)
        put(record, "tap", tap)
        put(record, "batch", batch)
        put(record, "pass_number", pass_number)
        put(record, "views", views)
        put(record, "dtype", dtype)
        put(record, "shape", shape)
        put(record, "payload", payload)
        put(record, "missing", missing)
        put(record, "extracted_ns", extracted_ns)
        put(record, "extra", extra)
        record._check()
        return record

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Only what has not been set comes here.
            if name in ("indices", "ids", "labels"):
                return getattr(self.identity, name)
            raise AttributeError(name)

    def _check(self) -> None:
        row_bytes = _check_form(self.stream, self.fingerprint, self.tap, self.dtype, self.shape)
        if not 1 <= self.views <= MAX_NUMBER:
            raise UsageError(f"views of a record is {self.views}, expected 1 to 2^53 - 1")
        for name, value in (("batch", self.batch), ("pass_number", self.pass_number)):
            if not 0 <= value <= MAX_NUMBER:
                raise UsageError(f"{name} of a record is {value}, expected 0 to 2^53 - 1")
        if not 0 <= self.extracted_ns < 2**63:
            raise UsageError(f"extracted_ns of a record is {self.extracted_ns}, expected nanoseconds since the epoch")
        payload = self.payload
        if payload.dtype != np.uint8 or payload.ndim != 1 or not payload.flags.c_contiguous:
            raise UsageError(
                f"the payload of batch {self.batch}, tap {self.tap} is {payload.dtype} {payload.shape}",
                hint="expected contiguous uint8 bytes: array.reshape(-1).view(numpy.uint8)",
            )
        rows = self.identity.rows
        if payload.nbytes != rows * row_bytes:
            raise UsageError(
                f"the payload of batch {self.batch}, tap {self.tap} has {payload.nbytes} bytes, "
                f"but {rows} rows of {self.shape} {self.dtype} take {rows * row_bytes}"
            )
        if rows % self.views:
            raise UsageError(
                f"batch {self.batch}, tap {self.tap} has {rows} rows, "
                f"which {self.views} views of every sample cannot make"
            )
        for sample in self.missing:
            if not 0 <= sample.index <= MAX_NUMBER:
                raise UsageError(
                    f"a missing sample of batch {self.batch}, tap {self.tap} has index {sample.index}, "
                    "expected 0 to 2^53 - 1"
                )

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.identity.rows

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's numbers."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def numpy(self) -> NDArray[Any]:
        """Return the features as (rows, *shape): a read-only view of the payload.

        NumPy has no bfloat16: such features come as float32, which holds every bfloat16 exactly (this one copies).
        """
        if self.dtype == "bfloat16":
            return widen_bfloat16(self.payload).reshape(self.rows, *self.shape)
        view = self.payload.view(NUMPY_DTYPES[self.dtype])
        view.flags.writeable = False
        return view.reshape(self.rows, *self.shape)


def short_reason(text: str) -> str:
    """Return ``text`` as one line of at most :data:`REASON_BYTES` bytes of UTF-8; "..." ends it where it was cut."""
    line = " ".join(text.split()).encode("utf-8", "replace")
    if len(line) > REASON_BYTES:
        line = line[: REASON_BYTES - 3] + b"..."
    return line.decode("utf-8", "ignore")  # what a cut has left of a character at the end goes with it


def widen_bfloat16(payload: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the float32 numbers of raw bfloat16 bytes: bfloat16 is the upper half of a float32."""
    upper = payload.view("<u2").astype("<u4")
    return (upper << 16).view("<f4")


@functools.lru_cache(maxsize=256, typed=True)
def _check_form(stream: str, fingerprint: str, tap: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a row; raise UsageError where what all records of a tap have in common cannot be."""
    check_stream_name(stream)
    check_tap_name(tap)
    if not FINGERPRINT.fullmatch(fingerprint):
        raise UsageError(f'"{fingerprint}" is not a fingerprint', hint="expected 1 to 64 printable ASCII characters")
    if dtype not in ITEM_BYTES:
        raise UsageError(f'a record cannot hold numbers of dtype "{dtype}"', hint=f"known: {', '.join(ITEM_BYTES)}")
    if len(shape) > MAX_AXES:
        raise UsageError(f"a row of {len(shape)} axes cannot be held", hint=f"expected at most {MAX_AXES}")
    if not all(1 <= size <= MAX_NUMBER for size in shape):
        raise UsageError(f"a row of shape {shape} cannot be held", hint="each size must be 1 or more")
    return math.prod(shape) * ITEM_BYTES[dtype]

"""A record that holds what its reader expects, told by few comparisons.

A manifest says all that a record's header holds, but for its rows' identity and the moment of extraction, and our
writer lays the keys out in one order: where a header begins with the bytes that are expected, its first nine keys need
not be taken apart. Anything else is left to :func:`featurestream.wire.open_record`, which goes key by key and says what
is wrong.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from featurestream.ports import Headers
from featurestream.record import ITEM_BYTES
from featurestream.wire.columns import PackedIdentity
from featurestream.wire.headers import header_texts
from featurestream.wire.layout import ALIGN, ARRAYS, FORMAT, HEADER_KEYS, MAPS, NULL, RECORD_HEADERS, checksum_of
from featurestream.wire.value import VALUE

_MAP_16: Final = b"\xde"
_EMPTY_LIST: Final = b"\x90"
_BATCH_HEADER: Final = RECORD_HEADERS.index("batch")
_FIRST_KEYS: Final = HEADER_KEYS.index("indices")  # so many are the same for all rows


class _Rest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The other keys. Lists are passed over, which takes no memory and proves that the bytes are there."""

    indices: msgspec.Raw
    ids: msgspec.Raw
    labels: msgspec.Raw
    missing: msgspec.Raw
    extracted_at: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    pad: str


class _RestWithInputs(_Rest):
    """The same of a producer, which says what images it has fed to the backbone."""

    inputs: msgspec.Raw


_pack: Final = msgspec.msgpack.Encoder().encode


def _head(keys: int) -> bytes:
    """Return the first bytes of a map of so many keys."""
    return bytes([0x80 + keys]) if keys < 16 else _MAP_16 + MAPS[0xDE].pack(keys)


#: By the first bytes of a header: those of the map that its rest would be, and what takes that apart. As every one of
#: its keys is required, none is there twice.
_RESTS: Final = {
    _head(_FIRST_KEYS + len(kind.__struct_fields__)): (
        _head(len(kind.__struct_fields__)), msgspec.msgpack.Decoder(kind)
    )
    for kind in (_Rest, _RestWithInputs)
}  # fmt: skip


class ExpectedBatch(NamedTuple):
    """What a manifest says of one batch from which no sample is missing, the same for all taps.

    Attributes:
        number: the batch.
        rows: its rows.
        headers: its record headers.
        middle: the bytes of its header after the tap's name and before the row's shape.
        list_start: how a packed list of one entry a row begins.
    """

    number: int
    rows: int
    headers: Headers
    middle: bytes
    list_start: bytes


class ExpectedPass:
    """What a manifest says of the batches of one pass that have so many rows."""

    def __init__(self, fingerprint: str, views: int, dtype: str, pass_number: int, rows: int) -> None:
        self._rows = rows
        self._list_start = _list_start(rows)
        headers = header_texts(fingerprint, pass_number, 0, rows)
        self._headers = tuple(headers[:_BATCH_HEADER]), tuple(headers[_BATCH_HEADER + 1 :])
        self._before = _pack(("pass", pass_number, "batch"))[1:]
        self._after = _pack(("views", views, "rows", rows, "dtype", dtype, "shape"))[1:]

    def batch(self, number: int) -> ExpectedBatch:
        """Return what is expected of a batch."""
        before, after = self._headers
        headers = (*before, ("batch", b"%d" % number), *after)
        return ExpectedBatch(number, self._rows, headers, self._before + _pack(number) + self._after, self._list_start)


class ExpectedTap:
    """Opens the records of one tap that hold what is expected.

    Args:
        stream: the stream's name.
        fingerprint: the stream's fingerprint.
        tap: the tap's name.
        dtype: the stream's dtype, a key of :data:`featurestream.record.ITEM_BYTES`.
        shape: the shape of one row.
    """

    def __init__(self, stream: str, fingerprint: str, tap: str, dtype: str, shape: tuple[int, ...]) -> None:
        self._tap = tap
        self._first = _pack(("stream", stream, "fingerprint", fingerprint, "tap", tap))[1:]
        self._shape = _pack(shape)
        self._row_bytes = math.prod(shape) * ITEM_BYTES[dtype]

    def open(
        self, value: bytes, batch: ExpectedBatch, place: tuple[str, int, int]
    ) -> tuple[PackedIdentity, NDArray[np.uint8]] | None:
        """Return whose the rows are, and their numbers, uint8 (rows, bytes of a row): a view of ``value``.

        None where the record does not hold what is expected, or is damaged.
        """
        try:
            parts = VALUE.decode(value)
        except ValueError:  # all of the library's own are
            return None
        header, payload, rows = bytes(parts.header), parts.payload, batch.rows
        if (
            checksum_of(header, payload) != parts.checksum
            or len(payload) != rows * self._row_bytes
            or (len(value) - len(payload)) % ALIGN
            or parts.format != FORMAT
        ):
            return None
        lists = self._lists(header, batch)
        if lists is None:
            return None
        numbers = np.frombuffer(payload, np.uint8).reshape(rows, self._row_bytes)
        return PackedIdentity(rows, lists, (batch.number, self._tap), place), numbers

    def _lists(self, header: bytes, batch: ExpectedBatch) -> tuple[bytes, bytes, bytes] | None:
        """Return the header's indices, ids and labels, as they are packed."""
        start = self._first + batch.middle + self._shape
        at = 3 if header.startswith(_MAP_16) else 1
        if not header.startswith(start, at):
            return None
        head, decoder = _RESTS.get(header[:at], (b"", None))
        if decoder is None:
            return None
        try:
            rest = decoder.decode(head + header[at + len(start) :])
        except ValueError:
            return None
        one_each = batch.list_start
        indices, ids, labels = bytes(rest.indices), bytes(rest.ids), bytes(rest.labels)
        if (
            indices.startswith(one_each)
            and ids.startswith(one_each)
            and (labels.startswith(one_each) or labels == NULL)
            and bytes(rest.missing) == _EMPTY_LIST
        ):
            return indices, ids, labels
        return None


def _list_start(length: int) -> bytes:
    """Return the bytes with which a packed list of so many entries begins, in the shortest form."""
    if length < 16:
        return bytes([0x90 + length])
    for kind, form in ARRAYS.items():
        if length < 1 << 8 * form.size:
            return bytes([kind]) + form.pack(length)
    raise ValueError(f"a list of {length} entries")

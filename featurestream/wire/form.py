"""What the headers of one tap have in common, as bytes: it is read once, and afterwards only compared."""

from __future__ import annotations

from typing import Final

import msgpack
import numpy as np
from numpy.typing import NDArray

from featurestream.errors import RecordError, UsageError
from featurestream.record import ITEM_BYTES, Record, RecordForm
from featurestream.wire.columns import PackedIdentity
from featurestream.wire.layout import HEADER_KEYS, PAD
from featurestream.wire.value import aligned, integer_at

_pack: Final = msgpack.Packer().pack
_HEAD: Final = msgpack.Packer().pack_map_header(len(HEADER_KEYS) + 1)
_BATCH: Final = _pack("batch")
_IDS: Final = _pack("ids")
_LABELS: Final = _pack("labels")
_NO_LABELS: Final = _LABELS + _pack(None)
_REST: Final = _pack("missing") + _pack([]) + _pack("extracted_at")
_PADS: Final = frozenset(_pack(PAD) + _pack(" " * spaces) for spaces in range(16))


class Form:
    """The form of a header that our own writer has written for a batch from which no sample is missing.

    Most headers of a tap differ from the one before in two numbers, three lists and the time alone.
    """

    def __init__(self, record: RecordForm) -> None:
        length = msgpack.Packer().pack_array_header(record.rows)
        head = ("stream", record.stream, "fingerprint", record.fingerprint, "tap", record.tap, "pass")
        middle = ("views", record.views, "rows", record.rows, "dtype", record.dtype, "shape", record.shape, "indices")
        self._record = record
        self._head = _HEAD + b"".join(map(_pack, head))
        self._middle = b"".join(map(_pack, middle))
        self._length = length
        self._ids = _IDS + length
        self._labels = _LABELS + length

    def read(self, packed: bytes, payload: NDArray[np.uint8], place: tuple[str, int, int] | None) -> Record | None:
        """Return the record of a header of this form; None for any other header, right or wrong."""
        record, starts = self._record, packed.startswith
        if not starts(self._head):
            return None
        try:
            pass_number, at = integer_at(packed, len(self._head), "pass")
            if not starts(_BATCH, at):
                return None
            batch, at = integer_at(packed, at + len(_BATCH), "batch")
            if not starts(self._middle, at):
                return None
            first = at + len(self._middle)
            if not starts(self._length, first):
                return None
            view = memoryview(packed)
            unpacker = msgpack.Unpacker(max_buffer_size=len(packed), read_size=len(packed))
            unpacker.feed(view[first:])
            unpacker.skip()
            second = first + unpacker.tell()
            if not starts(self._ids, second):
                return None
            unpacker.skip()
            unpacker.skip()
            third = first + unpacker.tell()
            labelled = starts(self._labels, third)
            if not labelled and not starts(_NO_LABELS, third):
                return None
            unpacker.skip()
            unpacker.skip()
            end = first + unpacker.tell()
            if not starts(_REST, end):
                return None
            extracted_ns, at = integer_at(packed, end + len(_REST), "extracted_at")
            if packed[at:] not in _PADS:
                return None
            labels = view[third + len(_LABELS) : end] if labelled else None
            lists = (view[first:second], view[second + len(_IDS) : third], labels)
            identity = PackedIdentity(record.rows, lists, (batch, record.tap), place)
            payload = aligned(payload, ITEM_BYTES[record.dtype])
            return Record.of_form(
                record, identity, payload, batch=batch, pass_number=pass_number, extracted_ns=extracted_ns
            )
        except (RecordError, UsageError, msgpack.UnpackException, ValueError):
            return None

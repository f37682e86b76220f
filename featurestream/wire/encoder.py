"""Records written as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from featurestream.errors import UsageError
from featurestream.record import REASON_BYTES, Record
from featurestream.wire.layout import (
    ALIGN,
    BIN_32,
    FORMAT,
    HEADER_KEYS,
    KNOWN_KEYS,
    MUST_UNDERSTAND,
    PREFIX,
    checksum_of,
)  # fmt: skip


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
        at = PREFIX.size + len(header)
        start = at + BIN_32.size
        stop = start + payload.nbytes
        if stop >= 2**32:
            raise UsageError(f"a record of {stop} bytes cannot be written", hint="publish fewer rows a batch")
        if stop > self._buffer.nbytes:
            self._buffer = np.empty(stop + stop // 8, np.uint8)
        buffer = self._buffer.data
        PREFIX.pack_into(buffer, 0, 0x94, FORMAT, 0xCF, checksum_of(header, payload.data), 0xC6, len(header))
        buffer[PREFIX.size : at] = header
        BIN_32.pack_into(buffer, at, 0xC6, payload.nbytes)
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
        spaces = -(PREFIX.size + len(header) + 5 + BIN_32.size) % ALIGN
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
        if not isinstance(key, str) or (key in KNOWN_KEYS and key != MUST_UNDERSTAND):
            raise UsageError(f"{key!r} cannot be a key of a record's extra header fields", hint="it must be a new name")

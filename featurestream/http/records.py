"""Records of a lane as they travel between the gateway and its clients: one msgpack array, an entry a record.

An entry is ``[offset, timestamp_ms, key, headers, value]``: key and value as bin or nil, headers an array of
``[name, value]``. Everything is as it stands on the log, so whoever reads it can check what he checks on Kafka.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from featurestream.errors import RecordError
from featurestream.ports import LogRecord

MEDIA_TYPE: Final = "application/msgpack"


def pack_records(records: Sequence[LogRecord]) -> list[bytes]:
    """Return records as the parts of one msgpack array; values are not copied."""
    packer = msgpack.Packer()
    parts = [packer.pack_array_header(len(records))]
    for record in records:
        head = packer.pack_array_header(5) + packer.pack(record.offset) + packer.pack(record.timestamp_ms)
        head += packer.pack(record.key) + packer.pack(record.headers)
        if record.value is None:
            parts.append(head + packer.pack(None))
        else:
            parts += [head + bin_header(len(record.value)), record.value]
    return parts


def unpack_records(topic: str, lane: int, body: bytes) -> list[LogRecord]:
    """Return the records of an answer. Raises RecordError where it is none."""
    try:
        entries = msgpack.unpackb(body, max_ext_len=0)
        return [_record(topic, lane, entry) for entry in entries]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RecordError(
            f"the gateway's answer with records of {topic}, lane {lane} cannot be read: {error or 'not msgpack'}",
            hint="is it a featurestream gateway, and of a version that fits?",
        ) from error


def _record(topic: str, lane: int, entry: Any) -> LogRecord:
    offset, timestamp_ms, key, headers, value = entry
    numbers = type(offset) is int and type(timestamp_ms) is int
    texts = all(isinstance(name, str) and isinstance(text, bytes) for name, text in headers)
    if not (numbers and texts and isinstance(key, bytes | None) and isinstance(value, bytes | None)):
        raise TypeError("an entry of another form")
    return LogRecord(topic, lane, offset, timestamp_ms, key, tuple((name, text) for name, text in headers), value)


def bin_header(length: int) -> bytes:
    """Return what msgpack writes before so many bytes: they themselves need not be copied behind it."""
    if length < 2**8:
        return b"\xc4" + length.to_bytes(1, "big")
    if length < 2**16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")

"""Where the parts of a record's value lie, and what all modules of the format share."""

from __future__ import annotations

import struct
from typing import Final

from xxhash import xxh3_64

from featurestream.errors import RecordError

FORMAT: Final = 1
CONTENT_TYPE: Final = "application/vnd.featurestream.features+msgpack"

#: The header's keys in the order in which they are written. ``pad`` comes last, after the keys of later writers.
HEADER_KEYS: Final = (
    "stream", "fingerprint", "tap", "pass", "batch", "views", "rows", "dtype", "shape", "indices", "ids", "labels",
    "missing", "extracted_at",
)  # fmt: skip
MUST_UNDERSTAND: Final = "must_understand"
PAD: Final = "pad"
RECORD_HEADERS: Final = ("content-type", "format", "fingerprint", "pass", "batch", "rows")

ALIGN: Final = 16
PREFIX: Final = struct.Struct(">BBBQBI")
BIN_32: Final = struct.Struct(">BI")
ARRAYS: Final = {0xDC: struct.Struct(">H"), 0xDD: struct.Struct(">I")}
NULL: Final = b"\xc0"
LONGEST_TEXT: Final = 100  # names are no longer, fingerprints and dtypes shorter
MAPS: Final = {0xDE: struct.Struct(">H"), 0xDF: struct.Struct(">I")}
DAMAGED: Final = "it was not written by featurestream, or was damaged on its way"
UPGRADE: Final = "upgrade featurestream to read it"
KNOWN_KEYS: Final = frozenset([*HEADER_KEYS, MUST_UNDERSTAND, PAD])


def checksum_of(header: bytes | memoryview, payload: memoryview) -> int:
    """Return xxh3-64 of a header's bytes and then a payload's."""
    both = xxh3_64(header)
    both.update(payload)
    return both.intdigest()


def other_format(number: int | str) -> RecordError:
    """Return the error for a record of another format."""
    return RecordError(f"the record has format {number}, this featurestream reads format {FORMAT}", hint=UPGRADE)


def clip(text: str) -> str:
    """Return the start of a text of others, so that a message stays one that can be read."""
    return text if len(text) <= 80 else text[:80] + "..."

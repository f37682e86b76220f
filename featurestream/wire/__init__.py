"""The bytes of a record on Kafka: its value and its headers.

A value is ONE standard msgpack array, ``[format, checksum, header, payload]``, which any msgpack library reads. As our
writer lays it out::

    byte 0       94                      an array of four
         1       01                      format: what stands first in every format there will be
         2       cf  checksum (8 bytes)  uint64: xxh3-64 over the header's bytes, then the payload's
        11       c6  H (4 bytes)         bin 32
        16       the header (H bytes)    a msgpack map; its key "pad" makes H leave 11 when divided by 16
        16 + H   c6  P (4 bytes)         bin 32
        21 + H   the payload (P bytes)   starts at a multiple of 16: raw numbers, little-endian, C order

``schemas/README.md`` describes the header's keys and the record headers for other languages. Nothing here knows torch
or Kafka; every length is checked before memory is taken.
"""

from __future__ import annotations

from featurestream.wire.bound import RECORD_LIMIT, record_bytes_bound, rows_that_fit
from featurestream.wire.decoder import decode, open_record
from featurestream.wire.encoder import Encoder, encode
from featurestream.wire.expected import ExpectedBatch, ExpectedPass, ExpectedTap
from featurestream.wire.headers import RecordHeaders, headers_of, parse_headers
from featurestream.wire.layout import CONTENT_TYPE, FORMAT, HEADER_KEYS, MUST_UNDERSTAND, PAD

__all__ = [
    "CONTENT_TYPE", "FORMAT", "HEADER_KEYS", "MUST_UNDERSTAND", "PAD", "RECORD_LIMIT", "Encoder", "ExpectedBatch",
    "ExpectedPass", "ExpectedTap", "RecordHeaders", "decode", "encode", "headers_of", "open_record", "parse_headers",
    "record_bytes_bound", "rows_that_fit",
]  # fmt: skip

"""How large a record can get."""

from __future__ import annotations

from typing import Final

import msgpack

from featurestream.identity import MAX_NUMBER
from featurestream.names import record_key
from featurestream.record import ITEM_BYTES, MAX_AXES, REASON_BYTES
from featurestream.wire.headers import header_texts
from featurestream.wire.layout import ALIGN, BIN_32, HEADER_KEYS, PAD, PREFIX

#: What a record may take of the client's stock limit of 1,000,000 bytes; the rest is for headers that others add.
RECORD_LIMIT: Final = 999_000
# A broker compares value + key + headers + 72 with its limit, a client + 36 with its own; a header takes 2 more.
_KAFKA_BYTES: Final = 72
_KAFKA_HEADER_BYTES: Final = 2


def record_bytes_bound(row_bytes: int, rows: int, longest_id_bytes: int, label_values: int, *, views: int = 1) -> int:
    """Return a size that no record of so many rows exceeds, from what is known before anything is extracted.

    It counts all that a client or a broker counts against its limit: value, key, headers and their own bytes. A sample
    that is missing instead of having rows is allowed for; keys of later writers (``extra``) are not.

    Args:
        row_bytes: bytes of one row's numbers.
        rows: rows when no sample is missing.
        longest_id_bytes: UTF-8 bytes (not characters) of the longest sample id.
        label_values: numbers in the label of a row; 0 where there are none.
        views: rows of one sample.
    """
    return _FIXED_BYTES + -(-rows // views) * _sample_bytes(row_bytes, longest_id_bytes, label_values, views)


def rows_that_fit(
    row_bytes: int, longest_id_bytes: int, label_values: int, *, views: int = 1, limit: int = RECORD_LIMIT
) -> int:
    """Return the most rows, a multiple of ``views``, whose record never exceeds ``limit``.

    That is 0 where not even one sample fits. The arguments are those of :func:`record_bytes_bound`.
    """
    samples = (limit - _FIXED_BYTES) // _sample_bytes(row_bytes, longest_id_bytes, label_values, views)
    return max(samples, 0) * views


def _sample_bytes(row_bytes: int, longest_id_bytes: int, label_values: int, views: int) -> int:
    # msgpack: an integer or a double takes up to 9 bytes, a float32 5; the length of a text or a list up to 5.
    label = 5 + 5 * label_values if label_values > 1 else 9 * label_values
    row = row_bytes + 9 + (5 + longest_id_bytes) + label
    missing = 1 + 9 + (5 + longest_id_bytes) + (5 + REASON_BYTES)
    return max(views * row, missing)


def _fixed_bytes() -> int:
    """Return the most that a record takes beside its samples."""
    number = MAX_NUMBER
    lists = ("indices", "ids", "labels", "missing")
    header: dict[str, object] = dict.fromkeys(HEADER_KEYS, number)
    header |= {"stream": "x" * 100, "tap": "x" * 100, "fingerprint": "x" * 64, "dtype": max(ITEM_BYTES, key=len)}
    header |= {"shape": (number,) * MAX_AXES, "extracted_at": 2**63 - 1, PAD: " " * (ALIGN - 1)}
    header |= dict.fromkeys(lists, ())
    lengths = 4 * len(lists) + 4  # a long list's length takes 4 bytes more than an empty one's; and so may the map's
    value = PREFIX.size + len(msgpack.packb(header)) + lengths + BIN_32.size
    headers = header_texts("x" * 64, number, number, number)
    return (
        value
        + len(record_key(number, number))
        + sum(len(name) + len(text) + _KAFKA_HEADER_BYTES for name, text in headers)
        + _KAFKA_BYTES
    )


_FIXED_BYTES: Final = _fixed_bytes()

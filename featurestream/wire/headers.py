"""The headers of a record: small texts beside its value."""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

from featurestream.errors import RecordError
from featurestream.identity import MAX_NUMBER
from featurestream.ports import Headers
from featurestream.record import FINGERPRINT, Record
from featurestream.wire.layout import CONTENT_TYPE, DAMAGED, FORMAT, RECORD_HEADERS, clip, other_format

_LONGEST_NUMBER: Final = 16  # digits
_CONTENT_TYPE: Final = CONTENT_TYPE.encode()
_FORMAT: Final = b"%d" % FORMAT


class RecordHeaders(NamedTuple):
    """What a record's headers say: enough to route, to find gaps and to show lag without touching the value."""

    format: int
    fingerprint: str
    pass_number: int
    batch: int
    rows: int


def headers_of(record: Record) -> list[tuple[str, bytes]]:
    """Return the record's headers: small texts."""
    return header_texts(record.fingerprint, record.pass_number, record.batch, record.rows)


def header_texts(fingerprint: str, pass_number: int, batch: int, rows: int) -> list[tuple[str, bytes]]:
    """Return the headers of a record that has these numbers."""
    return [
        ("content-type", _CONTENT_TYPE),
        ("format", _FORMAT),
        ("fingerprint", fingerprint.encode()),
        ("pass", b"%d" % pass_number),
        ("batch", b"%d" % batch),
        ("rows", b"%d" % rows),
    ]


def parse_headers(headers: Headers | None) -> RecordHeaders:
    """Return what a record's headers say.

    Headers of other names, such as a tracer adds, are passed over. Raises RecordError where one of ours is missing,
    there twice, without a value or not what it should be, and where the record is of another format.
    """
    given = headers or ()
    # Ours and no others, in the order of our writer, each with a value: nearly always, and much faster to take apart.
    names, values = zip(*given, strict=True) if given else ((), ())
    if names != RECORD_HEADERS or {*map(type, values)} != {bytes}:
        found = _pick(given)
        values = tuple(found[name] for name in RECORD_HEADERS)
    content_type, number, fingerprint, pass_number, batch, rows = values
    if content_type != _CONTENT_TYPE:
        raise RecordError(
            f'the record\'s content-type is "{_shown(content_type)}", expected "{CONTENT_TYPE}"', hint=DAMAGED
        )
    if number != _FORMAT:
        raise other_format(_shown(number))
    return RecordHeaders(
        FORMAT,
        _fingerprint(fingerprint),
        _header_number("pass", pass_number),
        _header_number("batch", batch),
        _header_number("rows", rows),
    )


@functools.lru_cache(maxsize=256)
def _fingerprint(value: bytes) -> str:
    fingerprint = value.decode("ascii", "replace")
    if not FINGERPRINT.fullmatch(fingerprint):
        raise RecordError(f'the record\'s header "fingerprint" is "{_shown(value)}"', hint=DAMAGED)
    return fingerprint


def _pick(headers: Headers) -> dict[str, bytes]:
    """Return our headers out of all that a record has."""
    found: dict[str, bytes] = {}
    for name, value in headers:
        if name not in RECORD_HEADERS:
            continue
        if name in found:
            raise RecordError(f'the record has the header "{name}" twice', hint=DAMAGED)
        if not isinstance(value, bytes):
            raise RecordError(f'the record\'s header "{name}" has no value', hint=DAMAGED)
        found[name] = value
    absent = [name for name in RECORD_HEADERS if name not in found]
    if absent:
        raise RecordError(f"the record lacks the headers {', '.join(absent)}", hint=DAMAGED)
    return found


def _header_number(name: str, text: bytes) -> int:
    number = int(text) if len(text) <= _LONGEST_NUMBER and text.isdigit() else -1
    if not 0 <= number <= MAX_NUMBER or text != b"%d" % number:
        raise RecordError(
            f'the record\'s header "{name}" is "{_shown(text)}", expected a number from 0 to 2^53 - 1', hint=DAMAGED
        )
    return number


def _shown(text: bytes) -> str:
    return clip(text[:100].decode("ascii", "backslashreplace"))

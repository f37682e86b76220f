"""The cursor: an opaque text that says where the next answer begins, and of what."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from xxhash import xxh3_64_intdigest

from featurestream.errors import UsageError
from featurestream.identity import MAX_NUMBER
from featurestream.position import Position

VERSION: Final = 1
LONGEST: Final = 4096  # characters; ours have some hundred
_CHECK: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a stream, the taps that are read, and where the range ends (None: nowhere).

    As text it is the base64url, without padding, of a checksum (the lower 32 bits of xxh3-64, big-endian) and a msgpack
    array. The checksum finds texts that were cut or mistyped; nothing in a cursor is secret, and a forged one names a
    place that its maker could have asked for.
    """

    stream: str
    fingerprint: str
    taps: tuple[str, ...]
    at: Position
    stop: Position | None

    def text(self) -> str:
        """Return the cursor as text."""
        stop = None if self.stop is None else [self.stop.batch, self.stop.row]
        packed: bytes = msgpack.packb(
            [VERSION, self.stream, self.fingerprint, list(self.taps), [self.at.batch, self.at.row], stop]
        )
        return base64.urlsafe_b64encode(_check(packed) + packed).rstrip(b"=").decode()


def parse_cursor(text: str) -> Cursor:
    """Return the cursor of a text; raise UsageError where it is none."""
    try:
        if len(text) > LONGEST:
            raise ValueError("too long")
        data = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if data[: _CHECK.size] != _check(data[_CHECK.size :]):
            raise ValueError("another checksum")
        fields = msgpack.unpackb(data[_CHECK.size :])
        return _cursor(fields)
    except (ValueError, binascii.Error, msgpack.UnpackException, TypeError, KeyError) as error:
        raise UsageError(
            f'"{text[:40]}{"..." if len(text) > 40 else ""}" is not a cursor',
            hint='give the "next" of an answer as it came, or begin with from',
        ) from error


def _cursor(fields: Any) -> Cursor:
    version, stream, fingerprint, taps, at, stop = fields
    if version != VERSION or not all(isinstance(text, str) for text in (stream, fingerprint, *taps)):
        raise ValueError("not ours")
    return Cursor(stream, fingerprint, tuple(taps), _position(at), None if stop is None else _position(stop))


def _position(pair: Any) -> Position:
    batch, row = pair
    if not all(type(number) is int and 0 <= number <= MAX_NUMBER for number in (batch, row)):
        raise ValueError("not a place")
    return Position(batch, row)


def _check(packed: bytes) -> bytes:
    return _CHECK.pack(xxh3_64_intdigest(packed) & 0xFFFF_FFFF)

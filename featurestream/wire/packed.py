"""A msgpack value of a header, unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
from numpy.typing import NDArray

from featurestream.errors import RecordError
from featurestream.wire.layout import DAMAGED


def unpack(packed: bytes) -> Any:
    """Return a value of a header."""
    try:
        return msgpack.unpackb(packed, ext_hook=_refuse_extension, max_ext_len=0)
    except (msgpack.UnpackException, ValueError, RecursionError) as error:
        raise not_msgpack(error) from error


def not_msgpack(error: Exception) -> RecordError:
    """Return the error for what the msgpack library refused."""
    reason = str(error) or type(error).__name__
    return RecordError(f"the header is not msgpack as a record may hold it: {reason}", hint=DAMAGED)


def _refuse_extension(code: int, _: bytes) -> Any:
    raise RecordError(f"the header holds msgpack's extension type {code}, expected plain types", hint=DAMAGED)


def all_of(kind: type, values: Sequence[Any] | NDArray[Any]) -> bool:
    """Whether each value is of this very type."""
    # The fastest exact answer in Python; isinstance would take True for an int.
    return [*map(type, values)].count(kind) == len(values)

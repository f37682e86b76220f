"""What proves which image is behind a row: checksums of the tensors that were fed to the backbone.

A record's header carries them for a few rows of its batch under the key ``inputs``, as ``[[row, checksum], ...]``: the
first row, and one that the batch's number decides. All taps of a batch carry the same ones.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from featurestream.errors import RecordError
from featurestream.record import Record

if TYPE_CHECKING:
    from torch import Tensor

INPUTS_KEY: Final = "inputs"
#: What the key takes in a record's header at most: its name, and two pairs of a row and 16 digits.
INPUTS_BYTES: Final = 64

_DIGITS: Final = 16


def sampled_rows(batch: int, rows: int) -> tuple[int, ...]:
    """Return the rows of a batch whose inputs' checksums its records carry, in ascending order.

    They are the first row and, where there are others, the one that the xxh3-64 of the batch's number (a little-endian
    unsigned 64-bit integer) modulo their count selects. A function of its arguments, so that a batch that is published
    anew carries the same.
    """
    if rows < 2:
        return tuple(range(rows))
    return 0, 1 + xxhash.xxh3_64_intdigest(struct.pack("<Q", batch)) % (rows - 1)


def input_checksum(image_CHW: Tensor) -> str:
    """Return the xxh3-64 of one image as it is fed to the backbone: 16 hexadecimal digits.

    It is taken over the numbers as little-endian float32 in C order (channel, row, column), wherever they lie.
    """
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(image_CHW.cpu().numpy(), dtype="<f4").data)


def input_checksums(batch: int, images_BCHW: Tensor) -> tuple[tuple[int, str], ...]:
    """Return (row, checksum) of the sampled rows of a batch."""
    return tuple((row, input_checksum(images_BCHW[row])) for row in sampled_rows(batch, len(images_BCHW)))


def to_extra(checksums: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """Return the checksums as a record's extra header fields; none for a batch without rows."""
    return {INPUTS_KEY: [list(pair) for pair in checksums]} if checksums else {}


def carried_checksums(record: Record) -> dict[int, str]:
    """Return {row: checksum} that a record carries; empty for a record of a writer that gave none.

    Raises RecordError where the header's key is not what it should be.
    """
    pairs = record.extra.get(INPUTS_KEY, [])
    if not isinstance(pairs, list) or not all(_is_pair(pair, record.rows) for pair in pairs):
        raise RecordError(
            f'the header\'s key "{INPUTS_KEY}" is not a list of [row, checksum]',
            hint=f"expected rows below {record.rows} and {_DIGITS} hexadecimal digits; another writer may use this key",
        )
    return dict(pairs)


def _is_pair(pair: Any, rows: int) -> bool:
    if not isinstance(pair, list) or [*map(type, pair)] != [int, str]:
        return False
    row, checksum = pair
    return 0 <= row < rows and len(checksum) == _DIGITS and set(checksum) <= set("0123456789abcdef")

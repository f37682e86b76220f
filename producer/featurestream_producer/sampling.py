"""Which sample comes when, and which random numbers it gets: functions of integers, the same for ever.

Nothing here keeps a state, so any batch of a stream can be worked out alone: by a producer that goes on after a
crash, by one on another number of devices, and by whoever wants to see the image behind a row again. Golden values in
the tests pin every function; a change of a single bit would make old streams impossible to extend.
"""

from __future__ import annotations

import struct

import numpy as np
import xxhash
from numpy.typing import NDArray

from featurestream.errors import UsageError

_SEED_LIMIT = 2**63  # a seed and a pass number are written as signed 64-bit integers elsewhere


def permutation(seed: int, pass_number: int, samples: int) -> NDArray[np.int64]:
    """Return the order in which a pass visits its samples: a permutation of 0 ... ``samples`` - 1, int64.

    Sample i gets word i of the bit generator Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", SC 2011) with the key (seed, pass number), and the samples are sorted by their words, ties in the order
    of their numbers. Raw words and a stable sort are the same in every NumPy version; ``Generator.permutation`` may
    change between versions.

    Raises UsageError for a negative argument or one of 2**63 and more.
    """
    _check("seed", seed)
    _check("pass number", pass_number)
    _check("number of samples", samples)
    key = np.array([seed, pass_number], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(samples), kind="stable").astype(np.int64, copy=False)


def sample_seed(seed: int, pass_number: int, sample: int, view: int) -> int:
    """Return the seed of one image's augmentation: 0 ... 2**63 - 1.

    It is the upper 63 bits of the xxh3-64 of the four numbers as little-endian unsigned 64-bit integers.

    Raises UsageError for a negative argument or one of 2**63 and more.
    """
    for what, number in (("seed", seed), ("pass number", pass_number), ("sample", sample), ("view", view)):
        _check(what, number)
    return xxhash.xxh3_64_intdigest(struct.pack("<4Q", seed, pass_number, sample, view)) >> 1


def order_checksum(order: NDArray[np.int64]) -> str:
    """Return the xxh3-64 of a sample order as 16 hexadecimal digits; the numbers are hashed as little-endian int64."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(order, dtype="<i8").tobytes())


def uniform_numbers(seed: int, count: int) -> list[float]:
    """Return ``count`` numbers, uniform in [0, 1): the upper 53 bits of Philox4x64-10 words with the key (seed, 0).

    A transform of ours draws all its numbers with one call, so that it needs no global random state.
    """
    words = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64)).random_raw(count)
    return [int(word >> np.uint64(11)) * 2.0**-53 for word in words]


def _check(what: str, number: int) -> None:
    if not 0 <= number < _SEED_LIMIT:
        raise UsageError(f"{what} {number} is out of range", hint=f"expected 0 ... {_SEED_LIMIT - 1}")

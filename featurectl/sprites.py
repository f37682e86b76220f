"""What the samples of a stream look like, small: the producer's data, handed to reporters of the consumer."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from featurestream.ports import Log

SIDE = 48  # pixels


def pictures_on(log: Log) -> Callable[[str, NDArray[np.int64]], NDArray[np.uint8]]:
    """Return what makes pictures of samples from a stream's data: ``pictures(stream, indices)``.

    It returns uint8 (samples, 48, 48, 3): the middle of each image, black where it cannot be decoded. It raises
    UsageError where the data is not at hand, and StreamMismatchError where it is no longer the stream's. The pictures
    of the last samples asked for are kept: the experiments of a sweep show the same.
    """

    @lru_cache(maxsize=1)
    def make(stream: str, indices: tuple[int, ...]) -> NDArray[np.uint8]:
        from featurestream.manifest_topic import require_manifest
        from featurestream_producer.remake import sprites_of

        return sprites_of(require_manifest(log, stream), indices, side=SIDE)

    def pictures(stream: str, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return make(stream, tuple(indices.tolist()))

    return pictures

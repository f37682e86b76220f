"""What every kind of data set becomes: ids, labels and a way to get an image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurestream.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """N labelled images. Picklable as long as ``load`` is: loader processes get a copy.

    ``source``: what the user named. ``ids``: N unique texts, relative paths with ``/`` where the images are files.
    ``labels``: None, or int64 (N,) class numbers, or float32 (N,) values, or float32 (N, K) several values a sample.
    ``classes``: the class names, where label i means ``classes[i]``; None where labels are the user's own numbers.
    ``load(index)`` returns the image, mode RGB, or raises DataError with ``path`` and ``reason``.

    Raises DataError when ids or labels do not fit this description.
    """

    source: str
    ids: Sequence[str]
    labels: NDArray[np.int64] | NDArray[np.float32] | None
    classes: tuple[str, ...] | None
    load: Callable[[int], Image.Image]

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(f'data set "{self.source}" is empty', hint="expected at least one image")
        self._check_ids()
        if self.labels is not None:
            self._check_labels(self.labels)

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """Return the SHA-256 over ids, labels and classes: equal when rows mean the same samples."""
        digest = hashlib.sha256()
        # The count tells ids from class names.
        _add(digest, f"{len(self.ids)} samples".encode())
        for text in self.ids:
            _add(digest, text.encode())
        if self.labels is not None:
            _add(digest, f"{self.labels.dtype.name} {self.labels.shape}".encode())
            # Little-endian on every machine, as everything else of ours is.
            _add(digest, self.labels.astype(self.labels.dtype.newbyteorder("<")).tobytes())
        for text in self.classes or ():
            _add(digest, text.encode())
        return digest.hexdigest()

    def _check_ids(self) -> None:
        seen: dict[str, int] = {}
        for index, text in enumerate(self.ids):
            first = seen.setdefault(text, index)
            if first != index:
                raise DataError(
                    f'data set "{self.source}" names "{text}" twice: samples {first} and {index}',
                    hint="an id stands for one sample; drop the duplicates",
                )
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f'data set "{self.source}": the file name {text!r} is not valid UTF-8',
                    hint="rename the file; ids are published as UTF-8",
                ) from error

    def _check_labels(self, labels: NDArray[np.int64] | NDArray[np.float32]) -> None:
        axes = {np.dtype(np.int64): (1,), np.dtype(np.float32): (1, 2)}.get(labels.dtype, ())
        if labels.ndim not in axes or len(labels) != len(self.ids):
            raise DataError(
                f'data set "{self.source}": labels are {labels.dtype} {labels.shape}',
                hint=f"expected int64 (N,), float32 (N,) or float32 (N, K) with N = {len(self.ids)}",
            )


def _add(digest: hashlib._Hash, part: bytes) -> None:
    # The length goes in front, so that no two different lists of parts give the same bytes.
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)

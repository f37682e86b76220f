"""Any map-style data set of (PIL image, label) pairs as an ImageDataset."""

from __future__ import annotations

import logging
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurestream.errors import DataError, UsageError
from featurestream_producer.datasets.dataset import ImageDataset
from featurestream_producer.datasets.image import bad_image, to_rgb

_log = logging.getLogger(__name__)

# Where torchvision's data sets keep the labels of all samples; there is no agreed name.
_LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")


@dataclass(frozen=True)
class PairImages:
    """``load`` for a map-style data set that yields pairs of (image, label)."""

    source: str
    pairs: Any

    def __call__(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB; DataError with ``path`` and ``reason`` for whatever goes wrong in there."""
        try:
            image = self.pairs[index][0]
            if not isinstance(image, Image.Image):
                raise TypeError(f"expected a pair (PIL image, label), got {type(image).__name__} for the image")
            return to_rgb(image)
        except DataError as error:
            raise bad_image(f"{self.source}[{index}]", error.message) from error
        except Exception as error:  # the data set is somebody else's code; the image counts as missing
            raise bad_image(f"{self.source}[{index}]", f"{type(error).__name__}: {error}") from error


def wrap(pairs: Any, source: str, prefix: str = "") -> ImageDataset:
    """Return a map-style data set of (PIL image, label) as an ImageDataset; ids are its indices, after ``prefix``.

    Labels come from the attribute ``targets`` or ``labels`` where there is one, else every sample is read once. Labels
    that are not numbers (annotations, pictures) leave the data set without labels, with a line in the log.
    """
    try:
        count = len(pairs)
    except TypeError as error:
        raise UsageError(
            f"{source} is {type(pairs).__name__}, which has no length",
            hint="expected an ImageDataset or a map-style data set of (PIL image, label)",
        ) from error
    width = len(str(max(count - 1, 0)))
    ids = [f"{prefix}{index:0{width}d}" for index in range(count)]
    labels = _labels(pairs, count, source)
    classes: Any = getattr(pairs, "classes", None)
    numbered = labels is not None and labels.dtype == np.int64 and classes is not None
    names = tuple(str(name) for name in classes) if numbered else None
    return ImageDataset(source, ids, labels, names, PairImages(source, pairs))


def _labels(pairs: Any, count: int, source: str) -> NDArray[np.int64] | NDArray[np.float32] | None:
    lists: list[Any] = [getattr(pairs, attribute, None) for attribute in _LABEL_ATTRIBUTES]
    values = next((found for found in lists if isinstance(found, Sized) and len(found) == count), None)
    if values is None:
        _log.info("%s has no list of labels: reading %d samples once", source, count)
        values = [pairs[index][1] for index in range(count)]
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        array = np.empty(0, dtype=object)
    if array.dtype.kind in "iub" and array.ndim == 1:
        return array.astype(np.int64)
    if array.dtype.kind in "iubf" and array.ndim in (1, 2):
        return array.astype(np.float32)
    _log.warning("%s: its labels are not numbers; the stream will have none", source)
    return None

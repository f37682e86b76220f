"""Read one image file: JPEG with the decoder that was chosen, everything else with Pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from featurestream.errors import DataError
from featurestream_producer.datasets.decoders import JPEG_DECODERS, PILLOW

# The endings that torchvision's ImageFolder takes, so that both see the same samples.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFiles:
    """``load`` for images that are files: ``root / ids[index]``."""

    root: Path
    ids: Sequence[str]
    decoder: str = PILLOW

    def __call__(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB; DataError with ``path`` and ``reason`` where that is not possible."""
        return read_image(self.root / self.ids[index], self.decoder)


def read_image(path: Path, decoder: str = PILLOW) -> Image.Image:
    """Return the image in a file: upright (EXIF orientation applied), mode RGB, the first frame of several.

    ``decoder`` (:mod:`.decoders`) is for JPEG files in colour or grey; Pillow reads all others, and every header.
    16-bit grey images keep their upper 8 bits. Raises DataError with ``path`` and ``reason`` for everything that is
    not a complete image: a missing, empty or cut file, a foreign format, one with more pixels than Pillow's bound
    against decompression bombs, and 32-bit images, whose range of values nobody states.
    """
    try:
        with Image.open(path) as image:
            if decoder != PILLOW and image.format == "JPEG" and image.mode in ("RGB", "L"):
                return JPEG_DECODERS[decoder](image, path.read_bytes())
            return to_rgb(ImageOps.exif_transpose(image))
    except DataError as error:
        raise bad_image(path, error.message) from error
    except FileNotFoundError as error:
        raise bad_image(path, "no such file") from error
    except Exception as error:  # decoders of broken files raise whatever they happen to trip over
        raise bad_image(path, f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` with mode RGB, as a decoded copy; DataError for a mode without a stated range of values."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns most of a 16-bit image white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(f'image mode "{image.mode}" has no stated range of values')
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def bad_image(path: str | os.PathLike[str], reason: str) -> DataError:
    """Return the error for an image that cannot be used."""
    return DataError(f'cannot decode image "{os.fspath(path)}": {reason}', path=os.fspath(path), reason=reason)

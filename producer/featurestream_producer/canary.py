"""A fixed input for a backbone and a fixed image for a transform: whatever comes out must not depend on the device."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor

from featurestream.errors import FeatureStreamError
from featurestream.health import Canary, TapCanary
from featurestream_producer.devices import device_title
from featurestream_producer.health import chosen_places
from featurestream_producer.inputs import input_checksum
from featurestream_producer.taps import TapReader
from featurestream_producer.transforms import Transform

IMAGES: Final = 2
SKETCHED: Final = 64  # numbers of a tap that are kept
WIDTH, HEIGHT, BLOCK = 320, 240, 16  # pixels of the fixed image, and of a side of its squares
SEED: Final = 20_260_101  # any fixed number


def make_canary(reader: TapReader, transform: Transform, device: str) -> Canary:
    """Return what a device makes of the fixed input, and the transform of the fixed image.

    The features are not checked: an input that no image is like may leave the dtype's range, which is no error.
    """
    features = reader.capture(fixed_input(transform.image_size)).features
    return Canary(
        device=device_title(device),
        transform=transform_canary(transform),
        taps=[_tap_canary(name, feature.cpu()) for name, feature in features.items()],
    )


def transform_canary(transform: Transform) -> str | None:
    """Return the checksum of what a transform makes of the fixed image; None where it refuses that image."""
    try:
        return input_checksum(transform(fixed_image(), SEED))
    except FeatureStreamError:
        return None  # a transform of the user's may want images of another kind


def fixed_input(size: int) -> Tensor:
    """Return float32 (2, 3, size, size), uniform in [-2, 2): about what normalised images are made of."""
    shape = (IMAGES, 3, size, size)
    words = np.random.Philox(key=np.array([SEED, 0], dtype=np.uint64)).random_raw(int(np.prod(shape)))
    uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy((4 * uniform - 2).astype(np.float32).reshape(shape))


def fixed_image() -> Image.Image:
    """Return an RGB image of coloured squares."""
    shape = (HEIGHT // BLOCK, WIDTH // BLOCK, 3)
    words = np.random.Philox(key=np.array([SEED, 1], dtype=np.uint64)).random_raw(int(np.prod(shape)))
    colours = (words >> np.uint64(56)).astype(np.uint8).reshape(shape)
    return Image.fromarray(colours.repeat(BLOCK, 0).repeat(BLOCK, 1))


def _tap_canary(name: str, feature: Tensor) -> TapCanary:
    numbers = feature.contiguous().reshape(-1)
    sketch = numbers[torch.from_numpy(chosen_places(len(numbers), SKETCHED))].float()
    return TapCanary(
        name=name,
        checksum=xxhash.xxh3_64_hexdigest(numbers.view(torch.uint8).numpy().data),
        sketch=sketch.tolist() if bool(sketch.isfinite().all()) else [],
    )

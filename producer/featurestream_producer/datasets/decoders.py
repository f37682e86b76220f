"""Who decodes JPEG files: the fastest library that is installed, Pillow always. A new one is a function and a line.

Decoders may differ in a pixel's last bit, so the one that is used is part of the stream's fingerprint. These hardly do:
all three bring libjpeg-turbo with its exact settings (the slow integer DCT and fancy upsampling).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from PIL import Image

from featurestream.errors import MissingExtraError
from featurestream.lookup import look_up

Decode = Callable[[Image.Image, bytes], Image.Image]

PILLOW: Final = "pillow"

# EXIF's tag and its values; what undoes each of them is in the Exif specification, 4.6.5.1.
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _simplejpeg(header: Image.Image, data: bytes) -> Image.Image:
    import simplejpeg

    image = Image.fromarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    turn = _UPRIGHT.get(header.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _torchcodec(_header: Image.Image, data: bytes) -> Image.Image:
    import torch

    decoders: Any = import_module("torchcodec.decoders")
    encoded = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))
    pixels_CHW: torch.Tensor = decoders.decode_jpeg(encoded, mode=decoders.ImageReadMode.RGB)  # turned upright
    return Image.fromarray(pixels_CHW.permute(1, 2, 0).contiguous().numpy())


#: (the opened, not decoded file; its bytes) to the upright RGB image, by the package's name; the fastest first.
JPEG_DECODERS: Final[dict[str, Decode]] = {"simplejpeg": _simplejpeg, "torchcodec": _torchcodec}


def choose_decoder(name: str | None) -> str:
    """Return the name of the decoder to use: ``name`` where it is installed, for None the fastest that is.

    Raises UnknownNameError for one that there is not, MissingExtraError for one that is not installed.
    """
    if name is None:
        return next((known for known in JPEG_DECODERS if find_spec(known) is not None), PILLOW)
    look_up("decoder", name, {**JPEG_DECODERS, PILLOW: None})
    if name != PILLOW and find_spec(name) is None:
        raise MissingExtraError(f"the decoder {name}", "fast")
    return name

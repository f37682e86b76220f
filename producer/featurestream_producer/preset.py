"""How a backbone's weights want their images: sizes, normalisation, interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """The evaluation preset of a set of weights.

    ``image_size``: pixels a side of the square that the backbone gets. ``resize_size``: pixels of the shorter side
    before the crop. ``mean`` and ``std``: of red, green and blue in [0, 1]. ``interpolation``: a name of
    ``PIL.Image.Resampling`` in lower case. ``crop``: "center" keeps the proportions and cuts the middle out, "squash"
    brings the whole image to the square and ignores its proportions.
    """

    image_size: int
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    crop: Literal["center", "squash"] = "center"


# What most ImageNet recipes evaluate with since Krizhevsky et al. (2012): shorter side 256, centre crop 224.
IMAGENET = Preset(image_size=224, resize_size=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

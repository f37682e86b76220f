"""From a decoded image to the tensor that the backbone gets, reproducible from one integer.

``eval`` is the weights' own preset; ``train`` is a random resized crop and a flip, then the weights' normalisation.
Anything else is ``package.module:function``: a callable that takes one RGB ``PIL.Image`` and returns a float32
tensor (3, size, size). It may draw from torch's, NumPy's (legacy) and Python's global generators: they are seeded for
every image.

Our own transforms draw from :func:`~featurestream_producer.sampling.uniform_numbers` and resample with Pillow alone:
no global state, no dependence on how a library's augmentation happens to draw its numbers in this version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featurestream.errors import DataError, UsageError
from featurestream.lookup import is_import_path, load_object, look_up
from featurestream_producer.preset import Preset
from featurestream_producer.randomness import seeded_globals
from featurestream_producer.sampling import uniform_numbers

# A picture one pixel wide and very long grows to gigabytes when its short side is scaled up. Pillow's own bound on
# what it decodes without a warning is a fair bound on what we make from it.
_MAX_RESIZED_PIXELS = 89_478_485


class Transform(Protocol):
    """What the loader calls for every view of every sample. Picklable, because loader processes get a copy."""

    @property
    def image_size(self) -> int:
        """Pixels a side of the square that comes out."""

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """Return float32 (3, image_size, image_size) for an RGB image; all randomness comes from ``seed``.

        Raises DataError when this image cannot be transformed, UsageError when the transform itself is wrong.
        """

    def describe(self) -> dict[str, Any]:
        """Return what decides the result, as JSON values, for the manifest."""


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side, cut the centre out, normalise: bit for bit what torchvision's presets do."""

    preset: Preset

    @property
    def image_size(self) -> int:
        """Pixels a side of the square that comes out."""
        return self.preset.image_size

    def __call__(self, image: Image.Image, seed: int) -> Tensor:  # noqa: ARG002 - nothing random in here
        """Return float32 (3, image_size, image_size); ``seed`` is not used."""
        preset = self.preset
        size = preset.image_size
        if preset.crop == "squash":
            return normalise(image.resize((size, size), _filter(preset)), preset)
        width, height = _resized(image.size, preset.resize_size)
        if width * height > _MAX_RESIZED_PIXELS:
            raise DataError(
                f"an image of {image.width} x {image.height} pixels would be resized to {width} x {height}",
                hint=f"at most {_MAX_RESIZED_PIXELS} pixels",
            )
        if (width, height) != image.size:
            image = image.resize((width, height), _filter(preset))
        # round(), halves to even, as torchvision's center_crop has it.
        left, top = round((width - size) / 2), round((height - size) / 2)
        return normalise(image.crop((left, top, left + size, top + size)), preset)

    def describe(self) -> dict[str, Any]:
        """Return the preset's fields."""
        return {"name": "eval", **_json(self.preset)}


@dataclass(frozen=True)
class TrainTransform:
    """A random resized crop and a horizontal flip, then the weights' normalisation.

    The crop (Szegedy et al., "Going deeper with convolutions", CVPR 2015): an area uniform in ``scale`` of the image's,
    a width-to-height ratio log-uniform in ``ratio``; the first of ten draws that fits, else the largest centred
    crop of an allowed ratio. The flip has probability one half.
    """

    preset: Preset
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    @property
    def image_size(self) -> int:
        """Pixels a side of the square that comes out."""
        return self.preset.image_size

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """Return float32 (3, image_size, image_size)."""
        box, flip = self.draw(image.size, seed)
        size = self.image_size
        view = image.crop(box).resize((size, size), _filter(self.preset))
        if flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return normalise(view, self.preset)

    def draw(self, size: tuple[int, int], seed: int) -> tuple[tuple[int, int, int, int], bool]:
        """Return the crop box (left, top, right, bottom) in an image of ``size`` (width, height), and the flip."""
        width, height = size
        # Always the same count of numbers: which one means what never depends on how many draws did not fit.
        numbers = uniform_numbers(seed, 41)
        flip = numbers[40] < 0.5
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(10):
            u_area, u_ratio, u_left, u_top = numbers[4 * attempt : 4 * attempt + 4]
            area = width * height * (self.scale[0] + u_area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + u_ratio * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(u_left * (width - w + 1)), int(u_top * (height - h + 1))
                return (left, top, left + w, top + h), flip
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return (left, top, left + w, top + h), flip

    def describe(self) -> dict[str, Any]:
        """Return the crop's bounds, the normalisation and the size; what only ``eval`` uses is left out."""
        kept = _json(self.preset)
        del kept["resize_size"], kept["crop"]
        return {"name": "train", "scale": list(self.scale), "ratio": list(self.ratio), "flip": 0.5, **kept}


class FunctionTransform:
    """A transform of the user's, ``package.module:function``: one RGB ``PIL.Image`` in, a tensor out."""

    def __init__(self, path: str, image_size: int) -> None:
        self._path = path
        self._image_size = image_size
        self._function: Callable[[Image.Image], object] = load_object(path, kind="transform")
        if not callable(self._function):
            raise UsageError(
                f'transform "{path}" is {type(self._function).__name__}, not something to call',
                hint="it takes one RGB PIL.Image and returns a float32 tensor (3, size, size)",
            )

    def __reduce__(self) -> tuple[object, ...]:
        # By name: a loader process imports it anew, so it may be a lambda or hold what cannot be pickled.
        return (FunctionTransform, (self._path, self._image_size))

    @property
    def image_size(self) -> int:
        """Pixels a side of the square that comes out."""
        return self._image_size

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """Return what the user's function returns; UsageError where that is not float32 (3, size, size)."""
        with seeded_globals(seed):
            try:
                out = self._function(image)
            except Exception as error:
                raise UsageError(
                    f'transform "{self._path}" failed on an image of {image.width} x {image.height} pixels: '
                    f"{type(error).__name__}: {error}",
                    hint="it gets one RGB PIL.Image",
                ) from error
        expected = (3, self._image_size, self._image_size)
        if not isinstance(out, Tensor):
            raise UsageError(
                f'transform "{self._path}" returned {type(out).__name__}',
                hint=f"expected a float32 tensor {expected}",
            )
        if tuple(out.shape) != expected or out.dtype != torch.float32:
            raise UsageError(
                f'transform "{self._path}" returned {_dtype_name(out)} {tuple(out.shape)}',
                hint=f"expected float32 {expected}; another size is set with --image-size",
            )
        return out.detach()

    def describe(self) -> dict[str, Any]:
        """Return the name and the size: what the function does is its author's to keep unchanged."""
        return {"name": self._path, "image_size": self._image_size}


TRANSFORMS: dict[str, Callable[[Preset], Transform]] = {"eval": EvalTransform, "train": TrainTransform}


def build_transform(name: str, *, image_size: int | None, preset: Preset) -> Transform:
    """Return the transform ``name`` for the weights' ``preset``, at ``image_size`` pixels or the preset's own.

    Another size scales the preset's resize with it: 224 of 256 become 64 of 73. Raises UnknownNameError or UsageError.
    """
    if image_size is not None:
        if image_size < 1:
            raise UsageError(f"image size {image_size} is not possible", hint="expected at least 1 pixel")
        preset = _scaled(preset, image_size)
    if name not in TRANSFORMS and is_import_path(name):
        return FunctionTransform(name, preset.image_size)
    return look_up("transform", name, cast(Mapping[str, Callable[[Preset], Transform]], TRANSFORMS))(preset)


def described_transform(description: Mapping[str, Any]) -> Transform:
    """Return the transform that :meth:`Transform.describe` has described, as a manifest holds it.

    Raises UsageError where this featurestream has no such transform, or one that would now be described otherwise.
    """
    name = description.get("name")
    try:
        if name == "eval":
            transform: Transform = EvalTransform(_described_preset(description))
        elif name == "train":
            preset = _described_preset({"resize_size": description["image_size"], **description})
            transform = TrainTransform(preset, _pair(description["scale"]), _pair(description["ratio"]))
        else:
            transform = FunctionTransform(str(name), int(description["image_size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"a transform is described as {dict(description)}, which this featurestream cannot make: {error!r}",
            hint="the stream may come from a newer featurestream: upgrade this one",
        ) from error
    if not 0 < transform.image_size**2 <= _MAX_RESIZED_PIXELS:
        raise UsageError(
            f"a transform is described that makes images of {transform.image_size} pixels a side",
            hint=f"at most {_MAX_RESIZED_PIXELS} pixels",
        )
    again = transform.describe()
    differing = [key for key in {**description, **again} if description.get(key) != again.get(key)]
    if differing:
        key = differing[0]
        raise UsageError(
            f'transform "{name}" is another one here: {key} is {again.get(key)!r}, in the manifest '
            f"{description.get(key)!r}",
            hint="the stream may come from another featurestream",
        )
    return transform


def normalise(image: Image.Image, preset: Preset) -> Tensor:
    """Return an RGB image as float32 (3, H, W): ((value / 255) - mean) / std, in this order and in float32.

    NumPy gives the same bits as torch here, in half the time: torch spreads an image over threads that then wait for
    each other, and for the forward's.
    """
    out_CHW = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32)
    out_CHW /= np.float32(255)
    out_CHW -= np.array(preset.mean, np.float32).reshape(3, 1, 1)
    out_CHW /= np.array(preset.std, np.float32).reshape(3, 1, 1)
    return torch.from_numpy(out_CHW)


def _scaled(preset: Preset, image_size: int) -> Preset:
    resize_size = round(preset.resize_size * image_size / preset.image_size)
    return Preset(image_size, resize_size, preset.mean, preset.std, preset.interpolation, preset.crop)


def _resized(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side at ``short_side``; the longer is rounded down, as in torchvision."""
    width, height = size
    if width <= height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def _json(preset: Preset) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(preset).items()}


def _described_preset(description: Mapping[str, Any]) -> Preset:
    names = [field.name for field in fields(Preset)]
    values: dict[str, Any] = {name: description[name] for name in names if name in description}
    fixed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Preset(**fixed)


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    return low, high


def _filter(preset: Preset) -> Image.Resampling:
    return Image.Resampling[preset.interpolation.upper()]


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

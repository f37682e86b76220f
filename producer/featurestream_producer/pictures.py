"""Show what was fed to the backbone: tensors as pictures, beside the images that they came from.

Numbers and images in, images out; nothing here reads a stream or a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from featurestream_producer.preset import IMAGENET
from featurestream_producer.remake import Remade

GAP: Final = 12
TEXT: Final = 13  # pixels of a line's letters
LINE: Final = 18
PAIR_SIDE: Final = 320  # pixels a side, nearly, of each of two pictures
CELL_SIDE: Final = 96  # pixels a side, nearly, of a picture in a sheet
LETTERS: Final = 7  # pixels that a letter takes, nearly
BACKGROUND, INK, FAINT, PROVEN = (250, 250, 250), (20, 20, 20), (110, 110, 110), (0, 130, 80)

#: What a colour between 0 and 1 may leave these bounds by, because a resampling filter overshoots.
OVERSHOOT: Final = 0.05


def normalisation_of(description: Mapping[str, Any], images_BCHW: Tensor) -> tuple[Tensor, Tensor, str]:
    """Return mean (3, 1, 1), std (3, 1, 1) and a text: how to make colours in [0, 1] of a transform's tensors.

    A transform of ours says its numbers. Of a function's tensors these tell: they lie in [0, 1] already, or do so with
    ImageNet's numbers taken back, or else are stretched from their least to their largest.
    """
    if "mean" in description:
        mean, std = torch.tensor(description["mean"]), torch.tensor(description["std"])
        return mean.view(3, 1, 1), std.view(3, 1, 1), f"mean {_numbers(mean)} and std {_numbers(std)} taken back"
    one = torch.ones(3, 1, 1)
    if _are_colours(images_BCHW):
        return 0 * one, one, "as they are: between 0 and 1"
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    if _are_colours(images_BCHW * std + mean):
        return mean, std, "ImageNet's mean and std taken back, which fit"
    low, high = float(images_BCHW.min()), float(images_BCHW.max())
    return -low / max(high - low, 1e-12) * one, one / max(high - low, 1e-12), f"stretched from {low:.3g} to {high:.3g}"


def to_image(fed_CHW: Tensor, mean: Tensor, std: Tensor) -> Image.Image:
    """Return a backbone's input as a picture, pixel for pixel: x * std + mean, cut to [0, 1], in 8 bits."""
    colours_HWC = (fed_CHW * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(colours_HWC.numpy()))


def draw_pair(remade: Remade, picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return the original image and, beside it, ``picture`` of what was fed, above ``lines`` of text."""
    left, right = _fitted(remade.original, PAIR_SIDE), _fitted(picture, PAIR_SIDE)
    titles = (
        f"original, {remade.original.width} x {remade.original.height}",
        f"as fed, {picture.width} x {picture.height}",
    )
    second = GAP + max(left.width, LETTERS * len(titles[0])) + GAP
    width = (
        max(second + max(right.width, LETTERS * len(titles[1])), *(GAP + LETTERS * len(line) for line in lines)) + GAP
    )
    top = GAP + LINE
    bottom = top + max(left.height, right.height) + GAP
    sheet = Image.new("RGB", (width, bottom + LINE * len(lines) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for x, image, title in ((GAP, left, titles[0]), (second, right, titles[1])):
        draw.text((x, GAP), title, fill=FAINT, font=_font())
        sheet.paste(image, (x, top))
    for number, line in enumerate(lines):
        draw.text((GAP, bottom + LINE * number), line, fill=INK, font=_font())
    return sheet


def draw_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[str], proven: Sequence[bool], title: str
) -> Image.Image:
    """Return a contact sheet of a batch: rows from left to right, each with its caption.

    A row whose own checksum was compared is framed in green, and so is its caption.
    """
    cells = [_fitted(picture, CELL_SIDE) for picture in pictures]
    side = max((max(cell.size) for cell in cells), default=CELL_SIDE)
    columns = max(1, math.ceil(math.sqrt(len(cells) * 1.5)))
    rows = -(-len(cells) // columns)
    width = max(GAP + columns * (side + GAP), 2 * GAP + LETTERS * len(title))
    top = 2 * GAP + LINE
    sheet = Image.new("RGB", (width, top + rows * (side + LINE + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=INK, font=_font())
    for number, (cell, caption, sure) in enumerate(zip(cells, captions, proven, strict=True)):
        x, y = GAP + number % columns * (side + GAP), top + number // columns * (side + LINE + GAP)
        if sure:
            draw.rectangle((x - 3, y - 3, x + cell.width + 2, y + cell.height + 2), outline=PROVEN, width=3)
        sheet.paste(cell, (x, y))
        shown = caption if LETTERS * len(caption) <= side + GAP else caption[: (side + GAP) // LETTERS - 1] + "…"
        draw.text((x, y + cell.height + 2), shown, fill=PROVEN if sure else FAINT, font=_font())
    return sheet


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Return an image with its longer side at nearly ``side``: small ones by whole multiples, as squares."""
    longer = max(image.size)
    if longer <= side:
        times = max(1, side // longer)
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    size = (max(1, round(image.width * side / longer)), max(1, round(image.height * side / longer)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _are_colours(images_BCHW: Tensor) -> bool:
    return bool(images_BCHW.min() >= -OVERSHOOT and images_BCHW.max() <= 1 + OVERSHOOT)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:.3g}" for value in values.flatten().tolist())

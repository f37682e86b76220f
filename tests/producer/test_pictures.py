"""What was fed is shown with the colours that it had."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from featurestream_producer.pictures import draw_pair, draw_sheet, normalisation_of, to_image
from featurestream_producer.preset import IMAGENET
from featurestream_producer.remake import Place, Remade
from featurestream_producer.transforms import normalise


def noise(size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_a_described_normalisation_is_taken_back_to_the_last_bit() -> None:
    image = noise()
    fed = normalise(image, IMAGENET)
    mean, std, how = normalisation_of({"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}, fed[None])
    assert np.array_equal(np.asarray(to_image(fed, mean, std)), np.asarray(image))
    assert how == "mean 0.485 0.456 0.406 and std 0.229 0.224 0.225 taken back"


@pytest.mark.parametrize(
    ("least", "largest", "how"),
    [
        (0.0, 1.0, "as they are: between 0 and 1"),
        (-1.9, 2.2, "ImageNet's mean and std taken back, which fit"),
        (-5.0, 20.0, "stretched from -5 to 20"),
    ],
)
def test_a_functions_normalisation_is_guessed_and_said(least: float, largest: float, how: str) -> None:
    images_BCHW = torch.tensor([least, largest]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    mean, std, said = normalisation_of({"name": "my:function"}, images_BCHW)
    assert said == how
    shown = [np.asarray(to_image(image, mean, std)) for image in images_BCHW]
    if not how.startswith("ImageNet"):
        assert (shown[0] == 0).all()
        assert (shown[1] == 255).all()


def test_constant_images_can_be_shown() -> None:
    images_BCHW = torch.full((1, 3, 4, 4), 7.0)
    mean, std, how = normalisation_of({"name": "my:function"}, images_BCHW)
    assert how == "stretched from 7 to 7"
    to_image(images_BCHW[0], mean, std)


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000), (1, 1), (320, 320)])
def test_originals_of_any_shape_are_drawn(size: tuple[int, int]) -> None:
    remade = Remade(Place(0, 0, "a", None, 0), Image.new("RGB", size), torch.zeros(3, 8, 8), "0" * 16)
    sheet = draw_pair(remade, noise(), ["a line"])
    assert sheet.width < 1000
    assert sheet.height < 500


@pytest.mark.parametrize("count", [1, 2, 7, 64, 256])
def test_a_sheet_has_room_for_all_rows(count: int) -> None:
    sheet = draw_sheet([noise(16)] * count, ["a label that is far too long"] * count, [True] * count, "title")
    framed = (np.asarray(sheet) == (0, 130, 80)).all(2)
    assert framed.sum() > count * 4 * 3 * 96

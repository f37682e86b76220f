"""An image and an integer decide what the backbone sees; nothing else does."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from featurestream.errors import DataError, UnknownNameError, UsageError
from featurestream_producer.preset import IMAGENET, Preset
from featurestream_producer.transforms import (
    EvalTransform,
    TrainTransform,
    build_transform,
    described_transform,
    normalise,
)

PLAIN = Preset(image_size=32, resize_size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def picture(width: int, height: int) -> Image.Image:
    """Return a picture without any symmetry."""
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ---- eval ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (301, 230), (40, 37), (256, 1031)])
@pytest.mark.parametrize("model", ["resnet18", "efficientnet_b1", "resnet50", "vit_b_16"])
def test_eval_is_torchvisions_own_preset_bit_for_bit(model: str, size: tuple[int, int]) -> None:
    from featurestream_producer.backbones.torchvision import preset_of

    entry = get_model_weights(model)["DEFAULT"]
    image = picture(*size)
    transform = build_transform("eval", image_size=None, preset=preset_of(entry))
    assert torch.equal(transform(image, 0), entry.transforms()(image))


def test_eval_at_another_size_scales_the_resize_with_it() -> None:
    image = picture(100, 80)
    small = build_transform("eval", image_size=64, preset=IMAGENET)
    assert small.image_size == 64
    assert small.describe() == {
        "name": "eval",
        "image_size": 64,
        "resize_size": 73,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "crop": "center",
    }
    expected = reference.center_crop(reference.resize(image, 73, antialias=True), 64)
    assert torch.equal(small(image, 0), normalise(expected, IMAGENET))


def test_eval_ignores_the_seed() -> None:
    transform = EvalTransform(PLAIN)
    assert torch.equal(transform(picture(50, 40), 1), transform(picture(50, 40), 2))


def test_a_squashed_image_is_whole() -> None:
    squash = EvalTransform(Preset(2, 2, PLAIN.mean, PLAIN.std, "nearest", "squash"))
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, :2] = 51
    pixels[1, 2:] = 255
    assert squash(Image.fromarray(pixels), 0)[0].tolist() == [[pytest.approx(0.2), 0], [0, 1]]


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation() -> None:
    pixels = np.zeros((1, 2, 3), np.uint8)
    pixels[0, 1] = (255, 51, 102)
    out = normalise(Image.fromarray(pixels), Preset(1, 1, (0.5, 0.0, 0.2), (0.5, 0.2, 0.1)))
    assert out.shape == (3, 1, 2)
    torch.testing.assert_close(out, torch.tensor([[[-1.0, 1.0]], [[0.0, 1.0]], [[-2.0, 2.0]]]))


def test_an_image_that_would_grow_to_gigabytes_is_refused() -> None:
    with pytest.raises(DataError, match="image of 1 x 50000 pixels would be resized to 256 x 12800000; at most"):
        EvalTransform(IMAGENET)(Image.new("RGB", (1, 50_000)), 0)


# ---- train -----------------------------------------------------------------------------------------------------


def test_train_gives_one_image_a_seed() -> None:
    transform = TrainTransform(PLAIN)
    image = picture(60, 40)
    assert torch.equal(transform(image, 7), transform(image, 7))
    assert not torch.equal(transform(image, 7), transform(image, 8))


def test_the_crop_and_the_flip_of_a_seed_are_pinned() -> None:
    transform = TrainTransform(IMAGENET)
    assert [transform.draw((500, 375), seed) for seed in (0, 1, 2)] == [
        ((42, 133, 163, 273), False),
        ((33, 4, 320, 239), False),
        ((173, 24, 473, 356), True),
    ]


@pytest.mark.parametrize("size", [(500, 375), (32, 32), (3, 5), (640, 90)])
def test_crops_have_the_promised_area_and_ratio(size: tuple[int, int]) -> None:
    width, height = size
    for seed in range(300):
        (left, top, right, bottom), _ = TrainTransform(IMAGENET).draw(size, seed)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        w, h = right - left, bottom - top
        # Sides are rounded to pixels.
        assert (w + 0.5) * (h + 0.5) >= 0.08 * width * height * 0.99
        assert (w - 0.5) / (h + 0.5) <= 4 / 3
        assert (w + 0.5) / (h - 0.5) >= 3 / 4


def test_crops_are_spread_like_torchvisions() -> None:
    from torchvision.transforms import RandomResizedCrop

    ours = [TrainTransform(IMAGENET).draw((500, 375), seed)[0] for seed in range(2000)]
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(picture(500, 375), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    our_numbers = np.array([(left, top, right - left, bottom - top) for left, top, right, bottom in ours])
    their_numbers = np.array([(left, top, w, h) for top, left, h, w in theirs])
    deviation = their_numbers.std(axis=0) / 2000**0.5
    assert np.all(np.abs(our_numbers.mean(axis=0) - their_numbers.mean(axis=0)) < 5 * deviation)
    assert our_numbers.std(axis=0) == pytest.approx(their_numbers.std(axis=0), rel=0.1)


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 1), (0, 0, 1, 1))]
)
def test_an_image_too_long_for_any_crop_gives_its_middle(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert TrainTransform(IMAGENET, scale=(0.9, 1.0)).draw(size, 3)[0] == box


def test_half_of_the_images_are_flipped() -> None:
    flips = sum(TrainTransform(IMAGENET).draw((50, 50), seed)[1] for seed in range(2000))
    assert abs(flips - 1000) < 5 * 2000**0.5 / 2


def test_train_cuts_resizes_and_flips_as_torchvision_does() -> None:
    transform = TrainTransform(IMAGENET)
    image = picture(120, 90)
    seen = set()
    for seed in range(6):
        (left, top, right, bottom), flip = transform.draw(image.size, seed)
        expected = reference.resized_crop(
            image, top, left, bottom - top, right - left, [224, 224], InterpolationMode.BILINEAR, antialias=True
        )
        expected = reference.hflip(expected) if flip else expected
        assert torch.equal(transform(image, seed), normalise(expected, IMAGENET))
        seen.add(flip)
    assert seen == {True, False}


def test_our_transforms_leave_the_global_generators_alone() -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]
    TrainTransform(PLAIN)(picture(50, 40), 3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[2]) == states[1:]


def test_train_describes_what_decides_the_image() -> None:
    assert build_transform("train", image_size=96, preset=IMAGENET).describe() == {
        "name": "train",
        "scale": [0.08, 1.0],
        "ratio": [0.75, 4 / 3],
        "flip": 0.5,
        "image_size": 96,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    }


# ---- a function of the user's ----------------------------------------------------------------------------------

MODULE = """
import random
import numpy as np
import torch

def noisy(image):
    return torch.rand(3, 8, 8) + float(np.random.rand()) + random.random()

white = lambda image: torch.ones(3, 8, 8)
number = 3

def as_double(image): return torch.rand(3, 8, 8).double()
def too_small(image): return torch.rand(3, 7, 8)
def as_image(image): return image
def broken(image): return image.no_such_thing
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "transforms_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "transforms_of_mine"


def test_randomness_in_a_users_transform_comes_from_the_seed_alone(mine: str) -> None:
    transform = build_transform(f"{mine}:noisy", image_size=8, preset=IMAGENET)
    first = transform(picture(9, 9), 2**63 - 1)
    torch.rand(5), np.random.rand(5), random.random()
    assert torch.equal(transform(picture(9, 9), 2**63 - 1), first)
    assert not torch.equal(transform(picture(9, 9), 2**63 - 2), first)


def test_a_users_transform_leaves_the_global_generators_as_they_were(mine: str) -> None:
    transform = build_transform(f"{mine}:noisy", image_size=8, preset=IMAGENET)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    transform(picture(9, 9), 3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


def test_transforms_reach_loader_processes_by_name(mine: str) -> None:
    for name in ("eval", "train", f"{mine}:white"):
        transform = build_transform(name, image_size=8, preset=IMAGENET)
        again = pickle.loads(pickle.dumps(transform))
        assert again.describe() == transform.describe()
        assert torch.equal(again(picture(9, 9), 1), transform(picture(9, 9), 1))


def test_a_users_transform_is_described_by_its_name(mine: str) -> None:
    described = build_transform(f"{mine}:white", image_size=None, preset=IMAGENET).describe()
    assert described == {"name": f"{mine}:white", "image_size": 224}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("as_double", r"returned float64 \(3, 8, 8\); expected float32 \(3, 8, 8\); another size .* --image-size"),
        ("too_small", r"returned float32 \(3, 7, 8\); expected float32 \(3, 8, 8\)"),
        ("as_image", r"returned Image; expected a float32 tensor \(3, 8, 8\)"),
        ("broken", "failed on an image of 9 x 9 pixels: AttributeError: .*no_such_thing"),
    ],
)
def test_a_users_transform_that_gives_something_else_is_an_error(mine: str, function: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_transform(f"{mine}:{function}", image_size=8, preset=IMAGENET)(picture(9, 9), 0)


def test_names_that_select_no_transform_are_refused(mine: str) -> None:
    with pytest.raises(UnknownNameError, match='unknown transform "evl"; did you mean "eval"'):
        build_transform("evl", image_size=None, preset=IMAGENET)
    with pytest.raises(UsageError, match=r'has no "noise"; it has: .*noisy'):
        build_transform(f"{mine}:noise", image_size=None, preset=IMAGENET)
    with pytest.raises(UsageError, match=f'transform "{mine}:number" is int, not something to call'):
        build_transform(f"{mine}:number", image_size=None, preset=IMAGENET)
    with pytest.raises(UsageError, match="image size 0 is not possible"):
        build_transform("eval", image_size=0, preset=IMAGENET)


# ---- from the manifest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eval", "train", "featurectl.samples:augment"])
def test_a_described_transform_is_the_same_one(name: str) -> None:
    transform = build_transform(
        name, image_size=64, preset=Preset(224, 232, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bicubic")
    )
    again = described_transform(json.loads(json.dumps(transform.describe())))
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    assert torch.equal(again(image, 7), transform(image, 7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "eva"}, "cannot import|not something"),
        ({"crop": None}, "is another one here: crop is|cannot make"),
        ({"added_later": 3}, 'transform "eval" is another one here: added_later is None, in the manifest 3'),
        ({"image_size": None}, "cannot make|is another one"),
    ],
)
def test_a_description_that_this_featurestream_cannot_follow_is_refused(change: dict[str, Any], message: str) -> None:
    description = {k: v for k, v in (EvalTransform(IMAGENET).describe() | change).items() if v is not None}
    with pytest.raises(UsageError, match=message):
        described_transform(description)

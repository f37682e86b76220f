"""Every decoder that is installed gives the pixels that Pillow gives, and refuses what Pillow refuses."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from featurestream.errors import DataError, MissingExtraError, UnknownNameError, UsageError
from featurestream_producer.datasets import decoder_of, decoders, open_dataset
from featurestream_producer.datasets.decoders import JPEG_DECODERS, choose_decoder
from featurestream_producer.datasets.image import read_image

INSTALLED = [name for name in JPEG_DECODERS if find_spec(name) is not None]


def photograph() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize((159, 107))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    image = photograph()
    for quality in (35, 75, 95):
        image.save(tmp_path / f"q{quality}.jpg", quality=quality)
    image.save(tmp_path / "progressive.jpg", progressive=True)
    image.save(tmp_path / "full-chroma.jpg", subsampling=0)
    image.convert("L").save(tmp_path / "grey.jpg")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.save(tmp_path / "a-png.jpg", format="PNG")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"turned{orientation}.jpg", exif=exif)
    return tmp_path


@pytest.mark.parametrize("decoder", INSTALLED)
def test_pixels_are_those_of_pillow(decoder: str, photographs: Path) -> None:
    places = sorted(photographs.iterdir())
    assert len(places) == 16
    for place in places:
        with Image.open(place) as image:
            theirs = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        ours = read_image(place, decoder)
        assert ours.mode == "RGB"
        assert np.asarray(ours).shape == theirs.shape, place.name
        # One step of 255 is what two versions of libjpeg-turbo may differ by.
        assert np.abs(np.asarray(ours).astype(int) - theirs).max() <= 1, place.name


@pytest.mark.parametrize("decoder", ["pillow", *INSTALLED])
def test_a_file_that_is_no_whole_image_is_refused(decoder: str, tmp_path: Path) -> None:
    photograph().save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    for name, data in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no image", "head": whole[:200]}.items():
        place = tmp_path / f"{name}.jpg"
        place.write_bytes(data)
        with pytest.raises(DataError, match=f'cannot decode image "{place}"'):
            read_image(place, decoder)


def test_the_fastest_that_is_installed_is_taken_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torchcodec"}
    monkeypatch.setattr(decoders, "find_spec", lambda name: name if name in there else None)
    assert choose_decoder(None) == "torchcodec"
    assert choose_decoder("pillow") == "pillow"
    with pytest.raises(MissingExtraError, match=r"decoder simplejpeg needs a package .*featurestream\[fast\]"):
        choose_decoder("simplejpeg")
    there.clear()
    assert choose_decoder(None) == "pillow"
    with pytest.raises(UnknownNameError, match=r'unknown decoder "simplejpg".*simplejpeg'):
        choose_decoder("simplejpg")


def test_a_dataset_of_files_says_who_decodes_it_and_others_refuse_to_be_told(photographs: Path) -> None:
    (photographs / "list.csv").write_text("path,label\nq35.jpg,0\nq75.jpg,1\n")
    named = open_dataset(str(photographs / "list.csv"), decoder="simplejpeg")
    assert decoder_of(named) == "simplejpeg"
    assert named.load(0).size == (159, 107)
    assert decoder_of(open_dataset(str(photographs / "list.csv"), decoder="pillow")) is None
    with pytest.raises(UsageError, match="--decoder would have no effect"):
        open_dataset("torchvision:FakeData", decoder="pillow")

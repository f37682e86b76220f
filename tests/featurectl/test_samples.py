"""The sample images: real files, the same every time."""

from __future__ import annotations

import builtins
import csv
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from featurectl.samples import augment, write_samples
from featurestream.errors import DataError, MissingExtraError
from featurestream_producer.datasets.table import open_table
from featurestream_producer.preset import IMAGENET
from featurestream_producer.transforms import build_transform


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("samples"))


def rows_of(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_fifth_digit_is_for_validation_and_none_for_both(samples) -> None:
    train, validation = rows_of(samples.train_csv), rows_of(samples.validation_csv)
    assert (len(train), len(validation)) == (1438, 359)
    assert [row["path"] for row in validation[:3]] == ["images/0004.png", "images/0009.png", "images/0014.png"]
    assert len({row["path"] for row in train + validation}) == 1797
    # The data set begins 0, 1, 2, ..., 9, 0, 1, ...
    assert [row["label"] for row in validation[:3]] == ["4", "9", "4"]


def test_an_image_holds_the_original_grey_pixels(samples) -> None:
    with Image.open(samples.images / "0000.png") as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        # The first row of the first digit is 0 0 5 13 9 1 0 0, of 16 greys: 5 is 79.7 of 255.
        assert np.asarray(image)[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


def test_the_producer_reads_the_tables(samples) -> None:
    data = open_table(samples.train_csv)
    assert len(data) == 1438
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert sorted(set(data.labels.tolist())) == list(range(10))


def test_a_second_call_writes_nothing(samples) -> None:
    before = {path: path.stat().st_mtime_ns for path in samples.images.parent.rglob("*")}
    assert write_samples(samples.images.parent) == samples
    assert {path: path.stat().st_mtime_ns for path in samples.images.parent.rglob("*")} == before


def test_a_writing_that_was_cut_short_is_completed(tmp_path) -> None:
    write_samples(tmp_path)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "images" / "0007.png").unlink()
    kept = (tmp_path / "images" / "0008.png").stat().st_mtime_ns
    samples = write_samples(tmp_path)
    assert len(rows_of(samples.train_csv)) == 1438
    assert (tmp_path / "images" / "0007.png").exists()
    assert (tmp_path / "images" / "0008.png").stat().st_mtime_ns == kept


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the sample images to .*file"):
        write_samples(tmp_path / "file")


def test_without_scikit_learn_the_command_that_installs_it_is_named(tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r'pip install "featurestream\[demo\]"'):
        write_samples(tmp_path)


def test_the_module_is_a_command(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "featurectl.samples", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"images in {tmp_path / 'images'}, tables ")
    failed = subprocess.run(
        [sys.executable, "-m", "featurectl.samples", "/dev/null/x"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 3
    assert failed.stderr.startswith("error: cannot write the sample images to /dev/null/x: ")
    assert len(failed.stderr.splitlines()) == 1


def test_an_augmented_digit_is_a_function_of_the_seed(samples) -> None:
    transform = build_transform("featurectl.samples:augment", image_size=64, preset=IMAGENET)
    with Image.open(samples.images / "0003.png") as file:
        image = file.convert("RGB")
    one, again, other = transform(image, 1), transform(image, 1), transform(image, 2)
    assert one.shape == (3, 64, 64)
    assert one.equal(again)
    assert not one.equal(other)


def test_an_augmented_digit_stays_near_the_plain_one(samples, monkeypatch) -> None:
    """With no turn, no shift and no scaling it is what `eval` makes, up to half a pixel of the centre crop."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    plain = build_transform("eval", image_size=64, preset=IMAGENET)
    with Image.open(samples.images / "0003.png") as file:
        image = file.convert("RGB")
    difference = (augment(image) - plain(image, 0)).abs()
    assert difference.mean() < 0.1
    assert difference.max() < 0.5

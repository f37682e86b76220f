"""A data set that changed since its stream was created is refused with the samples that changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featurestream.errors import StreamMismatchError
from featurestream.manifest_topic import require_manifest
from featurestream.memory import MemoryLog
from featurestream.wire import decode
from featurestream_producer import run
from featurestream_producer.data_changes import DataChanges, ImageChanges, find_changes, find_image_changes
from featurestream_producer.datasets import open_dataset
from featurestream_producer.inputs import carried_checksums
from featurestream_producer.preset import IMAGENET
from featurestream_producer.run import produce
from featurestream_producer.transforms import Transform, build_transform
from tests.producing import SIZE, broken_images, config, write_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """40 images, 000.png to 039.png: the even ones in folder a, the odd ones in folder b."""
    return write_images(tmp_path / "images")


def published(images: Path, passes: int | None = 2) -> MemoryLog:
    log = MemoryLog()
    produce(config(images, "toy", passes=passes), log, say=[].append)
    return log


def changes(log: MemoryLog, images: Path) -> DataChanges:
    return find_changes(log.source(), require_manifest(log, "toy"), open_dataset(str(images)))


def test_files_that_went_came_or_changed_their_class_are_named(images: Path) -> None:
    log = published(images)
    (images / "a" / "004.png").unlink()
    shutil.copy(images / "a" / "006.png", images / "a" / "new.png")
    shutil.move(images / "b" / "003.png", images / "a" / "003.png")
    assert changes(log, images) == DataChanges(
        gone=("a/004.png", "b/003.png"), new=("a/003.png", "a/new.png"), relabelled=(), known=40
    )
    with pytest.raises(StreamMismatchError) as refused:
        produce(config(images, "toy", passes=3), log, say=[].append)
    text = str(refused.value)
    assert "samples: gone: a/004.png, b/003.png; new: a/003.png, a/new.png; " in text
    assert "data.sha256 is" in text
    assert "name the new stream differently" in text
    assert refused.value.exit_code == 2


def test_labels_that_changed_are_named_and_many_names_are_counted(images: Path, tmp_path: Path) -> None:
    """A CSV: seven labels become others; the paths stay."""
    table = tmp_path / "table.csv"
    paths = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))

    def write(changed: int) -> None:
        lines = [f"{path},{number % 5 + (number < changed)}" for number, path in enumerate(paths)]
        table.write_text("\n".join(["path,label", *lines]) + "\n")

    write(0)
    log = MemoryLog()
    produce(config(table, "toy", root=str(images)), log, say=[].append)
    write(7)
    with pytest.raises(StreamMismatchError) as refused:
        produce(config(table, "toy", root=str(images)), log, say=[].append)
    assert "samples: with another label: a/000.png, a/002.png, a/004.png and 4 more;" in str(refused.value)


def test_a_stream_that_holds_less_than_a_pass_names_what_it_can(images: Path) -> None:
    """Retention has taken the first batch of each lane: batches 3, 4 and 5 hold 19 of the 40 samples."""
    log = published(images, passes=1)
    for lane in range(3):
        for tap in ("early", "late"):
            log.delete_before(f"toy.{tap}", lane, 1)
    for path in images.rglob("*.png"):
        path.rename(path.with_name(f"x{path.name}"))
    found = changes(log, images)
    assert (found.known, len(found.gone), found.new) == (19, 19, ())
    with pytest.raises(StreamMismatchError, match=r"samples \(the log tells of 19 samples\): gone: a/.* and 16 more;"):
        produce(config(images, "toy", passes=1), log, say=[].append)


def test_samples_without_rows_are_known_too(tmp_path: Path) -> None:
    images = broken_images(tmp_path / "images", [3])
    log = published(images)
    assert changes(log, images) == DataChanges((), (), (), 40)


def repainted(images: Path, *names: str) -> None:
    for name in names:
        Image.new("RGB", (20, 20), "red").save(images / name)


def half_a_stream(images: Path, **changes: object) -> MemoryLog:
    log = MemoryLog()
    produce(config(images, "toy", passes=1, **changes), log, say=[].append)
    return log


def test_a_data_set_that_was_exported_anew_under_the_same_names_is_refused(images: Path) -> None:
    log = half_a_stream(images)
    repainted(images, *(path.relative_to(images).as_posix() for path in images.rglob("*.png")))
    with pytest.raises(StreamMismatchError) as refused:
        produce(config(images, "toy", passes=2), log, say=[].append)
    assert (
        'the images of stream "toy" have changed under their names: of 6 images that were made again, 6 differ: '
        in (str(refused.value))
    )
    assert str(refused.value).endswith("bring the files back as they were, or name the new stream differently")
    assert batches_there(log) == 6


def test_one_image_that_was_not_looked_at_is_not_noticed(images: Path) -> None:
    """Two of each lane's last record are, the others are not: 6 of 40."""
    log = half_a_stream(images)
    manifest = require_manifest(log, "toy")
    source, dataset = log.source(), open_dataset(str(images))
    last = [source.record_at("toy.late", lane, source.bounds("toy.late", lane).high - 1) for lane in range(3)]
    seen = {decode(record.value).ids[row] for record in last for row in carried_checksums(decode(record.value))}
    unseen = sorted(set(dataset.ids) - seen)
    repainted(images, unseen[0])
    assert len(unseen) == 34
    found = find_image_changes(source, manifest, dataset, transform(), range(3))
    assert found == ImageChanges(looked_at=6)
    repainted(images, min(seen))
    found = find_image_changes(source, manifest, dataset, transform(), range(3))
    assert found == ImageChanges(looked_at=6, changed=(min(seen),))


def test_an_image_that_cannot_be_decoded_any_more_is_a_missing_sample_as_ever(images: Path) -> None:
    log = half_a_stream(images)
    for path in images.rglob("*.png"):
        path.write_bytes(b"no image")
    found = find_image_changes(
        log.source(), require_manifest(log, "toy"), open_dataset(str(images)), transform(), range(3)
    )
    assert found == ImageChanges()


def test_other_libraries_are_a_reason_and_only_said(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = half_a_stream(images)
    repainted(images, *(path.relative_to(images).as_posix() for path in images.rglob("*.png")))
    monkeypatch.setattr(run, "made_with", lambda _device: {"pillow": "1.0"})
    said: list[str] = []
    assert produce(config(images, "toy", passes=2), log, say=said.append).finished
    assert any("6 differ" in line and "libraries are others" in line for line in said)


def draws_unseeded(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng().random((3, SIZE, SIZE), dtype=np.float32))


def test_a_transform_that_makes_another_image_each_time_is_warned_about(images: Path) -> None:
    unseeded = {"transform": f"{__name__}:draws_unseeded"}
    log, said = half_a_stream(images, **unseeded), []
    assert produce(config(images, "toy", passes=2, **unseeded), log, say=said.append).finished
    assert any("the transform makes another image each time" in line for line in said)


def transform() -> Transform:
    return build_transform("train", image_size=SIZE, preset=IMAGENET)


def batches_there(log: MemoryLog) -> int:
    source = log.source()
    return sum(source.bounds("toy.late", lane).high for lane in range(3))

"""A data set that changed since its stream was created is refused with the samples that changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from featurestream.errors import StreamMismatchError
from featurestream.manifest_topic import require_manifest
from featurestream.memory import MemoryLog
from featurestream_producer.data_changes import DataChanges, find_changes
from featurestream_producer.datasets import open_dataset
from featurestream_producer.run import produce
from tests.producing import broken_images, config, write_images


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

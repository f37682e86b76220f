"""featurectl picture: the image behind a row is made again, checked, and shown; or refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featurestream.cluster import Cluster
from featurestream.health import Canary
from featurestream.kafka import KafkaLog
from featurestream.manifest_topic import ManifestTopic
from featurestream.memory import MemoryLog
from featurestream.names import tap_topic
from featurestream.record import Record
from featurestream.wire import encode, headers_of
from featurestream_producer.datasets import decoders
from featurestream_producer.datasets.decoders import JPEG_DECODERS
from featurestream_producer.inputs import INPUTS_KEY, carried_checksums
from featurestream_producer.run import produce
from tests.producing import config, manifest_of, read_lanes, write_images

COUNT = 8  # one batch of 7 and one of 1

MODULE = """
import numpy as np, torch
from pathlib import Path
from PIL import Image

SCALE = 1

def pairs(): return [(Image.new("L", (9, 9), 30 * n), n % 2) for n in range(8)]
def crop(image): return torch.from_numpy(np.array(image.crop((0, 0, 16, 16)))).permute(2, 0, 1).float() / 255 * SCALE
"""


def publish(log: Any, data: object, stream: str = "toy", **changes: Any) -> None:
    result = produce(config(data, stream, passes=1, **changes), log, say=[].append)  # type: ignore[arg-type]
    assert result.finished


def records_of(log: Any, stream: str = "toy") -> dict[int, Record]:
    lanes = read_lanes(log, manifest_of(log, stream)).values()
    return {record.batch: record for records in lanes for record in records}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", COUNT)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# ---- one row ------------------------------------------------------------------------------------------------------


def test_a_row_with_a_checksum_is_shown_to_be_what_was_fed(cli, log, images, here) -> None:
    publish(log, images)
    record = records_of(log)[0]
    row, checksum = list(carried_checksums(record).items())[1]
    outcome = cli("picture", "toy", "--batch", 0, "--row", row)
    assert outcome.code == 0, outcome.err
    lines = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    facts = {name: text.strip() for name, text in lines.items()}
    assert facts["picture"] == f"toy-batch-0-row-{row}.png"
    assert facts["row"] == f"toy, batch 0 (pass 0), row {row}"
    assert facts["sample"] == f"{record.ids[row]} (index {record.indices[row]}), label {record.labels[row]}"
    assert facts["fed"] == f"float32 3 x 16 x 16, checksum {checksum}"
    assert facts["checked"] == "it is what was fed: the record carries this checksum"
    with Image.open(here / f"toy-batch-0-row-{row}.png") as picture:
        assert picture.format == "PNG"


def test_a_row_without_a_checksum_is_vouched_for_by_the_nearest_that_has_one(cli, log, images, here) -> None:
    publish(log, images)
    other = next(row for row in carried_checksums(records_of(log)[0]) if row)
    row = 1 if other != 1 else 6
    nearest = min((0, other), key=lambda have: abs(have - row))
    [facts] = cli("picture", "toy", "--batch", 0, "--row", row, "--json").rows
    assert (facts["row"], facts["checked_row"], facts["rows_with_checksum"]) == (row, nearest, [0, other])
    out = cli("picture", "toy", "--batch", 0, "--row", row).out
    assert f"row {row} has no checksum in the record (rows 0, {other} have); row {nearest}, the nearest, is" in out


def test_the_picture_shows_the_pixels_that_were_fed_and_the_original(cli, log, tmp_path, here) -> None:
    """Red in the upper left half of the original; with eval at 16 of 18 pixels the crop is one pixel a side."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    pixels = np.zeros((18, 18, 3), np.uint8)
    pixels[:9] = (255, 0, 0)
    for name in "01":
        Image.fromarray(pixels).save(tmp_path / "images" / "a" / f"{name}.png")
    publish(log, tmp_path / "images", transform="eval")
    assert cli("picture", "toy", "--batch", 0, "--row", 0, "-o", "row.png").code == 0
    with Image.open("row.png") as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    red = (shown == (255, 0, 0)).all(2)
    black = (shown == (0, 0, 0)).all(2)
    # Two squares, of 17 x 18 and of 20 x 16 pixels a side, their upper halves red and their lower halves black.
    assert red.sum() == 17 * 18 * 17 * 9 + 20 * 16 * 20 * 8
    assert black.sum() == red.sum()


def test_another_view_of_the_same_sample_is_shown(cli, log, images, here) -> None:
    publish(log, images, views=2)
    [own] = cli("picture", "toy", "--batch", 0, "--row", 3, "--json").rows
    [other] = cli("picture", "toy", "--batch", 0, "--row", 2, "--view", 1, "--json").rows
    [first] = cli("picture", "toy", "--batch", 0, "--row", 3, "--view", 0, "--json").rows
    assert (own["row"], own["view"], other["row"], first["row"]) == (3, 1, 3, 2)
    assert own["checksum"] == other["checksum"] != first["checksum"]
    assert own["id"] == first["id"]
    outcome = cli("picture", "toy", "--batch", 0, "--row", 3, "--view", 2)
    assert outcome.code == 2
    assert "there is no view 2 of a sample; expected 0 to 1" in outcome.err


def test_a_grid_shows_all_rows_and_checks_those_that_carry_a_checksum(cli, log, images, here) -> None:
    publish(log, images)
    record = records_of(log)[0]
    [facts] = cli("picture", "toy", "--batch", 0, "--grid", "--json").rows
    assert facts["file"] == "toy-batch-0-grid.png"
    assert facts["rows"] == record.rows == len(set(facts["checksums"]))
    carried = carried_checksums(record)
    assert facts["checked_rows"] == list(carried)
    assert {row: facts["checksums"][row] for row in carried} == carried
    with Image.open("toy-batch-0-grid.png") as sheet:
        assert min(sheet.size) > 2 * 96


# ---- every kind of data ----------------------------------------------------------------------------------------------


def table(images: Path, folder: Path) -> Path:
    folder.mkdir()
    with (folder / "list.csv").open("w", newline="") as file:
        rows = [(path.relative_to(images).as_posix(), path.parent.name) for path in sorted(images.glob("*/*.png"))]
        csv.writer(file).writerows([("where", "what"), *rows])
    return folder / "list.csv"


def fed(outcome: Any) -> tuple[int, int | None, str]:
    assert outcome.code == 0, outcome.err
    [facts] = outcome.rows
    return facts["index"], facts["checked_row"], facts["checksum"]


@pytest.mark.parametrize("kind", ["folder", "table", "torchvision", "function", "samples"])
def test_each_kind_of_data_set_is_opened_again_as_the_producer_opened_it(
    *, cli, log, images, tmp_path, here, kind
) -> None:
    changes: dict[str, Any] = {"transform": "train"}
    if kind == "folder":
        data: object = images
    elif kind == "table":
        data = table(images, tmp_path / "tables")
        changes |= {"root": images, "path_column": "where", "label_column": "what"}
    elif kind == "torchvision":
        data = "torchvision:ImageFolder"
        changes |= {"root": images}
    elif kind == "function":
        (here / "data_for_pictures.py").write_text(MODULE)
        data = "data_for_pictures:pairs"
    else:
        from featurectl.samples import write_samples

        data = write_samples(tmp_path / "samples").validation_csv
        changes |= {"transform": "featurectl.samples:augment", "image_size": 64, "batch_size": 64}
    publish(log, data, **changes)
    trust = ("--trust", data) if kind == "function" else ()
    index, checked, checksum = fed(cli("picture", "toy", "--batch", 1, "--row", 0, *trust, "--json"))
    record = records_of(log)[1]
    assert (index, checked, checksum) == (record.indices[0], 0, carried_checksums(record)[0])


@pytest.mark.parametrize("decoder", [None, "pillow"])
def test_jpeg_files_are_decoded_by_what_the_producer_took(cli, log, tmp_path, here, decoder) -> None:
    generator = np.random.default_rng(7)
    for name in "abcd":
        file = tmp_path / "jpegs" / "all" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (33, 41, 3), dtype=np.uint8)).save(file, quality=70)
    publish(log, tmp_path / "jpegs", **{} if decoder is None else {"decoder": decoder})
    assert manifest_of(log, "toy").decoder in ((None,) if decoder else (*JPEG_DECODERS, None))
    assert fed(cli("picture", "toy", "--batch", 0, "--row", 0, "--json"))[1] == 0


def test_a_decoder_that_is_not_installed_is_named(cli, log, images, here, monkeypatch) -> None:
    publish(log, images)
    monkeypatch.setattr(decoders, "find_spec", lambda _: None)
    with ManifestTopic(log, "toy") as topic:
        topic.write_manifest(manifest_of(log, "toy").model_copy(update={"decoder": "simplejpeg"}))
    outcome = cli("picture", "toy", "--batch", 0, "--row", 0)
    assert outcome.code == 2
    assert "the decoder simplejpeg needs a package that is not installed" in outcome.err


def test_data_that_has_moved_is_named(cli, log, images, tmp_path, here) -> None:
    publish(log, images)
    expected = fed(cli("picture", "toy", "--batch", 0, "--row", 0, "--json"))
    images.rename(tmp_path / "elsewhere")
    outcome = cli("picture", "toy", "--batch", 0, "--row", 0)
    assert outcome.code == 2
    assert 'the data of stream "toy" cannot be opened: no such folder or file' in outcome.err
    assert f"say where it is now with --data (and --root); it was {images}" in outcome.err
    again = cli("picture", "toy", "--batch", 0, "--row", 0, "--data", tmp_path / "elsewhere", "--json")
    assert fed(again) == expected


def test_a_table_and_its_images_may_both_have_moved(cli, log, images, tmp_path, here) -> None:
    data = table(images, tmp_path / "tables")
    publish(log, data, root=images, path_column="where")
    expected = fed(cli("picture", "toy", "--batch", 0, "--row", 0, "--json"))
    shutil.move(images, tmp_path / "new-images")
    shutil.move(tmp_path / "tables", tmp_path / "new-tables")
    moved = ("--data", tmp_path / "new-tables" / "list.csv", "--root", tmp_path / "new-images")
    assert fed(cli("picture", "toy", "--batch", 0, "--row", 0, *moved, "--json")) == expected


def test_a_relative_path_is_found_from_another_folder(cli, log, images, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    publish(log, images.relative_to(tmp_path))
    monkeypatch.chdir(images)
    assert cli("picture", "toy", "--batch", 0, "--row", 0, "-o", tmp_path / "row.png").code == 0


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_another_data_set_is_refused_with_the_fields_and_samples_that_differ(cli, log, images, here) -> None:
    publish(log, images)
    first = records_of(log)[0].ids[0]
    (images / first).rename((images / first).with_name("zzz.png"))
    outcome = cli("picture", "toy", "--batch", 0, "--row", 0)
    assert outcome.code == 2
    assert f'{images} is not the data of stream "toy": data.sha256 is "' in outcome.err
    assert f'was "{first}", and is "' in outcome.err
    assert not list(here.iterdir())


def test_fewer_samples_are_refused_with_their_number(cli, log, images, here) -> None:
    publish(log, images)
    (images / "b" / "007.png").unlink()
    outcome = cli("picture", "toy", "--batch", 0, "--row", 0)
    assert outcome.code == 2
    assert "data.samples is 8, found 7; data.sha256 is" in outcome.err


def test_a_file_that_was_changed_is_refused(cli, log, images, here) -> None:
    publish(log, images)
    record = records_of(log)[0]
    Image.new("RGB", (20, 20), (1, 2, 3)).save(images / record.ids[0])
    outcome = cli("picture", "toy", "--batch", 0, "--row", 0)
    assert outcome.code == 3
    assert f"the image behind row 0 ({record.ids[0]}) is not the one that was fed: its checksum is " in outcome.err
    assert (
        f"the record says {carried_checksums(record)[0]}; the image file has changed since: the transform"
        in outcome.err
    )
    assert not list(here.iterdir())
    assert cli("picture", "toy", "--batch", 0, "--grid").code == 3


def test_a_transform_that_was_changed_is_refused_even_for_a_row_without_a_checksum(
    cli, log, images, here, monkeypatch
) -> None:
    (here / "transform_for_pictures.py").write_text(MODULE)
    name = "transform_for_pictures:crop"
    publish(log, images, transform=name)
    other = next(row for row in carried_checksums(records_of(log)[0]) if row)
    free = next(row for row in range(7) if row not in (0, other))
    assert cli("picture", "toy", "--batch", 0, "--row", free, "--trust", name, "-o", "ok.png").code == 0
    import transform_for_pictures  # type: ignore[import-not-found]

    monkeypatch.setattr(transform_for_pictures, "SCALE", 2)
    words = ("picture", "toy", "--batch", 0, "--row", free, "--trust", name)
    outcome = cli(*words)
    assert outcome.code == 3
    assert "is not the one that was fed" in outcome.err
    assert f"; the transform {name} makes something else of a fixed image than it did then" in outcome.err
    with ManifestTopic(log, "toy") as topic:
        topic.write_canary(Canary(device="cpu", transform=None, taps=[]))
    assert f"; the image file or the transform {name} has changed since" in cli(*words).err


def test_a_transform_that_is_no_longer_there_is_refused(cli, log, images, here) -> None:
    (here / "transform_for_a_while.py").write_text(MODULE)
    publish(log, images, transform="transform_for_a_while:crop")
    import transform_for_a_while  # type: ignore[import-not-found]

    del transform_for_a_while.crop
    outcome = cli("picture", "toy", "--batch", 0, "--row", 0, "--trust", "transform_for_a_while:crop")
    assert outcome.code == 2
    assert 'module "transform_for_a_while" has no "crop"' in outcome.err


def test_a_sample_that_could_not_be_decoded_has_no_row_and_is_named(cli, log, images, here) -> None:
    publish_missing(log, images)
    record = next(record for record in records_of(log).values() if record.missing)
    outcome = cli("picture", "toy", "--batch", record.batch, "--row", record.rows)
    assert outcome.code == 2
    assert f"and no row {record.rows}; without a row, as they could not be decoded: a/000.png (" in outcome.err
    if record.rows:
        assert "missing  a/000.png (" in cli("picture", "toy", "--batch", record.batch, "--grid").out


def publish_missing(log: MemoryLog, images: Path) -> None:
    (images / "a" / "000.png").write_bytes(b"no image")
    publish(log, images)


def test_an_image_that_can_no_longer_be_decoded_is_named(cli, log, images, here) -> None:
    publish(log, images)
    record = records_of(log)[0]
    (images / record.ids[2]).write_bytes(b"no image")
    outcome = cli("picture", "toy", "--batch", 0, "--row", 2)
    assert outcome.code == 3
    assert f'could be used once, and cannot now: cannot decode image "{images / record.ids[2]}"' in outcome.err


def test_a_record_of_an_older_producer_is_shown_and_said_not_to_be_checked(cli, log, images, here) -> None:
    publish(log, images)
    record = next(one for one in records_of(log).values() if one.batch == 0)
    narrow = read_lanes(log, manifest_of(log, "toy"))["early", 0][0]
    assert narrow.batch == record.batch
    del narrow.extra[INPUTS_KEY]
    rewrite_narrow(log, narrow)
    [facts] = cli("picture", "toy", "--batch", 0, "--row", 0, "--json").rows
    assert facts["checked_row"] is None
    assert "not checked: the record carries no checksums" in cli("picture", "toy", "--batch", 0, "--row", 0).out


def rewrite_narrow(log: MemoryLog, record: Record) -> None:
    """Replace the only record of a lane at the narrowest tap."""
    topic = tap_topic("toy", record.tap)
    records = read_lanes(log, manifest_of(log, "toy"))
    log.delete_topics([topic])
    log.create_topic(topic, 3, {})
    sink = log.sink()
    for lane in range(3):
        for one in [record] if lane == 0 else records[record.tap, lane]:
            sink.append(topic, lane, key=b"", value=encode(one), headers=headers_of(one))
    sink.flush()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch", 0), "no row was asked for; expected --row R, or --grid"),
        (("--batch", 0, "--row", 1, "--grid"), "both a row and a grid of all rows were asked for"),
        (("--batch", 0, "--grid", "--view", 1), "--view has no effect on a grid"),
        (
            ("--batch", 0, "--row", 1, "-o", "row.jpg"),
            '"row.jpg" does not say what kind of picture it is',
        ),
        (
            ("--batch", 0, "--row", 1, "-o", "no/row.png"),
            'there is no folder "no" to write row.png into',
        ),
        (("--batch", 2, "--row", 0), 'stream "toy" has no batch 2: its batches are 0 to 1'),
        (("--batch", 0, "--row", 7), "batch 0 has rows 0 to 6, and no row 7; count rows from 0"),
    ],
)
def test_what_cannot_be_shown_is_the_callers_mistake(*, cli, log, images, here, words, message) -> None:
    publish(log, images)
    outcome = cli("picture", "toy", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_place_that_cannot_be_written_is_named(cli, log, images, here) -> None:
    publish(log, images)
    (here / "row.png").mkdir()
    outcome = cli("picture", "toy", "--batch", 0, "--row", 0, "-o", "row.png")
    assert outcome.code == 3
    assert "cannot write row.png: Is a directory; name a place" in outcome.err


@pytest.mark.broker
def test_a_row_on_kafka_is_shown(cli, broker: Cluster, unique: str, images: Path, here: Path) -> None:
    with KafkaLog(broker) as log:
        publish(log, images, unique)
    [facts] = cli("picture", unique, "--batch", 1, "--row", 0, "--json").rows
    assert facts["checked_row"] == 0
    assert torch.Size(facts["shape"]) == (3, 16, 16)

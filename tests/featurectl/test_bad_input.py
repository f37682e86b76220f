"""Bad input, at the command line: one line that says what was wrong and what to do, and the documented exit code."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from torch import nn

from featurestream_consumer import files
from featurestream_producer.lease import HeldLease
from tests.producing import BACKBONE, write_images
from tests.support import make_manifest, publish

LOUD = "tests.featurectl.test_bad_input:loud"
NAN = "tests.producer.test_produce_run:turning_nan"
TRAIN = ("train", "toy", "--name", "E1", "--device", "cpu", "--reporter", "jsonl", "--epochs", "1", "--runs", "RUNS")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 8)


def produce(data: object, *more: object, model: str = BACKBONE, tap: str = "5=late") -> tuple[object, ...]:
    small = ("--image-size", "16", "--device", "cpu", *(() if ":" in model else ("--weights", "random")))
    return ("produce", data, "--stream", "fresh", "--model", model, "--tap", tap, *small, *more)


def loud() -> nn.Module:
    """Return a backbone whose features do not fit into float16."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.constant_(model[0].weight, 0.0)
    nn.init.constant_(model[0].bias, 1e6)
    return model


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (produce("IMAGES", model="resnet81"), 2, 'unknown model "resnet81"; did you mean "resnet18"?'),
        (produce("IMAGES", model="resnet18", tap="layr2:gap"), 2, 'unknown layer "layr2"; did you mean "layer2"?'),
        (produce("IMAGES", model="resnet18", tap="layer2:gapp"), 2, 'unknown pool "gapp"; did you mean "gap"?'),
        (produce("nowhere"), 2, 'no such folder or file: "nowhere"; expected an image folder'),
        (produce("EMPTY"), 3, "empty.csv\" is empty; expected one image a line"),
        (produce("TABLE", "--label-column", "klas", "--root", "IMAGES"), 2, 'column "klas"; known: path, label'),
        (
            (*produce("IMAGES", "--dtype", "float32", model="resnet18", tap="conv1"), "--image-size", "448"),
            2,
            "one sample of tap conv1 is too large for a record",
        ),
        (produce("IMAGES", model=LOUD, tap="2=t"), 3, "float16"),
        (produce("IMAGES", "--batch-size", "2", model=NAN, tap="1=t"), 3, 'tap "t"'),
        (produce("IMAGES", "--device", "cuda:99"), 2, 'unknown device "cuda:99"; '),
        (produce("IMAGES", "--device", "cpu,cpu,cpu", "--lanes", "2"), 2, "3 devices cannot share 2 lanes"),
        ((*TRAIN, "--tap", "layer3", "--head", "mpl"), 2, 'unknown head "mpl"; did you mean "mlp"?'),
        ((*TRAIN, "--tap", "layer3", "--optimizer", "Addam"), 2, 'unknown optimiser "Addam"; did you mean "Adam"?'),
        ((*TRAIN, "--tap", "layer9"), 2, 'unknown tap of stream toy "layer9"; did you mean "layer3"?'),
        (("train", "toyy", *TRAIN[2:], "--tap", "layer3"), 2, 'there is no stream "toyy"; did you mean "toy"?'),
        ((*TRAIN, "--tap", "layer3", "--from", "batch:6"), 2, "nothing to read: the range starts at batch 6"),
        ((*TRAIN, "--tap", "layer3", "--from", "soon"), 2, '"soon" is not a start point; expected earliest, latest,'),
        ((*TRAIN, "--tap", "layer3", "--validate", "toi"), 2, 'there is no stream "toi"; did you mean "toy"?'),
        ((*TRAIN, "--tap", "layer3", "--from", "pass:1", "--until", "pass:1"), 2, "nothing to read: the range starts"),
        ((*TRAIN, "--tap", "layer3", "--validate", "more"), 2, 'stream "more" has class numbers up to 4, but "toy"'),
        ((*TRAIN, "--tap", "layer3", "--when-behind", "skip"), 2, "input should be 'wait' or 'reread', got 'skip'"),
        ((*TRAIN, "--tap", "layer3", "--labels", "no.csv"), 2, "there is no label file no.csv; expected a CSV"),
        ((*TRAIN, "--tap", "layer3", "--labels", "EMPTY"), 3, 'empty.csv" is empty; expected a header such as'),
        ((*TRAIN, "--tap", "layer3", "--labels", "TABLE"), 2, "has the columns path, label; expected a header such as"),
        ((*TRAIN, "--tap", "layer3", "--labels", "FEW"), 3, "few.csv: 8 (img/2.png, img/3.png, img/4.png, img/5.png,"),
        ((*TRAIN, "--tap", "layer3", "--unlabelled", "drop"), 2, "no label file that could lack a sample"),
        (("streams", "tpy"), 2, 'there is no stream "tpy"; did you mean "toy"?'),
        (("peek", "toy", "--tap", "avgpol"), 2, 'did you mean "avgpool"?'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_next_step(*, words, code, says, cli, log, images, tmp_path):
    publish(log, make_manifest())
    publish(log, make_manifest("more", classes=5))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "few.csv").write_text("id,label\nimg/0.png,a\nimg/1.png,b\n")
    (tmp_path / "table.csv").write_text(
        "path,label\n" + "".join(f"{p.relative_to(images)},0\n" for p in images.rglob("*.png"))
    )
    places = {"IMAGES": images, "RUNS": tmp_path} | {
        name: tmp_path / f"{name.lower()}.csv" for name in ("EMPTY", "TABLE", "FEW")
    }
    outcome = cli(*(places.get(word, word) for word in words))
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == code, outcome.err
    assert len(errors) == 1, outcome.err
    assert says in errors[0]
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert not (tmp_path / "E1").exists(), "a mistake leaves no run folder behind"


def test_a_rank_that_does_not_fit_its_number_of_ranks_is_the_callers_mistake(cli, log, images, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    outcome = cli(*produce(images))
    assert outcome.code == 2
    assert "the environment says RANK=2, of 2; expected 0 to 1" in outcome.err
    assert log.topics() == {}


def test_a_data_set_that_changed_is_refused_with_the_samples_that_did(cli, log, tmp_path):
    images = write_images(tmp_path / "images", 8)
    assert cli(*produce(images)).code == 0
    (images / "b" / "003.png").rename(images / "a" / "003.png")
    outcome = cli(*produce(images))
    assert outcome.code == 2
    assert "samples: gone: b/003.png; new: a/003.png; a stream's data set is fixed" in outcome.err


def test_a_second_producer_on_a_live_stream_is_refused_with_its_holder(cli, log, images):
    assert cli(*produce(images)).code == 0
    with HeldLease(log, "fresh") as lease:
        lease.take(take_over=False, say=lambda _: None)
        outcome = cli(*produce(images, "--passes", "2"))
    assert outcome.code == 2
    assert f"process {os.getpid()}" in outcome.err
    assert "--take-over" in outcome.err


def test_a_stream_that_exists_as_another_is_refused_with_what_differs(cli, log, images):
    assert cli(*produce(images)).code == 0
    outcome = cli(*produce(images, "--seed", "4"))
    assert outcome.code == 2
    assert 'stream "fresh" exists with another fingerprint' in outcome.err
    assert "seed is 0, asked for 4" in outcome.err


def test_a_run_folder_of_another_configuration_is_refused_with_what_differs(cli, log, tmp_path):
    publish(log, make_manifest())
    words = (*TRAIN[:-1], tmp_path, "--tap", "layer3")
    assert cli(*words).code == 0
    outcome = cli(*words, "--optimizer-arg", "lr=0.5")
    assert outcome.code == 2
    assert "optimizer_args.lr: None -> 0.5" in outcome.err


def test_a_stream_made_anew_under_a_begun_run_is_refused_before_any_training(cli, log, tmp_path, monkeypatch):
    publish(log, make_manifest())
    words = (*TRAIN[:-1], tmp_path, "--tap", "layer3")
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_folder", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli(*words).code == 130, "stopped at the first thing that it wrote"
    log.delete_topics(list(log.topics()))
    publish(log, make_manifest(seed=5))
    outcome = cli(*words, "--resume")
    assert outcome.code == 4
    assert "the run in" in outcome.err
    assert "read a stream with fingerprint" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "E1" / "metrics.jsonl").exists()


def test_a_run_counts_passes_and_rereads_for_people_and_for_programs(cli, log, tmp_path):
    publish(log, make_manifest())
    words = ("train", "toy", "--tap", "layer3", "--device", "cpu", "--runs", tmp_path, "--epochs", "5")
    outcome = cli(*words, "--name", "E1")
    assert "(2 passes, 3 re-reads); " in outcome.out
    (row,) = cli(*words, "--name", "E2", "--when-behind", "reread", "--json").rows
    assert (row["passes"], row["rereads"]) == (2, 3)
    (row,) = cli(*words, "--name", "E1", "--json").rows
    assert (row["passes"], row["rereads"], row["already_finished"]) == (2, 3, True)


def test_a_full_disk_says_what_is_safe(cli, log, tmp_path, monkeypatch):
    publish(log, make_manifest())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    outcome = cli(*TRAIN[:-1], tmp_path, "--tap", "layer3")
    assert outcome.code == 3
    assert "No space left on device; safe:" in outcome.err
    assert "free some space there and give the same command again" in outcome.err


def test_a_broker_that_is_not_there_is_named_with_what_to_do(cli):
    began = time.monotonic()
    outcome = cli("streams", "--bootstrap-servers", "127.0.0.1:9")
    assert outcome.code == 3
    assert time.monotonic() - began >= 9, "it was given 10 s to answer"
    assert "no answer from Kafka at 127.0.0.1:9" in outcome.err
    assert "featurectl broker up" in outcome.err


def test_an_image_that_cannot_be_decoded_is_a_warning_and_all_of_them_an_error(cli, log, tmp_path):
    some = write_images(tmp_path / "some", 8)
    (some / "a" / "000.png").write_bytes(b"not an image")
    outcome = cli(*produce(some))
    assert outcome.code == 0
    assert "warning: 1 image could not be decoded" in outcome.err
    assert "a/000.png" in outcome.err
    for path in some.rglob("*.png"):
        path.write_bytes(b"not an image")
    log.delete_topics(list(log.topics()))
    outcome = cli(*produce(some))
    assert outcome.code == 3
    assert "none of the 8 images" in outcome.err

"""Labels of the user's own take the place of a stream's: every sample has one, or somebody is told, before training."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from featurestream.batch import FeatureBatch
from featurestream.errors import DataError, RunMismatchError, UsageError
from featurestream.manifest import sealed
from featurestream.memory import MemoryLog
from featurestream.stream import FeatureStream
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.experiment import Result
from featurestream_consumer.group import Group
from featurestream_consumer.labels import read_label_file
from featurestream_consumer.run import train
from featurestream_consumer.sweep import plan_sweep, run_sweep
from featurestream_consumer.sweep_file import SweepFile
from featurestream_consumer.trainer import Trainer
from tests.support import append, create, joined, make_batch_record, make_manifest, publish

SAMPLES = 30  # in batches of 4; sample i is img/i.png, of class i modulo 3


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    publish(log, make_manifest("toy", samples=SAMPLES, lanes=3, passes=2))
    publish(log, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    return log


def write(path: Path, labels: Iterable[tuple[int, object]], *, key: str = "id") -> Path:
    """Write a label file for samples by their index."""
    named = ((f"img/{index}.png" if key == "id" else index, label) for index, label in labels)
    path.write_text(f"{key},label\n" + "".join(f"{name},{label}\n" for name, label in named))
    return path


def config(runs: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "name": "E1", "stream": "toy", "taps": "layer3", "head_args": {"hidden": 8, "dropout": 0.25}, "epochs": 3,
        "batch_size": 7, "validate_stream": "toy-validation", "runs": runs, "device": "cpu", "reporters": ("jsonl",),
    }  # fmt: skip
    return TrainConfig(**(settings | changes))


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def left(result: Result) -> dict[str, Any]:
    """What a run leaves behind, without the times at which it did."""
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    scores = np.load(result.folder / "validation.npz")
    return {
        "head": {name: tensor.tobytes() for name, tensor in load_file(result.folder / "head.safetensors").items()},
        "rows": [{key: value for key, value in row.items() if key != "time"} for row in rows],
        "scores": {name: scores[name].tobytes() for name in scores},
    }


class Killed(BaseException):
    """What no handler catches."""


# ---- the file -----------------------------------------------------------------------------------------------------


def test_labels_are_understood_as_the_producer_understands_them(tmp_path):
    path = tmp_path / "labels.csv"
    for text, labels, classes in (
        ("id,label\na,dog\nb,cat\n", [1, 0], ("cat", "dog")),
        ("id;label\n a ; 2\n\nb;0\n", [2, 0], None),
        ("index\tlabel\n3\t0.5\n1\t2\n", [0.5, 2.0], None),
        ("id label1 label0 pass\na 1 2 0\nb 3 4 0\n", [[2.0, 1.0], [4.0, 3.0]], None),
    ):
        path.write_text(text)
        found = read_label_file(path)
        assert found.labels.tolist() == labels
        assert found.classes == classes
        assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()
    packed = tmp_path / "labels.csv.gz"
    packed.write_bytes(gzip.compress(b"ID,Label\nx,1\nx,1\n"))
    found = read_label_file(packed)
    assert (found.key, dict(found.places), found.labels.dtype) == ("id", {"x": 0}, np.int64)


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (None, UsageError, "there is no label file"),
        ("", DataError, "is empty"),
        ("id,label\n", DataError, "a header and no rows; expected a header such as id,label"),
        ("path,label\na,1\n", UsageError, "has the columns path, label; expected a header such as id,label"),
        ("id,class\na,1\n", UsageError, "has the columns id, class"),
        ("id,label\na,1\n,2\n", DataError, 'line 3: "" is no id'),
        ("index,label\n1,1\n1.5,2\n", DataError, 'line 3: "1.5" is no index; a sample\'s index is a whole number'),
        ("id,label\na,\n", DataError, "line 2: no label (1 such lines); leave such lines out"),
        ("id,label\na,x\nb,y\na,y\n", DataError, 'line 4: id "a" has another label than on line 2'),
        ("id,label0,label1\na,1,x\n", DataError, "line 2: 'x' in label column \"label1\""),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_line(tmp_path, text, kind, says):
    path = tmp_path / "labels.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(kind) as caught:
        read_label_file(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def batch_of(indices: list[int]) -> FeatureBatch:
    """A batch whose rows are, after one pass, samples 29, 0, 1 and 2 in this order."""
    batch = joined(make_batch_record(make_manifest("toy", samples=SAMPLES), 8, "layer3"))
    assert batch.indices.tolist() == indices
    return batch


@pytest.mark.parametrize(
    ("labelled", "pieces"),
    [
        ([29, 0, 1, 2], [(8, 0, 9, 0, [29, 0, 1, 2])]),
        ([0, 1], [(8, 1, 8, 3, [0, 1])]),
        ([29, 2], [(8, 0, 8, 1, [29]), (8, 3, 9, 0, [2])]),
        ([7], [(8, 4, 9, 0, [])]),
    ],
)
def test_rows_without_a_label_are_dropped_and_the_others_keep_their_positions(tmp_path, labelled, pieces):
    labels = read_label_file(write(tmp_path / "l.csv", [(index, 5) for index in labelled], key="index"), drop=True)
    found = list(labels.apply(batch_of([29, 0, 1, 2])))
    assert [
        (*[part.position.batch, part.position.row, part.next_position.batch, part.next_position.row],
         part.indices.tolist())
        for part in found
    ] == pieces  # fmt: skip
    assert all(part.labels is not None and set(part.labels.tolist()) <= {5} for part in found)


# ---- training -----------------------------------------------------------------------------------------------------


def test_the_streams_own_labels_in_a_file_give_the_weights_that_they_give_without(log, tmp_path):
    own = write(tmp_path / "own.csv", [(index, index % 3) for index in range(SAMPLES)])
    plain = train(config(tmp_path / "plain"), log)
    relabelled = train(config(tmp_path / "relabelled", labels=own), log)
    assert left(relabelled) == left(plain)


def test_other_labels_make_another_task_of_the_same_features(log, tmp_path):
    names = ["even", "odd"]
    file = write(tmp_path / "parity.csv", [(index, names[index % 2]) for index in range(SAMPLES)])
    said: list[str] = []
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    step = Trainer.step

    def spying(self: Trainer, features: Any, labels: Any, **more: Any) -> float:
        seen.append((features.numpy().copy(), labels.copy()))
        return step(self, features, labels, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", spying)
        result = train(config(tmp_path / "runs", labels=file, epochs=2), log, say=said.append)
    for features, labels in seen:
        samples = features[:, 0].astype(int) % 1000 // 10
        assert labels.tolist() == (samples % 2).tolist()
    with safe_open(result.folder / "head.safetensors", framework="np") as head:
        assert head.metadata()["classes"] == "even\nodd"
    scores = np.load(result.folder / "validation.npz")
    assert scores["scores"].shape == (12, 2)
    assert scores["label"].tolist() == [index % 2 for index in range(12)]
    record = record_of(result.folder)
    assert record["labels"] == {
        "label_kind": "class", "label_values": 1, "class_count": 2, "classes": names,
        "training": {"samples": 30, "unlabelled": 0}, "validation": {"samples": 12, "unlabelled": 0},
    }  # fmt: skip
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert [record["config"][key] for key in ("labels_sha256", "validate_labels_sha256")] == [sha256, sha256]
    assert [line for line in said if "labels" in line or "parity" in line] == [
        f"checking {file} against a pass of toy", f"checking {file} against a pass of toy-validation",
    ]  # fmt: skip


def test_a_stream_without_labels_can_be_trained_on_with_a_file(tmp_path):
    log = MemoryLog()
    manifest = make_manifest("bare", samples=SAMPLES, passes=1)
    data = manifest.data.model_copy(update={"label_kind": "none", "label_values": 0, "class_count": None})
    manifest = sealed(manifest.model_copy(update={"data": data}))
    create(log, manifest)
    append(log, manifest, range(8))
    wanted = {"stream": "bare", "validate_stream": None, "epochs": 1}
    with pytest.raises(UsageError, match='"bare" has no labels'):
        train(config(tmp_path, **wanted), log)
    values = write(tmp_path / "values.csv", [(index, index / 4) for index in range(SAMPLES)], key="index")
    assert train(config(tmp_path, labels=values, loss="mse", **wanted), log).metrics["loss"] > 0


# ---- samples without a label --------------------------------------------------------------------------------------


def test_samples_without_a_label_are_an_error_before_anything_is_trained(log, tmp_path):
    file = write(tmp_path / "few.csv", [(index, index % 3) for index in range(SAMPLES) if index % 5])
    with pytest.raises(DataError) as caught:
        train(config(tmp_path / "runs", labels=file), log)
    assert f'samples of stream "toy" without a label in {file}: 6 (img/0.png, img/5.png' in str(caught.value)
    assert "--unlabelled drop" in str(caught.value)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "runs").exists()


def test_rows_of_samples_without_a_label_can_be_dropped_and_are_counted(log, tmp_path):
    """24 of 30 samples in batches of 7 are 4 steps, and a schedule of the whole run is as long as the run."""
    file = write(tmp_path / "few.csv", [(index, index % 3) for index in [*range(SAMPLES), 77, 78, 3] if index % 5])
    said: list[str] = []
    wanted = config(
        tmp_path / "runs", labels=file, unlabelled="drop", scheduler="OneCycleLR", scheduler_args={"max_lr": 0.1}
    )
    result = train(wanted, log, say=said.append)
    assert result.steps == 3 * 4
    assert (np.load(result.folder / "validation.npz")["index"] % 5 > 0).all()
    assert record_of(result.folder)["labels"]["training"] == {"samples": 30, "unlabelled": 6}
    assert record_of(result.folder)["labels"]["validation"] == {"samples": 12, "unlabelled": 3}
    assert any("whose rows are dropped: 6 of 30 (img/0.png" in line for line in said), said
    assert f"samples of {file} that no stream has: 2 (img/77.png, img/78.png)" in said


@pytest.mark.parametrize("dies_after", range(1, 12, 2))
def test_a_run_with_dropped_rows_that_died_anywhere_ends_as_an_undisturbed_one(log, tmp_path, dies_after):
    file = write(tmp_path / "few.csv", [(index, index % 3) for index in range(SAMPLES) if index % 7 > 1])
    settings = {"labels": file, "unlabelled": "drop", "batch_size": 5, "checkpoint_seconds": 1e-9}
    whole = train(config(tmp_path / "whole", **settings), log)
    step, steps = Trainer.step, 0

    def dying(self: Trainer, *args: Any, **more: Any) -> float:
        nonlocal steps
        steps += 1
        if steps > dies_after:
            raise Killed
        return step(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        with pytest.raises(Killed):
            train(config(tmp_path / "cut", **settings), log)
    said: list[str] = []
    resumed = train(config(tmp_path / "cut", **settings), log, say=said.append)
    assert left(resumed) == left(whole)
    assert not [line for line in said if "checking" in line], "what was found is in the record"


def test_a_sample_that_turns_up_without_a_label_after_the_check_is_an_error_too(log, tmp_path):
    """Retention had taken the beginning of the first pass: what was in it could not be checked."""
    log.delete_before("toy.layer3", 0, 1)
    log.delete_before("toy.avgpool", 0, 1)  # batch 0: samples 0 to 3
    file = write(tmp_path / "few.csv", [(index, index % 3) for index in range(SAMPLES) if index != 2])
    wanted = config(tmp_path / "runs", labels=file, validate_stream=None)
    with pytest.raises(DataError, match=r"samples of batch 8 without a label in .*: 1 \(img/2.png\)"):
        train(wanted, log)


# ---- what a run is ------------------------------------------------------------------------------------------------


def test_a_changed_file_under_the_same_name_is_refused_and_a_moved_one_is_not(log, tmp_path):
    file = write(tmp_path / "a.csv", [(index, index % 3) for index in range(SAMPLES)])
    train(config(tmp_path / "runs", labels=file), log)
    moved = file.rename(tmp_path / "b.csv")
    assert train(config(tmp_path / "runs", labels=moved), log).already_finished
    moved.write_text(moved.read_text() + "img/99.png,0\n")
    with pytest.raises(RunMismatchError, match=r"labels_sha256: '.*' -> '.*'"):
        train(config(tmp_path / "runs", labels=moved), log)
    with pytest.raises(RunMismatchError, match=r"labels_sha256: '.*' -> None"):
        train(config(tmp_path / "runs"), log)
    asked = TrainConfig(**record_of(tmp_path / "runs" / "E1")["config"] | {"name": "E2", "labels": moved})
    with pytest.raises(RunMismatchError, match="the label file has changed since"):
        train(asked, log)


# ---- the validation stream ----------------------------------------------------------------------------------------


def test_the_validation_stream_may_have_a_file_of_its_own_in_the_names_that_are_trained_on(log, tmp_path):
    names = ["c", "a", "b"]
    one = write(tmp_path / "one.csv", [(index, names[index % 3]) for index in range(SAMPLES)], key="index")
    other = write(tmp_path / "other.csv", [(index, "cb"[index % 2]) for index in range(12)], key="index")
    with pytest.raises(UsageError, match="which names others in the validation stream; give that stream's labels"):
        train(config(tmp_path / "runs", labels=one), log)
    result = train(config(tmp_path / "runs", labels=one, validate_labels=other), log)
    assert np.load(result.folder / "validation.npz")["label"].tolist() == [2, 1] * 6, "a, b, c are 0, 1, 2"
    strange = write(tmp_path / "strange.csv", [(index, "ax"[index % 2]) for index in range(12)], key="index")
    with pytest.raises(UsageError, match="classes that training lacks: x; those trained on are a, b, c"):
        train(config(tmp_path / "runs", name="E2", labels=one, validate_labels=strange), log)
    with pytest.raises(UsageError, match=r"names classes .*, but those trained on are numbers"):
        train(config(tmp_path / "runs", name="E2", validate_labels=other), log)


def test_classes_that_only_samples_of_the_validation_stream_have_are_refused(log, tmp_path):
    """One file for both streams, whose samples have names of their own here."""
    manifest = make_manifest("other", samples=40, passes=1, seed=9)  # img/30.png to img/39.png are its alone
    publish(log, manifest)
    file = write(tmp_path / "l.csv", [(index, "new" if index > 35 else "ab"[index % 2]) for index in range(40)])
    with pytest.raises(UsageError, match="classes in validation that training lacks: new"):
        train(config(tmp_path / "runs", labels=file, validate_stream="other"), log)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": "nowhere.csv"}, "there is no label file nowhere.csv"),
        ({"unlabelled": "drop"}, "there is no label file that could lack a sample"),
        ({"validate_labels": __file__, "validate_stream": None}, "labels for a validation stream, but no stream"),
    ],
)
def test_label_settings_that_mean_nothing_are_refused_before_a_broker_is_asked(tmp_path, changes, says):
    with pytest.raises(UsageError, match=says):
        train(config(tmp_path, **changes), MemoryLog())


def test_an_unknown_class_as_minus_one_is_refused_where_outputs_stand_for_classes(log, tmp_path):
    file = write(tmp_path / "l.csv", [(index, index % 3 - 1) for index in range(SAMPLES)])
    with pytest.raises(UsageError, match="class number -1, which no output can stand for"):
        train(config(tmp_path / "runs", labels=file), log)
    regression = config(tmp_path / "runs", labels=file, loss="mse", validate_stream=None)
    assert train(regression, log).steps == 15


# ---- a sweep ------------------------------------------------------------------------------------------------------


def sweep_of(runs: Path, files: dict[str, Path]) -> list[TrainConfig]:
    content: dict[str, Any] = {
        "stream": "toy", "validate": "toy-validation", "epochs": 2,
        "base": {"tap": "layer3", "device": "cpu", "batch_size": 8, "reporters": "jsonl", "head_args": {"hidden": 64}},
        "runs": [
            {"name": "own"}, {"name": "own-1", "seed": 1},
            {"name": "thirds", "labels": str(files["thirds"])}, {"name": "thirds-1", "labels": str(files["thirds"]),
                                                                 "optimizer_args.lr": 0.01},
            {"name": "other", "labels": str(files["other"])},
            {"name": "few", "labels": str(files["few"]), "unlabelled": "drop"},
            {"name": "few-5", "labels": str(files["few"]), "unlabelled": "drop", "batch_size": 5},
        ],
    }  # fmt: skip
    return SweepFile(**content).experiments(runs, name="tasks")


def test_experiments_with_label_files_of_their_own_share_the_reading_and_end_as_they_do_alone(
    log, tmp_path, monkeypatch
):
    """The same taps, batch size, loss and number of outputs: nothing but the labels tells their batches apart."""
    monkeypatch.setattr(Group, "speedup", lambda self, rows: 2.0)
    files = {
        "thirds": write(tmp_path / "thirds.csv", [(index, index // 10) for index in range(SAMPLES)]),
        "other": write(tmp_path / "other.csv", [(index, (index + 1) % 3) for index in range(SAMPLES)]),
        "few": write(tmp_path / "few.csv", [(index, index % 3) for index in range(SAMPLES) if index % 4]),
    }
    opened: list[tuple[str, tuple[str, ...]]] = []
    begin = FeatureStream.__init__

    def counted(self: FeatureStream, stream: str, taps: Any = None, **settings: Any) -> None:
        begin(self, stream, taps, **settings)
        opened.append((stream, self.taps))

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStream, "__init__", counted)
        plan = plan_sweep(sweep_of(tmp_path / "together", files), log, say=said.append)
        assert [planned.group for planned in plan.experiments] == [0, 0, 1, 1, None, None, None]
        outcomes = run_sweep(plan, log, say=said.append)
    reading = ("layer3",)
    assert opened == [
        ("toy", reading),  # the range
        ("toy", reading), ("toy-validation", reading),  # the labels of three files
        *[("toy", reading), ("toy-validation", reading)] * 2,
    ]  # fmt: skip
    assert "7 experiments: 2 heads together, 2 heads together, 3 one by one" in said
    for alone, outcome in zip(sweep_of(tmp_path / "alone", files), outcomes, strict=True):
        assert outcome.result is not None
        assert left(outcome.result) == left(train(alone, log)), alone.name
    heads = {outcome.config.name: left(outcome.result)["head"] for outcome in outcomes if outcome.result is not None}
    assert len({repr(head) for head in heads.values()}) == 7, "each learns something else"


def test_a_finished_or_begun_sweep_does_not_read_a_pass_for_its_labels_again(log, tmp_path):
    files = {
        name: write(tmp_path / f"{name}.csv", [(i, i % 3) for i in range(SAMPLES)]) for name in ("thirds", "other")
    }
    files["few"] = write(tmp_path / "few.csv", [(index, index % 3) for index in range(SAMPLES) if index % 4])
    configs = sweep_of(tmp_path / "runs", files)
    run_sweep(plan_sweep(configs, log), log)
    said: list[str] = []
    again = run_sweep(plan_sweep(configs, log, say=said.append), log)
    assert said == []
    assert all(outcome.result is not None and outcome.result.already_finished for outcome in again)

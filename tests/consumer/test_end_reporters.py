"""What reporters show of an experiment that has ended: settings side by side, points with pictures, a server's run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from featurestream.errors import OutsideError, UsageError
from featurestream.memory import MemoryLog
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.reporters import REPORTERS, default_reporters, projector
from featurestream_consumer.reporters.jsonl import read_rows
from featurestream_consumer.reporters.mlflow import MlflowReporter
from featurestream_consumer.run import train
from featurestream_consumer.trainer import Trainer
from tests.support import make_manifest, publish


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    publish(log, make_manifest("toy", samples=30, lanes=3, passes=2))
    publish(log, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    return log


def config(runs: Path, name: str = "E1", **changes: Any) -> TrainConfig:
    settings = {
        "name": name,
        "stream": "toy",
        "taps": ["layer3", "avgpool"],
        "head": "linear",
        "optimizer_args": {"lr": 0.01},
        "epochs": 2,
        "batch_size": 7,
        "validate_stream": "toy-validation",
        "runs": runs,
        "device": "cpu",
        "report_steps": 2,
    }
    return TrainConfig(**(settings | changes))


# ---- TensorBoard ----------------------------------------------------------------------------------------------


def test_tensorboard_has_each_experiments_settings_beside_the_metrics_that_it_ended_with(log, tmp_path) -> None:
    ends = {}
    for name, rate in (("slow", 0.01), ("fast", 0.5)):
        settings = {"reporters": ("tensorboard",), "optimizer_args": {"lr": rate}}
        ends[name] = train(config(tmp_path, name, **settings), log).metrics
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    events.Reload()
    for name, rate in (("slow", 0.01), ("fast", 0.5)):
        run = f"{name}/tensorboard"
        begun = HParamsPluginData.FromString(
            events.SummaryMetadata(run, "_hparams_/session_start_info").plugin_data.content
        ).session_start_info.hparams
        assert begun["optimizer_args.lr"].number_value == rate
        assert (begun["head"].string_value, begun["taps"].string_value) == ("linear", "layer3, avgpool")
        assert "name" not in begun
        page = HParamsPluginData.FromString(
            events.SummaryMetadata(run, "_hparams_/experiment").plugin_data.content
        ).experiment
        tags = [metric.name.tag for metric in page.metric_infos]
        assert "top1/validation" in tags
        for tag in tags:  # what the page shows is the last value of the scalar with this tag
            assert events.Scalars(run, tag)[-1].value == pytest.approx(ends[name][tag.split("/")[0]])


# ---- the projector --------------------------------------------------------------------------------------------


def test_the_projector_has_a_point_and_a_picture_for_each_validation_row(log, tmp_path) -> None:
    asked = []

    def pictures(stream, indices):
        asked.append((stream, indices.tolist()))
        return np.stack([np.full((8, 8, 3), 20 * index, np.uint8) for index in indices])

    result = train(config(tmp_path, reporters=("tensorboard", "projector")), log, pictures=pictures)
    assert asked == [("toy-validation", list(range(12)))]
    folder = result.folder / "tensorboard"
    from google.protobuf import text_format

    [embedding] = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig()).embeddings
    scores = np.load(result.folder / "validation.npz")["scores"]
    points = np.loadtxt(folder / embedding.tensor_path, delimiter="\t")
    np.testing.assert_allclose(points, scores, rtol=1e-5)
    lines = (folder / embedding.metadata_path).read_text().splitlines()
    assert lines[0] == "sample\tlabel\tgiven\tright"
    given = scores.argmax(1)
    assert lines[6] == f"5\t2\t{given[5]}\t{'yes' if given[5] == 2 else 'no'}"
    assert list(embedding.sprite.single_image_dim) == [8, 8]
    with Image.open(folder / embedding.sprite.image_path) as sprite:
        assert sprite.size == (32, 32), "12 pictures of 8 x 8, four across"
        assert sprite.getpixel((8, 8)) == (100, 100, 100), "the sixth picture is the second one of the second row"


def test_points_go_without_pictures_where_the_data_is_not_at_hand(log, tmp_path) -> None:
    def pictures(stream, indices):
        raise UsageError(f'the data of stream "{stream}" cannot be opened')

    said: list[str] = []
    result = train(config(tmp_path, reporters=("projector",)), log, say=said.append, pictures=pictures)
    assert 'projector: points without pictures: the data of stream "toy-validation" cannot be opened' in said
    assert "sprite" not in (result.folder / "tensorboard" / "projector_config.pbtxt").read_text()
    train(config(tmp_path, "E2", reporters=("projector",)), log, say=said.append)
    assert said[-1] == "projector: points without pictures: nobody here can make them"
    train(config(tmp_path, "E3", reporters=("projector",), validate_stream=None), log, say=said.append)
    assert said[-1] == "projector: nothing was validated, so there are no points to show"


def test_too_many_pictures_are_made_smaller_until_a_browser_takes_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(projector, "SPRITE_SIDE", 64)
    pictures = np.zeros((12, 20, 20, 3), np.uint8)
    projector.write_points(
        tmp_path, np.arange(12), np.zeros(12, np.int64), np.ones((12, 2), np.float32), pictures=pictures
    )
    with Image.open(tmp_path / "projector" / "sprite.png") as sprite:
        assert sprite.size == (64, 64), "four across, 16 pixels each"
    [side] = re.findall(r"single_image_dim: (\d+) single", (tmp_path / "projector_config.pbtxt").read_text())
    assert side == "16"


def test_class_names_stand_beside_points_and_values_as_they_are(tmp_path) -> None:
    projector.write_points(
        tmp_path, np.array([3, 1]), np.array([1, 0]), np.array([[0.0, 1], [0, 1]]), classes=("cat", "dog")
    )
    assert (tmp_path / "projector" / "metadata.tsv").read_text() == (
        "sample\tlabel\tgiven\tright\n3\tdog\tdog\tyes\n1\tcat\tdog\tno\n"
    )
    projector.write_points(tmp_path, np.array([3, 1]), np.array([1.5, 0.25]), np.array([[0.0], [1]]))
    assert (tmp_path / "projector" / "metadata.tsv").read_text() == "sample\tlabel\n3\t1.5\n1\t0.25\n"


# ---- MLflow ---------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, monkeypatch) -> str:
    """The URI of an MLflow store of the test's own, named in the environment as a user would."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow wants people to use a database; a test needs none
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, {"MLFLOW_DISABLE_TELEMETRY": "true"}.get(name, "1"))
    uri = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def runs_of(uri: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return client.search_runs([client.get_experiment_by_name("toy").experiment_id])


def history(uri: str, run: str, key: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    return [(one.step, one.value) for one in MlflowClient(tracking_uri=uri).get_metric_history(run, key)]


def test_an_mlflow_server_gets_parameters_metrics_with_their_steps_and_the_files(log, tmp_path, store) -> None:
    from mlflow.tracking import MlflowClient

    assert "mlflow" in default_reporters(), "a server is named"
    result = train(config(tmp_path, reporters=("mlflow",)), log)
    [run] = runs_of(store)
    assert (run.info.run_name, run.info.status) == ("E1", "FINISHED")
    assert {name: run.data.params[name] for name in ("head", "optimizer_args.lr", "taps", "epochs")} == {
        "head": "linear", "optimizer_args.lr": "0.01", "taps": "layer3, avgpool", "epochs": "2",
    }  # fmt: skip
    rows = read_rows(result.folder / "metrics.jsonl")
    for kind in ("train", "validation"):
        expected = [(row["step"], row["loss"]) for row in rows if row["kind"] == kind]
        assert history(store, run.info.run_id, f"loss/{kind}") == expected
    assert run.data.metrics["top1/validation"] == result.metrics["top1"]
    names = [file.path for file in MlflowClient(tracking_uri=store).list_artifacts(run.info.run_id)]
    assert sorted(names) == ["head.safetensors", "metrics.jsonl", "run.json", "validation.npz"]


def test_a_run_that_goes_on_goes_on_in_mlflow_with_every_row_once(log, tmp_path, store, monkeypatch) -> None:
    step = Trainer.step

    def stopping(self, *args, **kwargs):
        if self.step_count == 7:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    settings = {
        "reporters": ("mlflow",),
        "checkpoint_seconds": 1e9,
    }  # the checkpoint is of step 5, a row of step 6 is out
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path, **settings), log)
    [run] = runs_of(store)
    assert run.info.status == "KILLED"
    assert history(store, run.info.run_id, "loss/train")[-1][0] == 6
    result = train(config(tmp_path, **settings), log)
    [again] = runs_of(store)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    rows = [row for row in read_rows(result.folder / "metrics.jsonl") if row["kind"] == "train"]
    assert history(store, run.info.run_id, "loss/train") == [(row["step"], row["loss"]) for row in rows]


def test_rows_that_a_server_missed_are_sent_when_the_run_goes_on(tmp_path, store) -> None:
    lines = [{"kind": "train", "step": step, "epoch": 0, "batch": 0, "time": 1.0, "loss": 0.5} for step in (2, 4, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reporter = REPORTERS["mlflow"](tmp_path, 4, lambda _: None)
    reporter.report(lines[2])
    reporter.close()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    [run] = client.search_runs([client.get_experiment_by_name("featurestream").experiment_id])
    assert [step for step, _ in history(store, run.info.run_id, "loss/train")] == [2, 4, 6]


def test_a_server_that_is_away_refuses_the_beginning_and_nothing_later(tmp_path, store, monkeypatch) -> None:
    with pytest.raises(OutsideError, match=r"MLflow at http://127\.0\.0\.1:1 does not take the run") as error:
        MlflowReporter(tmp_path, "http://ada:secret@127.0.0.1:1", resume_step=None, say=lambda _: None)
    assert "secret" not in str(error.value) + str(error.value.hint)
    said: list[str] = []
    reporter = MlflowReporter(tmp_path, store, resume_step=None, say=said.append)

    def away(*args, **kwargs):
        raise OSError("the network is down\nmore")

    monkeypatch.setattr(reporter._client, "log_batch", away)
    reporter.report({"kind": "train", "step": 1, "epoch": 0, "batch": 0, "time": 1.0, "loss": 0.5})
    reporter.close()
    assert said == [f"MLflow at {store} does not take what is reported (the network is down); training goes on"]


def test_mlflow_without_a_server_says_how_to_name_one(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "mlflow" not in default_reporters()
    with pytest.raises(UsageError, match=r"needs a tracking server; name one with --mlflow URI, or MLFLOW_TRACKING"):
        REPORTERS["mlflow"](tmp_path, None, lambda _: None)

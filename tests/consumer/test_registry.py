"""An experiment is in its stream's run registry: while it trains, when it has ended, however it ends."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from featurestream.errors import BrokerError, DivergedError, HoleError
from featurestream.experiments import Experiment, ExperimentsTopic, read_experiments
from featurestream.memory import MemoryLog
from featurestream.names import experiments_topic
from featurestream_consumer.compare import compare_table, load_runs, pairs_table, records, registered_run
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.reporters.jsonl import read_rows
from featurestream_consumer.run import train
from featurestream_consumer.sweep import plan_sweep, run_sweep
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
        "taps": "layer3",
        "head": "mlp",
        "head_args": {"hidden": 8, "dropout": 0.25},
        "normalize": "standardize",
        "optimizer_args": {"lr": 0.01},
        "epochs": 3,
        "batch_size": 7,
        "validate_stream": "toy-validation",
        "runs": runs,
        "device": "cpu",
        "reporters": ("jsonl",),
        "report_steps": 2,
        "checkpoint_seconds": 1e-9,
    }
    return TrainConfig(**(settings | changes))


def only(log: MemoryLog) -> Experiment:
    [found] = read_experiments(log, "toy").values()
    return found


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Let the optimiser step after ``step`` raise ``error``, once."""
    original = Trainer.step
    left = [error]

    def stopping(self, *args, **kwargs):
        if self.step_count == step and left:
            raise left.pop()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "step", stopping)


def test_a_finished_experiment_says_what_its_run_folder_says(log: MemoryLog, tmp_path: Path) -> None:
    result = train(config(tmp_path), log)
    record = json.loads((result.folder / "run.json").read_text())
    found = only(log)
    run = found.run
    assert (found.label, run.name, run.id, run.state, run.reason) == ("E1", "E1", record["id"], "finished", None)
    assert (run.host, run.folder) == (socket.gethostname(), str(result.folder))
    assert (run.started_at, run.finished_at) == (record["started"], record["finished"])
    assert (run.config, run.fingerprint) == (record["config"], record["fingerprint"])
    assert run.validation_fingerprint == record["validation_fingerprint"]
    # Three epochs of 30 rows in 8 batches; the stream has two passes, so the third epoch reads the first one again.
    assert (run.step, run.rows, run.batches, run.epoch, run.epochs) == (15, 90, 24, 3, 3)
    assert (run.passes, run.rereads) == (2, 1)
    assert (run.start.batch, run.stop, run.position.batch) == (0, 16, 8)
    assert (run.metrics, run.main_metric) == (result.metrics, "top1")
    assert run.rows_per_s > 0
    assert found.rows == read_rows(result.folder / "metrics.jsonl")
    assert found.lag(16) is None


def test_every_rows_answer_of_a_finished_experiment_is_there(log: MemoryLog, tmp_path: Path) -> None:
    result = train(config(tmp_path), log)
    validation = only(log).validation
    held = np.load(result.folder / "validation.npz")
    assert validation.indices().tolist() == list(range(12))
    right = held["scores"].argmax(1) == held["label"]
    assert validation.values_of("top1").tolist() == right.tolist()
    assert validation.values_of("loss").mean() == pytest.approx(result.metrics["loss"])


def test_a_comparison_from_the_registry_is_that_of_the_run_folders(log: MemoryLog, tmp_path: Path) -> None:
    for number, settings in enumerate(({"head": "linear", "head_args": {}}, {"seed": 3}, {"epochs": 1})):
        train(config(tmp_path, f"E{number}", **settings), log)
    folders = load_runs([tmp_path])
    registered = [registered_run(one, now_ms=0) for one in read_experiments(log, "toy").values()]
    for metric in (None, "loss"):
        assert records(compare_table(registered, metric=metric)) == records(compare_table(folders, metric=metric))
        assert records(pairs_table(registered, metric=metric)) == records(pairs_table(folders, metric=metric))
    # A folder and the registry, side by side.
    mixed = [*load_runs([tmp_path / "E0"]), *registered[1:]]
    assert records(compare_table(mixed)) == records(compare_table(folders))


def test_an_experiment_that_died_and_goes_on_is_one_run_with_every_row_once(log, tmp_path, monkeypatch) -> None:
    whole = train(config(tmp_path / "whole", "whole"), log)
    stop_at(monkeypatch, 8, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path), log)
    stopped = read_experiments(log, "toy")["E1"]
    assert (stopped.run.state, stopped.run.reason, stopped.run.step) == ("stopped", "interrupted", 8)
    assert (stopped.run.epoch, stopped.run.passes, stopped.run.rereads) == (1, 2, 0)
    # 8 steps of 7 rows, the fifth of 2: batches 0 to 7, which are the first pass, and 21 rows of the second: 8 to 12,
    # and one row of 13.
    assert (stopped.run.rows, stopped.run.batches, stopped.run.position.batch) == (51, 13, 13)
    train(config(tmp_path), log)
    found = read_experiments(log, "toy")
    assert found["E1"].run.id == stopped.run.id
    assert list(found) == ["whole", "E1"]
    plain = [[{**row, "time": 0} for row in one.rows] for one in found.values()]
    assert plain[0] == plain[1]
    assert found["E1"].run.metrics == whole.metrics


def test_an_end_that_never_reached_the_registry_is_written_when_the_run_is_asked_for_again(log, tmp_path) -> None:
    train(config(tmp_path), log)
    finished = only(log)
    with ExperimentsTopic(log, "toy") as topic:  # as it was a second before the end
        topic.write_run(finished.run.model_copy(update={"state": "running", "step": 9, "validation": "none"}))
    assert only(log).validation is None
    assert train(config(tmp_path), log).already_finished
    again = only(log)
    assert again.run.model_copy(update={"updated_at": ""}) == finished.run.model_copy(update={"updated_at": ""})
    assert (again.rows, again.validation) == (finished.rows, finished.validation)
    high = log.source().bounds("toy.experiments", 0).high
    train(config(tmp_path), log)
    assert log.source().bounds("toy.experiments", 0).high == high, "what is right is not written again"


def test_an_experiment_begun_anew_in_its_folder_replaces_what_was_there(log: MemoryLog, tmp_path: Path) -> None:
    first = train(config(tmp_path), log)
    for path in sorted(first.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    before = only(log).run.id
    train(config(tmp_path, seed=1), log)
    assert only(log).run.id != before
    source = log.source()
    low, high = source.bounds("toy.experiments", 0)
    last = {
        record.key: record.value for record in (source.record_at("toy.experiments", 0, n) for n in range(low, high))
    }
    assert {value for key, value in last.items() if before.encode() in key} == {None}


def test_a_second_run_of_one_name_is_told_of_the_first(log: MemoryLog, tmp_path: Path) -> None:
    train(config(tmp_path / "one"), log)
    first = only(log).run.id
    said: list[str] = []
    train(config(tmp_path / "other"), log, say=said.append)
    [line] = [line for line in said if "another run" in line]
    assert line.startswith(f'another run is called "E1": E1@{first} in {tmp_path / "one" / "E1"} on ')
    assert sorted(read_experiments(log, "toy")) == sorted(
        f"E1@{one.run.id}" for one in read_experiments(log, "toy").values()
    )
    assert len(read_experiments(log, "toy")) == 2


def test_an_experiment_that_diverged_or_failed_says_why(log, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3, DivergedError("the loss of step 4 is nan", step=3))
        with pytest.raises(DivergedError):
            train(config(tmp_path, "diverged"), log)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, HoleError("batch 2 is not there"))
        with pytest.raises(HoleError):
            train(config(tmp_path, "failed"), log)
    found = read_experiments(log, "toy")
    assert (found["diverged"].run.state, found["diverged"].run.reason) == ("diverged", "the loss of step 4 is nan")
    assert (found["failed"].run.state, found["failed"].run.reason) == ("failed", "batch 2 is not there")
    assert [one.run.validation for one in found.values()] == ["none", "none"]
    assert [row["step"] for row in found["failed"].rows] == [2]


def test_every_experiment_of_a_sweep_is_there(log: MemoryLog, tmp_path: Path) -> None:
    outcomes = run_sweep(plan_sweep([config(tmp_path, f"E{seed}", seed=seed) for seed in range(3)], log), log)
    found = read_experiments(log, "toy")
    assert {name: one.run.metrics for name, one in found.items()} == {
        outcome.config.name: outcome.result.metrics for outcome in outcomes if outcome.result is not None
    }
    assert {one.run.state for one in found.values()} == {"finished"}


class WithoutRegistry(MemoryLog):
    """A log that lets nobody make, or write to, a run registry."""

    def create_topic(self, topic, lanes, settings):
        if topic == experiments_topic("toy"):
            raise BrokerError("not authorised to create topics")
        super().create_topic(topic, lanes, settings)


def test_a_broker_that_takes_no_registry_is_told_once_and_changes_nothing(log: MemoryLog, tmp_path: Path) -> None:
    whole = train(config(tmp_path / "whole"), log)
    other = WithoutRegistry()
    publish(other, make_manifest("toy", samples=30, lanes=3, passes=2))
    publish(other, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    said: list[str] = []
    result = train(config(tmp_path / "without"), other, say=said.append)
    told = [line for line in said if "registry" in line]
    assert told == [
        "the run registry of toy is not written (not authorised to create topics): training goes on, but other "
        "machines do not see it"
    ]
    weights = [load_file(one.folder / "head.safetensors") for one in (whole, result)]
    assert {name: tensor.tobytes() for name, tensor in weights[0].items()} == {
        name: tensor.tobytes() for name, tensor in weights[1].items()
    }

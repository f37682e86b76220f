"""Several processes that train one experiment get what one process gets, but for the last bits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch import nn

from featurestream.batch import Regrouper
from featurestream.errors import DataError, DivergedError, RunMismatchError, UsageError
from featurestream.memory import MemoryLog
from featurestream.names import reader_group, record_key, tap_topic
from featurestream.position import Position
from featurestream.record import MissingSample
from featurestream.wire import encode, headers_of
from featurestream_consumer import rank_records
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.metrics import Metric
from featurestream_consumer.rank_records import RankRecord, RankRegrouper
from featurestream_consumer.ranks import Ranks, join_ranks, refuse_ranks
from featurestream_consumer.run import train
from tests.ranks import train_on_ranks
from tests.support import append, create, joined, make_batch_record, make_manifest, publish

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def without(record, missing):
    """Return the record as it is when the images of the samples ``missing`` could not be decoded."""
    keep = ~np.isin(record.indices, list(missing))
    gone = [(int(index), id_) for index, id_ in zip(record.indices, record.ids, strict=True) if index in missing]
    return replace(
        record,
        payload=record.payload.reshape(len(record.ids), -1)[keep].reshape(-1),
        indices=record.indices[keep],
        ids=tuple(id_ for id_, kept in zip(record.ids, keep, strict=True) if kept),
        labels=record.labels[keep],
        missing=tuple(MissingSample(index, id_, "broken") for index, id_ in gone),
    )


@pytest.fixture
def log() -> MemoryLog:
    """The stream "toy", 30 samples of which 5, 11 and 16 to 19 have no row, and its validation stream."""
    log = MemoryLog()
    manifest = make_manifest("toy", samples=30, lanes=3, passes=2)
    create(log, manifest)
    sink = log.sink()
    for batch in range(manifest.total_batches):
        for tap in ("layer3", "avgpool"):
            record = without(make_batch_record(manifest, batch, tap), {5, 11, 16, 17, 18, 19})
            sink.append(
                tap_topic("toy", tap), batch % 3, key=record_key(record.pass_number, batch), value=encode(record),
                headers=headers_of(record),
            )  # fmt: skip
    sink.close()
    publish(log, make_manifest("toy-validation", samples=13, lanes=2, passes=1, seed=9))
    return log


def config(tmp_path, **changes) -> TrainConfig:
    settings = {
        "name": "E1",
        "stream": "toy",
        "taps": "layer3",
        "head": "mlp",
        "head_args": {"hidden": 8},
        "normalize": "standardize",
        "optimizer_args": {"lr": 0.01},
        "epochs": 3,
        "batch_size": 10,
        "validate_stream": "toy-validation",
        "runs": tmp_path,
        "device": "cpu",
        "reporters": ("jsonl",),
        "report_steps": 2,
    }
    return TrainConfig(**(settings | changes))


def weights(folder) -> dict[str, np.ndarray]:
    return load_file(folder / "head.safetensors")


def rows_of(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def assert_close(folder, other) -> None:
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def two_layers(in_features: int, outputs: int) -> nn.Module:
    """A head of the user's, one parameter of which gets no gradient."""
    head = nn.Sequential(nn.Linear(in_features, 5), nn.Tanh(), nn.Linear(5, outputs))
    head.register_parameter("idle", nn.Parameter(torch.ones(2)))
    return head


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 3},
        {"batch_size": 1000},
        {"optimizer": "AdamW", "scheduler": "ReduceLROnPlateau", "scheduler_args": {"patience": 0}},
        {"optimizer": "LBFGS", "optimizer_args": {"max_iter": 4}, "batch_size": 1000},
        {"optimizer": "SGD", "head": "tests.consumer.test_ranks:two_layers", "head_args": {}, "loss": "bce"},
        {"taps": ("avgpool", "layer3"), "start": "batch:1", "stop": "batch:12", "normalize": "l2"},
        {"validate_stream": None},
    ],
    ids=["adam", "small", "whole", "plateau", "lbfgs", "own-head", "range", "alone"],
)  # fmt: skip
def test_ranks_give_what_one_process_gives_to_the_last_bits(log, tmp_path, count, changes):
    whole = train(config(tmp_path / "one", **changes), log)
    results = train_on_ranks(count, config(tmp_path / "many", **changes), log)
    assert all(result == results[0] for result in results)
    assert (results[0].steps, results[0].passes) == (whole.steps, whole.passes)
    assert_close(whole.folder, results[0].folder)
    assert results[0].metrics == pytest.approx(whole.metrics, rel=1e-4)
    assert len(rows_of(whole.folder)) == len(rows_of(results[0].folder)) > 3
    for row, other in zip(rows_of(whole.folder), rows_of(results[0].folder), strict=True):
        assert other.pop("kind") == row.pop("kind")
        assert other == pytest.approx(row, rel=1e-4)
    if "validate_stream" not in changes:
        scores, others = (np.load(folder / "validation.npz") for folder in (whole.folder, results[0].folder))
        assert others["index"].tolist() == scores["index"].tolist() == list(range(13))
        assert others["label"].tolist() == scores["label"].tolist()
        np.testing.assert_allclose(others["scores"], scores["scores"], rtol=1e-3, atol=1e-4)


def test_only_rank_0_writes(log, tmp_path):
    train_on_ranks(3, config(tmp_path, checkpoint_seconds=1e-9), log)
    assert [path.name for path in tmp_path.iterdir()] == ["E1"]
    record = json.loads((tmp_path / "E1" / "run.json").read_text())
    assert record["state"] == "finished"
    assert [session["ranks"] for session in record["sessions"]] == [3]


def test_rank_0_shows_the_positions_of_all_lanes(log, tmp_path):
    train(config(tmp_path, name="one"), log)
    train_on_ranks(3, config(tmp_path, name="many"), log)
    positions = log.committed_positions()
    assert positions[reader_group("toy", "many")] == positions[reader_group("toy", "one")]
    assert len(positions[reader_group("toy", "one")]) == 3


@pytest.mark.parametrize(("before", "after"), [(2, 2), (3, 3), (1, 2), (2, 1), (3, 2)])
def test_an_experiment_goes_on_with_any_number_of_processes(log, tmp_path, monkeypatch, before, after):
    class Killed(BaseException):
        """What no handler catches."""

    def run(count, where):
        settings = config(tmp_path / where, batch_size=7, checkpoint_seconds=1e-9)
        return [train(settings, log)] if count == 1 else train_on_ranks(count, settings, log)

    whole = run(before, "whole")[0]
    from featurestream_consumer.experiment import Experiment

    save = Experiment.save

    def save_and_die(self):
        saved = save(self)
        if self.trainer.step_count == 6:
            raise Killed
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "save", save_and_die)
        with pytest.raises(Killed):
            run(before, "cut")
    resumed = run(after, "cut")[0]
    assert not resumed.already_finished
    assert resumed.steps == whole.steps
    if before == after:
        assert {name: one.tobytes() for name, one in weights(resumed.folder).items()} == {
            name: one.tobytes() for name, one in weights(whole.folder).items()
        }
        assert rows_of(resumed.folder) == rows_of(whole.folder)
    else:
        assert_close(whole.folder, resumed.folder)
    assert run(after, "cut")[-1].already_finished


def test_an_experiment_that_diverges_ends_on_all_ranks_with_the_step(log, tmp_path):
    settings = config(tmp_path, normalize="none", optimizer="SGD", optimizer_args={"lr": 1e30}, validate_stream=None)
    with pytest.raises(DivergedError, match=r"the loss of step 2 \(batch 3\) is nan"):
        train_on_ranks(2, settings, log)
    record = json.loads((tmp_path / "E1" / "run.json").read_text())
    assert (record["state"], record["diverged_at_step"]) == ("stopped", 1)


def test_scores_that_are_not_finite_on_one_rank_stop_all(log, tmp_path):
    settings = config(
        tmp_path, normalize="none", optimizer="SGD", optimizer_args={"lr": 1e38}, batch_size=1000, epochs=1
    )
    with pytest.raises(DivergedError, match="scores of validation batch 0"):
        train_on_ranks(2, settings, log)


def test_what_fails_on_one_rank_ends_the_others(tmp_path):
    log = MemoryLog()
    manifest = make_manifest("toy", samples=16, lanes=2, passes=1)
    create(log, manifest)
    append(log, manifest, range(3))
    wrong = make_batch_record(manifest, 3, "layer3")
    wrong.labels[:] = 7
    log.sink().append("toy.layer3", 1, key=record_key(0, 3), value=encode(wrong), headers=headers_of(wrong))
    settings = config(tmp_path, normalize="none", validate_stream=None)
    with pytest.raises(DataError, match="class number 7"):
        train_on_ranks(2, settings, log)
    record = json.loads((tmp_path / "E1" / "run.json").read_text())
    assert (record["state"], record["reason"]) == ("stopped", "another process of this experiment has ended")


def test_ranks_wait_together_for_a_stream_that_is_still_being_made(tmp_path, monkeypatch):
    log = MemoryLog()
    manifest = make_manifest("live", samples=16, lanes=2, passes=1)
    create(log, manifest)
    append(log, manifest, [0])  # rank 1 has nothing to read yet
    monkeypatch.setattr(rank_records, "SIGN_OF_LIFE_S", 0.0)
    meet = rank_records.RankRecords._meet
    waited = []

    def meet_and_produce(self, *, waiting, rows):
        found = meet(self, waiting=waiting, rows=rows)
        if waiting:
            waited.append(self._ranks.rank)
            if len(waited) == 2:
                append(log, manifest, [1, 2, 3])
        return found

    monkeypatch.setattr(rank_records.RankRecords, "_meet", meet_and_produce)
    results = train_on_ranks(
        2, config(tmp_path, stream="live", normalize="none", validate_stream=None, epochs=1, batch_size=8), log
    )
    assert [result.steps for result in results] == [2, 2]
    assert set(waited) == {1}


@settings(deadline=None)  # a machine that is busy is not a wrong batch
@given(
    rows=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    skipped=st.integers(0, 3),
    size=st.integers(1, 9),
    count=st.integers(1, 3),
)
def test_the_ranks_rows_of_a_batch_are_the_batch_of_one_process(rows, skipped, size, count):
    manifest = make_manifest(samples=48, batch_samples=4, lanes=3, passes=1)
    whole = [
        joined(without(make_batch_record(manifest, b, "layer3"), range(4 * b + n, 4 * b + 4)))
        for b, n in enumerate(rows)
    ]
    skipped = min(skipped, rows[0])
    whole[0] = whole[0].rows(skipped, len(whole[0]))
    one = Regrouper(size)
    expected = [batch for record in whole for batch in one.add(record)] + list(one.rest())
    found = []
    for rank in range(count):
        regrouper = RankRegrouper(size)
        batches = []
        for number, record in enumerate(whole):
            place = Position(0, skipped) if number == 0 else Position(number)
            batches += regrouper.add(RankRecord(place, len(record), record if number % count == rank else None))
        found.append(batches + list(regrouper.rest()))
    expected = [batch for batch in expected if len(batch)]
    assert [len(batches) for batches in found] == [len(expected)] * count
    for batch, *parts in zip(expected, *found, strict=True):
        assert {part.rows for part in parts} == {len(batch)}
        held = [index for part in parts if part.own is not None for index in part.own.indices.tolist()]
        assert sorted(held) == sorted(batch.indices.tolist())
        first, last = (int(index) for index in (batch.indices[0], batch.indices[-1]))
        assert {part.position for part in parts} == {Position(first // 4, first % 4)}
        after = Position(last // 4 + 1) if last % 4 + 1 == rows[last // 4] else Position(last // 4, last % 4 + 1)
        assert {part.next_position for part in parts} == {after}


def test_more_processes_than_lanes_are_refused(log, tmp_path):
    with pytest.raises(UsageError, match='4 processes cannot split the 3 lanes of stream "toy"; start at most 3'):
        train_on_ranks(4, config(tmp_path), log)
    assert not (tmp_path / "E1").exists()


def test_a_folder_of_another_configuration_is_refused_on_all_ranks(log, tmp_path):
    train(config(tmp_path), log)
    with pytest.raises(RunMismatchError, match="seed: 0 -> 1"):
        train_on_ranks(2, config(tmp_path, seed=1), log)


def with_batch_norm(in_features: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(in_features), nn.Linear(in_features, outputs))


WORST = Metric(lambda: 0.0, lambda state, s, t, loss: max(state, float(loss.max())), float, False, "the loss's own")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head": "tests.consumer.test_ranks:with_batch_norm", "head_args": {}}, "BatchNorm1d .0. takes means"),
        ({"metrics": ("tests.consumer.test_ranks:WORST", "loss")}, "has no value of each row"),
    ],
)
def test_what_needs_all_rows_of_a_batch_is_refused(log, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        train_on_ranks(2, config(tmp_path, **changes), log)


def test_a_metric_that_needs_all_rows_is_computed_in_validation(log, tmp_path):
    metrics = ("loss", "tests.consumer.test_ranks:WORST")
    whole = train(config(tmp_path / "one", metrics=metrics), log)
    assert train_on_ranks(2, config(tmp_path / "two", metrics=metrics), log)[0].metrics == pytest.approx(whole.metrics)


def test_small_steps_and_lanes_that_do_not_divide_are_said(log, tmp_path):
    said = []
    train_on_ranks(2, config(tmp_path, batch_size=7), log, say=said.append)
    assert any("2 processes do not divide 3 lanes" in line for line in said)
    assert any("--batch-size 8 or more" in line for line in said)


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_a_process_that_is_alone_meets_nobody(environment):
    with join_ranks("cpu", environment) as ranks:
        assert ranks is None
    refuse_ranks("featurectl sweep", environment)


def test_a_command_that_runs_in_one_process_says_so():
    with pytest.raises(UsageError, match="one of 2 that torchrun started, but featurectl sweep runs in one"):
        refuse_ranks("featurectl sweep", TORCHRUN)


@pytest.mark.parametrize(
    ("changes", "device", "said"),
    [
        ({"RANK": ""}, "cpu", "RANK is '', not a number"),
        ({"LOCAL_RANK": "x"}, "cpu", "LOCAL_RANK is 'x'"),
        ({"WORLD_SIZE": "many"}, "cpu", "WORLD_SIZE is 'many'"),
        ({"RANK": "2"}, "cpu", "there is no such rank"),
        ({"MASTER_ADDR": ""}, "cpu", "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "port"}, "cpu", "MASTER_PORT is 'port', not a number"),
        ({"MASTER_PORT": "0"}, "cpu", "MASTER_PORT is 0, and no process can meet another there"),
        ({}, "cuda:0", 'cannot share the device "cuda:0"'),
    ],
)
def test_an_environment_that_is_not_torchruns_is_refused(changes, device, said):
    with pytest.raises(UsageError, match=said):
        Ranks(device, TORCHRUN | changes)

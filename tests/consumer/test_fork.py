"""A fork goes on from its parent's place with what was changed, and with nothing else changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from featurestream.errors import (
    DataError,
    DivergedError,
    FingerprintError,
    RunMismatchError,
    UnknownNameError,
    UsageError,
)
from featurestream.memory import MemoryLog
from featurestream_consumer import shared_reading
from featurestream_consumer.checkpoint import list_checkpoints, load_checkpoint, load_newest
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.fork import ForkPoint, begin_fork, fork
from featurestream_consumer.run import train
from featurestream_consumer.runs import read_record
from featurestream_consumer.sweep import plan_sweep, run_sweep
from featurestream_consumer.trainer import Trainer
from tests.support import make_manifest, publish


class Killed(BaseException):
    """What no handler catches."""


@pytest.fixture(autouse=True)
def every_checkpoint_is_written_and_none_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reading, "CHECKPOINT_SHARE", 0)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    publish(log, make_manifest("toy", samples=30, lanes=3, passes=2))  # passes of 8 batches: 7 of 4 rows, one of 2
    publish(log, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    return log


def config(runs: Path, **changes: Any) -> TrainConfig:
    settings = {
        "name": "E1",
        "stream": "toy",
        "taps": "layer3",
        "head_args": {"hidden": 8},
        "optimizer_args": {"lr": 0.01},
        "epochs": 3,
        "batch_size": 7,  # five steps an epoch
        "validate_stream": "toy-validation",
        "runs": runs,
        "device": "cpu",
        "reporters": ("jsonl",),
        "checkpoint_seconds": 1e-9,
        "keep_checkpoints": 100,
    }
    return TrainConfig(**(settings | changes))


def killed_after(steps: int, work: Callable[[], object]) -> None:
    """Do ``work`` until a trainer has made so many steps."""
    step, made = Trainer.step, 0

    def dying(self: Trainer, *args: Any, **kwargs: Any) -> float:
        nonlocal made
        made += 1
        if made > steps:
            raise Killed
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        with pytest.raises(Killed):
            work()


def head_bytes(folder: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(folder / "head.safetensors").items()}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def first_state(folder: Path) -> dict[str, Any]:
    """The trainer's state in the oldest checkpoint."""
    state: dict[str, Any] = load_checkpoint(list_checkpoints(folder / "checkpoints")[-1].path)["trainer"]
    return state


def state_at(folder: Path, step: int) -> dict[str, Any]:
    (path,) = [file.path for file in list_checkpoints(folder / "checkpoints") if file.step == step]
    state: dict[str, Any] = load_checkpoint(path)["trainer"]
    return state


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout and mixup": {"head_args": {"hidden": [8, 6], "dropout": 0.25}, "augment": "mixup"},
    "cosine": {"optimizer": "AdamW", "scheduler": "CosineAnnealingLR", "normalize": "standardize"},
    "one cycle": {"optimizer": "SGD", "optimizer_args": {"lr": 0.01, "momentum": 0.9}, "scheduler": "OneCycleLR",
                  "scheduler_args": {"max_lr": 0.1}},
    "plateau": {"scheduler": "ReduceLROnPlateau", "scheduler_args": {"patience": 0}},
    "lbfgs": {"optimizer": "LBFGS", "optimizer_args": {"max_iter": 2}},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_in_which_nothing_is_changed_ends_with_its_parents_bytes(log, tmp_path, kind):
    train(config(tmp_path, **KINDS[kind]), log)
    for place in ("step:1", "batch:4", "step:8", "batch:15"):
        result = fork(tmp_path / "E1", log, name=place.replace(":", "-"), at=place)
        assert head_bytes(result.folder) == head_bytes(tmp_path / "E1"), place
        record = read_record(result.folder)
        assert (record["lineage"]["changes"], record["fork"]["begun_anew"]) == ({}, [])
        assert result.metrics == read_record(tmp_path / "E1")["metrics"]
        own = [{key: value for key, value in row.items() if key != "time"} for row in rows(result.folder)]
        theirs = [{key: value for key, value in row.items() if key != "time"} for row in rows(tmp_path / "E1")]
        assert own == theirs[-len(own) :]


def test_the_record_tells_the_lineage(log, tmp_path):
    train(config(tmp_path / "runs"), log)
    changes = {"optimizer_args.lr": 0.001, "optimizer_args.weight_decay": 0.1, "device": "cpu"}
    said: list[str] = []
    fork(
        tmp_path / "runs" / "E1", log, name="E2", changes=changes, at="step:8", runs=tmp_path / "more", say=said.append
    )
    record = read_record(tmp_path / "more" / "E2")
    assert record["lineage"] == {
        "parent": "E1",
        "folder": "../../runs/E1",
        "fingerprint": read_record(tmp_path / "runs" / "E1")["fingerprint"],
        "step": 8,  # the third of the second epoch: 21 rows, five batches of 4 and a row
        "epoch": 1,
        "batch": 13,
        "row": 1,
        "changes": {"optimizer_args.lr": [0.01, 0.001], "optimizer_args.weight_decay": [None, 0.1]},
    }
    assert record["fork"] == {
        "at": "step:8",
        "taken_over": [
            "head.0.weight",
            "head.0.bias",
            "head.2.weight",
            "head.2.bias",
            "optimizer",
            "random",
            "metrics",
        ],
        "begun_anew": [],
    }
    assert record["config"]["optimizer_args"] == {"lr": 0.001, "weight_decay": 0.1}
    assert (record["start"], record["stop"]) == ({"batch": 0, "row": 0}, 16)
    assert record["state"] == "finished"
    assert len(record["sessions"]) == 1
    assert said[0] == (
        "E2 goes on from E1 at step 8 (epoch 1, batch 13, row 1); changed: optimizer_args.lr 0.01 -> 0.001, "
        "optimizer_args.weight_decay None -> 0.1"
    )
    assert "lineage" not in read_record(tmp_path / "runs" / "E1")


def test_a_new_learning_rate_is_that_of_the_next_step_and_momenta_are_kept(log, tmp_path):
    train(config(tmp_path), log)
    begin_fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.lr": 0.5}, at="step:7")
    before, after = state_at(tmp_path / "E1", 7)["optimizer"], first_state(tmp_path / "E2")["optimizer"]
    (own,), (theirs,) = after["state"].values(), before["state"].values()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    assert (before["param_groups"][0]["lr"], after["param_groups"][0]["lr"]) == (0.01, 0.5)
    assert before["param_groups"][0] | {"lr": 0.5} == after["param_groups"][0]


def test_a_schedule_goes_on_where_it_and_the_learning_rate_are_as_they_were(log, tmp_path):
    train(config(tmp_path, scheduler="CosineAnnealingLR"), log)
    begin_fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.weight_decay": 0.5}, at="step:7")
    before, after = state_at(tmp_path / "E1", 7), first_state(tmp_path / "E2")
    assert after["scheduler"] == before["scheduler"]
    group = before["optimizer"]["param_groups"][0]
    assert group["lr"] < 0.006
    assert after["optimizer"]["param_groups"][0] == group | {"weight_decay": 0.5}


@pytest.mark.parametrize(
    ("changes", "rate", "length"),
    [
        ({"optimizer_args.lr": 0.5}, 0.5, 8),
        ({"epochs": 4}, 0.01, 13),
        ({"scheduler_args.T_max": 40}, 0.01, 40),
        ({"batch_size": 10}, 0.01, 5),  # 16 rows of this epoch and 30 of the next: two steps and three
        ({"optimizer": "SGD", "optimizer_args.lr": 0.2}, 0.2, 8),
    ],
)
def test_a_schedule_begins_anew_over_the_steps_that_are_left_where_anything_of_it_changed(
    log, tmp_path, changes, rate, length
):
    train(config(tmp_path, scheduler="CosineAnnealingLR"), log)
    begin_fork(tmp_path / "E1", log, name="E2", changes=changes, at="step:7")
    state = first_state(tmp_path / "E2")
    assert (state["scheduler"]["T_max"], state["scheduler"]["last_epoch"]) == (length, 0)
    assert state["optimizer"]["param_groups"][0]["lr"] == rate
    assert "scheduler" in read_record(tmp_path / "E2")["fork"]["begun_anew"]


def test_a_schedule_that_no_length_decides_goes_on_in_a_longer_fork(log, tmp_path):
    train(config(tmp_path, scheduler="StepLR", scheduler_args={"step_size": 4}), log)
    train(config(tmp_path, name="long", scheduler="StepLR", scheduler_args={"step_size": 4}, epochs=5), log)
    result = fork(tmp_path / "E1", log, name="E2", changes={"epochs": 5})
    assert head_bytes(result.folder) == head_bytes(tmp_path / "long"), "as if it had had five epochs from the start"
    assert result.steps == 25


def test_a_schedule_can_be_ended_and_the_learning_rate_is_then_the_optimisers(log, tmp_path):
    train(config(tmp_path, scheduler="ExponentialLR", scheduler_args={"gamma": 0.5}), log)
    fork(tmp_path / "E1", log, name="E2", changes={"scheduler": None}, at="step:7")
    state = first_state(tmp_path / "E2")
    assert state["scheduler"] is None
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "SGD"},
        {"optimizer_args.amsgrad": True},  # one more thing to remember, which the parent has not
        {"head_args.hidden": [8, 4]},
        {"loss": "mse"},
    ],
)
def test_an_optimiser_that_would_remember_other_things_begins_anew(log, tmp_path, changes):
    train(config(tmp_path), log)
    fork(tmp_path / "E1", log, name="E2", changes=changes, at="step:7")
    assert first_state(tmp_path / "E2")["optimizer"]["state"] == {}
    assert "optimizer" in read_record(tmp_path / "E2")["fork"]["begun_anew"]


def test_lbfgs_with_another_history_begins_it_anew(log, tmp_path):
    train(config(tmp_path, optimizer="LBFGS", optimizer_args={"max_iter": 2}), log)
    begin_fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.history_size": 3}, at="step:7")
    assert read_record(tmp_path / "E2")["fork"]["begun_anew"] == ["optimizer"]
    begin_fork(tmp_path / "E1", log, name="E3", changes={"optimizer_args.max_iter": 3}, at="step:7")
    assert read_record(tmp_path / "E3")["fork"]["begun_anew"] == []


def test_a_loss_that_needs_other_outputs_keeps_the_body_and_begins_the_tail(log, tmp_path):
    train(config(tmp_path), log)
    said: list[str] = []
    fork(tmp_path / "E1", log, name="E2", changes={"loss": "mse"}, at="step:7", say=said.append)  # 3 outputs become 1
    before, after = state_at(tmp_path / "E1", 7)["head"], first_state(tmp_path / "E2")["head"]
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert torch.equal(before["0.bias"], after["0.bias"])
    assert after["2.weight"].shape == (1, 8)
    assert read_record(tmp_path / "E2")["fork"]["begun_anew"] == [
        "head.2.weight",
        "head.2.bias",
        "optimizer",
        "metrics",
    ]
    assert said[1] == (
        "begun anew: head.2.weight, head.2.bias, optimizer, metrics; taken over: head.0.weight, head.0.bias, random"
    )


def test_a_tail_that_begins_anew_is_that_of_a_new_head_of_the_same_seed(log, tmp_path):
    train(config(tmp_path), log)
    train(config(tmp_path, name="new", head_args={"hidden": [8, 4]}, seed=5), log)
    begin_fork(tmp_path / "E1", log, name="E2", changes={"head_args.hidden": [8, 4], "seed": 5}, at="step:7")
    state, new = first_state(tmp_path / "E2"), state_at(tmp_path / "new", 1)
    assert state["head"]["2.weight"].shape == (4, 8)
    assert (state["head"]["4.weight"] - new["head"]["4.weight"]).abs().max() < 0.011, "one step of 0.01 away"
    assert read_record(tmp_path / "E2")["fork"]["begun_anew"][-2:] == ["optimizer", "random"]


def test_dropout_may_come_between_the_layers_and_every_weight_is_kept(log, tmp_path):
    train(config(tmp_path), log)
    fork(tmp_path / "E1", log, name="E2", changes={"head_args.dropout": 0.25}, at="step:7")
    before, after = state_at(tmp_path / "E1", 7), first_state(tmp_path / "E2")
    assert list(after["head"]) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert torch.equal(before["head"]["2.weight"], after["head"]["3.weight"])
    assert read_record(tmp_path / "E2")["fork"]["begun_anew"] == []


def test_another_seed_keeps_the_weights_and_draws_other_dropout(log, tmp_path):
    train(config(tmp_path, head_args={"hidden": 8, "dropout": 0.25}), log)
    fork(tmp_path / "E1", log, name="E2", changes={"seed": 5}, at="step:7")
    assert torch.equal(
        state_at(tmp_path / "E1", 7)["head"]["0.weight"], first_state(tmp_path / "E2")["head"]["0.weight"]
    )
    assert read_record(tmp_path / "E2")["fork"]["begun_anew"] == ["random"]
    assert head_bytes(tmp_path / "E1") != head_bytes(tmp_path / "E2")


def test_a_finished_run_is_forked_into_more_epochs(log, tmp_path):
    train(config(tmp_path), log)
    train(config(tmp_path, name="long", epochs=5), log)
    result = fork(tmp_path / "E1", log, name="E2", changes={"epochs": 5})
    assert head_bytes(result.folder) == head_bytes(tmp_path / "long")
    lineage = read_record(result.folder)["lineage"]
    assert (lineage["step"], lineage["epoch"], lineage["batch"], lineage["row"]) == (15, 3, 8, 0)


@pytest.mark.parametrize("changes", [{}, {"optimizer_args.lr": 0.1}, {"epochs": 2}])
def test_a_fork_with_nothing_left_to_train_is_refused_with_what_helps(log, tmp_path, changes):
    train(config(tmp_path), log)
    with pytest.raises(UsageError, match=r"nothing is left to train after step 15 \(epoch 3, batch 8\)") as caught:
        fork(tmp_path / "E1", log, name="E2", changes=changes)
    assert "--set epochs=1" in str(caught.value)
    assert not (tmp_path / "E2").exists()


def test_a_fork_lies_beside_its_parent_also_where_that_is_the_current_folder(log, tmp_path, monkeypatch):
    train(config(tmp_path), log)
    monkeypatch.chdir(tmp_path / "E1")
    begin_fork(Path(), log, name="E2", at="step:4")
    assert read_record(tmp_path / "E2")["lineage"]["folder"] == "../E1"
    monkeypatch.chdir(tmp_path)
    begin_fork(Path("E1"), log, name="E2", at="step:4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["E1", "E2"]


def test_a_fork_can_be_forked(log, tmp_path):
    train(config(tmp_path), log)
    fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.lr": 0.1}, at="step:4")
    result = fork(tmp_path / "E2", log, name="E3", at="step:12")
    assert head_bytes(result.folder) == head_bytes(tmp_path / "E2")
    assert read_record(result.folder)["lineage"]["parent"] == "E2"


def test_a_run_that_diverged_is_forked_from_before_with_a_smaller_learning_rate(log, tmp_path):
    with pytest.raises(DivergedError):
        train(config(tmp_path, optimizer="SGD", optimizer_args={"lr": 1e-3}, scheduler="StepLR",
                     scheduler_args={"step_size": 4, "gamma": 1e38}), log)  # fmt: skip
    assert read_record(tmp_path / "E1")["diverged_at_step"] > 4
    result = fork(tmp_path / "E1", log, name="E2", changes={"scheduler": None}, at="step:3")
    assert result.steps == 15
    assert "diverged_at_step" not in read_record(tmp_path / "E2")


def test_forks_are_experiments_that_train_and_sweep_go_on_with(log, tmp_path):
    train(config(tmp_path), log)
    one = begin_fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.lr": 0.1}, at="step:4")
    fork(tmp_path / "E1", log, name="E3", changes={"optimizer_args.lr": 0.1}, at="step:4")
    other = begin_fork(tmp_path / "E1", log, name="E4", changes={"optimizer_args.lr": 0.03}, at="step:9")
    outcomes = run_sweep(plan_sweep([one, other], log), log)
    assert all(outcome.result is not None for outcome in outcomes)
    assert head_bytes(tmp_path / "E2") == head_bytes(tmp_path / "E3")
    assert read_record(tmp_path / "E2")["lineage"]["step"] == 4
    assert train(one, log).already_finished


# ---- which checkpoint -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "found"),
    [
        # Epochs 0 and 2 read pass 0 (batches 0 to 7), epoch 1 reads pass 1 (8 to 15). The steps of pass 0 end before
        # batch 1 row 3, batch 3 row 2, batch 5 row 1, batch 7, and at the end of the pass.
        ("step:3", (3, 0, 5, 1)),
        ("step:5", (5, 1, 8, 0)),
        ("batch:8", (5, 1, 8, 0)),
        ("batch:9", (5, 1, 8, 0)),
        ("batch:10", (6, 1, 9, 3)),
        ("batch:15", (9, 1, 15, 0)),
        ("batch:0", (10, 2, 0, 0)),  # of its two readings the last
        ("batch:5", (12, 2, 3, 2)),
        ("batch:6", (13, 2, 5, 1)),
        ("step:14", (14, 2, 7, 0)),
        (None, (15, 3, 8, 0)),
    ],
)
def test_a_place_is_the_newest_checkpoint_that_has_it_still_before_it(log, tmp_path, place, found):
    train(config(tmp_path), log)
    begin_fork(tmp_path / "E1", log, name="E2", at=place, changes={"epochs": 4})
    lineage = read_record(tmp_path / "E2")["lineage"]
    assert (lineage["step"], lineage["epoch"], lineage["batch"], lineage["row"]) == found


def test_a_place_from_which_none_is_kept_lists_those_that_are(log, tmp_path):
    train(config(tmp_path, keep_checkpoints=2), log)
    with pytest.raises(UsageError) as caught:
        begin_fork(tmp_path / "E1", log, name="E2", at="batch:9")
    assert str(caught.value) == (
        f"{tmp_path / 'E1'} keeps no checkpoint from batch:9 or before: there are step 15 (epoch 3, batch 8); "
        "step 14 (epoch 2, batch 7); more are kept where the parent is trained with --keep-checkpoints N"
    )
    assert not (tmp_path / "E2").exists()


def test_a_batch_that_the_parent_never_reads_is_refused(log, tmp_path):
    train(config(tmp_path, start="batch:4"), log)
    with pytest.raises(UsageError, match=r"reads no batch 16; its 3 epochs read batches 4 to 15"):
        begin_fork(tmp_path / "E1", log, name="E2", at="batch:16")


@pytest.mark.parametrize("text", ["batch", "batch:-1", "pass:3", "3", "batch:1.5", ""])
def test_what_is_no_place_is_refused(text):
    with pytest.raises(UsageError, match="expected batch:N or step:N"):
        ForkPoint.parse(text)


def test_a_run_without_a_checkpoint_cannot_be_forked(log, tmp_path):
    killed_after(2, lambda: train(config(tmp_path, checkpoint_seconds=1e9), log))
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        begin_fork(tmp_path / "E1", log, name="E2")


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_says_so_and_leaves_the_parent_alone(log, tmp_path):
    killed_after(7, lambda: train(config(tmp_path), log))
    newest = list_checkpoints(tmp_path / "E1" / "checkpoints")[0].path
    newest.write_bytes(newest.read_bytes()[:-9])
    before = sorted(path.name for path in (tmp_path / "E1" / "checkpoints").iterdir())
    said: list[str] = []
    fork(tmp_path / "E1", log, name="E2", say=said.append)
    assert said[0].startswith(f"checkpoint {newest.name} is damaged: its ")
    assert said[1] == "forking the checkpoint of step 6 (epoch 1, batch 9, row 3)"
    assert sorted(path.name for path in (tmp_path / "E1" / "checkpoints").iterdir()) == before
    train(config(tmp_path), log)
    assert head_bytes(tmp_path / "E2") == head_bytes(tmp_path / "E1")


def test_only_damaged_checkpoints_are_an_error(log, tmp_path):
    train(config(tmp_path, keep_checkpoints=2), log)
    for file in list_checkpoints(tmp_path / "E1" / "checkpoints"):
        file.path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 2 checkpoints of"):
        begin_fork(tmp_path / "E1", log, name="E2")


def test_a_parent_that_trains_on_and_removes_what_was_listed_is_looked_at_again(log, tmp_path, monkeypatch):
    from featurestream_consumer import fork as module

    train(config(tmp_path), log)
    looks = 0

    def list_then_lose(folder: Path) -> Any:
        nonlocal looks
        looks += 1
        found = list_checkpoints(folder)
        if looks < 3:
            found[0].path.unlink()
        return found

    monkeypatch.setattr(module, "list_checkpoints", list_then_lose)
    begin_fork(tmp_path / "E1", log, name="E2")
    assert (looks, read_record(tmp_path / "E2")["lineage"]["step"]) == (3, 13)


# ---- killed, and given again ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_after", [0, 1, 4, 7])
def test_a_fork_that_died_anywhere_ends_with_the_bytes_of_an_undisturbed_one(log, tmp_path, dies_after):
    train(config(tmp_path), log)
    changes = {"head_args.hidden": [8, 4], "head_args.dropout": 0.25, "scheduler": "CosineAnnealingLR"}
    whole = fork(tmp_path / "E1", log, name="E2", changes=changes, at="step:7", runs=tmp_path / "whole")
    again = {"name": "E2", "changes": changes, "at": "step:7", "runs": tmp_path / "cut"}
    killed_after(dies_after, lambda: fork(tmp_path / "E1", log, **again))
    said: list[str] = []
    result = fork(tmp_path / "E1", log, **again, say=said.append)
    assert head_bytes(result.folder) == head_bytes(whole.folder)
    assert result.metrics == whole.metrics
    assert any(line.startswith(f"going on at step {7 + dies_after}") for line in said), said
    assert fork(tmp_path / "E1", log, **again).already_finished


@pytest.mark.parametrize("dies_at", ["mkdir", "replace", "rename"])
def test_a_fork_that_died_while_its_folder_was_made_is_there_whole_or_not_at_all(log, tmp_path, monkeypatch, dies_at):
    train(config(tmp_path), log)

    def dying(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, dies_at, dying)
        with pytest.raises(Killed):
            begin_fork(tmp_path / "E1", log, name="E2", at="step:9")
    assert not (tmp_path / "E2").exists()
    result = fork(tmp_path / "E1", log, name="E2", at="step:4")
    assert [file.step for file in list_checkpoints(result.folder / "checkpoints")][-1] == 4
    assert head_bytes(result.folder) == head_bytes(tmp_path / "E1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["E1", "E2"], "nothing is left over"


def test_the_same_fork_again_goes_on_although_its_parent_has_newer_checkpoints(log, tmp_path):
    killed_after(7, lambda: train(config(tmp_path), log))
    killed_after(2, lambda: fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.lr": 0.1}))
    train(config(tmp_path), log)
    fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.lr": 0.1})
    assert read_record(tmp_path / "E2")["lineage"]["step"] == 7


def test_a_fork_whose_checkpoints_are_gone_does_not_begin_with_new_weights(log, tmp_path):
    train(config(tmp_path), log)
    begun = begin_fork(tmp_path / "E1", log, name="E2", at="step:4")
    for file in list_checkpoints(tmp_path / "E2" / "checkpoints"):
        file.path.unlink()
    with pytest.raises(DataError, match="is a fork and holds no checkpoint"):
        train(begun, log)


def test_a_fork_with_a_damaged_newest_checkpoint_goes_on_from_the_one_before(log, tmp_path):
    train(config(tmp_path), log)
    killed_after(3, lambda: fork(tmp_path / "E1", log, name="E2", at="step:7"))
    newest = list_checkpoints(tmp_path / "E2" / "checkpoints")[0].path
    newest.write_bytes(b"")
    said: list[str] = []
    result = fork(tmp_path / "E1", log, name="E2", at="step:7", say=said.append)
    assert any(line.startswith(f"checkpoint {newest.name} is damaged") for line in said)
    assert "continuing from the checkpoint of step 9" in said
    assert head_bytes(result.folder) == head_bytes(tmp_path / "E1")


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"stream": "other"}, UsageError, 'a fork cannot change "stream": its weights were learnt on that stream'),
        ({"tap": "avgpool"}, UsageError, 'a fork cannot change "tap": its weights were learnt on those taps'),
        ({"normalize": "l2"}, UsageError, 'a fork cannot change "normalize": its weights were learnt on features that'),
        ({"from": "batch:3"}, UsageError, 'a fork cannot change "from": it goes on inside its parent\'s range'),
        ({"name": "E3"}, UsageError, 'a fork cannot change "name": it is given with --name'),
        ({"optimizer_args.lrr": 1}, UsageError, 'optimiser "Adam" takes no argument "lrr"; did you mean "lr"?'),
        ({"optimiser_args.lr": 1}, UnknownNameError, 'unknown setting of a fork "optimiser_args.lr"; did you mean '
         '"optimizer_args.lr"?'),
        ({"epoch": 4}, UnknownNameError, 'unknown setting of a fork "epoch"; did you mean "epochs"?'),
        ({"epochs.lr": 4}, UnknownNameError, 'unknown setting of a fork "epochs.lr"'),
        ({"epochs": 0}, UsageError, "greater than or equal to 1"),
        ({"head_args.hidden": 9}, UsageError, "nothing of the head mlp {'hidden': 8} fits into mlp {'hidden': 9}"),
        ({"validate": None, "scheduler": "ReduceLROnPlateau"}, UsageError, "needs the validation loss"),
    ],
)  # fmt: skip
def test_what_a_fork_cannot_be_is_told_before_anything_is_written(log, tmp_path, changes, kind, message):
    train(config(tmp_path), log)
    with pytest.raises(kind) as caught:
        begin_fork(tmp_path / "E1", log, name="E2", changes=changes, at="step:7")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["E1"]


def test_a_folder_that_is_no_run_and_the_parents_own_name_are_refused(log, tmp_path):
    with pytest.raises(UsageError, match="is not a run folder"):
        begin_fork(tmp_path / "E9", log, name="E2")
    train(config(tmp_path), log)
    with pytest.raises(UsageError, match="is the parent's own folder"):
        begin_fork(tmp_path / "E1", log, name="E1")
    with pytest.raises(UsageError, match="cannot name an experiment"):
        begin_fork(tmp_path / "E1", log, name="../E1")


def test_a_name_that_another_run_has_is_refused_with_what_differs(log, tmp_path):
    train(config(tmp_path), log)
    train(config(tmp_path, name="other"), log)
    begin_fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.lr": 0.1}, at="step:7")
    with pytest.raises(RunMismatchError, match="holds a run that is not a fork"):
        begin_fork(tmp_path / "E1", log, name="other", at="step:7")
    with pytest.raises(RunMismatchError, match=r"optimizer_args\.lr: 0\.1 -> 0\.2"):
        begin_fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.lr": 0.2}, at="step:7")
    with pytest.raises(RunMismatchError, match="was forked at step:7, not step:9"):
        begin_fork(tmp_path / "E1", log, name="E2", changes={"optimizer_args.lr": 0.1}, at="step:9")
    with pytest.raises(RunMismatchError, match=r"forks .*E1, not .*other"):
        begin_fork(tmp_path / "other", log, name="E2", changes={"optimizer_args.lr": 0.1}, at="step:7")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("all of it")
    with pytest.raises(UsageError, match=r"is not a run folder: it holds thesis\.tex"):
        begin_fork(tmp_path / "E1", log, name="foreign", at="step:7")


def test_a_stream_that_was_made_anew_is_refused(log, tmp_path):
    train(config(tmp_path), log)
    other = MemoryLog()
    publish(other, make_manifest("toy", samples=30, lanes=3, passes=2, seed=5))
    publish(other, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    with pytest.raises(FingerprintError):
        begin_fork(tmp_path / "E1", other, name="E2", at="step:7")


def test_the_newest_few_checkpoints_are_kept_and_how_many_does_not_change_a_run(log, tmp_path):
    few = train(config(tmp_path, name="few", keep_checkpoints=3), log)
    many = train(config(tmp_path, name="many"), log)
    assert [file.step for file in list_checkpoints(few.folder / "checkpoints")] == [15, 14, 13]
    assert len(list_checkpoints(many.folder / "checkpoints")) == 15
    assert head_bytes(few.folder) == head_bytes(many.folder)
    assert train(config(tmp_path, name="few", keep_checkpoints=1), log).already_finished
    assert load_newest(few.folder / "checkpoints") is not None

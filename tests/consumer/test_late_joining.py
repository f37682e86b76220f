"""Experiments on a stream that is still growing: they follow it, or read passes again, and can always be repeated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from featurestream.errors import GoneError, RunMismatchError, UsageError
from featurestream.manifest import Manifest
from featurestream.memory import MemoryLog
from featurestream.stream import FeatureStream
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.experiment import Experiment, Result
from featurestream_consumer.run import train
from featurestream_consumer.sweep import Outcome, plan_sweep, run_sweep
from featurestream_consumer.sweep_file import SweepFile
from featurestream_consumer.trainer import Trainer
from tests.support import append, create, make_manifest

PASS_BATCHES = 3  # of 4, 4 and 2 rows: with batches of 5 rows, an epoch is 2 steps
STEPS = 2


class Killed(BaseException):
    """What no handler catches."""


class Live:
    """A stream without end, of which a few batches are there already."""

    def __init__(self, batches: int) -> None:
        self.log = MemoryLog()
        self.manifest: Manifest = make_manifest("live", samples=10, batch_samples=4, passes=None, taps=("layer3",))
        create(self.log, self.manifest)
        self.batches = 0
        self.grow_to(batches)

    def grow_to(self, batches: int) -> None:
        """Publish what is missing before batch ``batches``."""
        append(self.log, self.manifest, range(self.batches, batches))
        self.batches = max(batches, self.batches)

    @contextmanager
    def at_step(self, happens: dict[int, Callable[[], None]]) -> Iterator[None]:
        """Let something happen before a step of the experiments, counted from 1 over all of them."""
        step, count = Trainer.step, 0

        def wrapped(trainer: Trainer, *args: Any, **more: Any) -> float:
            nonlocal count
            count += 1
            happens.get(count, lambda: None)()
            return step(trainer, *args, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "step", wrapped)
            yield


def config(runs: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "name": "E1", "stream": "live", "taps": "layer3", "head_args": {"hidden": 8, "dropout": 0.25},
        "batch_size": 5, "epochs": 5, "runs": runs, "device": "cpu", "reporters": ("jsonl",),
    }  # fmt: skip
    return TrainConfig(**(settings | changes))


def die() -> None:
    raise Killed


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def head_bytes(folder: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(folder / "head.safetensors").items()}


def left(result: Result) -> dict[str, Any]:
    """What a run leaves behind, without the times at which it did."""
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "head": head_bytes(result.folder),
        "rows": [{key: value for key, value in row.items() if key != "time"} for row in rows],
        "passes": (result.passes, result.rereads, record_of(result.folder).get("epoch_passes")),
    }


# ---- waiting ------------------------------------------------------------------------------------------------------


def test_an_endless_stream_is_followed_for_the_epochs_that_were_asked_for(tmp_path):
    """Half of it is there, the rest comes batch by batch while training goes on; a schedule knows its length."""
    settings = {"scheduler": "CosineAnnealingLR"}
    whole = train(config(tmp_path / "whole", **settings), Live(5 * PASS_BATCHES).log)
    live = Live(7)
    grow = {step: lambda to=step + 9: live.grow_to(to) for step in range(1, 9)}
    with live.at_step(grow):
        followed = train(config(tmp_path / "live", **settings), live.log)
    assert left(followed) == left(whole)
    assert (followed.passes, followed.rereads, followed.steps) == (5, 0, 10)
    record = record_of(followed.folder)
    assert (record["passes"], record["rereads"], record["stop"]) == (5, 0, None)


def test_a_late_joiner_reads_from_the_start_it_names_and_then_follows(tmp_path):
    live = Live(2 * PASS_BATCHES + 1)
    with live.at_step({2: lambda: live.grow_to(9)}):
        late = train(config(tmp_path, start="pass:1", epochs=2), live.log)
    assert record_of(late.folder)["end"] == {"batch": 9, "row": 0}
    assert (late.passes, late.steps) == (2, 4)


# ---- reading again ------------------------------------------------------------------------------------------------


def test_who_rereads_never_waits_for_a_pass_and_counts_what_it_read_again(tmp_path):
    live = Live(PASS_BATCHES)
    with live.at_step({2 * STEPS: lambda: live.grow_to(2 * PASS_BATCHES + 1)}):
        said: list[str] = []
        result = train(config(tmp_path, when_behind="reread"), live.log, say=said.append)
    assert record_of(result.folder)["epoch_passes"] == [0, 0, 1, 1, 0, 1], "and what a sixth epoch would read"
    assert (result.passes, result.rereads, result.steps) == (2, 3, 10)
    record = record_of(result.folder)
    assert (record["passes"], record["rereads"]) == (2, 3)
    assert [line for line in said if "again" in line] == [
        "epoch 1 reads pass 0 again: the next one is not there yet",
        "epoch 3 reads pass 1 again: the next one is not there yet",
    ]


def test_a_stream_that_is_complete_is_read_alike_by_who_waits_and_who_rereads(tmp_path):
    log = MemoryLog()
    manifest = make_manifest("live", samples=10, batch_samples=4, passes=2, taps=("layer3",))
    create(log, manifest)
    append(log, manifest, range(6))
    waited = train(config(tmp_path / "wait"), log)
    reread = train(config(tmp_path / "reread", when_behind="reread"), log)
    assert head_bytes(waited.folder) == head_bytes(reread.folder)
    assert (waited.passes, waited.rereads) == (reread.passes, reread.rereads) == (2, 3)
    again = train(config(tmp_path / "wait"), log)
    assert (again.already_finished, again.passes, again.rereads) == (True, 2, 3)


def test_a_pass_that_retention_has_taken_is_not_read_again(tmp_path):
    live = Live(2 * PASS_BATCHES)

    def forget() -> None:
        for lane in range(2):
            live.log.delete_before("live.layer3", lane, 1)  # batches 0 and 1

    with live.at_step({2 * STEPS: forget}):
        result = train(config(tmp_path, when_behind="reread", epochs=4), live.log)
    assert record_of(result.folder)["epoch_passes"][:4] == [0, 1, 1, 1]


def test_a_resumed_run_says_what_is_gone_rather_than_read_something_else(tmp_path):
    live = Live(PASS_BATCHES)
    settings = config(tmp_path, when_behind="reread", epochs=3)
    with live.at_step({STEPS + 2: die}), pytest.raises(Killed):
        train(settings, live.log)
    live.grow_to(3 * PASS_BATCHES)
    for lane in range(2):
        live.log.delete_before("live.layer3", lane, 2)
    with pytest.raises(GoneError, match="the batches before 4"):
        train(settings, live.log)


# ---- exact again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_at", [1, 3, 4, 5, 8, 9])
def test_killed_anywhere_it_reads_what_it_would_have_read_although_the_stream_has_grown(tmp_path, dies_at):
    """The undisturbed run sees the stream grow in its second epoch; the killed one finds it grown, and grown again."""
    seconds = 1e-9 if dies_at % 2 else 1e9  # a checkpoint at each step, or only at the ends of epochs
    settings = {"when_behind": "reread", "checkpoint_seconds": seconds, "epochs": 5}
    undisturbed = Live(PASS_BATCHES)
    with undisturbed.at_step({2 * STEPS: lambda: undisturbed.grow_to(2 * PASS_BATCHES)}):
        whole = train(config(tmp_path / "whole", **settings), undisturbed.log)
    assert record_of(whole.folder)["epoch_passes"] == [0, 0, 1, 1, 0, 1]

    live = Live(PASS_BATCHES)
    grow = {2 * STEPS: lambda: live.grow_to(2 * PASS_BATCHES)}
    with live.at_step(grow | {dies_at: die}), pytest.raises(Killed):
        train(config(tmp_path / "cut", **settings), live.log)
    known = record_of(tmp_path / "cut" / "E1")["epoch_passes"]
    live.grow_to(2 * PASS_BATCHES)
    with live.at_step({2: die}), pytest.raises(Killed):
        train(config(tmp_path / "cut", **settings), live.log)
    resumed = train(config(tmp_path / "cut", **settings), live.log)
    found = record_of(resumed.folder)["epoch_passes"]
    assert found[: len(known)] == known
    if dies_at > STEPS:  # from the second epoch on both have seen the same
        assert left(resumed) == left(whole)


def test_what_an_epoch_reads_is_recorded_before_its_checkpoint_and_holds_when_the_stream_grows(tmp_path, monkeypatch):
    """Killed between the record and the checkpoint of an epoch's end."""
    settings = {"when_behind": "reread", "epochs": 3}
    whole = train(config(tmp_path / "whole", **settings), Live(PASS_BATCHES).log)
    live = Live(PASS_BATCHES)
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "save", lambda _: die())
        with pytest.raises(Killed):
            train(config(tmp_path / "cut", **settings), live.log)
    assert record_of(tmp_path / "cut" / "E1")["epoch_passes"] == [0, 0]
    live.grow_to(9)
    with live.at_step({2 * STEPS + 1: die}), pytest.raises(Killed):
        train(config(tmp_path / "cut", **settings), live.log)
    assert record_of(tmp_path / "cut" / "E1")["epoch_passes"] == [0, 0, 1], "the third epoch was still open"
    assert record_of(whole.folder)["epoch_passes"] == [0, 0, 0, 0]


def test_a_record_without_checkpoints_repeats_the_run_on_a_stream_that_has_grown(tmp_path):
    live = Live(PASS_BATCHES)
    with live.at_step({3 * STEPS: lambda: live.grow_to(2 * PASS_BATCHES)}):
        first = train(config(tmp_path / "first", when_behind="reread"), live.log)
    live.grow_to(9 * PASS_BATCHES)
    (tmp_path / "again" / "E1").mkdir(parents=True)
    record = record_of(first.folder) | {"state": "stopped"}
    (tmp_path / "again" / "E1" / "run.json").write_text(json.dumps(record))
    again = train(config(tmp_path / "again", when_behind="reread"), live.log)
    assert left(again) == left(first)


def test_another_choice_under_the_same_name_is_refused(tmp_path):
    live = Live(2 * PASS_BATCHES)
    train(config(tmp_path, epochs=2), live.log)
    with pytest.raises(RunMismatchError, match="when_behind: 'wait' -> 'reread'"):
        train(config(tmp_path, epochs=2, when_behind="reread"), live.log)
    with pytest.raises(UsageError, match="input should be 'wait' or 'reread', got 'skip'"):
        config(tmp_path, when_behind="skip")


def test_a_schedule_whose_length_depends_on_what_is_read_again_is_refused_before_anything_is_read(tmp_path):
    live = Live(2 * PASS_BATCHES)
    wanted = config(tmp_path, when_behind="reread", start="batch:1", scheduler="CosineAnnealingLR")
    with pytest.raises(UsageError, match="T_max"):
        train(wanted, live.log)
    assert not list(tmp_path.iterdir())


# ---- a sweep ------------------------------------------------------------------------------------------------------


def experiments(runs: Path, **changes: Any) -> list[TrainConfig]:
    content: dict[str, Any] = {
        "stream": "live", "epochs": 4, "when_behind": "reread",
        "base": {"tap": "layer3", "batch_size": 5, "device": "cpu", "reporters": "jsonl", "head_args": {"hidden": 8}},
        "grid": {"seed": [0, 1]}, "runs": [{"name": "short", "epochs": 2, "batch_size": 3}],
    }  # fmt: skip
    return SweepFile(**(content | changes)).experiments(runs, name="abl")


def results(outcomes: list[Outcome]) -> list[Result]:
    assert all(outcome.result is not None for outcome in outcomes)
    return [outcome.result for outcome in outcomes if outcome.result is not None]


def test_all_experiments_of_a_sweep_read_the_same_pass_and_read_it_once(tmp_path, monkeypatch):
    live = Live(PASS_BATCHES)
    opened: list[tuple[int, int | None]] = []
    begin = FeatureStream.__init__

    def counted(self: FeatureStream, *args: Any, **settings: Any) -> None:
        begin(self, *args, **settings)
        opened.append((self.start.batch, self.stop))

    plan = plan_sweep(experiments(tmp_path), live.log)
    monkeypatch.setattr(FeatureStream, "__init__", counted)
    done = results(run_sweep(plan, live.log))
    assert opened == [(0, 3)] * 4
    assert [record_of(result.folder)["epoch_passes"] for result in done] == [[0] * 5, [0] * 5, [0] * 3]
    assert [(result.passes, result.rereads) for result in done] == [(1, 3), (1, 3), (1, 1)]


def test_a_sweep_killed_while_it_recorded_what_comes_next_goes_on_as_if_it_had_recorded_it_all(tmp_path, monkeypatch):
    whole = results(run_sweep(plan_sweep(experiments(tmp_path / "whole"), Live(PASS_BATCHES).log), Live(3).log))
    live = Live(PASS_BATCHES)
    go_on_with, calls = Experiment.go_on_with, 0

    def dying(self: Experiment, plan: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        go_on_with(self, plan)

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "go_on_with", dying)
        with pytest.raises(Killed):
            run_sweep(plan_sweep(experiments(tmp_path / "cut"), live.log), live.log)
    passes = [record_of(tmp_path / "cut" / one.name)["epoch_passes"] for one in experiments(tmp_path)]
    assert passes == [[0, 0], [0], [0]]
    plan = plan_sweep(experiments(tmp_path / "cut"), live.log)
    live.grow_to(2 * PASS_BATCHES)  # too late for the second epoch, and taken back for the others
    assert plan.range.chosen == (0, 0)
    short = results(run_sweep(plan, live.log))
    assert [record_of(result.folder)["epoch_passes"][:2] for result in short] == [[0, 0]] * 3
    assert head_bytes(short[2].folder) == head_bytes(whole[2].folder), "two epochs, both of pass 0"


def test_experiments_that_went_different_ways_are_no_sweep(tmp_path):
    live = Live(PASS_BATCHES)
    plan = plan_sweep(experiments(tmp_path, epochs=2), live.log)
    run_sweep(plan, live.log)
    folder = tmp_path / "abl-seed1"
    record = record_of(folder) | {"epoch_passes": [0, 1, 1]}
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunMismatchError, match=r"passes 0, 0, 0\).*passes 0, 1, 1\).*not begun in one sweep"):
        plan_sweep(experiments(tmp_path, epochs=2), live.log)
    shutil.rmtree(folder)
    plan_sweep(experiments(tmp_path, epochs=2), live.log)


def test_whether_a_sweep_waits_cannot_differ_between_its_experiments(tmp_path):
    with pytest.raises(UsageError, match='"when_behind" in grid cannot differ'):
        experiments(tmp_path, grid={"when_behind": ["wait", "reread"]})

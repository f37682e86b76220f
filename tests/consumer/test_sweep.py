"""Many experiments on one reading: each ends with the bytes it has alone, whatever happens to it or to the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from featurestream.errors import (
    DivergedError,
    FingerprintError,
    RunMismatchError,
    StreamNotFoundError,
    UnknownNameError,
    UsageError,
)
from featurestream.memory import MemoryLog
from featurestream.names import reader_group
from featurestream.stream import FeatureStream
from featurestream_consumer.checkpoint import list_checkpoints
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.group import Group, Lone
from featurestream_consumer.run import train
from featurestream_consumer.sweep import plan_sweep, run_sweep
from featurestream_consumer.sweep_file import SweepFile
from tests.support import make_manifest, publish

CONTENT: dict[str, Any] = {
    "stream": "toy",
    "validate": "toy-validation",
    "epochs": 3,
    "base": {
        "tap": "layer3", "device": "cpu", "batch_size": 8, "normalize": "standardize", "reporters": ["jsonl"],
        "head_args": {"hidden": 64}, "report_steps": 3,
    },
    "grid": {"optimizer_args.lr": [0.01, 0.003], "seed": [0, 1]},
    "runs": [
        {"name": "dropout", "head_args": {"hidden": 64, "dropout": 0.25}},
        {"name": "smooth", "loss_args": {"label_smoothing": 0.1}, "normalize": "l2", "optimizer": "SGD"},
        {"name": "linear", "head": "linear", "augment": "mixup"},
        {"name": "batch", "batch_size": 5, "epochs": 2},
        {"name": "both", "taps": ["avgpool", "layer3"], "batch_size": 12, "optimizer": "LBFGS",
         "optimizer_args": {"max_iter": 2}},
        {"name": "plateau", "scheduler": "ReduceLROnPlateau", "scheduler_args": {"patience": 0}},
    ],
}  # fmt: skip


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    publish(log, make_manifest("toy", samples=30, lanes=3, passes=2))
    publish(log, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    return log


def experiments(folder: Path, /, **changes: Any) -> list[TrainConfig]:
    return SweepFile(**(CONTENT | changes)).experiments(folder, name="abl")


def files(folder: Path) -> dict[str, Any]:
    """What an experiment leaves behind, without the times at which it did."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = np.load(folder / "validation.npz") if (folder / "validation.npz").exists() else {}
    return {
        "head": {name: tensor.tobytes() for name, tensor in load_file(folder / "head.safetensors").items()},
        "rows": [{key: value for key, value in row.items() if key != "time"} for row in rows],
        "scores": {name: scores[name].tobytes() for name in scores},
        "record": {
            key: value
            for key, value in json.loads((folder / "run.json").read_text()).items()
            if key in ("state", "step", "epoch", "start", "stop", "end", "metrics", "main_metric", "passes", "name")
        },
    }


@pytest.fixture
def grouped(monkeypatch) -> None:
    """Group wherever it is exact, whether it pays at this size or not."""
    monkeypatch.setattr(Group, "speedup", lambda self, rows: 2.0)


def test_every_experiment_of_a_sweep_leaves_what_it_leaves_alone(log, tmp_path, grouped):
    alone = experiments(tmp_path / "alone")
    together = experiments(tmp_path / "together")
    said: list[str] = []
    outcomes = run_sweep(plan_sweep(together, log), log, say=said.append)
    assert [outcome.config.name for outcome in outcomes] == [config.name for config in together]
    for config, outcome in zip(alone, outcomes, strict=True):
        result = train(config, log)
        assert outcome.result is not None
        assert files(outcome.result.folder) == files(result.folder), config.name
        assert (outcome.result.metrics, outcome.result.steps) == (result.metrics, result.steps)
    assert any(line == "10 experiments: 7 heads together, 3 one by one" for line in said), "\n".join(said)


def test_all_of_them_share_one_reading_of_every_record(log, tmp_path, monkeypatch):
    opened: list[tuple[str, tuple[str, ...]]] = []
    begin = FeatureStream.__init__

    def counted(self, stream, taps=None, **settings):
        begin(self, stream, taps, **settings)
        opened.append((stream, self.taps))

    plan = plan_sweep(experiments(tmp_path), log)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureStream, "__init__", counted)
        run_sweep(plan, log)
    taps = ("layer3", "avgpool")
    assert opened == [
        ("toy", taps),  # means and deviations
        *[("toy", taps), ("toy-validation", taps)] * 3,
    ]


@pytest.mark.parametrize("dies_after", [1, 9, 24, 33, 44])
def test_a_sweep_that_died_anywhere_ends_with_the_bytes_of_an_undisturbed_one(
    log, tmp_path, monkeypatch, grouped, dies_after
):
    whole = run_sweep(plan_sweep(experiments(tmp_path / "whole"), log), log)

    class Killed(BaseException):
        """What no handler catches."""

    calls = 0

    def dying(kind):
        step = kind.step

        def wrapped(self, *args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > dies_after:
                raise Killed
            return step(self, *args, **kwargs)

        return wrapped

    base = CONTENT["base"] | {"checkpoint_seconds": 1e-9 if dies_after % 2 else 1e9}
    cut = experiments(tmp_path / "cut", base=base)
    plan = plan_sweep(cut, log)
    with monkeypatch.context() as patch:
        patch.setattr(Group, "step", dying(Group))
        patch.setattr(Lone, "step", dying(Lone))
        with pytest.raises(Killed):
            run_sweep(plan, log)
    again = run_sweep(plan_sweep(cut, log), log)
    for one, other in zip(whole, again, strict=True):
        assert one.result is not None
        assert other.result is not None
        assert files(one.result.folder) == files(other.result.folder), one.config.name


def test_a_kill_between_two_experiments_checkpoints_leaves_them_at_different_places_and_they_meet_again(
    log, tmp_path, monkeypatch, grouped
):
    from featurestream_consumer.experiment import Experiment

    whole = run_sweep(plan_sweep(experiments(tmp_path / "whole"), log), log)

    class Killed(BaseException):
        """What no handler catches."""

    save, saves = Experiment.save, 0

    def dying(self):
        nonlocal saves
        saves += 1
        if saves > 37:
            raise Killed
        return save(self)

    cut = experiments(tmp_path / "cut", base=CONTENT["base"] | {"checkpoint_seconds": 1e-9})
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "save", dying)
        with pytest.raises(Killed):
            run_sweep(plan_sweep(cut, log), log)
    said: list[str] = []
    again = run_sweep(plan_sweep(cut, log), log, say=said.append)
    assert any("10 go on where they were" in line for line in said), "\n".join(said)
    for one, other in zip(whole, again, strict=True):
        assert files(tmp_path / "whole" / one.config.name) == files(tmp_path / "cut" / other.config.name)


def test_a_damaged_newest_checkpoint_of_one_experiment_is_told_and_costs_only_that_one(
    log, tmp_path, monkeypatch, grouped
):
    whole = run_sweep(plan_sweep(experiments(tmp_path / "whole"), log), log)

    class Killed(BaseException):
        """What no handler catches."""

    step, calls = Group.step, 0

    def dying(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > 6:
            raise Killed
        return step(self, *args, **kwargs)

    cut = experiments(tmp_path / "cut", base=CONTENT["base"] | {"checkpoint_seconds": 1e-9, "keep_checkpoints": 3})
    with monkeypatch.context() as patch:
        patch.setattr(Group, "step", dying)
        with pytest.raises(Killed):
            run_sweep(plan_sweep(cut, log), log)
    checkpoints = list_checkpoints(tmp_path / "cut" / "dropout" / "checkpoints")
    assert len(checkpoints) == 3
    for file in checkpoints[:2]:
        file.path.write_bytes(file.path.read_bytes()[:-1])
    said: list[str] = []
    again = run_sweep(plan_sweep(cut, log), log, say=said.append)
    told = [line for line in said if "damaged" in line]
    named = [f"dropout: checkpoint {file.path.name}" for file in checkpoints[:2]]
    assert [line.split(" is damaged")[0] for line in told] == named
    assert f"dropout: continuing from the checkpoint of step {checkpoints[2].step}" in said
    for one, other in zip(whole, again, strict=True):
        assert files(tmp_path / "whole" / one.config.name) == files(tmp_path / "cut" / other.config.name)


def test_an_experiment_that_diverges_stops_alone_and_is_not_tried_again(log, tmp_path, grouped):
    wild = {"name": "wild", "optimizer": "SGD", "optimizer_args": {"lr": 1e38}}
    with_wild = experiments(tmp_path / "wild", runs=[wild, *CONTENT["runs"]])
    said: list[str] = []
    outcomes = run_sweep(plan_sweep(with_wild, log), log, say=said.append)
    calm = run_sweep(plan_sweep(experiments(tmp_path / "calm"), log), log)
    (lost,) = [outcome for outcome in outcomes if outcome.result is None]
    assert lost.config.name == "wild"
    assert lost.reason is not None
    assert "training has diverged" in lost.reason
    record = json.loads((tmp_path / "wild" / "wild" / "run.json").read_text())
    assert (record["state"], record["reason"], record["diverged_at_step"]) == ("stopped", lost.reason, 1)
    told = [line for line in said if "wild stopped" in line]
    assert len(told) == 1
    assert "the other 10 go on" in told[0]
    for outcome in calm:
        assert files(tmp_path / "wild" / outcome.config.name) == files(tmp_path / "calm" / outcome.config.name)
    again = run_sweep(plan_sweep(with_wild, log), log)
    assert [(one.config.name, one.reason) for one in again if one.result is None] == [("wild", lost.reason)]
    assert all(one.result.already_finished for one in again if one.result is not None)


def test_a_sweep_of_which_nothing_is_left_is_an_error(log, tmp_path):
    wild = {"optimizer": "SGD", "optimizer_args": {"lr": 1e38}}
    configs = experiments(tmp_path, base=CONTENT["base"] | wild, grid={"seed": [0, 1]}, runs=[])
    with pytest.raises(DivergedError, match="all 2 experiments have diverged") as caught:
        run_sweep(plan_sweep(configs, log), log)
    assert caught.value.exit_code == 3


def test_a_sweep_may_grow_and_what_is_finished_is_not_trained_again(log, tmp_path):
    small = experiments(tmp_path, runs=[])
    run_sweep(plan_sweep(small, log), log)
    before = {config.name: (tmp_path / config.name / "head.safetensors").stat().st_mtime_ns for config in small}
    outcomes = run_sweep(plan_sweep(experiments(tmp_path), log), log)
    assert [outcome.result.already_finished for outcome in outcomes if outcome.result] == [True] * 4 + [False] * 6
    assert before == {name: (tmp_path / name / "head.safetensors").stat().st_mtime_ns for name in before}


def test_an_experiment_of_a_sweep_can_be_gone_on_with_alone_and_back(log, tmp_path, monkeypatch, grouped):
    whole = run_sweep(plan_sweep(experiments(tmp_path / "whole"), log), log)

    class Killed(BaseException):
        """What no handler catches."""

    calls, step = 0, Group.step

    def dying(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Killed
        return step(self, *args, **kwargs)

    cut = experiments(tmp_path / "cut", base=CONTENT["base"] | {"checkpoint_seconds": 1e-9})
    with monkeypatch.context() as patch:
        patch.setattr(Group, "step", dying)
        with pytest.raises(Killed):
            run_sweep(plan_sweep(cut, log), log)
    train(cut[2], log, resume=True)
    run_sweep(plan_sweep(cut, log), log)
    for outcome in whole:
        assert files(tmp_path / "whole" / outcome.config.name) == files(tmp_path / "cut" / outcome.config.name)


def test_each_experiment_shows_its_position_under_a_group_of_its_own(log, tmp_path):
    run_sweep(plan_sweep(experiments(tmp_path), log), log)
    positions = log.committed_positions()
    assert set(positions[reader_group("toy", "linear")]) == {("toy.layer3", lane) for lane in range(3)}
    assert {topic for topic, _ in positions[reader_group("toy", "both")]} == {"toy.layer3", "toy.avgpool"}


def test_heads_are_planned_in_groups_of_one_shape(log, tmp_path):
    plan = plan_sweep(experiments(tmp_path), log)
    assert [len(members) for members in plan.groups.values()] == [7]
    assert [planned.config.name for planned in plan.experiments if planned.group is None] == ["linear", "batch", "both"]
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"base": {"tap": "layer33"}},
            UnknownNameError,
            'experiment "abl-lr0.01-seed0": unknown tap of stream toy "layer33"',
        ),
        ({"runs": [{"head": "liner"}]}, UnknownNameError, 'experiment "abl-head_liner": unknown head "liner"'),
        ({"runs": [{"augment": "mixap"}]}, UnknownNameError, 'unknown augmentation "mixap"; did you mean "mixup"?'),
        ({"runs": [{"augment": "mixup", "augment_args.alpha": 0}]}, UsageError, "alpha=0 is not possible"),
        ({"runs": [{"augment_args.alpha": 1}]}, UsageError, "there are arguments for an augmentation (alpha)"),
        ({"from": "batch:4", "until": "batch:4"}, UsageError, "nothing to read: the range starts at batch 4"),
        ({"validate": "more"}, UsageError, "class numbers up to 4"),
        ({"stream": "nothing"}, StreamNotFoundError, 'stream "nothing"'),
    ],
)
def test_what_cannot_be_trained_is_told_before_anything_is(log, tmp_path, changes, kind, message):
    publish(log, make_manifest("more", classes=5))
    with pytest.raises(kind) as caught:
        plan_sweep(experiments(tmp_path, **changes), log)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_changed_experiment_under_a_name_that_is_taken_is_refused(log, tmp_path):
    run_sweep(plan_sweep(experiments(tmp_path), log), log)
    changed = experiments(tmp_path, runs=[{"name": "linear", "head": "linear", "seed": 4}])
    with pytest.raises(RunMismatchError, match="seed: 0 -> 4"):
        plan_sweep(changed, log)


def test_a_stream_that_was_made_anew_is_refused(log, tmp_path):
    run_sweep(plan_sweep(experiments(tmp_path, runs=[]), log), log)
    other = MemoryLog()
    publish(other, make_manifest("toy", samples=30, lanes=3, passes=2, seed=5))
    publish(other, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    with pytest.raises(FingerprintError) as caught:
        plan_sweep(experiments(tmp_path, runs=[]), other)
    assert caught.value.exit_code == 4

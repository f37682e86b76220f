"""An experiment trains to its end, whatever happens on the way, and leaves a record that tells all."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from featurestream.errors import RunMismatchError, StreamNotFoundError, UnknownNameError, UsageError
from featurestream.memory import MemoryLog
from featurestream.names import reader_group
from featurestream_consumer.checkpoint import list_checkpoints
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from tests.support import append, create, make_manifest, publish


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    publish(log, make_manifest("toy", samples=30, lanes=3, passes=2))
    publish(log, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    return log


def config(tmp_path, **changes) -> TrainConfig:
    settings = {
        "name": "E1",
        "stream": "toy",
        "taps": "layer3",
        "head": "mlp",
        "head_args": {"hidden": 8, "dropout": 0.25},
        "normalize": "standardize",
        "optimizer_args": {"lr": 0.01},
        "epochs": 3,
        "batch_size": 7,
        "validate_stream": "toy-validation",
        "runs": tmp_path,
        "device": "cpu",
        "reporters": ("jsonl",),
    }
    return TrainConfig(**(settings | changes))


def head_bytes(folder) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(folder / "head.safetensors").items()}


def test_a_run_folder_holds_record_metrics_weights_and_scores(log, tmp_path):
    result = train(config(tmp_path), log)
    assert result.folder == tmp_path / "E1"
    assert result.steps == 15, "three epochs of 30 rows in batches of 7"
    assert result.passes == 2
    record = json.loads((result.folder / "run.json").read_text())
    assert record["state"] == "finished"
    assert (record["start"], record["stop"]) == ({"batch": 0, "row": 0}, 16)
    assert record["metrics"] == result.metrics
    assert set(result.metrics) >= {"top1", "loss"}
    scores = np.load(result.folder / "validation.npz")
    assert scores["index"].tolist() == list(range(12))
    assert scores["label"].tolist() == [n % 3 for n in range(12)]
    assert scores["scores"].shape == (12, 3)
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [5, 10, 15]


def test_a_head_learns_what_the_features_tell(log, tmp_path):
    # feature k of sample i is 10 i + k and its label is i mod 3: nearest neighbours differ, so use a regression
    result = train(
        config(tmp_path, head="linear", head_args={}, loss="mse", validate_stream=None, epochs=1, batch_size=30), log
    )
    assert result.metrics["loss"] > 0


@pytest.mark.parametrize("dies_after", range(1, 15, 2))
def test_a_run_that_died_anywhere_ends_with_the_weights_of_an_undisturbed_one(log, tmp_path, monkeypatch, dies_after):
    whole = train(config(tmp_path / "whole", checkpoint_seconds=1e-9), log)

    class Killed(BaseException):
        """What no handler catches."""

    from featurestream_consumer.trainer import Trainer

    step = Trainer.step
    steps = 0

    def dying_step(self, *args, **kwargs):
        nonlocal steps
        steps += 1
        if steps > dies_after:
            raise Killed
        return step(self, *args, **kwargs)

    every_other = 1e-9 if dies_after % 4 == 1 else 1e9  # a checkpoint at each step, or only at the ends of epochs
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying_step)
        with pytest.raises(Killed):
            train(config(tmp_path / "cut", checkpoint_seconds=every_other), log)
    resumed = train(config(tmp_path / "cut"), log, resume=dies_after >= 5)
    assert head_bytes(resumed.folder) == head_bytes(whole.folder)
    assert resumed.metrics == whole.metrics
    assert resumed.steps == whole.steps
    one, other = (
        [
            {key: value for key, value in json.loads(line).items() if key != "time"}
            for line in (result.folder / "metrics.jsonl").read_text().splitlines()
        ]
        for result in (whole, resumed)
    )
    assert one == other, "no row of metrics is lost or doubled"


@pytest.mark.parametrize("damage", [b"", b"x" * 5000])
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before_and_is_told(
    log, tmp_path, monkeypatch, damage
):
    whole = train(config(tmp_path / "whole"), log)
    from featurestream_consumer.trainer import Trainer

    class Killed(BaseException):
        """What no handler catches."""

    step = Trainer.step

    def dying_step(self, *args, **kwargs):
        if self.step_count == 8:
            raise Killed
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying_step)
        with pytest.raises(Killed):
            train(config(tmp_path / "cut", checkpoint_seconds=1e-9), log)
    newest, before = list_checkpoints(tmp_path / "cut" / "E1" / "checkpoints")
    newest.path.write_bytes(damage)
    said: list[str] = []
    resumed = train(config(tmp_path / "cut"), log, say=said.append)
    assert said[0].startswith(f"checkpoint {newest.path.name} is damaged: its {len(damage)} bytes have the checksum")
    assert said[1:3] == [
        "continuing from the checkpoint of step 7",
        "going on at step 7, epoch 1, batch 11, row 2",
    ]
    assert before.step == 7
    assert head_bytes(resumed.folder) == head_bytes(whole.folder)
    assert resumed.metrics == whole.metrics


def test_a_finished_run_is_not_trained_again(log, tmp_path):
    first = train(config(tmp_path), log)
    before = (first.folder / "head.safetensors").stat().st_mtime_ns
    again = train(config(tmp_path), log)
    assert again.already_finished
    assert (again.metrics, again.steps) == (first.metrics, first.steps)
    assert (first.folder / "head.safetensors").stat().st_mtime_ns == before


def test_a_folder_of_another_configuration_is_refused_with_what_differs(log, tmp_path):
    train(config(tmp_path), log)
    with pytest.raises(RunMismatchError, match=r"optimizer_args\.lr: 0\.01 -> 0\.1") as error:
        train(config(tmp_path, optimizer_args={"lr": 0.1}), log)
    assert error.value.exit_code == 2


def test_resume_refuses_a_run_that_is_not_there(log, tmp_path):
    with pytest.raises(UsageError, match="no run in"):
        train(config(tmp_path), log, resume=True)


def test_an_experiment_shows_its_position_under_a_group_of_its_own(log, tmp_path):
    train(config(tmp_path), log)
    positions = log.committed_positions()[reader_group("toy", "E1")]
    assert set(positions) == {("toy.layer3", lane) for lane in range(3)}


def test_several_taps_are_laid_side_by_side(log, tmp_path):
    result = train(config(tmp_path, taps=("layer3", "avgpool"), head="linear", head_args={}), log)
    shapes = {name: tensor.shape for name, tensor in load_file(result.folder / "head.safetensors").items()}
    assert (3, 5) in shapes.values(), f"3 classes, 2 + 3 features: {shapes}"


def test_a_run_started_inside_a_pass_reads_it_from_there_each_time(log, tmp_path):
    result = train(config(tmp_path, start="batch:6", stop="batch:10", epochs=2, batch_size=4), log)
    record = json.loads((result.folder / "run.json").read_text())
    assert (record["start"]["batch"], record["stop"]) == (6, 10)
    assert result.steps == 4, "batches 6 and 7 (4 + 2 rows) of pass 0, then 8 and 9 (4 + 4 rows) of pass 1"


def test_unknown_names_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UnknownNameError, match='did you mean "linear"'):
        train(config(tmp_path, head="liner", head_args={}), MemoryLog())
    with pytest.raises(UnknownNameError, match='did you mean "AdamW"'):
        train(config(tmp_path, optimizer="AdamWW"), MemoryLog())
    with pytest.raises(StreamNotFoundError):
        train(config(tmp_path), MemoryLog())


def test_a_validation_stream_that_does_not_fit_is_refused(log, tmp_path):
    publish(log, make_manifest("more", classes=5))
    with pytest.raises(UsageError, match="class numbers up to 4"):
        train(config(tmp_path, validate_stream="more"), log)
    publish(log, make_manifest("wider", taps=("other", "layer3")))
    with pytest.raises(UsageError, match=r'tap "layer3" is layer3 \(2,\).*\(3,\)'):
        train(config(tmp_path, validate_stream="wider"), log)


def test_a_run_follows_a_stream_that_is_still_being_made(tmp_path):
    log = MemoryLog()
    manifest = make_manifest("live", samples=30, lanes=3, passes=1)
    create(log, manifest)
    append(log, manifest, range(3))
    said = []

    from featurestream_consumer.trainer import Trainer

    step = Trainer.step

    def step_and_produce(self, *args, **kwargs):
        if self.step_count == 0:
            append(log, manifest, range(3, 8))
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step_and_produce)
        result = train(
            config(tmp_path, stream="live", validate_stream=None, normalize="none", epochs=1), log, say=said.append
        )
    assert result.steps == 5


def test_the_first_ctrl_c_never_lands_inside_a_step_and_the_same_run_goes_on(log, tmp_path):
    from featurestream_consumer.trainer import Trainer

    whole = train(config(tmp_path, name="whole"), log)
    step, ended = Trainer.step, []

    def step_and_interrupt(self, *args, **kwargs):
        if self.step_count == 3:
            signal.raise_signal(signal.SIGINT)
        loss = step(self, *args, **kwargs)
        ended.append(self.step_count)
        return loss

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path), log)
    assert 4 in ended, "the step in which the signal came was made to its end"
    assert ended[-1] < whole.steps
    assert signal.getsignal(signal.SIGINT) is before
    assert json.loads((tmp_path / "E1" / "run.json").read_text())["reason"] == "interrupted"
    train(config(tmp_path), log)
    assert head_bytes(tmp_path / "E1") == head_bytes(tmp_path / "whole")


def test_ctrl_c_ends_a_run_that_waits_for_its_stream(tmp_path):
    log = MemoryLog()
    manifest = make_manifest("live", samples=30, lanes=3, passes=1)
    create(log, manifest)
    append(log, manifest, range(2))

    from featurestream_consumer.waiting import Waiting

    show = Waiting._show

    def show_and_interrupt(self, *args):
        show(self, *args)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Waiting, "_show", show_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path, stream="live", validate_stream=None, normalize="none", epochs=1), log)

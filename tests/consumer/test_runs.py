"""Run folders: made, resumed, refused, and held by one process at a time."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestream.errors import DataError, FingerprintError, OutsideError, RunMismatchError, UsageError
from featurestream.position import Position
from featurestream_consumer import files
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.runs import Run, open_run, read_record


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**({"name": "E1", "stream": "digits-train", "taps": "avgpool"} | values))


def finish(run: Run) -> None:
    run.finish(step=20, epoch=2, end=Position(9), metrics={"top1": 0.5}, main_metric="top1")


def test_a_new_run_leaves_its_record_at_once(tmp_path: Path) -> None:
    with open_run(tmp_path, config(), "f1", validation_fingerprint="v1") as run:
        record = read_record(tmp_path / "E1")
        assert not run.resumed
        assert not run.finished
    assert record["state"] == "running"
    assert (record["name"], record["fingerprint"], record["validation_fingerprint"]) == ("E1", "f1", "v1")
    assert TrainConfig(**record["config"]) == config()
    (session,) = record["sessions"]
    assert session["process"] == os.getpid()
    assert {"python", "torch", "numpy", "featurestream"} <= set(session["versions"])
    assert datetime.fromisoformat(record["started"]).tzinfo is not None


def test_an_unfinished_run_is_gone_on_with_and_a_finished_one_is_returned(tmp_path: Path) -> None:
    with open_run(tmp_path, config(), "f1") as run:
        run.update(start=Position(3, 1))
    with open_run(tmp_path, config(device="cpu"), "f1") as run:
        assert run.resumed
        assert run.record["start"] == {"batch": 3, "row": 1}
        assert len(run.record["sessions"]) == 2
        finish(run)
    with open_run(tmp_path, config(), "f1") as run:
        assert run.resumed
        assert run.finished
    record = read_record(tmp_path / "E1")
    assert record["state"] == "finished"
    assert record["metrics"] == {"top1": 0.5}
    assert record["end"] == {"batch": 9, "row": 0}
    assert len(record["sessions"]) == 2, "looking at a finished run is no session"


def test_a_run_that_ends_early_says_why(tmp_path: Path) -> None:
    for error, reason in (
        (KeyboardInterrupt(), "interrupted"),
        (UsageError("wrong", hint="do this"), "wrong; do this"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero"),
        (None, "ended before its end"),
    ):
        run = open_run(tmp_path, config(), "f1")
        run.close(error)
        run.close(error)
        record = read_record(tmp_path / "E1")
        assert (record["state"], record["reason"]) == ("stopped", reason)
    with open_run(tmp_path, config(), "f1") as run:
        assert run.record["state"] == "running"
        assert run.record["reason"] is None


def test_a_run_of_another_configuration_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    open_run(tmp_path, config(optimizer_args={"lr": 0.1}), "f1").close()
    before = (tmp_path / "E1" / "run.json").read_bytes()
    with pytest.raises(RunMismatchError) as caught:
        open_run(tmp_path, config(optimizer_args={"lr": 0.01}, epochs=3), "f1")
    assert str(caught.value) == (
        f"{tmp_path / 'E1'} holds a run of another configuration (optimizer_args.lr: 0.1 -> 0.01, epochs: 10 -> 3); "
        "train under another --name, give the run's own configuration to go on with it, or remove the folder"
    )
    assert caught.value.differences == {"optimizer_args.lr": (0.1, 0.01), "epochs": (10, 3)}
    assert caught.value.exit_code == 2
    assert (tmp_path / "E1" / "run.json").read_bytes() == before


def test_a_run_of_another_stream_under_the_same_name_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path, config(), "f1", validation_fingerprint="v1").close()
    with pytest.raises(FingerprintError, match="read a stream with fingerprint f1, which now is f2") as caught:
        open_run(tmp_path, config(), "f2", validation_fingerprint="v1")
    assert caught.value.exit_code == 4
    with pytest.raises(FingerprintError, match="read a validation stream with fingerprint v1, which now is v2"):
        open_run(tmp_path, config(), "f1", validation_fingerprint="v2")


def test_a_folder_that_is_somebody_elses_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "E1").mkdir()
    (tmp_path / "E1" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"exists and is not a run folder: it holds thesis\.tex and no run\.json"):
        open_run(tmp_path, config(), "f1")
    assert (tmp_path / "E1" / "thesis.tex").read_text() == "x"


def test_what_a_killed_beginning_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "E1").mkdir()
    (tmp_path / "E1" / "lock").write_text("process 1 on nowhere")
    (tmp_path / "E1" / f"{files.TEMPORARY_PREFIX}run.json").write_text("{")
    with open_run(tmp_path, config(), "f1") as run:
        assert not run.resumed


def test_a_run_that_must_exist_and_does_not_suggests_the_nearest(tmp_path: Path) -> None:
    open_run(tmp_path, config(name="layer2"), "f1").close()
    with pytest.raises(UsageError, match=r'there is no run in .*layer3 to go on with; did you mean "layer2"\?'):
        open_run(tmp_path, config(name="layer3"), "f1", must_exist=True)
    assert not (tmp_path / "layer3").exists()
    with pytest.raises(UsageError, match="none holds no runs"):
        open_run(tmp_path / "none", config(), "f1", must_exist=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "run.json cannot be read"),
        ("[]", "run.json has the format None; this version reads format 1"),
        ('{"format": 2}', "run.json has the format 2"),
        ('{"format": 1, "name": "E1"}', "run.json lacks config, fingerprint, sessions, state, validation_fingerprint"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "E1").mkdir()
    (tmp_path / "E1" / "run.json").write_text(content)
    with pytest.raises(DataError) as caught:
        open_run(tmp_path, config(), "f1")
    assert message in str(caught.value)


def test_a_configuration_that_this_version_does_not_know_is_named(tmp_path: Path) -> None:
    open_run(tmp_path, config(), "f1").close()
    path = tmp_path / "E1" / "run.json"
    record = json.loads(path.read_text())
    record["config"]["later"] = 1
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r'the configuration in .*run\.json cannot be read: unknown setting "later"'):
        open_run(tmp_path, config(), "f1")


HOLDER = """
import sys, pathlib
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.runs import open_run
run = open_run(pathlib.Path(sys.argv[1]), TrainConfig(name="E1", stream="digits-train", taps="avgpool"), "f1")
sys.stdout.write("held\\n"); sys.stdout.flush()
sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"E1 is in use by process {holder.pid} on .* since 20"):
            open_run(tmp_path, config(), "f1")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with open_run(tmp_path, config(), "f1") as run:
        assert run.resumed
        assert len(run.record["sessions"]) == 2


def test_two_holds_in_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with open_run(tmp_path, config(), "f1"), pytest.raises(UsageError, match="is in use by process"):
        open_run(tmp_path, config(), "f1")
    open_run(tmp_path, config(), "f1").close()


def test_a_refused_run_lets_the_folder_go(tmp_path: Path) -> None:
    open_run(tmp_path, config(), "f1").close()
    with pytest.raises(RunMismatchError):
        open_run(tmp_path, config(epochs=3), "f1")
    open_run(tmp_path, config(), "f1").close()


def test_validation_scores_are_plain_arrays(tmp_path: Path) -> None:
    with open_run(tmp_path, config(), "f1") as run:
        run.write_validation(np.array([5, 7]), np.array([0, 1]), np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32))
        with np.load(run.validation_path) as found:
            assert sorted(found) == ["index", "label", "scores"]
            assert found["index"].tolist() == [5, 7]
            assert found["scores"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_a_record_holds_json_whatever_it_was_given(tmp_path: Path) -> None:
    with open_run(tmp_path, config(), "f1") as run:
        run.update(
            a=np.float32(0.5), b=Path("x"), c=(1, 2), d=float("nan"), e={"p": Position(1)}, f=datetime(2026, 1, 2)
        )
    record = read_record(tmp_path / "E1")
    assert [record[key] for key in "abcdef"] == [
        0.5, "x", [1, 2], None, {"p": {"batch": 1, "row": 0}}, "2026-01-02T00:00:00.000",
    ]  # fmt: skip


def test_a_full_disk_keeps_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tmp_path, config(), "f1")
    before = (tmp_path / "E1" / "run.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OutsideError, match=r"cannot write .*run\.json: No space left on device"):
            run.update(step=3)
        run.close(UsageError("the first error"))  # keeps the first error, and lets the folder go
    assert (tmp_path / "E1" / "run.json").read_bytes() == before
    open_run(tmp_path, config(), "f1").close()


def test_a_runs_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutsideError, match=r"cannot write .*E1: .*; safe: nothing was begun"):
        open_run(tmp_path / "file", config(), "f1")

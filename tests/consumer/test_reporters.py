"""Where metrics go: rows in order, none twice, and what a resumed run finds."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from featurestream.errors import DataError, MissingExtraError, OutsideError, UnknownNameError
from featurestream_consumer.reporters import REPORTERS, Reporters, check_reporters, default_reporters
from featurestream_consumer.reporters.console import format_row
from featurestream_consumer.reporters.jsonl import JsonlReporter, read_rows


def row(step: int, kind: str = "train", **metrics: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, "epoch": 1, "batch": 3, "time": 0.5, **(metrics or {"loss": step / 10})}


def rows_in(folder: Path) -> list[tuple[str, int]]:
    return [(found["kind"], found["step"]) for found in read_rows(folder / "metrics.jsonl")]


@pytest.mark.parametrize("name", list(REPORTERS))
def test_every_reporter_takes_rows_and_is_closed_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    reporter = REPORTERS[name](tmp_path, None, lambda _: None)
    for step in (1, 2):
        reporter.report(row(step))
    reporter.report(row(2, "validation", top1=0.5, loss=1.5))
    reporter.close()
    reporter.close()


def test_a_console_line_has_shares_in_percent_and_other_numbers_with_four_digits() -> None:
    assert format_row(row(120, "validation", top1=0.93125, loss=0.231049, note="x", lost=None)) == (
        "step 120, epoch 1: validation top1 93.1 %, loss 0.231, note x, lost -"
    )


def test_jsonl_holds_the_rows_as_they_came(tmp_path: Path) -> None:
    reporter = JsonlReporter(tmp_path / "metrics.jsonl", resume_step=None)
    reporter.report(row(1, loss=0.25, top1=0.5))
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"kind": "train", "step": 1, "epoch": 1, "batch": 3, "time": 0.5, "loss": 0.25, "top1": 0.5}
    ], "visible before close"
    reporter.report(row(2, loss=float("inf")))
    reporter.close()
    assert read_rows(tmp_path / "metrics.jsonl")[1]["loss"] is None


def test_a_resumed_jsonl_goes_on_after_the_checkpoint_without_a_row_doubled(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = JsonlReporter(path, resume_step=None)
    for found in (row(10), row(20), row(20, "validation"), row(30), row(40)):
        first.report(found)
    first.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "st')  # killed while it wrote
    second = JsonlReporter(path, resume_step=20)
    assert rows_in(tmp_path) == [("train", 10), ("train", 20), ("validation", 20)]
    for found in (row(20, "validation"), row(30), row(40)):  # step 20's validation is made again
        second.report(found)
    second.close()
    assert rows_in(tmp_path) == [("train", 10), ("train", 20), ("validation", 20), ("train", 30), ("train", 40)]


def test_a_new_run_begins_a_new_jsonl(tmp_path: Path) -> None:
    for _ in range(2):
        reporter = JsonlReporter(tmp_path / "metrics.jsonl", resume_step=None)
        reporter.report(row(1))
        reporter.close()
    assert rows_in(tmp_path) == [("train", 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"kind": "train", "step": 1}\nnot json\n', "line 2 is not JSON"),
        ('{"step": "x", "kind": "train"}\n', "line 1 is not a row of metrics"),
        ("[1]\n", "line 1 is not a row of metrics"),
    ],
)
def test_a_damaged_jsonl_names_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "missing.jsonl")


def test_a_full_disk_under_jsonl_is_an_error_of_ours(tmp_path: Path) -> None:
    reporter = JsonlReporter(tmp_path / "metrics.jsonl", resume_step=None)

    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None: ...

    reporter._file.close()
    reporter._file = Full()  # type: ignore[assignment]
    with pytest.raises(OutsideError, match="No space left on device; safe: the run up to its last checkpoint"):
        reporter.report(row(1))


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_each_metric_once_a_step_also_after_a_resume(tmp_path: Path) -> None:
    first = REPORTERS["tensorboard"](tmp_path, None, lambda _: None)
    for step in (10, 20, 30):
        first.report(row(step))
    first.close()
    second = REPORTERS["tensorboard"](tmp_path, 20, lambda _: None)
    second.report(row(30, loss=4.0))
    second.report(row(30, "validation", top1=0.5))
    second.close()
    assert scalars(tmp_path, "loss/train") == [(10, 1.0), (20, 2.0), (30, 4.0)]
    assert scalars(tmp_path, "top1/validation") == [(30, 0.5)]


def test_tensorboard_that_is_not_installed_is_left_out_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_reporters() == ("console", "jsonl", "tensorboard")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    assert default_reporters() == ("console", "jsonl")
    with pytest.raises(MissingExtraError, match=r'pip install "featurestream\[tensorboard\]"'):
        REPORTERS["tensorboard"](tmp_path, None, lambda _: None)


def test_reporters_work_as_one_and_jsonl_is_always_among_them(tmp_path: Path) -> None:
    lines: list[str] = []
    with Reporters(("console",), tmp_path, resume_step=None, say=lines.append) as reporters:
        reporters.report(row(10))
    assert lines == ["step 10, epoch 1: train loss 1"]
    assert rows_in(tmp_path) == [("train", 10)]


def test_a_reporter_from_the_users_module_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_reporters_a.py").write_text(
        "class Counter:\n"
        "    def __init__(self, say): self.say, self.rows = say, 0\n"
        "    def report(self, row): self.rows += 1\n"
        "    def close(self): self.say(f'{self.rows} rows')\n"
        "def build(folder, resume_step, say): return Counter(say)\n"
    )
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    with Reporters(("my_reporters_a:build",), tmp_path, resume_step=None, say=lines.append) as reporters:
        reporters.report(row(1))
    assert lines == ["1 rows"]


def test_an_unknown_reporter_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown reporter "tensorbord"; did you mean "tensorboard"\?'):
        check_reporters(["tensorbord"])

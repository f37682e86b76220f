"""featurectl compare: runs side by side, from their folders alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image


def make_run(folder: Path, top1: float, *, tap: str = "layer3", fingerprint: str = "f" * 32, lr: float = 0.1) -> Path:
    """Write a finished run as its record and its metrics have it."""
    folder.mkdir(parents=True)
    record = {
        "format": 1,
        "name": folder.name,
        "state": "finished",
        "reason": None,
        "config": {
            "stream": "toy", "taps": [tap], "head": "mlp", "head_args": {"hidden": 8}, "optimizer": "Adam",
            "optimizer_args": {"lr": lr}, "start": "earliest", "seed": 0, "validate_stream": "toy-validation",
        },
        "fingerprint": "a" * 32,
        "validation_fingerprint": fingerprint,
        "sessions": [],
        "start": {"batch": 0, "row": 0},
        "step": 20,
        "epoch": 2,
        "metrics": {"top1": top1, "loss": 1 - top1},
        "main_metric": "top1",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    rows = [
        {"kind": "validation", "step": step, "epoch": step // 10, "batch": step, "time": 0.0, "top1": value,
         "loss": 1 - value}
        for step, value in ((10, top1 / 2), (20, top1))
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "good", 0.75, tap="avgpool")
    make_run(tmp_path / "runs" / "best", 0.875)
    make_run(tmp_path / "runs" / "bad", 0.5)
    return tmp_path / "runs"


def test_the_best_run_comes_first_and_what_all_share_stands_above(cli, runs) -> None:
    outcome = cli("compare", runs)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("the same in all: state finished, stream toy, head mlp(hidden=8), optimizer Adam")
    assert [line.split() for line in lines[1:]] == [
        ["run", "tap", "top1", "loss"],
        ["best", "layer3", "0.8750", "0.1250"],
        ["good", "avgpool", "0.7500", "0.2500"],
        ["bad", "layer3", "0.5000", "0.5000"],
    ]


def test_another_metric_sorts_by_its_own_direction(cli, runs) -> None:
    rows = cli("compare", runs, "--metric", "loss", "--json").rows
    assert [row["run"] for row in rows] == ["best", "good", "bad"]
    assert rows[0] | {} == {
        "run": "best", "state": "finished", "stream": "toy", "tap": "layer3", "head": "mlp(hidden=8)",
        "optimizer": "Adam", "epochs": 2, "passes": None, "rereads": None, "steps": 20, "start": "batch 0", "seed": 0,
            "validation": "toy-validation",
        "samples": "A", "loss": 0.125, "top1": 0.875,
    }  # fmt: skip


def test_single_runs_can_be_named(cli, runs) -> None:
    rows = cli("compare", runs / "bad", runs / "good", "--json").rows
    assert [row["run"] for row in rows] == ["good", "bad"]


def test_one_run_alone_is_shown_whole(cli, runs) -> None:
    lines = cli("compare", runs / "bad").out.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[:3] == ["run", "state", "stream"]


def test_runs_on_other_samples_are_pointed_out(cli, runs) -> None:
    make_run(runs / "other", 0.9, fingerprint="e" * 32)
    outcome = cli("compare", runs)
    assert outcome.code == 0
    assert outcome.err == "different letters under samples: validated on different samples, which cannot be compared\n"


def test_the_table_and_the_plot_are_written(cli, runs, tmp_path) -> None:
    outcome = cli("compare", runs, "--csv", tmp_path / "t.csv", "--plot", tmp_path / "p.png")
    assert outcome.code == 0
    assert outcome.err == f"wrote {tmp_path / 't.csv'}\nwrote {tmp_path / 'p.png'}\n"
    with (tmp_path / "t.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["best", "good", "bad"]
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG"
        assert image.width > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/bst"], 'there is no folder runs/bst; did you mean "runs/best"?; runs there: bad, best, good'),
        (["runs", "--metric", "top3"], 'none of the runs has the metric "top3"; they have: top1, loss'),
        (["runs", "--csv", "t.txt"], '"t.txt" does not say what kind of table it is; expected .csv, .md, .json'),
    ],
)
def test_a_mistake_is_told_in_one_line(cli, runs, monkeypatch, words, message) -> None:
    monkeypatch.chdir(runs.parent)
    outcome = cli("compare", *words)
    assert outcome.code == 2
    assert outcome.err == f"error: {message}\n"


def test_a_damaged_record_is_not_the_callers_mistake(cli, runs) -> None:
    (runs / "bad" / "run.json").write_text("{")
    outcome = cli("compare", runs)
    assert outcome.code == 3
    assert "run.json cannot be read" in outcome.err

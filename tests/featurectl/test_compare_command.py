"""featurectl compare: runs side by side, from their folders alone."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from PIL import Image

from featurestream_consumer.paired import paired_difference
from tests.comparing import lineage, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs", "good", [1, 1, 1, 1, 0, 0, 1, 1], taps=["avgpool"])
    write_run(tmp_path / "runs", "best", [1, 1, 1, 1, 1, 1, 1, 0])
    write_run(tmp_path / "runs", "bad", [1, 1, 1, 1, 0, 0, 0, 0])
    return tmp_path / "runs"


def test_the_best_run_comes_first_and_what_all_share_stands_above(cli, runs) -> None:
    outcome = cli("compare", runs)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("the same in all: state finished, stream toy, head mlp(hidden=8), optimizer Adam")
    # A sample is 0.125. Two samples are right in best alone and one in good alone; three in best alone and none in bad.
    best, good, bad = [1] * 7 + [0], [1, 1, 1, 1, 0, 0, 1, 1], [1] * 4 + [0] * 4
    of_good, of_bad = (paired_difference(other, best) for other in (good, bad))
    assert [line.split() for line in lines[1:-1]] == [
        ["run", "tap", "top1", "loss", "difference", "95", "%", "interval", "p", "Holm"],
        ["best", "layer3", "0.8750", "0.1250", "-", "-", "-", "-"],
        [
            "good",
            "avgpool",
            "0.7500",
            "0.2500",
            "-0.1250",
            f"[{of_good.low:+.4f},",
            f"{of_good.high:+.4f}]",
            "1.0000",
            "1.0000",
        ],
        [
            "bad",
            "layer3",
            "0.5000",
            "0.5000",
            "-0.3750",
            f"[{of_bad.low:+.4f},",
            f"{of_bad.high:+.4f}]",
            "0.2500",
            "0.7500",
        ],
    ]
    assert lines[-1] == (
        "difference: top1 less that of best, on the same 8 samples, with its interval (paired bootstrap, BCa); p: "
        "McNemar's exact test; Holm: p corrected for all pairs of these runs"
    )


def test_another_metric_sorts_by_its_own_direction(cli, runs) -> None:
    rows = cli("compare", runs, "--metric", "loss", "--json").rows
    assert [row["run"] for row in rows] == ["best", "good", "bad"]
    assert rows[0] | {} == {
        "run": "best", "state": "finished", "stream": "toy", "tap": "layer3", "head": "mlp(hidden=8)",
        "optimizer": "Adam", "epochs": 2, "passes": None, "rereads": None, "steps": 20, "start": "batch 0", "seed": 0,
        "validation": "toy-validation",
        "samples": "A", "loss": 0.125, "top1": 0.875, "against": None, "measure": None, "paired_samples": None,
        "difference": None, "low": None, "high": None, "test": None, "p": None, "p_holm": None, "not_compared": None,
        "forked_from": None,
    }  # fmt: skip


def test_single_runs_can_be_named(cli, runs) -> None:
    rows = cli("compare", runs / "bad", runs / "good", "--json").rows
    assert [row["run"] for row in rows] == ["good", "bad"]


def test_one_run_alone_is_shown_whole(cli, runs) -> None:
    lines = cli("compare", runs / "bad").out.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[:3] == ["run", "state", "stream"]


def test_runs_on_other_samples_are_pointed_out(cli, runs) -> None:
    write_run(runs, "other", [1, 1, 0], fingerprint="e" * 32)
    outcome = cli("compare", runs)
    assert outcome.code == 0
    assert outcome.err == "different letters under samples: validated on different samples, which cannot be compared\n"


def test_the_table_and_the_plot_are_written(cli, runs, tmp_path) -> None:
    outcome = cli("compare", runs, "-o", tmp_path / "t.csv", "--plot", tmp_path / "p.png")
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
        (["runs", "-o", "t.txt"], '"t.txt" does not say what kind of table it is; expected .csv, .md, .json'),
        (["runs", "-o", "no/t.csv"], 'there is no folder "no" to write t.csv into; make it first'),
        (["runs", "--plot", "p.jpg"], '"p.jpg" does not say what kind of picture it is; expected .png'),
        (
            ["runs", "--grid", "g.png"],
            "the 3 validated runs differ in tap alone: a grid needs two settings that differ; --plot draws runs side "
            "by side",
        ),
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


def test_damaged_scores_are_not_the_callers_mistake(cli, runs) -> None:
    (runs / "bad" / "validation.npz").write_bytes(b"PK")
    outcome = cli("compare", runs)
    assert outcome.code == 3
    assert "validation.npz cannot be read" in outcome.err


def test_all_pairs_have_a_row_each(cli, runs) -> None:
    rows = cli("compare", runs, "--pairs", "--json").rows
    assert [(row["a"], row["b"]) for row in rows] == [("best", "good"), ("best", "bad"), ("good", "bad")]
    assert [row["p_holm"] for row in rows] == [1.0, 0.75, 1.0]
    lines = cli("compare", runs, "--pairs").out.splitlines()
    assert lines[0].split() == [
        "a", "b", "of", "a", "of", "b", "difference", "95", "%", "interval", "only", "a", "only", "b", "p", "Holm",
    ]  # fmt: skip
    assert lines[2].split()[:4] == ["best", "bad", "0.8750", "0.5000"]


def test_one_run_alone_makes_no_pair(cli, runs) -> None:
    outcome = cli("compare", runs / "bad", "--pairs")
    assert (outcome.code, outcome.out) == (0, "one run alone makes no pair\n")
    assert cli("compare", runs / "bad", "--pairs", "--json").rows == []


def test_runs_that_cannot_be_compared_are_named_with_the_reason(cli, runs) -> None:
    write_run(runs, "half", [1, 1], finished=False)
    assert cli("compare", runs).out.splitlines()[-1] == "not compared: half (it has not finished)"


def test_forks_are_drawn_under_their_parents(cli, runs) -> None:
    write_run(runs, "fork", [1] * 8, lineage=lineage("good", 120, optimizer_args__lr=(0.1, 0.01)))
    assert cli("compare", runs).out.splitlines()[-2:] == [
        "good", "└── fork  forked at batch 120 (step 120): optimizer_args.lr 0.1 -> 0.01",
    ]  # fmt: skip
    rows = cli("compare", runs, "--json").rows
    assert rows[0]["forked_from"] == "good at batch 120: optimizer_args.lr 0.1 -> 0.01"


def test_markdown_says_what_the_terminal_says(cli, runs, tmp_path) -> None:
    outcome = cli("compare", runs, "--output", tmp_path / "t.md")
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[0] == f"{outcome.out.splitlines()[0].capitalize()[:4]}{outcome.out.splitlines()[0][4:]}."
    assert lines[2].split("|")[1].strip() == "run"
    assert lines[-1] == f"- {outcome.out.splitlines()[-1]}"


def test_a_grid_is_drawn(cli, runs, tmp_path) -> None:
    write_run(runs, "more", [1] * 8, seed=1)
    assert cli("compare", runs, "--grid", tmp_path / "g.png").err == f"wrote {tmp_path / 'g.png'}\n"
    with Image.open(tmp_path / "g.png") as image:
        assert image.format == "PNG"


def test_a_narrow_terminal_shows_what_fits_and_names_what_it_leaves_out(cli, runs, monkeypatch) -> None:
    write_run(runs, "more", [1] * 8, seed=1, head="linear", head_args={})
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    monkeypatch.setenv("COLUMNS", "80")
    outcome = cli("compare", runs)
    assert outcome.err == "the terminal is too narrow for seed, head: --json and --output have them\n"
    first = outcome.out.splitlines()[1]
    assert "tap" in first
    assert "interval" in first

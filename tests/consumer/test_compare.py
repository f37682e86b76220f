"""Runs side by side: sorted, marked, written, and what is told about folders that hold none."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from featurestream.errors import DataError, UsageError
from featurestream.position import Position
from featurestream_consumer.compare import compare_table, load_run, load_runs, records, to_markdown, write_table
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.plots import plot_comparison
from featurestream_consumer.reporters.jsonl import JsonlReporter
from featurestream_consumer.runs import open_run


def make_run(
    folder: Path, name: str, top1: float | None, *, validation: str | None = "v1", finished: bool = True, **values: Any
) -> Path:
    settings = {"name": name, "stream": "digits-train", "taps": "avgpool", "head": "linear", "validate": "digits-val"}
    with open_run(folder, TrainConfig(**(settings | values)), "f1", validation_fingerprint=validation) as run:
        run.update(start=Position(4))
        reporter = JsonlReporter(run.metrics_path, resume_step=None)
        for step in (10, 20):
            reporter.report({"kind": "train", "step": step, "epoch": step // 10, "batch": 1, "time": 0.0, "loss": 3.0})
            if top1 is not None:
                metrics = {"top1": top1 * step / 20, "loss": 1.5 - top1}
                reporter.report(
                    {"kind": "validation", "step": step, "epoch": step // 10, "batch": 1, "time": 0.0, **metrics}
                )
        reporter.close()
        if finished:
            metrics = {} if top1 is None else {"top1": top1, "loss": 1.5 - top1}
            run.finish(
                step=20,
                epoch=2,
                end=Position(8),
                metrics=metrics,
                main_metric="top1" if metrics else None,
                passes=2,
                rereads=0,
            )
        return run.folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path, "low", 0.5, head="mlp", head_args={"hidden": [64, 32]})
    make_run(tmp_path, "best", 0.9, taps=["layer2", "layer3"])
    make_run(tmp_path, "other", 0.7, validation="v2", validate="digits-other")
    make_run(tmp_path, "blind", None, validation=None, validate=None)
    make_run(tmp_path, "half", 0.6, finished=False)
    return tmp_path


def test_runs_are_sorted_by_the_main_metric_and_those_without_it_come_last(runs: Path) -> None:
    table = compare_table(load_runs([runs]))
    assert list(table["run"]) == ["best", "other", "half", "low", "blind"]
    assert list(table.columns) == [
        "run", "state", "stream", "tap", "head", "optimizer", "epochs", "passes", "rereads", "steps", "start", "seed",
        "validation", "samples", "top1", "loss",
    ]  # fmt: skip
    best, _, half, low, blind = records(table)
    assert best == {
        "run": "best", "state": "finished", "stream": "digits-train", "tap": "layer2+layer3", "head": "linear",
        "optimizer": "Adam", "epochs": 2, "passes": 2, "rereads": 0, "steps": 20, "start": "batch 4", "seed": 0,
        "validation": "digits-val", "samples": "A", "top1": 0.9, "loss": pytest.approx(0.6),
    }  # fmt: skip
    assert low["head"] == "mlp(hidden=[64, 32])"
    assert (half["state"], half["steps"], half["epochs"], half["top1"]) == ("stopped", 20, 2, 0.6)
    assert (blind["top1"], blind["samples"]) == (None, "-")


def test_runs_that_were_validated_with_labels_of_their_own_carry_letters_of_their_own(tmp_path: Path) -> None:
    for name, sha256, unlabelled in (
        ("a", None, "error"),
        ("b", "x", "error"),
        ("c", "y", "error"),
        ("d", "y", "drop"),
    ):
        make_run(tmp_path, name, 0.5, validate_labels_sha256=sha256, unlabelled=unlabelled)
    assert list(compare_table(load_runs([tmp_path]))["samples"]) == ["A", "B", "C", "D"]


def test_runs_that_were_validated_on_other_samples_carry_another_letter(runs: Path) -> None:
    table = compare_table(load_runs([runs / "best", runs / "other", runs / "low"]))
    assert dict(zip(table["run"], table["samples"], strict=True)) == {"best": "A", "other": "B", "low": "A"}


def test_a_loss_sorts_upwards_and_an_unknown_metric_is_told(runs: Path) -> None:
    loaded = load_runs([runs])
    assert list(compare_table(loaded, metric="loss")["run"]) == ["best", "other", "half", "low", "blind"]
    with pytest.raises(UsageError, match='none of the runs has the metric "top3"; they have: top1, loss'):
        compare_table(loaded, metric="top3")


def test_the_same_run_named_twice_is_one(runs: Path) -> None:
    assert [run.name for run in load_runs([runs / "best", runs, runs / "best"])] == [
        "best", "blind", "half", "low", "other",
    ]  # fmt: skip


def test_a_table_is_written_as_csv_markdown_or_json(runs: Path, tmp_path: Path) -> None:
    table = compare_table(load_runs([runs / "best", runs / "blind"]))
    write_table(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        assert [row["top1"] for row in csv.DictReader(file)] == ["0.9", ""]
    write_table(table, tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == records(table)
    write_table(table, tmp_path / "t.md")
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[0].startswith("| run   | state    | stream       | tap           | head   |")
    assert lines[1].startswith("| ----- | -------- |")
    assert lines[3].endswith("| -       | -    | -    |")
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(
        UsageError, match=r'"t\.xlsx" does not say what kind of table it is; expected \.csv, \.md, \.json'
    ):
        write_table(table, tmp_path / "t.xlsx")


def test_a_bar_in_a_name_does_not_break_markdown(runs: Path) -> None:
    table = compare_table(load_runs([runs / "best"]))
    table["run"] = "a|b"
    assert "| a\\|b |" in to_markdown(table)


def test_a_folder_without_a_run_is_told_with_the_nearest(runs: Path) -> None:
    with pytest.raises(
        UsageError, match=rf'there is no folder .*bets; did you mean "{runs / "best"}"\?; runs there: best,'
    ):
        load_runs([runs / "bets"])
    (runs / "photos").mkdir()
    with pytest.raises(
        UsageError, match=r"photos is not a run folder: it has no run\.json, and no folder in it has one"
    ):
        load_runs([runs / "photos"])
    with pytest.raises(UsageError, match="there is no run to compare"):
        load_runs([])


def test_a_damaged_run_is_told(runs: Path) -> None:
    (runs / "low" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1 is not a row of metrics"):
        load_run(runs / "low")
    (runs / "best" / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run\.json cannot be read"):
        load_runs([runs])


def test_the_plot_is_a_png_with_a_colour_a_run(runs: Path, tmp_path: Path) -> None:
    plot_comparison(load_runs([runs]), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert image.size[0] == 1650
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**24) or []}
    # The first four colours of matplotlib's cycle: four runs were validated.
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)} <= colours
    assert (148, 103, 189) not in colours


def test_runs_that_were_never_validated_cannot_be_plotted(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none of the runs was validated; train with --validate STREAM"):
        plot_comparison(load_runs([runs / "blind"]), tmp_path / "plot.png")
    with pytest.raises(UsageError, match='none of the runs has the metric "top3"'):
        plot_comparison(load_runs([runs]), tmp_path / "plot.png", metric="top3")

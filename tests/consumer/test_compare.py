"""Runs side by side: sorted, marked, written, and what is told about folders that hold none."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from featurestream.errors import DataError, UsageError
from featurestream.position import Position
from featurestream_consumer.compare import (
    compare_runs,
    compare_table,
    load_run,
    load_runs,
    pairs_table,
    records,
    to_markdown,
    write_table,
)
from featurestream_consumer.comparison_text import describe_pairs, describe_runs
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.reporters.jsonl import JsonlReporter
from featurestream_consumer.runs import open_run
from tests.comparing import lineage, write_run


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
        "validation", "samples", "top1", "loss", "against", "measure", "paired_samples", "difference", "low", "high",
        "test", "p",
        "p_holm", "not_compared", "forked_from",
    ]  # fmt: skip
    best, _, half, low, blind = records(table)
    assert best == {
        "run": "best", "state": "finished", "stream": "digits-train", "tap": "layer2+layer3", "head": "linear",
        "optimizer": "Adam", "epochs": 2, "passes": 2, "rereads": 0, "steps": 20, "start": "batch 4", "seed": 0,
        "validation": "digits-val", "samples": "A", "top1": 0.9, "loss": pytest.approx(0.6), "against": None,
        "measure": None,
        "paired_samples": None, "difference": None, "low": None, "high": None, "test": None, "p": None, "p_holm": None,
        "not_compared": "it has no validation.npz", "forked_from": None,
    }  # fmt: skip
    assert low["head"] == "mlp(hidden=[64, 32])"
    assert (half["state"], half["steps"], half["epochs"], half["top1"]) == ("stopped", 20, 2, 0.6)
    assert (blind["top1"], blind["samples"]) == (None, "-")


def test_counts_are_whole_numbers_beside_a_run_that_has_none_of_them_yet(runs: Path) -> None:
    rows = records(compare_table(load_runs([runs])))
    text = describe_runs(rows, {})
    names = [column.lstrip(">~") for column in text.columns]
    shown = {cells[0]: dict(zip(names, cells, strict=True)) for cells in text.cells}
    assert (shown["best"]["passes"], shown["best"]["rereads"]) == ("2", "0")
    assert shown["half"]["passes"] == "-"
    assert all(isinstance(row["passes"], int | None) for row in rows)


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
    assert lines[3].startswith("| blind | finished |")
    assert lines[3].endswith("| it was not validated     | -           |")
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


# ---- differences ----------------------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Twelve samples: A has all of them right, B nine, C four (three of B's among them); D has other samples."""
    write_run(tmp_path, "A", [1] * 12)
    write_run(tmp_path, "B", [1] * 9 + [0] * 3)
    write_run(tmp_path, "C", [1] * 3 + [0] * 8 + [1])
    write_run(tmp_path, "D", [1] * 6 + [0] * 6, fingerprint="e" * 32)
    write_run(tmp_path, "half", [1] * 12, finished=False)
    return tmp_path


def test_each_run_is_compared_with_the_best_and_corrected_for_all_pairs(judged: Path) -> None:
    """By hand: 3 samples apart, all on one side: 2 / 2^3; 8: 2 / 2^8; B and C 6 and 1: 2 (1 + 7) / 2^7.

    Holm: 2 / 256 times 3; 1 / 8 times 2; 1 / 4 once, or what is before it: 1 / 4.
    """
    rows = {row["run"]: row for row in records(compare_table(load_runs([judged])))}
    assert [(name, row["against"], row["paired_samples"]) for name, row in rows.items()] == [
        ("A", None, None), ("B", "A", 12), ("D", None, None), ("half", None, None), ("C", "A", 12),
    ]  # fmt: skip
    b, c = rows["B"], rows["C"]
    assert (b["difference"], b["p"], b["p_holm"]) == pytest.approx((-3 / 12, 1 / 4, 1 / 4))
    assert (c["difference"], c["p"], c["p_holm"]) == pytest.approx((-8 / 12, 1 / 128, 3 / 128))
    assert b["low"] <= -3 / 12 <= b["high"] <= 0
    assert (b["measure"], b["test"]) == ("top1", "McNemar")
    assert {name: row["not_compared"] for name, row in rows.items()} == {
        "A": None, "B": None, "C": None, "half": "it has not finished",
        "D": "with A: validated on other streams (fingerprints ffffffffffff and eeeeeeeeeeee)",
    }  # fmt: skip


def test_metrics_of_training_are_not_ranked_with_those_of_validation(judged: Path) -> None:
    write_run(judged, "blind", [1] * 12, fingerprint=None)
    row = records(compare_table(load_runs([judged])))[-1]
    assert (row["run"], row["top1"], row["samples"], row["not_compared"]) == (
        "blind", None, "-", "it was not validated",
    )  # fmt: skip
    [alone] = records(compare_table(load_runs([judged / "blind"])))
    assert alone["top1"] == 1.0


def test_all_pairs_are_those_of_the_paired_statistics_the_better_run_first(judged: Path) -> None:
    runs = load_runs([judged / "C", judged / "B", judged / "A"])
    rows = records(pairs_table(runs))
    assert [(row["a"], row["b"], row["only_a"], row["only_b"]) for row in rows] == [
        ("A", "B", 3, 0), ("A", "C", 8, 0), ("B", "C", 6, 1),
    ]  # fmt: skip
    assert [row["p"] for row in rows] == pytest.approx([1 / 4, 1 / 128, 1 / 8])
    assert [row["p_holm"] for row in rows] == pytest.approx([1 / 4, 3 / 128, 1 / 4])
    assert rows[0]["value_a"] - rows[0]["value_b"] == pytest.approx(rows[0]["difference"]) == pytest.approx(3 / 12)
    assert [(pair.a, pair.b, pair.p_holm) for pair in compare_runs(runs)] == [
        ("C", "B", pytest.approx(1 / 4)), ("C", "A", pytest.approx(3 / 128)), ("B", "A", pytest.approx(1 / 4)),
    ]  # fmt: skip


def test_the_figures_of_many_runs_are_those_of_scipy_and_statsmodels(tmp_path: Path) -> None:
    """Seven runs that are right on 60 to 90 % of 150 samples: 21 pairs, six of them in the table."""
    random = np.random.default_rng(5)
    answers = {f"r{number}": random.random(150) < 0.6 + 0.05 * number for number in range(7)}
    for name, right in answers.items():
        write_run(tmp_path, name, [int(one) for one in right])
    rows = records(pairs_table(load_runs([tmp_path])))
    tables = [
        [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
        for a, b in ((answers[row["a"]], answers[row["b"]]) for row in rows)
    ]
    p = [mcnemar(table, exact=True).pvalue for table in tables]
    assert [row["p"] for row in rows] == pytest.approx(p, rel=1e-9)
    assert [row["p_holm"] for row in rows] == pytest.approx(multipletests(p, method="holm")[1], rel=1e-9)
    assert len(rows) == 21
    shown = [row for row in records(compare_table(load_runs([tmp_path]))) if row["against"]]
    for row in shown:
        differences = answers[row["run"]].astype(float) - answers[row["against"]]
        theirs = stats.bootstrap((differences,), np.mean, n_resamples=10_000, rng=1).confidence_interval
        # Means are steps of 1 / 150: an end may fall on the next one.
        assert (row["low"], row["high"]) == pytest.approx(
            tuple(theirs), abs=0.06 * (theirs.high - theirs.low) + 1 / 150
        )
    assert len(shown) == 6


def test_a_p_value_is_the_same_in_both_tables(judged: Path) -> None:
    runs = load_runs([judged])
    by_pair = {(row["a"], row["b"]): row for row in records(pairs_table(runs))}
    for row in records(compare_table(runs)):
        if row["against"]:
            pair = by_pair[row["against"], row["run"]]
            assert (row["p"], row["p_holm"]) == (pair["p"], pair["p_holm"])
            assert (row["low"], row["difference"], row["high"]) == (-pair["high"], -pair["difference"], -pair["low"])


def test_a_loss_is_compared_by_the_loss_of_each_sample(judged: Path) -> None:
    """By hand: log(1 + 1/e) where the right class has the score 1 and the other 0, 1 more where it is the other way."""
    rows = {row["run"]: row for row in records(compare_table(load_runs([judged / "A", judged / "C"]), metric="loss"))}
    assert (rows["C"]["measure"], rows["C"]["test"]) == ("loss", "sign flip")
    assert rows["C"]["difference"] == pytest.approx(8 / 12)  # more of a loss is worse
    assert rows["C"]["p"] == pytest.approx(2 / 2**8)


def test_a_metric_that_only_some_runs_have_leaves_the_others_out(judged: Path, tmp_path: Path) -> None:
    record = json.loads((judged / "B" / "run.json").read_text())
    del record["metrics"]["loss"]
    (judged / "B" / "run.json").write_text(json.dumps(record))
    rows = {row["run"]: row for row in records(compare_table(load_runs([judged]), metric="loss"))}
    assert rows["B"]["not_compared"] == "it has no loss"
    assert rows["C"]["against"] == "A"


def test_a_loss_that_cannot_be_found_is_a_reason_and_ends_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "own", [1, 0], loss="my_losses:focal")
    write_run(tmp_path, "A", [1, 1])
    rows = {row["run"]: row for row in records(compare_table(load_runs([tmp_path]), metric="loss"))}
    assert "my_losses" in rows["own"]["not_compared"]


def test_equal_runs_differ_by_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "A", [1, 0])
    write_run(tmp_path, "B", [1, 0])
    row = records(compare_table(load_runs([tmp_path])))[1]
    assert [str(row[key]) for key in ("difference", "low", "high", "p", "p_holm")] == ["0.0"] * 3 + ["1.0"] * 2


def test_what_runs_share_and_what_figures_mean_is_said_in_words(judged: Path) -> None:
    runs = load_runs([judged])
    text = describe_runs(records(compare_table(runs)), {})
    assert text.shared_line is not None
    assert text.shared_line.startswith("the same in all: stream toy, head mlp(hidden=8), optimizer Adam, epochs 2")
    assert text.columns == [
        "run", "state", "tap", "samples", ">top1", ">loss", ">difference", ">95 % interval", ">p", ">Holm",
    ]  # fmt: skip
    assert text.notes == [
        "difference: top1 less that of A, on the same 12 samples, with its interval (paired bootstrap, BCa); p: "
        "McNemar's exact test; Holm: p corrected for all pairs of these runs",
        "not compared: D (with A: validated on other streams (fingerprints ffffffffffff and eeeeeeeeeeee))",
        "not compared: half (it has not finished)",
    ]
    told = dict(zip(text.columns, text.cells[1], strict=True))
    assert (told["run"], told[">difference"], told[">p"], told[">Holm"]) == ("B", "-0.2500", "0.2500", "0.2500")


def test_a_best_run_of_each_set_of_samples_is_named_in_the_table(judged: Path) -> None:
    write_run(judged, "E", [0] * 12, fingerprint="e" * 32)
    text = describe_runs(records(compare_table(load_runs([judged]))), {})
    place = text.columns.index("against")
    assert {cells[0]: cells[place] for cells in text.cells} == {
        "A": "-", "B": "A", "C": "A", "D": "-", "E": "D", "half": "-",
    }  # fmt: skip


def test_pairs_that_cannot_be_compared_are_counted_by_reason(judged: Path) -> None:
    text = describe_pairs(records(pairs_table(load_runs([judged]))))
    assert text.notes[1:] == [
        "not compared: 2 pairs (validated on other streams (fingerprints ffffffffffff and eeeeeeeeeeee))",
        "not compared: 4 pairs (half: it has not finished)",
        "not compared: D and C (validated on other streams (fingerprints eeeeeeeeeeee and ffffffffffff))",
    ]
    assert [cells[:2] for cells in text.cells] == [["A", "B"], ["A", "C"], ["B", "C"]]


def test_markdown_holds_the_words_the_table_and_the_tree(judged: Path) -> None:
    write_run(judged, "fork", [1] * 12, lineage=lineage("A", 120, optimizer_args__lr=(0.1, 0.01)))
    runs = load_runs([judged / "A", judged / "fork"])
    rows = records(compare_table(runs))
    assert [row["forked_from"] for row in rows] == [None, "A at batch 120: optimizer_args.lr 0.1 -> 0.01"]
    lines = describe_runs(rows, {run.name: run.lineage for run in runs}).markdown().splitlines()
    assert lines[0].startswith("The same in all: state finished")
    assert lines[2].startswith("| run  | tap    |")
    assert lines[-4:] == [
        "```text", "A", "└── fork  forked at batch 120 (step 120): optimizer_args.lr 0.1 -> 0.01", "```",
    ]  # fmt: skip


def test_small_p_values_are_not_shown_as_0(tmp_path: Path) -> None:
    write_run(tmp_path, "A", [1] * 40)
    write_run(tmp_path, "B", [0] * 40)
    text = describe_runs(records(compare_table(load_runs([tmp_path]))), {})
    assert dict(zip(text.columns, text.cells[1], strict=True))[">p"] == "2e-12"

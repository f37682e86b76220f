"""featurectl probe: the table, its files, and mistakes that are told before anything is read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from featurestream.memory import MemoryLog
from tests.probing import Stream
from tests.support import create


@pytest.fixture
def published(log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stream "toy" and its validation stream; the current folder is the test's own."""
    Stream("toy").publish(log)
    Stream("toy-validation", first=1000).publish(log)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_line_says_what_was_read_and_each_tap_has_a_row_in_the_manifests_order(cli, published: Path) -> None:
    outcome = cli("probe", "toy", "--validate", "toy-validation")
    assert outcome.code == 0, outcome.err
    first, head, *rows = outcome.out.splitlines()
    assert first.startswith(
        "accuracy on 150 rows (toy-validation); fitted to 150 rows, batches 0 to 16, read in "
    )  # fmt: skip
    assert head.split() == ["tap", "features", "ridge", "lambda", "LDA", "nearest", "mean", "solved", "in"]
    assert [row.split()[:2] for row in rows] == [["layer1", "6"], ["layer2", "12"], ["fc", "4"]]
    assert (published / "runs" / "probe-toy" / "probe.json").is_file()


def test_json_holds_every_penalty_and_the_table_what_is_flat(cli, published: Path) -> None:
    rows = cli("probe", "toy", "--json", "-o", "t.csv", "--plot", "p.png").rows
    assert [row["tap"] for row in rows] == ["layer1", "layer2", "fc"]
    for row in rows:
        scores = {found["lambda"]: found["ridge"] for found in row.pop("ridge_by_lambda")}
        assert len(scores) == 8
        assert scores[row["lambda"]] == row["ridge"] == max(scores.values())
        assert row["validation"] == "samples held out: index modulo 5 is 4"
    with (published / "t.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["tap"] for row in table] == ["layer1", "layer2", "fc"]
    assert list(table[0]) == list(rows[0])
    assert float(table[2]["lda"]) == rows[2]["lda"]
    with Image.open(published / "p.png") as image:
        assert image.format == "PNG"
        assert image.width > 600


def test_the_same_command_reads_nothing_again_and_prints_the_same(cli, published: Path) -> None:
    first = cli("probe", "toy")
    second = cli("probe", "toy")
    assert second.out == first.out
    assert second.err.startswith("runs/probe-toy holds the result of this very range")
    assert json.loads((published / "runs" / "probe-toy" / "probe.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--tap", "layr1"], 2, 'unknown tap of stream toy "layr1"; did you mean "layer1"?; known: layer1, layer2'),
        (["--validate", "toy-valid"], 2, 'did you mean "toy-validation"'),
        (["-o", "t.txt"], 2, '"t.txt" does not say what kind of table it is; expected .csv, .md, .json'),
        (["--plot", "p.jpg"], 2, '"p.jpg" does not say what kind of picture it is; expected .png'),
        (["--plot", "no/p.png"], 2, 'there is no folder "no" to write p.png into; make it first'),
        (["--from", "batch:5", "--until", "batch:5"], 2, "nothing to read"),
        (["--from", "batch:99"], 2, "nothing to read"),
    ],
)
def test_a_mistake_is_told_in_one_line(cli, published: Path, words: list[str], code: int, message: str) -> None:
    outcome = cli("probe", "toy", *words)
    assert outcome.code == code
    assert outcome.err.startswith("error: ")
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (published / "runs" / "probe-toy" / "probe.json").exists()


def test_an_endless_stream_needs_an_end(cli, log: MemoryLog, published: Path) -> None:
    create(log, Stream("endless", passes=None).manifest)
    outcome = cli("probe", "endless")
    assert outcome.code == 2
    assert "say where to stop; such as --until latest" in outcome.err


def test_what_is_gone_ends_with_its_own_exit_code(cli, log: MemoryLog, published: Path) -> None:
    log.delete_before("toy.fc", 1, 3)
    outcome = cli("probe", "toy", "--from", "batch:0")
    assert outcome.code == 4
    assert "batch 1 is gone" in outcome.err

"""featurectl demo, on a real broker, with real images and a real backbone: it learns, and can be run again."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from pathlib import Path

import pytest

from featurectl import demo
from featurectl.app import main
from featurestream.cluster import Cluster

pytestmark = pytest.mark.broker


def run(*words: str) -> tuple[str, str]:
    """Return what ``featurectl WORDS`` printed on its two outputs; it must end with exit code 0."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["featurectl", *words])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0, err.getvalue()
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(broker: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "EPOCHS", 6)  # of 12: enough to learn
        return run("demo", str(folder))[0]


def test_the_best_head_reaches_95_percent(output: str, folder: Path) -> None:
    assert "RANDOM WEIGHTS" in output
    rows = [json.loads(line) for line in run("compare", str(folder / "runs"), "--json")[0].splitlines()]
    assert sorted(row["tap"] for row in rows) == ["avgpool", "layer2", "layer3"]
    assert {row["samples"] for row in rows} == {"A"}
    assert rows[0]["top1"] >= 0.95
    assert f"best: {rows[0]['run']}, {rows[0]['top1']:.1%}" in output
    assert (folder / "comparison.png").stat().st_size > 10_000


def test_the_late_experiment_saw_the_second_pass_alone(output: str, folder: Path) -> None:
    record = json.loads((folder / "runs" / "mlp-avgpool-late" / "run.json").read_text())
    facts = json.loads(run("streams", "demo-train", "--json")[0])
    assert facts["pass_batches"] <= record["start"]["batch"] < 2 * facts["pass_batches"]
    assert record["config"]["start"] in output
    assert {reader["experiment"]: reader["lag_batches"] for reader in facts["readers"]} == {
        "mlp-layer2": 0, "mlp-layer3": 0, "mlp-avgpool-late": 0
    }  # fmt: skip


def test_every_command_that_was_printed_means_what_the_demo_did(output: str) -> None:
    """A command that asked for anything else would be refused: the stream or the run folder is another's then."""
    commands = [shlex.split(line.removeprefix("$ ")) for line in output.splitlines() if line.startswith("$ featurectl")]
    assert [words[1] for words in commands] == ["produce", "produce", "train", "train", "train", "compare"]
    for words in commands[:2]:
        assert f'stream "{words[words.index("--stream") + 1]}" is finished' in run(*words[1:])[1]
    for words in commands[2:5]:
        assert "is finished; its weights are in head.safetensors" in run(*words[1:])[1]
    table = run(*commands[5][1:])[0]
    assert table in output


def test_a_second_run_finds_everything_finished(output: str, folder: Path) -> None:
    heads = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/head.safetensors")}
    assert len(heads) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "EPOCHS", 6)
        again, said = run("demo", str(folder))
    assert said.count("is finished") == 5
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/head.safetensors")} == heads
    best = [line for line in output.splitlines() if line.startswith("best: ")]
    assert best == [line for line in again.splitlines() if line.startswith("best: ")]

"""featurectl fork: a run folder and what to change in; another run folder and an exit code out."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from featurestream import cluster, kafka
from featurestream.memory import MemoryLog
from tests.featurectl.conftest import Cli
from tests.project.documents import ROOT, commands_in, fenced
from tests.support import make_manifest, publish

TRAIN = (
    *("train", "toy", "--tap", "layer3", "--name", "E1", "--epochs", 2, "--batch-size", 8, "--device", "cpu"),
    *("--head-arg", "hidden=16", "--validate", "toy-validation", "--checkpoint-seconds", 1e-9),
)


@pytest.fixture
def parent(cli: Cli, log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    publish(log, make_manifest("toy", samples=30, lanes=3, passes=2))
    publish(log, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    assert cli(*TRAIN, "--keep-checkpoints", 3).code == 0
    assert len(list(Path("runs/E1/checkpoints").iterdir())) == 3
    return Path("runs/E1")


def test_a_fork_lies_beside_its_parent_and_says_what_became_of_it(cli: Cli, parent: Path) -> None:
    settings = ("--set", "optimizer_args.lr=1e-2", "--set", "head_args.hidden=16,4", "--set", "epochs=3")
    done = cli("fork", parent, *settings, "--name", "E2", "--at", "step:7")
    assert done.code == 0, done.err
    record = json.loads(Path("runs/E2/run.json").read_text())
    assert record["config"]["head_args"] == {"hidden": [16, 4]}
    assert record["lineage"]["changes"]["optimizer_args.lr"] == [None, 0.01]
    assert "E2 goes on from E1 at step 7 (epoch 1, batch 14); changed: " in done.err
    assert "begun anew: head.2.weight, head.2.bias, head.4.weight, head.4.bias, optimizer; taken over: " in done.err
    assert done.out.startswith("E2: ")
    assert done.out.endswith("after 12 steps (2 passes, 1 re-read); runs/E2\n")


def test_a_fork_asks_for_pictures_of_the_validation_images(cli: Cli, parent: Path) -> None:
    """There are none of this stream, which was made of nothing: that is told, and the fork ends well."""
    settings = ("--set", "reporters=projector", "--set", "epochs=3")
    done = cli("fork", parent, *settings, "--name", "E2")
    assert done.code == 0, done.err
    assert 'projector: points without pictures: the data of stream "toy-validation" cannot be opened' in done.err


def test_the_same_command_again_goes_on_or_finds_it_finished(cli: Cli, parent: Path) -> None:
    command = ("fork", parent, "--set", "epochs=3", "--name", "E2", "--json")
    first, again = cli(*command).rows, cli(*command).rows
    assert [row["already_finished"] for row in (*first, *again)] == [False, True]
    assert first[0] | {"already_finished": True} == again[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "epochs:3"), '"epochs:3" is not an argument; expected name=value, such as optimizer_args.lr=0.01'),
        (("--set", "epoch=3"), 'unknown setting of a fork "epoch"; did you mean "epochs"?'),
        (("--set", "stream=other"), 'a fork cannot change "stream"'),
        (("--at", "pass:1"), '"pass:1" is not a place to fork at; expected batch:N or step:N'),
        (("--at", "batch:9"), "there are step 8 (epoch 2, batch 0); step 7 (epoch 1, batch 14); step 6 ("),
        ((), "nothing is left to train after step 8 (epoch 2, batch 0): it has epochs=2, and they are over"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_no_folder(
    cli: Cli, parent: Path, words: tuple[str, ...], message: str
) -> None:
    done = cli("fork", parent, "--name", "E2", *words)
    assert (done.code, len(done.err.strip().splitlines())) == (2, 1), done.err
    assert message in done.err
    assert [path.name for path in Path("runs").iterdir()] == ["E1"]


def test_no_broker_is_asked_about_a_folder_that_is_no_run(cli: Cli, tmp_path: Path) -> None:
    done = cli("fork", tmp_path / "E1", "--name", "E2")
    assert done.code == 2
    assert "is not a run folder: it has no run.json" in done.err


def test_what_the_documents_show_runs_as_it_stands(
    cli: Cli, log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    publish(log, make_manifest("demo-train", samples=1500, batch_samples=500, passes=2))
    publish(log, make_manifest("demo-validation", samples=12, passes=1, seed=9))
    text = (ROOT / "docs" / "forking.md").read_text(encoding="utf-8")
    (shell,) = fenced(text, "sh")
    for command in commands_in("forking.md", f"```sh\n{shell}```\n"):
        done = cli(*command.words)
        assert done.code == 0, f"{command}\n{done.err}"
    steps = [json.loads(Path("runs", name, "run.json").read_text())["step"] for name in ("E1", "E2", "E3", "E4")]
    assert steps == [120, 180, 120, 180], "six steps an epoch"
    monkeypatch.setattr(cluster, "resolve_cluster", lambda: None)
    monkeypatch.setattr(kafka, "KafkaLog", lambda _: contextlib.nullcontext(log))
    (example,) = fenced(text, "python")
    exec(compile(example, "forking.md", "exec"), {})
    assert capsys.readouterr().out.startswith("{'top1': ")
    assert json.loads(Path("runs/E5/run.json").read_text())["lineage"]["step"] <= 60


def test_a_fork_is_not_split_between_processes(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli("fork", tmp_path / "E1", "--set", "epochs=3", "--name", "E2")
    assert done.code == 2
    assert "one of 2 that torchrun started, but featurectl fork runs in one; start it without torchrun" in done.err

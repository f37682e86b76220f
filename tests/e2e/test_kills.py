"""kill -9 at any moment, and the same command again: every head has the bytes that it has undisturbed.

Each command dies twenty times, at the moments that the seeds below draw; a failure names the moment after which the
bytes differ, or that was never reached.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.names import reader_group
from featurestream_consumer.checkpoint import list_checkpoints
from tests.killing import Moment, Stage, moments, stage
from tests.support import append, create, make_manifest, publish

pytestmark = pytest.mark.broker

TRAIN_SEEDS = range(1, 21)
SWEEP_SEEDS = range(21, 41)
FORK_SEEDS = range(41, 46)
LIVE_SEEDS = range(46, 52)

TRAIN = (
    *("--tap", "layer3", "--head-arg", "hidden=16", "--head-arg", "dropout=0.2", "--optimizer", "AdamW"),
    *("--scheduler", "CosineAnnealingLR", "--normalize", "standardize", "--epochs", 8, "--batch-size", 8),
    *("--device", "cpu", "--reporter", "jsonl", "--checkpoint-seconds", 0.02),
)
SWEEP = """
stream: {stream}
validate: {stream}-v
epochs: 6
base:
  tap: layer3
  head_args: {{hidden: 64, dropout: 0.2}}
  optimizer: AdamW
  scheduler: CosineAnnealingLR
  normalize: standardize
  batch_size: 16
  device: cpu
  reporters: jsonl
  checkpoint_seconds: 0.02
grid:
  optimizer_args.lr: [1e-2, 1e-3]
  seed: [0, 1]
runs:
  - {{name: mixed, head: linear, augment: mixup, batch_size: 24, epochs: 4}}
  - {{name: wild, optimizer: SGD, optimizer_args.lr: 1e38}}
"""


@pytest.fixture(scope="module")
def commands(broker: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage")) as found:
        yield found


@pytest.fixture(scope="module")
def stream(broker: Cluster) -> str:
    name = f"t-{uuid.uuid4().hex[:12]}"
    with KafkaLog(broker) as log:
        publish(log, make_manifest(name, samples=400, batch_samples=40, lanes=3, passes=2, taps=("layer3",)))
        publish(log, make_manifest(f"{name}-v", samples=60, passes=1, seed=9, taps=("layer3",)))
    return name


@pytest.fixture(scope="module")
def finished(commands: Stage, stream: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run "E1", which nothing disturbed."""
    runs = tmp_path_factory.mktemp("finished")
    check_ends(commands, train(stream, runs, "--keep-checkpoints", 1000))
    return runs / "E1"


def train(stream: str, runs: Path, *more: object) -> list[object]:
    return ["train", stream, "--name", "E1", *more, "--validate", f"{stream}-v", *TRAIN, "--runs", runs]


def head_bytes(runs: Path) -> dict[str, dict[str, bytes]]:
    return {
        path.parent.name: {name: tensor.tobytes() for name, tensor in load_file(path).items()}
        for path in sorted(runs.glob("*/head.safetensors"))
    }


def check_ends(commands: Stage, words: Sequence[object]) -> str:
    done = commands.run(words)
    assert done.code == 0, done.printed
    return done.printed


def check_killed(commands: Stage, words: Sequence[object], seeds: Sequence[int], drawn: Sequence[Moment]) -> None:
    """Run the command, which ends with its folder of runs, once a moment; it must die there."""
    for seed, moment in zip(seeds, drawn, strict=True):
        done = commands.run(words, moment)
        steps = {path.name: list_checkpoints(path / "checkpoints") for path in sorted(Path(str(words[-1])).glob("*/"))}
        print(f"seed {seed}: killed at {moment}", {name: found[0].step for name, found in steps.items() if found})
        assert done.killed, f"seed {seed}: {moment} was not reached, exit code {done.code}\n{done.printed}"


def test_a_trainer_killed_twenty_times_ends_with_the_weights_of_an_undisturbed_one(
    commands, stream, finished, tmp_path
):
    drawn = moments(TRAIN_SEEDS, start=200_000, calls=70_000, seconds=1)
    check_killed(commands, train(stream, tmp_path), TRAIN_SEEDS, drawn)
    said = check_ends(commands, train(stream, tmp_path))
    assert "going on at step" in said
    assert head_bytes(tmp_path) == head_bytes(finished.parent)
    assert len(json.loads((tmp_path / "E1" / "run.json").read_text())["sessions"]) > 12
    assert len(list_checkpoints(tmp_path / "E1" / "checkpoints")) == 2
    assert not list(tmp_path.rglob(".unfinished-step*"))


def test_a_sweep_killed_twenty_times_ends_with_the_weights_of_an_undisturbed_one(commands, stream, broker, tmp_path):
    file = tmp_path / "abl.yaml"
    file.write_text(SWEEP.format(stream=stream))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert "wild stopped before its end" in check_ends(commands, ["sweep", file, "--runs", whole])
    drawn = moments(SWEEP_SEEDS, start=400_000, calls=100_000, seconds=1.5)
    check_killed(commands, ["sweep", file, "--runs", cut], SWEEP_SEEDS, drawn)
    said = check_ends(commands, ["sweep", file, "--runs", cut])
    assert "go on where they were" in said
    assert set(head_bytes(whole)) == {
        "abl-lr0.01-seed0", "abl-lr0.01-seed1", "abl-lr0.001-seed0", "abl-lr0.001-seed1", "mixed",
    }  # fmt: skip
    assert head_bytes(cut) == head_bytes(whole)
    with KafkaLog(broker) as log:
        committed = log.committed_positions()
    # 20 batches over three lanes, all read
    assert dict(committed[reader_group(stream, "mixed")]) == {
        (f"{stream}.layer3", 0): 7, (f"{stream}.layer3", 1): 7, (f"{stream}.layer3", 2): 6,
    }  # fmt: skip


def test_a_fork_killed_while_its_folder_is_made_and_while_it_trains_ends_as_an_undisturbed_one(
    commands, finished, tmp_path
):
    def fork(runs: str) -> list[object]:
        changes = ("--set", "optimizer_args.lr=0.01", "--set", "head_args.hidden=16,8", "--set", "epochs=4")
        return ["fork", finished, "--name", "E2", *changes, "--at", "step:75", "--runs", tmp_path / runs]

    check_ends(commands, fork("whole"))
    drawn = [
        Moment("written", 1),  # its first checkpoint, which is made of its parent's
        Moment("folder", 1),
        Moment("written", 3),
        Moment("validation", 2),
        *moments(FORK_SEEDS[:1], start=200_000, calls=70_000, seconds=1),
    ]
    check_killed(commands, fork("cut"), FORK_SEEDS, drawn)
    check_ends(commands, fork("cut"))
    assert head_bytes(tmp_path / "cut") == head_bytes(tmp_path / "whole")
    assert (tmp_path / "cut" / "E2" / "run.json").exists()
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["E2"]


def test_a_fork_in_which_nothing_is_changed_has_its_parents_weights(commands, finished, tmp_path):
    check_ends(commands, ["fork", finished, "--name", "E1", "--at", "batch:13", "--runs", tmp_path])
    assert head_bytes(tmp_path) == head_bytes(finished.parent)


def test_a_trainer_killed_while_it_follows_a_stream_in_the_making_ends_as_on_the_whole_stream(
    commands, stream, broker, tmp_path
):
    live = f"{stream}-live"
    manifest = make_manifest(live, samples=400, batch_samples=40, lanes=3, passes=2, taps=("layer3",))
    words = [
        "train",
        live,
        "--name",
        "E1",
        *TRAIN,
        "--epochs",
        2,
        "--normalize",
        "none",
        "--validate",
        f"{stream}-v",
        "--runs",
    ]
    drawn = [Moment("seconds", random.Random(seed).uniform(0.3, 1.3)) for seed in LIVE_SEEDS]
    with KafkaLog(broker) as log:
        create(log, manifest)
        for life, (seed, moment) in enumerate(zip(LIVE_SEEDS, drawn, strict=True)):
            append(log, manifest, range(3 * life, 3 * life + 3))  # 18 of 20 batches in the end: it must wait, and dies
            check_killed(commands, [*words, tmp_path / "live"], [seed], [moment])
        append(log, manifest, range(18, 20))
    check_ends(commands, [*words, tmp_path / "live"])
    check_ends(commands, [*words, tmp_path / "whole"])
    assert head_bytes(tmp_path / "live") == head_bytes(tmp_path / "whole")

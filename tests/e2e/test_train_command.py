"""``featurectl train`` as its users meet it: resumed, refused, followed by Kafka's own tools."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from featurestream.kafka import KafkaLog
from featurestream.names import reader_group
from tests.support import make_manifest, publish

pytestmark = pytest.mark.broker

SETTINGS = [
    *("--tap", "layer3", "--head-arg", "hidden=16", "--head-arg", "dropout=0.2", "--optimizer", "AdamW"),
    *("--scheduler", "CosineAnnealingLR", "--scheduler-arg", "T_max=400", "--normalize", "standardize"),
    *("--epochs", "8", "--batch-size", "8", "--device", "cpu", "--reporter", "jsonl", "--checkpoint-seconds", "0.02"),
]


@pytest.fixture(scope="module")
def stream(broker):
    name = f"t-{uuid.uuid4().hex[:12]}"
    with KafkaLog(broker) as log:
        publish(log, make_manifest(name, samples=400, batch_samples=16, lanes=3, passes=2, taps=("layer3",)))
    return name


@pytest.fixture(scope="module")
def finished(stream, tmp_path_factory):
    """The folder of the run "E1", which nothing disturbed."""
    runs = tmp_path_factory.mktemp("runs")
    done = run(*command(stream, runs, "E1"))
    assert done.returncode == 0, done.stderr
    return runs / "E1"


def command(stream: str, runs: Path, name: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "featurectl", "train", stream, "--name", name, "--runs", str(runs), *SETTINGS, *more]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(args, capture_output=True, text=True, timeout=120, check=False)


def head_bytes(folder: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(folder / "head.safetensors").items()}


def test_an_experiments_lag_is_there_for_any_kafka_tool(stream, finished, broker):
    with KafkaLog(broker) as log:
        committed = log.committed_positions()[reader_group(stream, finished.name)]
    # 50 batches over three lanes: 17 + 17 + 16 records, all read
    assert dict(committed) == {(f"{stream}.layer3", 0): 17, (f"{stream}.layer3", 1): 17, (f"{stream}.layer3", 2): 16}


def test_a_run_folder_of_another_configuration_is_refused_with_exit_code_2(stream, finished):
    other = run(*command(stream, finished.parent, "E1", "--seed", "5"))
    assert other.returncode == 2
    assert "seed: 0 -> 5" in other.stderr
    assert len(other.stderr.strip().splitlines()) <= 2, other.stderr


def test_a_finished_run_says_so_and_is_left_as_it_is(stream, finished):
    again = run(*command(stream, finished.parent, "E1", "--json"))
    assert again.returncode == 0
    assert json.loads(again.stdout)["already_finished"] is True


def test_several_experiments_read_one_stream_at_once_each_from_its_own_start(stream, finished, tmp_path, broker):
    starts = {"first": "earliest", "second": "pass:1"}
    running = [
        subprocess.Popen(
            command(stream, tmp_path, name, "--from", start), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for name, start in starts.items()
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in starts]
    assert [(record["start"]["batch"], record["passes"]) for record in records] == [(0, 2), (25, 1)]
    assert head_bytes(tmp_path / "first") == head_bytes(finished), "beside another reader as alone"
    with KafkaLog(broker) as log:
        assert {reader_group(stream, name) for name in starts} <= set(log.committed_positions())


def test_ctrl_c_keeps_what_was_learnt_and_the_same_command_goes_on(stream, tmp_path):
    process = subprocess.Popen(
        command(stream, tmp_path, "E1", "--epochs", "100000"), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    checkpoints = tmp_path / "E1" / "checkpoints"
    deadline = time.monotonic() + 60
    while not (checkpoints.is_dir() and os.listdir(checkpoints)) and time.monotonic() < deadline:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "E1" / "run.json").read_text())["state"] == "stopped"

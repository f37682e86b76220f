"""``featurectl train`` as several processes: started by torchrun, killed, resumed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from featurestream.kafka import KafkaLog
from featurestream.names import reader_group
from tests.support import make_manifest, publish

pytestmark = pytest.mark.broker

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SETTINGS = [
    *("--tap", "layer3", "--head-arg", "hidden=16", "--optimizer", "AdamW", "--normalize", "standardize"),
    *("--batch-size", "48", "--device", "cpu", "--reporter", "jsonl", "--checkpoint-seconds", "0.02"),
]


@pytest.fixture(scope="module")
def stream(broker):
    name = f"t-{uuid.uuid4().hex[:12]}"
    with KafkaLog(broker) as log:
        publish(log, make_manifest(name, samples=400, batch_samples=16, lanes=4, passes=2, taps=("layer3",)))
        publish(log, make_manifest(f"{name}-val", samples=50, batch_samples=16, lanes=2, passes=1, taps=("layer3",)))
    return name


def command(stream: str, runs: Path, *more: str) -> list[str]:
    return ["-m", "featurectl", "train", stream, "--name", "E", "--runs", str(runs), *SETTINGS, *more]


def start_ranks(args: list[str]) -> list[subprocess.Popen[str]]:
    """Start two ranks as torchrun would, each with pipes of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *args],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def run(args: list[str]) -> str:
    """Return what a command prints. What it has started ends with it: torchrun stops its processes when told to."""
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 0, err
    return out


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err


def wait_for_checkpoint(runs: Path, process: subprocess.Popen[str]) -> None:
    checkpoints = runs / "E" / "checkpoints"
    deadline = time.monotonic() + 60
    while not (checkpoints.is_dir() and os.listdir(checkpoints)) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]


def test_two_processes_of_torchrun_give_what_one_gives(stream, broker, tmp_path):
    args = ("--epochs", "2", "--validate", f"{stream}-val", "--json")
    one = run([sys.executable, *command(stream, tmp_path / "one", *args)])
    two = run([*TORCHRUN, *command(stream, tmp_path / "two", *args)])
    result, expected = json.loads(two), json.loads(one)
    assert result["steps"] == expected["steps"] == 18, "9 steps for 400 rows, twice"
    assert result["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
    weights, others = (load_file(tmp_path / where / "E" / "head.safetensors") for where in ("one", "two"))
    for name, values in weights.items():
        np.testing.assert_allclose(others[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    scores, others = (np.load(tmp_path / where / "E" / "validation.npz") for where in ("one", "two"))
    assert others["index"].tolist() == scores["index"].tolist()
    with KafkaLog(broker) as log:
        committed = log.committed_positions()[reader_group(stream, "E")]
    # 50 batches over four lanes: rank 0 has read two of them, rank 1 the others
    assert [committed[f"{stream}.layer3", lane] for lane in range(4)] == [13, 13, 12, 12]


def test_where_one_process_is_killed_the_others_end_and_the_same_command_goes_on(stream, tmp_path):
    args = ("--epochs", "12", "--head-arg", "dropout=0.2", "--augment", "gaussian")
    finish(start_ranks(command(stream, tmp_path / "whole", *args)))
    leader, follower = start_ranks(command(stream, tmp_path / "cut", *args))
    wait_for_checkpoint(tmp_path / "cut", leader)
    os.kill(follower.pid, signal.SIGKILL)
    follower.communicate()
    _, err = leader.communicate(timeout=30)
    assert leader.returncode == 3, err
    assert "error: rank 0 of 2: another process of this experiment has ended" in err
    assert "Traceback" not in err
    record = json.loads((tmp_path / "cut" / "E" / "run.json").read_text())
    assert record["state"] == "stopped"
    finish(start_ranks(command(stream, tmp_path / "cut", *args)))
    whole, cut = (load_file(tmp_path / where / "E" / "head.safetensors") for where in ("whole", "cut"))
    assert {name: values.tobytes() for name, values in cut.items()} == {
        name: values.tobytes() for name, values in whole.items()
    }


def test_ctrl_c_ends_both_with_130_and_one_line(stream, tmp_path):
    leader, follower = start_ranks(command(stream, tmp_path, "--epochs", "100000"))
    wait_for_checkpoint(tmp_path, leader)
    for process in (leader, follower):  # a terminal's Ctrl-C reaches all of them
        process.send_signal(signal.SIGINT)
    said = [process.communicate(timeout=30)[1] for process in (leader, follower)]
    assert [leader.returncode, follower.returncode] == [130, 130], said
    assert "the same command goes on" in said[0]
    assert "Traceback" not in "".join(said)

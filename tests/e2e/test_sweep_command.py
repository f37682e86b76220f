"""``featurectl sweep`` on a real broker, killed at random moments."""

from __future__ import annotations

import os
import random
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

SEED = 20261122
KILLS = 4
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
def stream(broker):
    name = f"t-{uuid.uuid4().hex[:12]}"
    with KafkaLog(broker) as log:
        publish(log, make_manifest(name, samples=400, batch_samples=40, lanes=3, passes=2, taps=("layer3",)))
        publish(log, make_manifest(f"{name}-v", samples=60, passes=1, seed=9, taps=("layer3",)))
    return name


def command(folder: Path, stream: str) -> list[str]:
    file = folder / "abl.yaml"
    file.write_text(SWEEP.format(stream=stream))
    return [sys.executable, "-m", "featurectl", "sweep", str(file), "--runs", str(folder / "runs")]


def head_bytes(runs: Path) -> dict[str, dict[str, bytes]]:
    return {
        path.parent.name: {name: tensor.tobytes() for name, tensor in load_file(path).items()}
        for path in sorted(runs.glob("*/head.safetensors"))
    }


def checkpoints(runs: Path) -> set[Path]:
    return set(runs.glob("*/checkpoints/step-*"))


def test_a_sweep_killed_at_random_moments_ends_with_the_weights_of_an_undisturbed_one(stream, broker, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    done = subprocess.run(command(whole, stream), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "wild stopped before its end" in done.stderr
    chance = random.Random(SEED)
    for _ in range(KILLS):
        before = checkpoints(cut / "runs")
        process = subprocess.Popen(command(cut, stream), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline and not checkpoints(cut / "runs") - before:
            pass
        try:
            process.wait(chance.uniform(0, 0.3))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    last = subprocess.run(command(cut, stream), capture_output=True, text=True, timeout=200, check=False)
    assert last.returncode == 0, last.stderr
    assert set(head_bytes(whole / "runs")) == {
        "abl-lr0.01-seed0", "abl-lr0.01-seed1", "abl-lr0.001-seed0", "abl-lr0.001-seed1", "mixed",
    }  # fmt: skip
    assert head_bytes(cut / "runs") == head_bytes(whole / "runs"), f"kill seed {SEED}"
    with KafkaLog(broker) as log:
        committed = log.committed_positions()
    # 20 batches over three lanes, all read
    assert dict(committed[reader_group(stream, "mixed")]) == {
        (f"{stream}.layer3", 0): 7, (f"{stream}.layer3", 1): 7, (f"{stream}.layer3", 2): 6,
    }  # fmt: skip

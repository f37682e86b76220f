"""Experiments that join a live stream at different times, killed and started again while it grows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from featurestream.kafka import KafkaLog
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from tests.support import append, create, make_manifest

pytestmark = pytest.mark.broker

PASS_BATCHES = 6
SETTINGS = [
    *("--tap", "layer3", "--head-arg", "hidden=16", "--head-arg", "dropout=0.2", "--batch-size", "8"),
    *("--device", "cpu", "--reporter", "jsonl", "--checkpoint-seconds", "0.001"),
]


def start(stream: str, runs: Path, name: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "featurectl", "train", stream, "--name", name, "--runs", str(runs), *SETTINGS]
    return subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def until(happened: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Return when something has happened; fail where the process ends before, or after a minute."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            assert happened(), process.communicate()[1]


def ended(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def passes_of(folder: Path) -> list[int]:
    """What the epochs read, as far as it is known."""
    return record_of(folder).get("epoch_passes", []) if (folder / "run.json").exists() else []


def head_bytes(folder: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(folder / "head.safetensors").items()}


def test_experiments_that_join_a_live_stream_at_different_times_end_as_they_would_alone(broker, unique, tmp_path):
    """One waits for four passes; one joins late, rereads, and is killed while the stream grows."""
    manifest = make_manifest(unique, samples=60, batch_samples=10, lanes=3, passes=None, taps=("layer3",))
    runs = tmp_path / "runs"
    early_words = ("early", "--epochs", "4", "--scheduler", "CosineAnnealingLR")
    late_words = ("late", "--epochs", "6", "--when-behind", "reread")
    with KafkaLog(broker) as log:
        create(log, manifest)
        append(log, manifest, range(PASS_BATCHES + 2))
        early = start(unique, runs, *early_words)
        late = start(unique, runs, *late_words)
        until(lambda: len(passes_of(runs / "late")) > 1, late)
        late.kill()
        late.communicate()
        known = passes_of(runs / "late")
        until(lambda: list((runs / "early" / "checkpoints").glob("step-*")), early)
        append(log, manifest, range(PASS_BATCHES + 2, 2 * PASS_BATCHES))
        late = start(unique, runs, *late_words)
        until(lambda: 1 in passes_of(runs / "late"), late)
        append(log, manifest, range(2 * PASS_BATCHES, 4 * PASS_BATCHES))
        ended(early)
        ended(late)

        for name in ("early", "late"):
            record = record_of(runs / name)
            alone = tmp_path / "alone" / name
            alone.mkdir(parents=True)
            if name == "late":  # what it reads depends on when it ran; its record says what that was
                (alone / "run.json").write_text(json.dumps(record | {"state": "stopped"}))
            config = TrainConfig(**record["config"] | {"runs": tmp_path / "alone"})
            assert head_bytes(train(config, log).folder) == head_bytes(runs / name), name
        source = log.source()
        try:
            ends = [source.bounds(f"{unique}.layer3", lane).high for lane in range(3)]
        finally:
            source.close()
    assert ends == [8, 8, 8], "24 batches, each once: readers leave nothing on the stream"
    early_record, late_record = record_of(runs / "early"), record_of(runs / "late")
    assert (early_record["passes"], early_record["rereads"]) == (4, 0)
    assert late_record["passes"] + late_record["rereads"] == 6
    assert late_record["epoch_passes"][: len(known)] == known
    assert known[:2] == [0, 0]

"""featurectl probe on a real broker: killed while it reads, it ends with the very same result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream_consumer.probe import probe
from tests.probing import Stream
from tests.support import create

pytestmark = pytest.mark.broker

TIMES = {"read_s", "solve_s", "validate_s"}


@pytest.fixture
def log(broker: Cluster) -> Iterator[KafkaLog]:
    with KafkaLog(broker) as log:
        yield log


@contextmanager
def command(folder: Path, broker: Cluster, stream: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``featurectl probe STREAM --json`` in ``folder``, with a state saved after every batch."""
    process = subprocess.Popen(
        [sys.executable, "-m", "featurectl", "probe", stream, "--json", "--checkpoint-seconds", "1e-9"],
        cwd=folder, env=os.environ | {"FEATURESTREAM_BOOTSTRAP_SERVERS": broker.bootstrap_servers},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for_a_state(folder: Path, process: subprocess.Popen[str]) -> None:
    """Return when a state was saved; fail where the process ends before."""
    deadline = time.monotonic() + 100
    while not list(folder.glob("runs/probe-*/checkpoints/step-*.pt")):
        assert time.monotonic() < deadline, "no state was saved"
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a result as JSON gives them back, without the time that they took."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in json.loads(json.dumps(rows))]


def test_a_probe_killed_while_it_reads_ends_with_the_result_of_an_undisturbed_one(
    log: KafkaLog, broker: Cluster, unique: str, tmp_path: Path
) -> None:
    """Two of four passes are there: the probe adds the first up, saves its state, waits for more, and is killed."""
    stream = Stream(unique, passes=4)
    create(log, stream.manifest)
    stream.append(log, range(34))
    with command(tmp_path, broker, unique) as process:
        wait_for_a_state(tmp_path, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    stream.append(log, range(34, 68))
    with command(tmp_path, broker, unique) as process:
        printed, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "going on at batch 17" in said
    resumed = without_times([json.loads(line) for line in printed.splitlines()])

    assert resumed == without_times(probe(unique, log, runs=tmp_path / "undisturbed").facts())
    assert [row["tap"] for row in resumed] == ["layer1", "layer2", "fc"]
    assert {row["rows"] for row in resumed} == {4 * 120}
    assert min(row["ridge"] for row in resumed[1:]) > 0.5

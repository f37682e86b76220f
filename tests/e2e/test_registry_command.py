"""The run registry on a real broker: written by a training that is killed, read from anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestream.experiments import ExperimentsFollower, read_experiments
from featurestream.kafka import KafkaLog
from featurestream.names import experiments_topic
from featurestream_consumer.reporters.jsonl import read_rows
from tests.support import append, create, make_manifest

pytestmark = pytest.mark.broker

SECRET = "hunter2-never-to-be-seen"


def command(stream: str, runs: Path, properties: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "featurectl", "train", stream, "--tap", "layer3", "--name", "E1", "--head", "linear"),
        *("--epochs", "3", "--batch-size", "8", "--device", "cpu", "--reporter", "jsonl", "--runs", str(runs)),
        *("--checkpoint-seconds", "0.01", "--kafka-config", str(properties)),
    ]


def test_a_training_is_seen_while_it_runs_killed_and_gone_on_with(broker, unique: str, tmp_path: Path) -> None:
    properties = tmp_path / "client.properties"
    properties.write_text(
        f"bootstrap.servers={broker.bootstrap_servers}\nsasl.password={SECRET}\nclient.rack={SECRET}\n"
    )
    properties.chmod(0o600)
    manifest = make_manifest(unique, samples=160, batch_samples=16, lanes=2, passes=3, taps=("layer3",))
    with KafkaLog(broker) as log, ExperimentsFollower(log, unique) as follower:
        create(log, manifest)
        append(log, manifest, range(15))  # half of the second pass is missing: it waits there
        process = subprocess.Popen(command(unique, tmp_path, properties), stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while not (seen := follower.look()) or seen["E1"].run.position.batch < 15:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until, seen
        running = seen["E1"]
        assert (running.state_at(round(time.time() * 1000)), running.lag(20)) == ("running", 5)
        assert (running.run.rows, running.run.batches, running.run.step) == (240, 15, 30)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        append(log, manifest, range(15, 30))
        again = subprocess.run(
            command(unique, tmp_path, properties), capture_output=True, text=True, timeout=120, check=False
        )
        assert again.returncode == 0, again.stderr
        finished = follower.look()["E1"]
        assert (finished.run.id, finished.run.state) == (running.run.id, "finished")
        assert (finished.run.rows, finished.run.batches, finished.run.step) == (480, 30, 60)
        assert finished.rows == read_rows(tmp_path / "E1" / "metrics.jsonl")
        assert read_experiments(log, unique) == follower.look()
        settings = log.settings(experiments_topic(unique))
        assert settings["cleanup.policy"] == "compact"
        source = log.source()
        low, high = source.bounds(experiments_topic(unique), 0)
        reader = source.read(experiments_topic(unique), 0, low)
        values = [(reader.poll(10.0).value or b"") for _ in range(low, high)]
        reader.close()
        source.close()
    assert not any(SECRET.encode() in value for value in values)

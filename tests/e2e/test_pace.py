"""A producer that waits for its readers, and readers that wait for it, on the real broker."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.ports import Log
from featurestream.stream import FeatureStream
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from tests.producing import command, wait_for_batches, write_images

pytestmark = pytest.mark.broker
PASS = 6  # batches


def batches_of(log: Log, stream: str) -> int:
    source = log.source()
    try:
        return sum(source.bounds(f"{stream}.late", lane).high for lane in range(3))
    finally:
        source.close()


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_producer_on_two_devices_follows_its_readers_and_ends_cleanly_while_it_waits(
    broker: Cluster, tmp_path: Path, unique: str
) -> None:
    """Nobody: one pass. An experiment of 3 passes reads them, and is never more than a pass behind; then nobody again.
    Then a reader by name."""
    images = write_images(tmp_path / "images")
    with (
        KafkaLog(broker) as log,
        command(
            images, unique, broker.bootstrap_servers, devices=("cpu", "cpu"), passes="endless", ahead=1, delay_s=0.001
        ) as process,
    ):
        wait_for_batches(log, unique, ["late"], PASS, process)
        experiment = TrainConfig(
            stream=unique, taps=("late",), name="E1", epochs=3, batch_size=10, runs=tmp_path / "runs", reporters=()
        )
        began = time.monotonic()
        result = train(experiment, log)
        assert (result.passes, result.steps) == (3, 12)
        assert time.monotonic() - began < 45  # it waited for seconds at a time, not for leases to expire
        with FeatureStream(unique, "late", start="pass:3", log=log, reader="mine") as stream:
            rows = iter(stream)
            for _ in range(PASS):
                next(rows)
            before = batches_of(log, unique)
            assert 4 * PASS <= before <= 5 * PASS
            wait_until(lambda: batches_of(log, unique) >= 5 * PASS - 1, process)
            rows.close()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "stopped: everything that was sent is safe" in said
        assert "Traceback" not in said

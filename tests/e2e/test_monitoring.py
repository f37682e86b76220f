"""A producer, a sweep and an experiment that run, as their metrics and their lines show them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.telemetry import PRODUCER, TRAINER
from featurestream_producer.run import produce
from tests.producing import REPOSITORY, broken_images, command, config

pytestmark = pytest.mark.broker

SWEEP = """
stream: {train}
validate: {validation}
base: {{tap: late, epochs: 1000, batch_size: 8, head: linear}}
grid: {{seed: [0, 1]}}
"""


@dataclass
class Watched:
    """A command that runs with JSON lines and a metrics port: where that is, and what was read so far.

    Attributes:
        lines: up to the one that says the port.
        labels: of each metric that was seen, those of one of its time series.
    """

    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(json.loads(line))
            if "metrics" in self.lines[-1]:
                return
        raise AssertionError(f"ended with {self.process.wait()}: {self.lines}")

    def scrape(self) -> set[str]:
        with urllib.request.urlopen(self.lines[-1]["metrics"], timeout=30) as answer:
            text = answer.read().decode()
        for name, labels in re.findall(r"^(featurestream_\w+){(.*)} \S+$", text, re.MULTILINE):
            self.labels[name] = set(re.findall(r'(\w+)="', labels))
        return set(self.labels)


@contextmanager
def begun(arguments: list[str], address: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command of the consumer's; it is over after the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "featurectl", *arguments, "--metrics-port", "0"],
        cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"FEATURESTREAM_BOOTSTRAP_SERVERS": address, "FEATURESTREAM_LOG_FORMAT": "json"},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def running(broker: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Watched]]:
    """A producer of an endless stream, kept in front of its readers, and a sweep and an experiment that follow it."""
    folder, address = tmp_path_factory.mktemp("monitoring"), broker.bootstrap_servers
    images = broken_images(folder / "images", [3])
    train, validation = (f"t-{uuid.uuid4().hex[:12]}" for _ in range(2))
    with KafkaLog(broker) as log:
        produce(config(images, validation, passes=1), log, say=lambda _: None)
    (folder / "sweep.yaml").write_text(SWEEP.format(train=train, validation=validation), encoding="utf-8")
    runs = ["--runs", str(folder / "runs")]
    options = ["--tap", "late", "--name", "E1", "--epochs", "1000", "--batch-size", "8", "--validate", validation]
    paced = {"passes": "endless", "ahead": 4, "log_format": "json", "metrics_port": 0}
    with ExitStack() as stack:
        yield {
            "produce": Watched(stack.enter_context(command(images, train, address, **paced))),
            "sweep": Watched(stack.enter_context(begun(["sweep", str(folder / "sweep.yaml"), *runs], address))),
            "train": Watched(stack.enter_context(begun(["train", train, *options, *runs], address))),
        }


@pytest.mark.parametrize("name", ["produce", "sweep", "train"])
def test_a_run_exports_every_metric_that_is_documented_for_it_and_no_other(
    running: dict[str, Watched], name: str
) -> None:
    documented = {metric.name: set(metric.labels) for metric in (PRODUCER if name == "produce" else TRAINER)}
    one, deadline = running[name], time.monotonic() + 90
    while not documented.keys() <= one.scrape():
        assert time.monotonic() < deadline, documented.keys() - one.labels.keys()
        assert one.process.poll() is None, one.process.communicate()
        time.sleep(0.2)
    assert one.labels == documented


def test_the_lines_of_every_command_are_objects_to_the_last(running: dict[str, Watched]) -> None:
    """After Ctrl-C, so that the lines at the end are among them."""
    for watched in running.values():
        watched.process.send_signal(signal.SIGINT)
    for name, watched in running.items():
        _, rest = watched.process.communicate(timeout=60)
        lines = [*watched.lines, *map(json.loads, rest.splitlines())]
        assert watched.process.returncode == 130, lines[-3:]
        assert all(list(line)[:4] == ["time", "level", "event", "command"] for line in lines)
        assert {line["command"] for line in lines} == {name}
        assert len({line.get("stream") for line in lines[1:]}) == 1
        assert any("done" in line for line in lines), "its progress"
        assert any("batch" in line for line in lines)

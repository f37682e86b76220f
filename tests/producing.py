"""Images, a backbone and a command line small enough to publish whole streams in a test."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from featurestream.manifest import Manifest
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream.names import tap_topic
from featurestream.ports import Log
from featurestream.record import Record
from featurestream.wire import decode
from featurestream_producer.config import ProduceConfig
from featurestream_producer.health import merged_inputs, merged_taps

REPOSITORY = Path(__file__).parents[1]
BACKBONE = "tests.producing:small"
DELAY = "FEATURESTREAM_TEST_DELAY"
QUICK = "FEATURESTREAM_TEST_QUICK"
SLOW_S = 1.0
SLOW_ONE = "FEATURESTREAM_TEST_SLOW_ONE"
SIZE = 16
TAPS = ("2:gap=early", "5=late")


def write_images(folder: Path, count: int = 40) -> Path:
    """Write ``count`` PNG files of noise in two class folders; return the folder."""
    generator = np.random.default_rng(7)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return folder


def broken_images(folder: Path, broken: Iterable[int], count: int = 40) -> Path:
    """Write ``count`` files of which those with the numbers ``broken`` are no images; return the folder."""
    write_images(folder, count)
    for number in broken:
        (folder / "ab"[number % 2] / f"{number:03d}.png").write_bytes(b"no image")
    return folder


def small() -> nn.Module:
    """Return a convolutional network that takes a millisecond: 8 channels at ``2``, 16 numbers at ``5``.

    Where the environment variable :data:`DELAY` is set, every forward first waits so many seconds; after a process's
    first :data:`QUICK` ones, where that is set, a second.
    """
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    if delay_s := os.environ.get(DELAY):
        quick, forwards = float(os.environ.get(QUICK, "inf")), itertools.count(1)
        model.register_forward_pre_hook(
            lambda _module, _images: time.sleep(float(delay_s) if next(forwards) <= quick else SLOW_S)
        )
    return model


def small_with_one_slow_worker() -> nn.Module:
    """Return the same network; the worker that first creates the file :data:`SLOW_ONE` takes 20 ms a forward."""
    model = small()
    turtle: list[bool] = []

    def hook(_module: nn.Module, _images: object) -> None:
        if not multiprocessing.current_process().name.startswith("worker"):
            return
        if not turtle:
            try:
                Path(os.environ[SLOW_ONE]).touch(exist_ok=False)
                turtle.append(True)
            except FileExistsError:
                turtle.append(False)
        if turtle[0]:
            time.sleep(0.02)

    model.register_forward_pre_hook(hook)
    return model


def small_that_fails() -> nn.Module:
    """Return the same network; in a worker it raises RuntimeError at its tenth forward."""
    model = small()
    calls: list[int] = []

    def hook(_module: nn.Module, _images: object) -> None:
        calls.append(len(calls))
        if len(calls) == 10 and multiprocessing.current_process().name.startswith("worker"):
            raise RuntimeError("no more of this")

    model.register_forward_pre_hook(hook)
    return model


def settings(images: Path, stream: str, **changes: Any) -> dict[str, Any]:
    """Return the fields of a small run's configuration: 40 samples, 6 batches a pass, 3 lanes, two taps."""
    return {
        "data": str(images), "stream": stream, "model": BACKBONE, "taps": TAPS, "transform": "train",
        "image_size": SIZE, "batch_size": 7, "lanes": 3, "passes": 2, "devices": ("cpu",), "workers": 0,
    } | changes  # fmt: skip


def config(images: Path, stream: str, **changes: Any) -> ProduceConfig:
    """Return a small run's configuration."""
    return ProduceConfig(**settings(images, stream, **changes))


@contextmanager
def command(
    images: Path, stream: str, address: str, *, delay_s: float = 0.02, launcher: Sequence[str] = (), **changes: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run ``featurectl produce`` with a small run's options, slow enough to be caught, in a process group of its own.

    ``launcher`` is a Python module that runs it, with its options. What of the group still runs at the end of the block
    is killed.
    """
    chosen = settings(images, stream, **changes)
    arguments = [chosen.pop("data"), "--device", ",".join(chosen.pop("devices"))]
    for tap in chosen.pop("taps"):
        arguments += ["--tap", tap]
    for name, value in chosen.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    environment = os.environ | {"FEATURESTREAM_BOOTSTRAP_SERVERS": address, DELAY: str(delay_s)}
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, *(["-m"] if launcher else []), "featurectl", "produce", *arguments],
        cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def wait_for_batches(log: Log, stream: str, taps: Sequence[str], count: int, process: subprocess.Popen[str]) -> None:
    """Return when the last of ``taps`` has ``count`` records; fail where the process ends before."""
    deadline = time.monotonic() + 120
    source = log.source()
    try:
        while True:
            if process.poll() is not None:
                raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
            assert time.monotonic() < deadline, f"{count} batches did not come"
            topic = tap_topic(stream, taps[-1])
            lanes = log.topics().get(topic, 0)
            if lanes and sum(source.bounds(topic, lane).high for lane in range(lanes)) >= count:
                return
    finally:
        source.close()


def read_lanes(log: Log, manifest: Manifest) -> dict[tuple[str, int], list[Record]]:
    """Return every record of every (tap, lane), in the order of the log, duplicates and all."""
    found: dict[tuple[str, int], list[Record]] = {}
    source = log.source()
    for tap in manifest.taps:
        topic = tap_topic(manifest.stream, tap.name)
        for lane in range(manifest.lanes):
            low, high = source.bounds(topic, lane)
            reader = source.read(topic, lane, low)
            records = []
            while low < high:
                record = reader.poll(10)
                assert record is not None
                records.append(decode(record.value))
                low = record.offset + 1
            reader.close()
            found[tap.name, lane] = records
    source.close()
    return found


def content(record: Record) -> tuple[object, ...]:
    """Return all that a record says, but for the stream's name and the moment of extraction."""
    return (
        record.fingerprint, record.tap, record.batch, record.pass_number, record.views, record.dtype, record.shape,
        record.payload.tobytes(), record.indices.tolist(), record.ids,
        None if record.labels is None else record.labels.tolist(), record.missing,
        record.extra,
    )  # fmt: skip


def manifest_of(log: Log, stream: str) -> Manifest:
    """Return a stream's manifest."""
    with ManifestTopic(log, stream) as topic:
        manifest = topic.read().manifest
    assert manifest is not None
    return manifest


def seen_numbers(facts: StreamFacts) -> dict[str, float]:
    """Return what must not depend on how many runs or workers have looked, and when."""
    health = [one for _, one in sorted(facts.health.items())]
    inputs = merged_inputs(health)
    found = {"batches": float(sum(one.batches for one in health)), "numbers": float(inputs.numbers)}
    for name in ("mean", "std", "least", "largest"):
        found |= {f"{name} of channel {channel}": value for channel, value in enumerate(getattr(inputs, name))}
    for tap in merged_taps(health):
        apart = {"name", "separability", "probe_rows"}
        found |= {f"{key} of {tap.name}": value for key, value in tap.model_dump(exclude=apart).items()}
    return found


def contents(log: Log, manifest: Manifest) -> dict[tuple[str, int], list[tuple[object, ...]]]:
    """Return the content of every (tap, lane)."""
    return {place: [content(record) for record in records] for place, records in read_lanes(log, manifest).items()}

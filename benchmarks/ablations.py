"""Sixteen ablations in one sweep against one traditional run, and against as many ``train`` processes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from benchmarks.broker import client_versions, unique
from benchmarks.measure import Run, rate, time_ratio
from benchmarks.report import ROOT, Report, Table, package_versions
from featurectl.samples import AUGMENTED_SIZE, write_samples
from featurestream.cluster import VARIABLE, Cluster
from featurestream.errors import StreamNotFoundError
from featurestream.kafka import KafkaLog
from featurestream.manifest_topic import require_manifest
from featurestream.names import experiments_topic, manifest_topic, tap_topic

IMAGES = 1438
EPOCHS = 20  # not many for an experiment: the more there are, the less weigh the starts of processes
BATCH = 64
HIDDEN = 64
TAP = "avgpool"
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
DROPOUTS = (0.0, 0.2)
SEEDS = (0, 1)
GOAL = 1.1
LIMIT_S = 600.0
SHOWN_S = 60.0


def run(
    cluster: Cluster,
    *,
    images: int = IMAGES,
    epochs: int = EPOCHS,
    rates: Sequence[float] = RATES,
    dropouts: Sequence[float] = DROPOUTS,
    seeds: Sequence[int] = SEEDS,
    repeats: int = 4,
) -> Report:
    """Measure the sweep over all combinations of ``rates``, ``dropouts`` and ``seeds``; all runs are processes."""
    count = len(rates) * len(dropouts) * len(seeds)
    with tempfile.TemporaryDirectory(prefix="featurestream-ablations-") as name:
        bench = _Bench(cluster, Path(name), images, epochs, {"rates": rates, "dropouts": dropouts, "seeds": seeds})
        runs: dict[str, list[Run]] = {"traditional": [], "live": [], "sweep": [], "trains": []}
        try:
            for repeat in range(repeats):
                ways = [("traditional", bench.traditional), ("live", bench.live)]
                for way, work in reversed(ways) if repeat % 2 else ways:
                    runs[way].append(_timed(work))
            runs["sweep"].append(_timed(bench.sweep))
            runs["trains"].append(_timed(bench.trains))
        finally:
            bench.clean()
    live = time_ratio(runs, "live", "traditional")
    alone = time_ratio(runs, "trains", "sweep")
    shown = {way: f"{1 / rate(runs, way):.1f}" for way in runs}
    return Report(
        theme="ablations",
        question=f"Wall time of {count} experiments (MLP {HIDDEN}, AdamW) in one sweep, over {epochs} augmented epochs "
        f"of {images:,} digits, {AUGMENTED_SIZE} x {AUGMENTED_SIZE} pixels, through a frozen ResNet-18 on the CPU. "
        "With the extraction, which happens once: `produce` and a `sweep` that follows it live, from the start of the "
        "one to the end of both, against a plain torch loop (DataLoader, forward, one head) for one experiment. "
        "Without it: `sweep` on the finished stream against the same experiments by `train`, one process after the "
        "other.",
        tables=[
            Table(
                (f"with extraction: {count} against 1", "traditional s", "produce and sweep s", "ratio", "goal"),
                [(f"{repeats} repeats", shown["traditional"], shown["live"], str(live), live.within(GOAL))],
            ),
            Table(
                (f"without: {count} against {count}", "train processes s", "sweep s", "sweep is faster by"),
                [("once", shown["trains"], shown["sweep"], f"{alone.median:.1f}")],
            ),
        ],
        remarks=[
            "Every process is counted from its start, with the imports of torch. Decoding has as many processes on "
            "both sides (none beside the main one where there are fewer than four cores). The broker runs already, and "
            "shares the cores. Nothing is validated: a traditional run would pay for the validation images in every "
            "epoch, the sweep once.",
        ],
        versions={**package_versions("torch", "torchvision", "pillow", "numpy"), **client_versions()},
    )


def _timed(work: Callable[[], None]) -> Run:
    began = time.perf_counter()
    work()
    return Run(1 / (time.perf_counter() - began), 0.0)


class _Bench:
    """The images, the sweep file, and what is done with them."""

    def __init__(
        self, cluster: Cluster, folder: Path, images: int, epochs: int, grid: dict[str, Sequence[float]]
    ) -> None:
        self._cluster = cluster
        self._folder = folder
        self._epochs = epochs
        self._grid = grid
        self._streams: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []
        self._sweeps = 0
        self._table = _first(write_samples(folder / "digits").train_csv, images)

    def traditional(self) -> None:
        """Run the plain loop."""
        _finish(
            self._start(
                "benchmarks.traditional", str(self._table), f"--epochs={self._epochs}", f"--batch-size={BATCH}",
                f"--hidden={HIDDEN}",
            )
        )  # fmt: skip

    def live(self) -> None:
        """Publish a new stream, and sweep over it meanwhile."""
        self._streams.append(unique("ablations"))
        producer = self._featurectl(
            "produce", str(self._table), "--stream", self._streams[-1], "--model", "resnet18", "--weights", "random",
            "--tap", TAP, "--transform", "featurectl.samples:augment", "--image-size", str(AUGMENTED_SIZE),
            "--passes", str(self._epochs), "--batch-size", str(BATCH), "--device", "cpu",
        )  # fmt: skip
        self._await_stream(producer)
        sweep = self._start_sweep()
        _finish(producer)
        _finish(sweep)

    def sweep(self) -> None:
        """Sweep over the stream that was published last."""
        _finish(self._start_sweep())

    def trains(self) -> None:
        """Train every experiment of the sweep in a process of its own, one after the other."""
        for rate_ in self._grid["rates"]:
            for dropout in self._grid["dropouts"]:
                for seed in self._grid["seeds"]:
                    _finish(
                        self._featurectl(
                            "train", self._streams[-1], "--tap", TAP, "--name", f"e-{rate_}-{dropout}-{seed}",
                            "--head", "mlp", "--head-arg", f"hidden={HIDDEN}", "--head-arg", f"dropout={dropout}",
                            "--optimizer", "AdamW", "--optimizer-arg", f"lr={rate_}", "--seed", str(seed),
                            "--epochs", str(self._epochs), "--batch-size", str(BATCH), "--device", "cpu",
                            "--runs", str(self._folder / "trains"),
                        )
                    )  # fmt: skip

    def clean(self) -> None:
        """End what still runs, where something failed, and delete the streams."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
        with KafkaLog(self._cluster) as log:
            for stream in self._streams:
                log.delete_topics([tap_topic(stream, TAP), manifest_topic(stream), experiments_topic(stream)])

    def _start_sweep(self) -> subprocess.Popen[str]:
        self._sweeps += 1
        file = self._folder / f"sweep-{self._sweeps}.yaml"
        settings = {
            "stream": self._streams[-1],
            "epochs": self._epochs,
            "base": {
                "tap": TAP, "head": "mlp", "head_args": {"hidden": HIDDEN}, "optimizer": "AdamW", "batch_size": BATCH,
                "device": "cpu",
            },
            "grid": {
                "optimizer_args.lr": list(self._grid["rates"]),
                "head_args.dropout": list(self._grid["dropouts"]),
                "seed": list(self._grid["seeds"]),
            },
        }  # fmt: skip
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return self._featurectl("sweep", str(file), "--runs", str(self._folder / f"runs-{self._sweeps}"))

    def _await_stream(self, producer: subprocess.Popen[str]) -> None:
        """Return when the producer has published what the stream is: from then on readers can follow it."""
        until = time.monotonic() + SHOWN_S
        with KafkaLog(self._cluster) as log:
            while producer.poll() is None and time.monotonic() < until:
                try:
                    require_manifest(log, self._streams[-1])
                except StreamNotFoundError:
                    time.sleep(0.1)
                else:
                    return
        if producer.poll() is not None:
            _finish(producer)
        raise RuntimeError(f"no stream after {SHOWN_S:.0f} s")

    def _featurectl(self, *arguments: str) -> subprocess.Popen[str]:
        return self._start("featurectl", *arguments)

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, VARIABLE: self._cluster.bootstrap_servers}
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._processes.append(process)
        return process


def _finish(process: subprocess.Popen[str]) -> None:
    """Wait for a process. Raises RuntimeError with what it printed where it failed."""
    try:
        printed, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args} ended with {process.returncode}:\n{printed}")


def _first(table: Path, images: int) -> Path:
    """Return a table of the first ``images`` rows of ``table``, beside it."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[: images + 1]
    if len(rows) <= images:
        raise RuntimeError(f"there are {len(rows) - 1} images, not {images}")
    shorter = table.with_name("bench.csv")
    with shorter.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return shorter

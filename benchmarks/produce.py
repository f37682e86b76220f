"""The producer, from images to acknowledged records, against the bare forward on preloaded batches.

And what it takes to go on after a kill, and what a second process on the same machine brings.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import preloaded
from benchmarks.broker import client_versions, unique
from benchmarks.measure import Clock, Run, cpu_ms, cpu_ratio, in_turn, rate, ratio
from benchmarks.report import ROOT, Report, Table, package_versions
from benchmarks.script import Script, forward
from benchmarks.steps import Steps
from featurectl.samples import write_samples
from featurestream.cluster import VARIABLE, Cluster
from featurestream.heap import children_keep_memory
from featurestream.kafka import KafkaLog
from featurestream.names import manifest_topic, tap_topic
from featurestream_producer.config import ProduceConfig
from featurestream_producer.loader import BatchPlan, load_batch
from featurestream_producer.prepare import Prepared, prepare
from featurestream_producer.run import Result, publish
from featurestream_producer.taps import DTYPES, parse_taps

TAPS = ("layer2:gap", "layer3:gap", "avgpool")
GOAL = 0.98  # where decoding is not the limit
LOOK_S = 0.01


def write_digits(folder: Path, _images: int) -> Path:
    """Write the sample images, 8 x 8 pixels; return their table."""
    return write_samples(folder).train_csv


def write_photos(folder: Path, images: int) -> Path:
    """Write JPEG files as large as ImageNet's: 500 x 375 pixels, about 90 kB."""
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    for number in range(images):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = generator.normal(0, 12, smooth.shape)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:05d}.jpg", quality=90)
    return folder


def no_files(_folder: Path, _images: int) -> str:
    """Return the data set whose images are in memory, as the backbone takes them."""
    return preloaded.DATASET


@dataclass(frozen=True, slots=True)
class Case:
    """Images, and what is done with them."""

    title: str
    write: Callable[[Path, int], Path | str]
    images: int
    image_size: int
    batch_size: int
    rows_of_a_step: int
    model: str = "resnet18"
    taps: tuple[str, ...] = TAPS
    autocast: str | None = None

    @property
    def ready(self) -> bool:
        """Whether no image has to be decoded."""
        return self.write is no_files

    def config(self, data: str, stream: str) -> ProduceConfig:
        """Return the configuration of one run."""
        more: dict[str, Any] = {"transform": preloaded.TRANSFORM, "split": str(self.images)} if self.ready else {}
        return ProduceConfig(
            data=data, stream=stream, model=self.model, weights="random", taps=self.taps, devices=("cpu",),
            image_size=self.image_size, batch_size=self.batch_size, workers=0, autocast=self.autocast, **more,
        )  # fmt: skip


#: A step takes half a second to a second: see :mod:`benchmarks.steps`.
CASES = (
    Case("digits, 8 x 8 PNG", write_digits, images=1438, image_size=64, batch_size=64, rows_of_a_step=320),
    Case("photos, 500 x 375 JPEG", write_photos, images=128, image_size=224, batch_size=16, rows_of_a_step=32),
    Case("in memory", no_files, images=192, image_size=preloaded.SIZE, batch_size=32, rows_of_a_step=32),
    Case(
        "in memory", no_files, images=64, image_size=preloaded.SIZE, batch_size=16, rows_of_a_step=16, model="resnet50"
    ),
    Case(
        "in memory, bfloat16", no_files, images=128, image_size=preloaded.SIZE, batch_size=16, rows_of_a_step=16,
        model="resnet50", autocast="bfloat16",
    ),
    Case(
        "in memory", no_files, images=24, image_size=preloaded.SIZE, batch_size=4, rows_of_a_step=4, model="vit_b_16",
        taps=("encoder.ln:cls",),
    ),
)  # fmt: skip
KILLED_AT = 8  # batches
SCALED = Case("digits, 8 x 8 PNG", write_digits, images=1438, image_size=64, batch_size=32, rows_of_a_step=64)


def run(
    cluster: Cluster,
    *,
    cases: Sequence[Case] = CASES,
    scaled: Case | None = SCALED,
    kills: int = 3,
    repeats: int = 31,
    scaled_repeats: int = 5,
) -> Report:
    """Measure every case on the CPU; with ``scaled``, ``kills`` restarts and two processes beside one."""
    restarts, scaling = [], []
    with tempfile.TemporaryDirectory(prefix="featurestream-images-") as folder:
        # In a process that keeps its memory as the command's does: this one has had threads already.
        with children_keep_memory(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows = [
                pool.submit(_compared, cluster, case, str(case.write(Path(folder) / str(number), case.images)), repeats)
                for number, case in enumerate(cases)
            ]
            speeds, stages = [row.result()[0] for row in rows], [row.result()[1] for row in rows]
        if scaled is not None:
            data = str(scaled.write(Path(folder) / "scaled", scaled.images))
            with KafkaLog(cluster) as log:
                restarts = _restarts(cluster, log, data, scaled, kills)
                scaling = _scaling(log, data, scaled, scaled_repeats)
    tables = [
        Table(
            (
                "images",
                "model",
                "pixels",
                "bare img/s",
                "memory kept img/s",
                "produce img/s",
                "produce / bare",
                "goal",
                "produce / memory kept",
                "by CPU",
            ),
            speeds,
        ),
        Table(("images", "model", "decode ms", "forward ms", "produce ms", "possible"), stages),
        Table(("after", "first record s", "/ a fresh start"), restarts),
        Table(("processes, of one thread each", "img/s", "/ one"), scaling),
    ]
    return Report(
        theme="produce",
        question="Images a second of `produce`, from images to acknowledged records, against the bare forward of "
        f"the same model on the same batches, decoded before. On the CPU, with {torch.get_num_threads()} threads each.",
        tables=[table for table in tables if table.rows],
        remarks=[
            f"{repeats} steps of each way in turn: a step is half a second to a second of batches, until the last "
            "one's records are acknowledged and as many images are loaded ahead as before; what is left to do after"
            " the last forward counts with its CPU, since it runs beside the next forward otherwise. A ratio is the"
            " median of the steps' ratios with its standard error. `bare` runs in a process of its own, as in "
            "anybody's script, where the C library gives memory back after each batch and has to clear it for the "
            "next one. `memory kept` runs beside the producer in its process, which keeps its memory: that ratio is"
            " what all but the forward costs. `by CPU`: the same of the CPU time that an image takes in this "
            "process; of the wall the broker takes a part too.",
            "The milliseconds are of CPU, an image: of decoding alone (read, decompress, resize, normalise; the "
            "first time, memory and all), of the forward with the memory kept, and of the producer in all. Where "
            "the forward keeps all cores busy, decoding must take its share of them: possible is the ratio if "
            "nothing else cost anything.",
            f"After SIGKILL at {KILLED_AT} batches: from the start of the same command to its first record on the log, "
            "against the start of the first one; importing torch is most of both. "
            "Two processes share what one process has alone.",
        ],
        versions={**package_versions("torch", "torchvision", "pillow", "numpy"), **client_versions()},
    )


def _compared(cluster: Cluster, case: Case, data: str, repeats: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a case's rows of the first two tables."""
    with KafkaLog(cluster) as log:
        found = _Comparison(case, data, log, repeats)
    return found.speeds(), found.stages()


def _restarts(cluster: Cluster, log: KafkaLog, data: str, case: Case, kills: int) -> list[tuple[str, ...]]:
    """Kill a producer and start it again; return the seconds to the first record, of fresh starts and of restarts."""
    fresh, again = [], []
    for _ in range(kills):
        stream = unique("kill")
        command = [
            *(sys.executable, "-m", "featurectl", "produce", data, "--stream", stream, "--model", case.model),
            *("--weights", "random", "--image-size", str(case.image_size), "--batch-size", str(case.batch_size)),
            *("--device", "cpu", "--passes", "100", *(word for tap in case.taps for word in ("--tap", tap))),
        ]
        topic = tap_topic(stream, parse_taps(list(case.taps))[-1].name)
        try:
            fresh.append(_first_record(cluster, log, command, topic))
            again.append(_first_record(cluster, log, command, topic))
        finally:
            log.delete_topics([name for name in log.topics() if name.startswith(f"{stream}.")])
    ratios = [one / other for one, other in zip(again, fresh, strict=True)]
    return [
        ("nothing: a fresh start", f"{statistics.median(fresh):.1f}", ""),
        ("kill -9", f"{statistics.median(again):.1f}", f"{statistics.median(ratios):.2f}"),
    ]


def _first_record(cluster: Cluster, log: KafkaLog, command: Sequence[str], topic: str) -> float:
    """Run a command, and kill it when it has published some batches; return the seconds to the first of them."""
    source = log.source()

    def records() -> int:
        return sum(source.bounds(topic, lane).high for lane in range(log.topics().get(topic, 0)))

    before, first_s = records(), None
    began = time.perf_counter()
    environment = os.environ | {VARIABLE: cluster.bootstrap_servers}
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            while (added := records() - before) < KILLED_AT:
                if added and first_s is None:
                    first_s = time.perf_counter() - began
                if process.poll() is not None:
                    raise RuntimeError(f"the producer ended: {process.communicate()[1]}")
                time.sleep(LOOK_S)
        finally:
            process.kill()
            source.close()
    return time.perf_counter() - began if first_s is None else first_s


def _scaling(log: KafkaLog, data: str, case: Case, repeats: int) -> list[tuple[str, ...]]:
    """Return images a second of one process and of two, each with one thread."""
    threads = torch.get_num_threads()

    def run(processes: int) -> Run:
        torch.set_num_threads(processes)  # they are shared out among the processes
        config = case.config(data, unique("scale")).model_copy(update={"devices": ("cpu",) * processes})
        result, cpu_s = _published(prepare(config), log)
        return Run(result.rows / result.stages.thread_s, cpu_s)

    try:
        runs = in_turn({"1": lambda: run(1), "2": lambda: run(2)}, repeats)
    finally:
        torch.set_num_threads(threads)
    return [("1", f"{rate(runs, '1'):,.0f}", ""), ("2", f"{rate(runs, '2'):,.0f}", str(ratio(runs, "2", "1")))]


def _published(prepared: Prepared, log: KafkaLog) -> tuple[Result, float]:
    """Publish a whole stream, and delete it; return what the producer says, and the CPU seconds of an image."""
    manifest = prepared.manifest
    try:
        clock = Clock()
        result = publish(prepared, log, say=lambda _line: None)
        whole = clock.stop(max(result.rows, 1))
    finally:
        names = [tap_topic(manifest.stream, tap.name) for tap in manifest.taps]
        log.delete_topics([*names, manifest_topic(manifest.stream)])
    if not result.finished or result.rows != manifest.data.samples * (manifest.passes or 1):
        raise RuntimeError(f"the producer did not publish all rows: {result}")
    return result, whole.cpu_s


class _Comparison:
    """One case, measured."""

    def __init__(self, case: Case, data: str, log: KafkaLog, repeats: int) -> None:
        self._case = case
        self._step = -(-case.rows_of_a_step // case.batch_size)
        batches = -(-case.images // case.batch_size)
        passes = -(-(self._step * (repeats + 2) + 1) // batches)
        self._prepared = prepare(case.config(data, unique("produce")).model_copy(update={"passes": passes}))
        clock = Clock()
        self._batches = _load(self._prepared)
        self._decode_ms = 1000 * clock.stop(sum(map(len, self._batches))).cpu_s
        model = copy.deepcopy(self._prepared.backbone.model)  # the producer's has its hooks
        dtype = None if case.autocast is None else DTYPES[case.autocast]
        self._taken: Counter[str] = Counter()
        with (
            tempfile.TemporaryDirectory(prefix="featurestream-script-") as folder,
            Script(model, self._batches, dtype, Path(folder) / "script.pt") as script,
            Steps(self._prepared, log) as steps,
        ):
            ways = {
                "script": lambda: script.step(self._places("script")),
                "bare": lambda: forward(model, self._batches, self._places("bare"), dtype),
                "ours": lambda: steps.step(self._step),
            }
            self._runs = in_turn(ways, repeats)

    def speeds(self) -> tuple[str, ...]:
        """Return the row of the first table."""
        found, kept = (ratio(self._runs, "ours", other) for other in ("script", "bare"))
        return (
            self._case.title,
            self._case.model,
            str(self._case.image_size),
            *(f"{rate(self._runs, name):,.1f}" for name in ("script", "bare", "ours")),
            f"{found.median:.3f} ± {found.error:.3f}",
            found.against(GOAL) if self._case.ready else "decoding",
            f"{kept.median:.3f} ± {kept.error:.3f}",
            f"{cpu_ratio(self._runs, 'ours', 'bare').median:.3f}",
        )

    def stages(self) -> tuple[str, ...]:
        """Return the row of the second table."""
        bare_ms = cpu_ms(self._runs, "bare")
        return (
            self._case.title,
            self._case.model,
            *(f"{ms:.2f}" for ms in (self._decode_ms, bare_ms, cpu_ms(self._runs, "ours"))),
            f"{bare_ms / (bare_ms + self._decode_ms):.3f}",
        )

    def _places(self, way: str) -> list[int]:
        """Return the batches of a way's next step, the same ones in the same order as the producer's."""
        first = self._taken[way]
        self._taken[way] += self._step
        return [place % len(self._batches) for place in range(first, first + self._step)]


def _load(prepared: Prepared) -> list[Tensor]:
    """Return the batches of one pass, decoded."""
    layout = prepared.manifest.layout
    plans = [
        BatchPlan(batch, 0, np.array(layout.sample_range(batch), dtype=np.int64))
        for batch in range(layout.pass_batches)
    ]
    return [
        load_batch(prepared.dataset, prepared.transform, plan, seed=prepared.manifest.seed, views=1).images
        for plan in plans
    ]

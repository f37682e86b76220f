"""The producer, from image files to acknowledged records, against the bare forward on preloaded batches."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.broker import client_versions, unique
from benchmarks.measure import Clock, Run, cpu_ms, in_turn, rate, ratio
from benchmarks.report import Report, Table, package_versions
from featurectl.samples import write_samples
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.names import manifest_topic, tap_topic
from featurestream_producer.config import ProduceConfig
from featurestream_producer.loader import BatchPlan, load_batch
from featurestream_producer.prepare import Prepared, prepare
from featurestream_producer.run import publish
from featurestream_producer.worker import Stages

TAPS = ("layer2:gap", "layer3:gap", "avgpool")
GOAL = 0.98  # where decoding is not the limit


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


@dataclass(frozen=True, slots=True)
class Case:
    """Images, and what is done with them."""

    title: str
    write: Callable[[Path, int], Path]
    images: int
    image_size: int
    batch_size: int
    passes: int = 1
    model: str = "resnet18"


CASES = (
    Case("digits, 8 x 8 PNG", write_digits, images=1438, image_size=64, batch_size=64),
    Case("photos, 500 x 375 JPEG", write_photos, images=128, image_size=224, batch_size=16),
)


def run(cluster: Cluster, *, cases: Sequence[Case] = CASES, repeats: int = 3) -> Report:
    """Measure every case on the CPU."""
    speeds, stages = [], []
    with tempfile.TemporaryDirectory(prefix="featurestream-images-") as folder, KafkaLog(cluster) as log:
        for number, case in enumerate(cases):
            found = _Comparison(case, str(case.write(Path(folder) / str(number), case.images)), log, repeats)
            speeds.append(found.speeds())
            stages.append(found.stages())
    return Report(
        theme="produce",
        question="Images a second of `produce`, from image files to acknowledged records, against the bare forward of "
        f"the same model on the same batches, decoded before: taps {', '.join(TAPS)}; the bare forward ends with the "
        f"last of them. On the CPU, with {torch.get_num_threads()} threads each.",
        tables=[
            Table(("images", "model", "pixels", "bare img/s", "produce img/s", "ratio", "goal"), speeds),
            Table(
                (
                    "images",
                    "decode ms",
                    "forward ms",
                    "produce ms",
                    "possible",
                    "awaiting images",
                    "computing",
                    "awaiting Kafka",
                ),
                stages,
            ),
        ],
        remarks=[
            f"Medians of {repeats} repeats in turn, the ratio with its smallest and largest. The clock runs from the "
            "first batch to the last acknowledgement; opening data and model is not counted.",
            "The milliseconds are of CPU, an image: of decoding alone (read, decompress, resize, normalise), of the "
            "bare forward, and of the producer in all. Where the forward keeps all cores busy, decoding must take its "
            "share of them: possible is the ratio if nothing else cost anything. The last three columns are where the "
            "producer's own clock says that its computing thread spent the time.",
        ],
        versions={**package_versions("torch", "torchvision", "pillow", "numpy"), **client_versions()},
    )


class _Comparison:
    """One case, measured."""

    def __init__(self, case: Case, data: str, log: KafkaLog, repeats: int) -> None:
        self._case = case
        self._data = data
        self._log = log
        self._stages: list[Stages] = []
        prepared = self._prepare("bench-bare")
        clock = Clock()
        self._batches = _load(prepared)
        self._images = sum(map(len, self._batches))
        self._decode_ms = 1000 * clock.stop(self._images).cpu_s
        self._trunk = nn.Sequential(*list(prepared.backbone.model.children())[:-1])  # all but the classifier
        self._runs = in_turn({"bare": self._bare, "ours": self._produce}, repeats)

    def speeds(self) -> tuple[str, ...]:
        """Return the row of the first table."""
        found = ratio(self._runs, "ours", "bare")
        return (
            self._case.title,
            self._case.model,
            str(self._case.image_size),
            *(f"{rate(self._runs, name):,.0f}" for name in ("bare", "ours")),
            str(found),
            found.against(GOAL),
        )

    def stages(self) -> tuple[str, ...]:
        """Return the row of the second table."""
        forward_ms = cpu_ms(self._runs, "bare")
        waited = [(one.data_s, one.forward_s, one.send_s) for one in self._stages]
        totals = [sum(column) for column in zip(*waited, strict=True)]
        return (
            self._case.title,
            *(f"{ms:.2f}" for ms in (self._decode_ms, forward_ms, cpu_ms(self._runs, "ours"))),
            f"{forward_ms / (forward_ms + self._decode_ms):.2f}",
            *(f"{total / math.fsum(totals):.0%}" for total in totals),
        )

    def _prepare(self, stream: str) -> Prepared:
        case = self._case
        return prepare(
            ProduceConfig(
                data=self._data, stream=stream, model=case.model, weights="random", taps=TAPS, devices=("cpu",),
                image_size=case.image_size, batch_size=case.batch_size, passes=case.passes,
            )
        )  # fmt: skip

    def _bare(self) -> Run:
        clock = Clock()
        with torch.inference_mode():
            for _ in range(self._case.passes):
                for images_BCHW in self._batches:
                    self._trunk(images_BCHW)
        return clock.stop(self._images * self._case.passes)

    def _produce(self) -> Run:
        prepared = self._prepare(unique("produce"))
        manifest = prepared.manifest
        try:
            clock = Clock()
            result = publish(prepared, self._log, say=lambda _line: None)
            whole = clock.stop(max(result.rows, 1))
        finally:
            names = [tap_topic(manifest.stream, tap.name) for tap in manifest.taps]
            self._log.delete_topics([*names, manifest_topic(manifest.stream)])
        if not result.finished or result.rows != self._images * self._case.passes:
            raise RuntimeError(f"the producer published {result.rows} rows")
        self._stages.append(result.stages)
        return Run(result.images_per_s, whole.cpu_s)


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

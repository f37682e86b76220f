"""What a checkpoint costs: for one head and for a sweep, on a run's first day and on its last."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Report, Table, package_versions
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog
from featurestream.names import reader_group, tap_topic
from featurestream.reader_lease import ReaderLease
from featurestream.topics import tap_topic_settings
from featurestream_consumer.build import build_trainer
from featurestream_consumer.checkpoint import save_checkpoint
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.group import Unit, form_units
from featurestream_consumer.trainer import Once, Trainer

FEATURES, CLASSES, ROWS, LANES = 512, 10, 64, 4
STREAM, TAP = "bench-checkpoint", "avgpool"


@dataclass(frozen=True, slots=True)
class Case:
    """So many heads of one kind, which write so many checkpoints."""

    name: str
    head: str
    args: dict[str, Any]
    heads: int
    checkpoints: int


CASES = (
    Case("a linear head", "linear", {}, 1, 100),
    Case("an MLP 512-256", "mlp", {"hidden": [512, 256]}, 1, 100),
    Case("64 MLPs 64 in a sweep", "mlp", {"hidden": 64}, 64, 30),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one checkpoint of all heads took; ``beside_s`` is until the cluster had all positions."""

    save_s: float
    commit_s: float
    beside_s: float
    size: int


class _Counting(KafkaLog):
    """Tells when so many positions have been committed."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._came = threading.Condition()
        self._count = 0

    def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> None:
        super().commit_positions(group, offsets, note)
        with self._came:
            self._count += 1
            self._came.notify_all()

    def take(self, count: int) -> None:
        """Wait for ``count`` more."""
        with self._came:
            if not self._came.wait_for(lambda: self._count >= count, 60):
                raise RuntimeError(f"{self._count} of {count} positions were committed")
            self._count -= count


def run(cluster: Cluster, *, cases: Sequence[Case] = CASES, window: int = 10) -> Report:
    """Write the checkpoints of each case; the first and the last ``window`` of them are compared."""
    every_s = TrainConfig.model_fields["checkpoint_seconds"].default
    costs, ages = [], []
    with _Counting(cluster) as log:
        topic = tap_topic(STREAM, TAP)
        log.create_topic(topic, LANES, tap_topic_settings(retention_ms=60_000, retention_bytes=2**20, lanes=LANES))
        try:
            _wait_for_groups(log)
            for case in cases:
                with ReaderLease(log, STREAM, lambda: None) as lease:
                    found = _life(case, log, lease)
                costs.append(_cost_row(case, found, every_s))
                ages.append(_age_row(case, found, window))
        finally:
            log.delete_topics([topic])
    return Report(
        theme="checkpoint",
        question="What a checkpoint costs training, which waits for it: bringing the heads' own state up to date, one "
        "file a head (written, synced, renamed, the oldest removed), and handing over the positions for Kafka's tools, "
        "which another thread commits: `positions` is until all of them were. "
        f"AdamW, {FEATURES} features, {CLASSES} classes; the share is of training at the default of one checkpoint in "
        f"{every_s:g} s.",
        tables=[
            Table(
                (
                    "heads",
                    "bytes",
                    "files ms",
                    "handing over ms",
                    "all ms",
                    "worst ms",
                    f"share at {every_s:g} s",
                    "positions ms",
                ),
                costs,
            ),
            Table(
                (
                    "heads",
                    "checkpoints",
                    f"first {window} ms",
                    f"last {window} ms",
                    "last / first",
                    "first bytes",
                    "last bytes",
                ),
                ages,
            ),
        ],
        remarks=[
            "Medians over checkpoints in a row, a step of training between them; the files lie in `TMPDIR`. The second "
            "table is of the same checkpoints by age: nothing may grow."
        ],
        versions=package_versions("torch", "confluent-kafka"),
    )


def _wait_for_groups(log: _Counting) -> None:
    """Return when the broker takes positions: a new one loads its groups first."""
    deadline = time.monotonic() + 60
    while True:
        try:
            log.commit_positions(reader_group(STREAM, "h0"), {(tap_topic(STREAM, TAP), 0): 0})
        except BrokerError:
            if time.monotonic() > deadline:
                raise
        else:
            return log.take(1)


def _life(case: Case, log: _Counting, lease: ReaderLease) -> list[Cost]:
    """Train and save, again and again; return what each checkpoint cost."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, FEATURES, generator=generator), torch.randint(0, CLASSES, (ROWS,), generator=generator)
    trainers = [_trainer(case, head) for head in range(case.heads)]
    units = form_units(trainers, ROWS)
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for _ in range(case.checkpoints):
            for unit in units:
                unit.step(*rows, place="", once=Once())
            found.append(_save(trainers, units, Path(folder), log, lease))
        return found


def _trainer(case: Case, head: int) -> Trainer:
    config = TrainConfig(
        name=f"h{head}", stream=STREAM, taps=TAP, head=case.head, head_args=case.args, batch_size=ROWS, seed=head,
        optimizer="AdamW", optimizer_args={"lr": 10 ** (-2 - head % 8 / 4)}, device="cpu",
    )  # fmt: skip
    return build_trainer(config, in_features=FEATURES, outputs=CLASSES)


def _save(trainers: Sequence[Trainer], units: Sequence[Unit], folder: Path, log: _Counting, lease: ReaderLease) -> Cost:
    """Do what an experiment does at a checkpoint, for all of them."""
    began = time.perf_counter()
    for unit in units:
        unit.sync()
    paths = [
        save_checkpoint(
            folder / str(head), trainer.step_count,
            {"trainer": trainer.state_dict(), "epoch": 0, "position": [trainer.step_count, 0]},
        )
        for head, trainer in enumerate(trainers)
    ]  # fmt: skip
    saved = time.perf_counter()
    lease.commit(
        {
            f"h{head}": {(tap_topic(STREAM, TAP), lane): trainer.step_count for lane in range(LANES)}
            for head, trainer in enumerate(trainers)
        }
    )
    committed = time.perf_counter()
    log.take(len(trainers))  # else they would be committed while the next checkpoint is measured
    beside_s = time.perf_counter() - saved
    return Cost(saved - began, committed - saved, beside_s, sum(path.stat().st_size for path in paths))


def _cost_row(case: Case, found: Sequence[Cost], every_s: float) -> tuple[str, ...]:
    save_s, commit_s = (statistics.median(getattr(cost, part) for cost in found) for part in ("save_s", "commit_s"))
    whole = sorted(cost.save_s + cost.commit_s for cost in found)
    median = statistics.median(whole)
    return (
        case.name,
        f"{found[-1].size:,}",
        *(f"{1e3 * seconds:.1f}" for seconds in (save_s, commit_s, median, whole[-1])),
        f"{median / (every_s + median):.2%}",
        f"{1e3 * statistics.median(cost.beside_s for cost in found):,.0f}",
    )


def _age_row(case: Case, found: Sequence[Cost], window: int) -> tuple[str, ...]:
    first, last = (
        statistics.median(cost.save_s + cost.commit_s for cost in part) for part in (found[:window], found[-window:])
    )
    sizes = (f"{found[0].size:,}", f"{found[-1].size:,}")
    return (case.name, str(len(found)), f"{1e3 * first:.1f}", f"{1e3 * last:.1f}", f"{last / first:.2f}", *sizes)

"""What a training process exports of its reading and its experiments."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from featurestream import telemetry as t
from featurestream.read_counts import ReadCounts
from featurestream.telemetry import Sample, Telemetry
from featurestream_consumer.experiment import Experiment

if TYPE_CHECKING:
    from featurestream_consumer.shared_reading import SharedReading


def export(reading: SharedReading, telemetry: Telemetry | None) -> None:
    """Have a reading exported, where anything is."""
    if telemetry is not None:
        telemetry.add(lambda: samples(reading))


def samples(reading: SharedReading) -> Iterator[Sample]:
    """Yield what there is to say of a reading now; called from another thread than the one that trains."""
    stream, edge = reading.stream, reading.watch.edge
    yield from _read(reading.counts)
    if edge is not None:
        yield t.READER_EXPIRY.at(edge.expires_in_s(time.time()), stream)
        yield t.READER_RETENTION.at(edge.share, stream)
    yield t.READER_WARNINGS.at(reading.watch.warnings, stream)
    for stage, seconds in reading.clock.seconds.items():
        yield t.TRAINER_STAGES.at(seconds, stream, stage)
    for experiment in reading.experiments:
        yield from _experiment(experiment, stream, None if edge is None else edge.end)


def _read(counts: Mapping[str, ReadCounts]) -> Iterator[Sample]:
    for stream, read in counts.items():
        yield t.READER_BATCHES.at(read.batches, stream)
        yield t.READER_ROWS.at(read.rows, stream)
        yield t.READER_BYTES.at(read.bytes, stream)
        yield t.READER_DUPLICATES.at(read.duplicates, stream)
        yield t.READER_REFUSED.at(read.refused, stream)
        yield t.READER_WAIT.at(read.waited_s, stream)


def _experiment(experiment: Experiment, stream: str, end: int | None) -> Iterator[Sample]:
    of = stream, experiment.config.name
    trainer = experiment.trainer
    yield t.EXPERIMENT_RUNNING.at(experiment.going, *of)
    yield t.EXPERIMENT_BATCH.at(experiment.position.batch, *of)
    yield t.EXPERIMENT_EPOCH.at(experiment.epoch, *of)
    yield t.EXPERIMENT_STEPS.at(trainer.step_count, *of)
    yield t.EXPERIMENT_ROWS.at(trainer.rows_seen, *of)
    if end is not None:
        yield t.EXPERIMENT_LAG.at(max(0, end - experiment.position.batch), *of)
    if trainer.last_loss is not None:
        yield t.EXPERIMENT_LOSS.at(trainer.last_loss, *of)
    for rows, metrics in tuple(experiment.reported.items()):
        for name, value in metrics.items():
            yield t.EXPERIMENT_METRIC.at(value, *of, rows, name)
    if experiment.going:
        yield t.EXPERIMENT_CHECKPOINT_AGE.at(time.monotonic() - experiment.saved_at, *of)

"""One experiment that several processes train: each reads its share, all hold the same weights, rank 0 writes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestream.batch import FeatureBatch
from featurestream.errors import DivergedError, InternalError, UsageError
from featurestream.manifest import Manifest
from featurestream.ports import Log
from featurestream.position import Position
from featurestream.reader_lease import ReaderPlace
from featurestream.stream import FeatureStream
from featurestream.telemetry import Telemetry
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.experiment import Experiment, Result, Sizes
from featurestream_consumer.labels import LabelFiles, Labels
from featurestream_consumer.monitor import export
from featurestream_consumer.normalization import build_normalization
from featurestream_consumer.rank_records import RankBatch, RankRecords, RankRegrouper
from featurestream_consumer.rank_step import RankStep, check_splittable
from featurestream_consumer.ranks import Ranks
from featurestream_consumer.reporters import Reporters
from featurestream_consumer.shared_reading import BatchRows, SharedReading, side_by_side
from featurestream_consumer.trainer import Evaluation, Evaluator, Trainer


class Beginning(NamedTuple):
    """What rank 0 tells the others: where the experiment stands.

    Attributes:
        plan: what each epoch reads.
        epoch: epochs ended.
        position: of the row that is trained on next.
        trainer: the trainer's state as a checkpoint holds it, so that it comes to the CPU, whatever it was on.
    """

    plan: EpochPlan
    epoch: int
    position: Position
    trainer: bytes


class Scored(NamedTuple):
    """A validation record's rows, scored on the rank that has read it; all of it on the CPU.

    Attributes:
        number: the record's batch number.
        scores: scores_BC, targets and loss_B, as :meth:`Trainer.score` has them.
        labels: (rows,) or (rows, K), as the stream has them.
        indices: int64 (rows,), the samples' indices in the dataset.
    """

    number: int
    scores: tuple[Tensor, Tensor, Tensor]
    labels: NDArray[Any]
    indices: NDArray[np.int64]


class Follower(Experiment):
    """The experiment on the ranks above 0: trained alike, and never written down."""

    def report(self, kind: str, metrics: dict[str, float]) -> None:
        """Do nothing: rank 0 reports."""

    def save(self) -> bool:
        """Do nothing: rank 0 writes the checkpoints."""
        return False

    def go_on_with(self, plan: EpochPlan) -> None:
        """Take the plan: rank 0 records it."""
        self.plan = plan

    def finish(self) -> Result:
        """Note that it has ended."""
        self.result = Result(self.config.runs / self.config.name, {}, self.trainer.step_count, 0, 0)
        return self.result

    def stop(self, error: DivergedError) -> None:
        """Note why it has stopped."""
        self.error = error


class RankReading(SharedReading):
    """Trains one experiment to its end, as one of several processes.

    Statistics for standardisation are the exception to the sharing: every rank takes them from all rows of the first
    pass, so that they are those of one process, bit for bit.
    """

    def __init__(
        self,
        experiment: Experiment,
        log: Log,
        manifest: Manifest,
        ranks: Ranks,
        *,
        say: Callable[[str], None],
        progress: str | None,
    ) -> None:
        super().__init__([experiment], log, manifest, say=say, progress=progress)
        self._experiment = experiment
        self._ranks = ranks
        self._stepper = RankStep(experiment.trainer, ranks, experiment.config.seed)
        self._records: RankRecords | None = None

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _on_wait(self, stream: str) -> Callable[[float], None]:
        show = self._show(stream)

        def waiting(waited_s: float) -> None:
            show(waited_s)
            if self._records is not None:
                self._records.wait()

        return waiting

    def _place(self) -> ReaderPlace | None:
        """Return what the lease says: rank 0 holds it for all."""
        return super()._place() if self._ranks.leads else None

    def _registered(self) -> AbstractContextManager[object]:
        """Return what writes the experiment into the run registry: rank 0 does."""
        return super()._registered() if self._ranks.leads else nullcontext()

    def _heed_signals(self) -> None:
        """Do nothing: a rank that stopped at a record of its own would leave the others waiting; see RankRecords."""

    def _show(self, stream: str) -> Callable[[float], None]:
        """Return what shows a wait: on rank 0 alone."""
        return super()._on_wait(stream) if self._ranks.leads else lambda _: None

    def _know(self, epoch: int) -> None:
        """Let rank 0 find, and record, what an epoch reads."""
        if self._plan.knows(epoch):
            return
        if self._ranks.leads:
            super()._know(epoch)
        self._plan = self._ranks.share(self._plan)
        if not self._ranks.leads:
            self._experiment.go_on_with(self._plan)

    def _share_of(self, stream: FeatureStream) -> RankRecords:
        self._records = RankRecords(
            self._ranks, stream, on_wait=self._show(stream.stream), interrupted=self._interrupted.is_set
        )
        return self._records

    def _read(self, experiments: Sequence[Experiment], start: Position, stop: int) -> None:
        [experiment] = experiments
        regrouper = RankRegrouper(experiment.config.batch_size)
        with self._open(experiment.config.taps, start, stop) as stream:
            records = self._share_of(stream)
            for record in self._timed(records):
                self._offsets |= records.offsets
                with self.clock.stage("train"):
                    for batch in regrouper.add(record):
                        self._train_on(batch)
                        if not experiment.going:
                            return
                if self._bar is not None:
                    self._bar.advance(record.rows, **self._facts())
        for batch in regrouper.rest():
            self._train_on(batch)

    def _train_on(self, batch: RankBatch) -> None:
        experiment, own = self._experiment, _relabelled(batch.own, self._experiment.labels.training)
        features = None if own is None else side_by_side(own, experiment.config.taps)
        labels = None if own is None else own.labels
        try:
            self._stepper.step(features, labels, place=f"batch {batch.position.batch}")
        except DivergedError as error:
            self._stop(experiment, error)
            return
        experiment.position = batch.next_position
        if experiment.trainer.step_count % experiment.config.report_steps == 0:
            experiment.report("train", experiment.trainer.take_metrics())
        self._checkpoint_if_due()

    def _form_units(self, experiments: Sequence[Experiment]) -> None:
        """Form none: the one trainer's steps are taken by all ranks together."""

    # ---- validation -------------------------------------------------------------------------------------------------

    def _validate(self, experiments: Sequence[Experiment]) -> dict[Experiment, Evaluation]:
        """Score the validation stream's rows where they are read; rank 0 puts them together and tells the metrics."""
        if self._validation is None or not experiments:
            return {}
        experiment, taps = self._experiment, self._experiment.config.taps
        trainer = experiment.trainer
        scored: list[Scored] = []
        diverged: DivergedError | None = None
        with FeatureStream(
            self._validation, taps, stop="pass:1", log=self._log, on_wait=self._on_wait(self._validation)
        ) as stream:
            stream.counts = self.counts[self._validation]
            for record in self._share_of(stream):
                own = _relabelled(record.own, experiment.labels.validation)
                if not record.rows or own is None or diverged is not None:
                    continue
                rows, number = BatchRows(own, self._validation), record.position.batch
                try:
                    scores_BC, targets, loss_B = trainer.score(
                        rows.features(taps), rows.labels, place=f"validation batch {number}"
                    )
                except DivergedError as error:
                    diverged = error
                    continue
                scores = (scores_BC.cpu(), targets.cpu(), loss_B.cpu())
                scored.append(Scored(number, scores, rows.labels.copy(), own.indices.copy()))
        found = self._ranks.gather((scored, diverged))
        errors = [error for _, error in found or [] if error is not None]
        told = self._ranks.share(errors[0] if errors else None)
        if told is not None:
            self._stop(experiment, told)
            return {}
        evaluation = (
            _NO_ROWS if found is None else _put_together(trainer, [part for parts, _ in found for part in parts])
        )
        # The ranks above 0 need the metrics alone: a schedule may ask for the validation loss.
        return {experiment: replace(evaluation, metrics=self._ranks.share(evaluation.metrics))}


_NO_ROWS = Evaluation({}, np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 0), np.float32))


def _relabelled(batch: FeatureBatch | None, labels: Labels | None) -> FeatureBatch | None:
    """Return the rows with the labels of a file, where there are rows and a file; none of them are dropped."""
    return batch if batch is None or labels is None else next(labels.apply(batch))


def _put_together(trainer: Trainer, parts: Sequence[Scored]) -> Evaluation:
    """Return the evaluation of the ranks' rows, in the order of the stream."""
    evaluator = Evaluator(trainer.metrics)
    for part in sorted(parts, key=lambda part: part.number):
        scores_BC, targets, loss_B = (tensor.to(trainer.device) for tensor in part.scores)
        evaluator.add(scores_BC, targets, loss_B, torch.from_numpy(part.labels), torch.from_numpy(part.indices))
    return evaluator.compute()


def check_ranks(
    config: TrainConfig, manifest: Manifest, sizes: Sizes, ranks: Ranks, say: Callable[[str], None]
) -> None:
    """Raise UsageError where ranks cannot split the experiment or the stream's lanes; say where it does not pay."""
    # The schedule is left out: it needs the range, which is not known yet.
    check_splittable(sizes.build(config.model_copy(update={"scheduler": None, "scheduler_args": {}})))
    if config.unlabelled == "drop":
        raise UsageError(
            "several processes cannot leave out rows without a label: none knows which the others leave out",
            hint="train in one process, or give every sample a label",
        )
    lanes, count = manifest.lanes, ranks.count
    if count > lanes:
        raise UsageError(
            f'{count} processes cannot split the {lanes} lanes of stream "{manifest.stream}"',
            hint=f"start at most {lanes} (torchrun --nproc-per-node), or publish a stream with more --lanes",
        )
    if lanes % count:
        say(f"{count} processes do not divide {lanes} lanes: each record reaches more than one of them")
    record_rows, size = manifest.layout.rows_of(0), config.batch_size
    if size < count * record_rows:
        say(
            f"steps of {size} rows, {record_rows} of which lie in one record, seldom have work for {count} "
            f"processes at once: --batch-size {count * record_rows} or more has"
        )


def lead(
    experiment: Experiment,
    log: Log,
    manifest: Manifest,
    ranks: Ranks,
    *,
    say: Callable[[str], None],
    progress: str | None,
) -> RankReading:
    """Tell the other ranks where the experiment stands, on rank 0, and return its reading."""
    reading = RankReading(experiment, log, manifest, ranks, say=say, progress=progress)
    run, plan = experiment.run, experiment.plan
    sessions = run.record["sessions"]
    run.update(sessions=[*sessions[:-1], {**sessions[-1], "ranks": ranks.count}])
    state = io.BytesIO()
    torch.save(experiment.trainer.state_dict(), state)
    ranks.share(Beginning(plan, experiment.epoch, experiment.position, state.getvalue()))
    return reading


def follow(
    config: TrainConfig,
    log: Log,
    manifest: Manifest,
    sizes: Sizes,
    ranks: Ranks,
    *,
    labels: LabelFiles,
    telemetry: Telemetry | None = None,
) -> Result:
    """Train the experiment that rank 0 leads, as one of the others, and return its result. Nothing is written."""
    told: Beginning | Result | None = ranks.share(None)
    if isinstance(told, Result):
        return told
    if told is None:
        raise InternalError("rank 0 follows")
    plan = told.plan
    trainer = sizes.build(
        config,
        total_steps=sizes.steps(config, plan),
        normalization=build_normalization(config.normalize),
    )
    trainer.load_state_dict(torch.load(io.BytesIO(told.trainer), map_location="cpu", weights_only=True))
    experiment = Follower(
        config,
        None,  # type: ignore[arg-type]  # there is no run folder here
        plan,
        labels,
        sizes.classes,
        trainer,
        _Silence(),
        resumed=True,
        epoch=told.epoch,
        position=told.position,
    )
    reading = RankReading(experiment, log, manifest, ranks, say=lambda _: None, progress=None)
    export(reading, telemetry)
    reading.train()
    if experiment.error is not None:
        raise experiment.error
    result: Result | None = ranks.share(None)
    if result is None:
        raise InternalError("rank 0 has no result")
    return result


class _Silence(Reporters):
    """No reporters, not even the one that every run folder has."""

    def __init__(self) -> None:
        self._reporters = []

"""Experiments on one reading of a stream: each record is read and decoded once, whatever the batch sizes are.

This is how one experiment is trained too. Every experiment has a position of its own, and takes only the rows from
there on: after a kill, when the checkpoints of some are newer than those of others, those that are ahead wait for the
rows that they have not had. Checkpoints are therefore one file an experiment, each whole by itself: no file holds the
sweep, an experiment can leave, be added or be gone on with alone, and what one checkpoint costs does not depend on how
many experiments have finished.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from featurestream.batch import FeatureBatch, Regrouper
from featurestream.errors import DataError, DivergedError, FingerprintError
from featurestream.interrupts import stop_on_signals
from featurestream.logs import Line
from featurestream.manifest import Manifest
from featurestream.names import tap_topic
from featurestream.ports import Log
from featurestream.position import Position
from featurestream.progress import Progress
from featurestream.read_counts import ReadCounts
from featurestream.reader_lease import ReaderLease, ReaderPlace
from featurestream.retention_watch import RetentionWatch
from featurestream.seek import Lanes
from featurestream.stream import FeatureStream
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.experiment import Experiment
from featurestream_consumer.features import as_features
from featurestream_consumer.group import Group, Unit, form_units
from featurestream_consumer.labels import LabelFiles, Labels
from featurestream_consumer.metrics import higher_is_better
from featurestream_consumer.normalization import Normalization
from featurestream_consumer.reporters.console import format_metric
from featurestream_consumer.reporters.registry import RegistryReporter
from featurestream_consumer.stage_clock import StageClock
from featurestream_consumer.trainer import Evaluation, Evaluator, Once, Trainer
from featurestream_consumer.waiting import Waiting

T = TypeVar("T")

#: At the ends of epochs, checkpoints may cost one part in so many of the time since the last ones.
CHECKPOINT_SHARE = 20


class Lines:
    """Takes lines for the user to where they go now: above the bar, once there is one."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def __call__(self, line: str) -> None:
        """Show a line."""
        self.say(line)


class BatchRows:
    """A batch as heads take it: the features of taps side by side, put together once for all that want them."""

    def __init__(self, batch: FeatureBatch, stream: str) -> None:
        if batch.labels is None:
            raise DataError(f"batch {batch.position.batch} of {stream} has no labels")
        self.labels = batch.labels
        self._batch = batch
        self._once: dict[tuple[str, ...], Once] = {}

    def features(self, taps: tuple[str, ...]) -> Tensor:
        """Return (rows, *) features; of several taps flattened and side by side, float32."""
        return self.once(taps).make("side by side", lambda: side_by_side(self._batch, taps))

    def once(self, taps: tuple[str, ...]) -> Once:
        """Return what heads at these taps have made of the batch."""
        return self._once.setdefault(taps, Once())


def side_by_side(batch: FeatureBatch, taps: Sequence[str]) -> Tensor:
    """Return the taps' features as (rows, *): of one tap in its dtype, of several as float32, in the order given."""
    parts = [batch.tensor(tap).reshape(len(batch), -1) for tap in taps]
    return parts[0] if len(parts) == 1 else torch.cat([part.to(torch.float32) for part in parts], dim=1)


@dataclass(eq=False)
class _Share:
    """The units of one batch size and the same labels: they see the same batches, from the earliest position on."""

    size: int
    labels: Labels | None
    units: list[Unit]
    start: Position
    regrouper: Regrouper = field(init=False)
    scored: int = 0

    def __post_init__(self) -> None:
        self.regrouper = Regrouper(self.size)

    def add(self, record: FeatureBatch) -> Iterator[FeatureBatch]:
        """Take a record's rows, or a stretch of them, and yield the batches that they complete."""
        if record.position.batch < self.start.batch:
            return
        if record.position.batch == self.start.batch and record.position.row < self.start.row:
            skipped = min(self.start.row - record.position.row, len(record))
            record = record.rows(skipped, len(record))
        yield from self.regrouper.add(record)


class _Relabelled:
    """A record with the labels of every file that is asked for, each put on once."""

    def __init__(self, record: FeatureBatch) -> None:
        self._record = record
        self._made: dict[Labels, list[FeatureBatch]] = {}

    def of(self, labels: Labels | None) -> Sequence[FeatureBatch]:
        """Return the record's rows with these labels, in stretches without gaps."""
        if labels is None:
            return [self._record]
        if labels not in self._made:
            self._made[labels] = list(labels.apply(self._record))
        return self._made[labels]


class SharedReading:
    """Trains experiments on one stream to their ends.

    Args:
        experiments: held, and all of one stream, one validation stream and one range; their epochs may differ.
        log: where the streams are.
        manifest: the stream's.
        say: takes lines for the user.
        progress: show a bar under this title; None shows none.

    Attributes:
        counts: what was read, by stream: of this one, and of the validation stream.
        watch: how near retention is to what the experiment furthest behind reads next.
        clock: where the time goes.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        log: Log,
        manifest: Manifest,
        *,
        say: Callable[[str], None],
        progress: str | None,
    ) -> None:
        self.experiments = list(experiments)
        self._of = {experiment.trainer: experiment for experiment in experiments}
        self._log = log
        self._manifest = manifest
        self._plan: EpochPlan = experiments[0].plan
        self._stream = experiments[0].config.stream
        self._validation = experiments[0].config.validate_stream
        self._say = say
        self._title = progress
        # By what the units of a batch have in common: its size, whose labels it has, and the taps.
        self._units: dict[tuple[int, LabelFiles, tuple[str, ...]], list[Unit]] = {}
        self._offsets: dict[tuple[str, int], int] = {}  # what the positions are for Kafka's own tools
        self._checkpointed_at = time.monotonic()
        self._checkpoint_cost_s = 0.0
        self._waiting = Waiting(log, self.say, self._note)
        self._refusal_said = False
        self._bar: Progress | None = None
        self._interrupted = threading.Event()
        self._kept = {experiment: experiment.position for experiment in experiments}  # where a restart would go on
        self._lease = ReaderLease(log, self._stream, self._place)
        self.counts = {name: ReadCounts() for name in (self._stream, self._validation) if name is not None}
        self.watch = RetentionWatch(log, manifest, self._place, self.say)
        self.clock = StageClock()

    @property
    def stream(self) -> str:
        """The stream's name."""
        return self._stream

    def train(self) -> None:
        """Train until every experiment has finished or diverged. An error of the stream's ends all of them.

        In the main thread, the first SIGINT or SIGTERM ends it with KeyboardInterrupt between two records, or while it
        waits for one.
        """
        try:
            with self._lease, self._registered(), self.watch:
                self._train()
        finally:
            self._say_refusal()

    def _registered(self) -> AbstractContextManager[object]:
        """Return what writes the experiments into the stream's run registry meanwhile."""
        return RegistryReporter(self._log, self.stream, self.experiments, say=self.say)

    def _train(self) -> None:
        self._say_how_often()
        with ExitStack() as stack:
            stack.enter_context(self._interruptible())
            self._take_statistics()
            for experiment in self.experiments:
                stack.callback(experiment.reporters.close)
            if self._title is not None:
                self._bar = stack.enter_context(self._open_bar(self._title))
            while reading := [experiment for experiment in self.experiments if experiment.epochs_left]:
                epoch = min(experiment.epoch for experiment in reading)
                self._run_epoch(epoch, [experiment for experiment in reading if experiment.epoch == epoch])
            # What is left was trained to its end by a process that died before it could say so.
            self._finish([experiment for experiment in self.experiments if experiment.going])

    def say(self, line: str) -> None:
        """Show a line to the user, above the bar where there is one."""
        (self._say if self._bar is None else self._bar.say)(line)

    def _on_wait(self, stream: str) -> Callable[[float], None]:
        """Return what a reader of ``stream`` calls with the seconds that it has waited."""
        show = self._waiting.on(stream)

        def waiting(waited_s: float) -> None:
            self._heed_signals()
            self._lease.nudge()
            show(waited_s)

        return waiting

    def _interruptible(self) -> AbstractContextManager[None]:
        # Wherever Python would raise KeyboardInterrupt, a callback or a finaliser of a library might swallow it.
        return stop_on_signals(self._interrupted)

    def _heed_signals(self) -> None:
        if self._interrupted.is_set():
            raise KeyboardInterrupt

    def _records_of(self, stream: FeatureStream) -> Iterator[FeatureBatch]:
        for record in self._timed(stream):
            self._heed_signals()
            yield record

    def _timed(self, records: Iterable[T]) -> Iterator[T]:
        """Yield records as they come, and count the time that they take."""
        found = iter(records)
        while True:
            with self.clock.stage("read"):
                record = next(found, None)
            if record is None:
                return
            yield record

    def _note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.note(text)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _open(self, taps: Sequence[str], start: Position, stop: int) -> FeatureStream:
        stream = FeatureStream(
            self._stream, taps, start=start, stop=Position(stop), log=self._log,
            on_wait=self._on_wait(self._stream),
        )  # fmt: skip
        if stream.manifest.fingerprint != self._manifest.fingerprint:
            raise FingerprintError(
                f'stream "{self._stream}" had fingerprint {self._manifest.fingerprint} and now has '
                f"{stream.manifest.fingerprint}",
                hint="it was made anew while this experiment ran; train under another --name",
            )
        stream.counts = self.counts[self._stream]
        self._offsets |= stream.offsets
        self._lease.beat()
        return stream

    def _place(self) -> ReaderPlace | None:
        """Return what the lease says: the place of the experiment that is furthest behind, and what all still need."""
        reading = [experiment for experiment in self.experiments if experiment.epochs_left]
        if not reading:
            return None
        slowest = min(reading, key=lambda experiment: experiment.position)
        topics = {tap_topic(self._stream, tap) for tap in slowest.config.taps}
        return ReaderPlace(
            slowest.config.name,
            slowest.position.batch,
            min(map(self._needs, reading)),
            tuple(_taps_of(reading)),
            {place: offset for place, offset in dict(self._offsets).items() if place[0] in topics},
        )

    def _needs(self, experiment: Experiment) -> int:
        """Return the first batch that an experiment may still read: after a crash, or when its range begins again."""
        plan, passes = experiment.plan, experiment.plan.passes
        if plan.chosen is not None:  # which passes are read again is not known yet
            again = experiment.epoch + 1 < experiment.config.epochs
        else:
            again = passes is not None and (experiment.epoch // passes + 1) * passes < experiment.config.epochs
        return plan.start.batch if again else min(self._kept[experiment], experiment.position).batch

    def _say_how_often(self) -> None:
        """Say where rows will be read again, because the range holds fewer passes than there are epochs."""
        if self._plan.chosen is not None or any(experiment.resumed for experiment in self.experiments):
            return
        passes, rereads = self._plan.counts(self._most_epochs)
        if rereads:
            count = "1 pass" if passes == 1 else f"{passes} passes"
            self.say(f"{self._most_epochs} epochs over {count}: the last {rereads} read rows that were read before")

    @property
    def _most_epochs(self) -> int:
        return max(experiment.config.epochs for experiment in self.experiments)

    def _know(self, epoch: int) -> None:
        """Find what an epoch reads, unless it is known: a fact of this moment, recorded before anything follows it."""
        if self._plan.knows(epoch):
            return
        source = self._log.source()
        try:
            topics = [tap_topic(self._stream, tap) for tap in _taps_of(self.experiments)]
            lanes = Lanes(source, self._plan.layout, topics)
            plan = self._plan.choose(complete=lanes.next_missing(), earliest=lanes.earliest())
        finally:
            source.close()
        for experiment in self.experiments:
            if experiment.going:
                experiment.go_on_with(plan)
        if plan.rereads(epoch) and not self._plan.rereads(epoch - 1) and epoch < self._most_epochs:
            why = "there is no other" if plan.next_pass is None else "the next one is not there yet"
            number = plan.segment(epoch).pass_number
            self.say(Line(f"epoch {epoch} reads pass {number} again: {why}", epoch=epoch, **{"pass": number}))
        self._plan = plan

    def _take_statistics(self) -> None:
        """Read the first epoch's rows once for the means and deviations that standardisation needs, of all taps."""
        wanted: dict[Normalization, Experiment] = {}
        for experiment in self.experiments:
            normalization = experiment.trainer.normalization
            if experiment.going and normalization.needs_statistics and not normalization.state_dict():
                wanted.setdefault(normalization, experiment)
        if not wanted:
            return
        segment = self._plan.segment(0)
        self.say(f"taking means and deviations of pass {segment.pass_number}")
        # Record by record: batch sizes must not decide the last bits of what experiments share.
        with self._open(_taps_of(wanted.values()), segment.start, segment.stop) as stream:
            for record in self._records_of(stream):
                if len(record):
                    for normalization, experiment in wanted.items():
                        features = side_by_side(record, experiment.config.taps)
                        normalization.update(as_features(features, experiment.trainer.device))

    def _run_epoch(self, epoch: int, experiments: Sequence[Experiment]) -> None:
        segment = self._plan.segment(epoch)
        self._form_units(experiments)
        behind = [experiment for experiment in experiments if experiment.position.batch < segment.stop]
        if behind:
            self._read(behind, min(experiment.position for experiment in behind), segment.stop)
        self._end_epoch([experiment for experiment in experiments if experiment.going])

    def _read(self, experiments: Sequence[Experiment], start: Position, stop: int) -> None:
        """Train on the rows from ``start`` up to, and without, batch ``stop``."""
        shares = self._shares(experiments)
        with self._open(_taps_of(experiments), start, stop) as stream:
            for record in self._records_of(stream):
                self._offsets |= stream.offsets
                relabelled = _Relabelled(record)
                with self.clock.stage("train"):
                    for share in shares:
                        for rows in relabelled.of(share.labels):
                            for batch in share.add(rows):
                                self._step(batch, share)
                if self._bar is not None:
                    self._bar.advance(len(record), **self._facts())
        with self.clock.stage("train"):
            for share in shares:
                for batch in share.regrouper.rest():
                    self._step(batch, share)

    def _shares(self, experiments: Iterable[Experiment]) -> list[_Share]:
        starts: dict[tuple[int, LabelFiles], Position] = {}
        for experiment in experiments:
            key = (experiment.config.batch_size, experiment.labels)
            starts[key] = min(starts.get(key, experiment.position), experiment.position)
        return [
            _Share(size, labels.training, self._units_of(size, labels), start)
            for (size, labels), start in starts.items()
        ]

    def _units_of(self, size: int, labels: LabelFiles) -> list[Unit]:
        return [unit for key, units in self._units.items() if key[:2] == (size, labels) for unit in units]

    # ---- training ---------------------------------------------------------------------------------------------------

    def _form_units(self, experiments: Sequence[Experiment]) -> None:
        """Let experiments that are at the same place take their steps together, where that is exact and pays."""
        parts: dict[tuple[int, LabelFiles, tuple[str, ...], Position], list[Trainer]] = defaultdict(list)
        for experiment in experiments:
            config = experiment.config
            parts[config.batch_size, experiment.labels, config.taps, experiment.position].append(experiment.trainer)
        formed = {
            key: {trainer for unit in units for trainer in unit.trainers} for key, units in self._units.items()
        }  # fmt: skip
        if len({key[:3] for key in parts}) == len(parts) and formed == {
            key[:3]: set(trainers) for key, trainers in parts.items()
        }:
            return
        self._dissolve()
        for (size, labels, taps, _), trainers in parts.items():
            self._units.setdefault((size, labels, taps), []).extend(form_units(trainers, size))
        grouped = [len(unit.trainers) for units in self._units.values() for unit in units if isinstance(unit, Group)]
        if len(experiments) > 1:
            counts = [f"{heads} heads together" for heads in grouped]
            if alone := len(experiments) - sum(grouped):
                counts.append(f"{alone} one by one")
            self.say(f"{len(experiments)} experiments: {', '.join(counts)}")

    def _dissolve(self) -> None:
        for units in self._units.values():
            for unit in units:
                unit.dissolve()
        self._units = {}

    def _step(self, batch: FeatureBatch, share: _Share) -> None:
        """Train every unit of a share on a batch, those that are ahead of it excepted."""
        if len(batch) == 0:
            return
        rows = BatchRows(batch, self._stream)
        place = f"batch {batch.position.batch}"
        for unit in share.units:
            if not unit.trainers:
                continue
            one = self._of[unit.trainers[0]]
            if one.position > batch.position:
                continue
            taps = one.config.taps
            diverged = unit.step(rows.features(taps), rows.labels, place=place, once=rows.once(taps))
            for trainer, error in diverged.items():
                self._stop(self._of[trainer], error)
            synced = False
            for trainer in unit.trainers:
                experiment = self._of[trainer]
                experiment.position = batch.next_position
                if trainer.step_count % experiment.config.report_steps == 0:
                    if not synced:
                        unit.sync()
                        synced = True
                    experiment.report("train", trainer.take_metrics())
        self._checkpoint_if_due()

    def _checkpoint_if_due(self) -> None:
        going = [experiment for experiment in self.experiments if experiment.epochs_left]
        if going and time.monotonic() - self._checkpointed_at >= min(
            experiment.config.checkpoint_seconds for experiment in going
        ):
            self._checkpoint(going)

    def _stop(self, experiment: Experiment, error: DivergedError) -> None:
        experiment.stop(error)
        if len(self.experiments) > 1:
            left = sum(other.going for other in self.experiments)
            name = experiment.config.name
            line = f"{name} stopped: {error.message}; the other {left} go on"
            self.say(Line(line, experiment=name, step=error.step, batch=experiment.position.batch))

    def _end_epoch(self, experiments: Sequence[Experiment]) -> None:
        for units in self._units.values():
            for unit in units:
                unit.sync()
        with self.clock.stage("validate"):
            evaluations = self._validate(experiments)
        if experiments:
            # Also after the last epoch: its checkpoint says where the next one would begin, should there be one.
            self._know(experiments[0].epoch + 1)
        for experiment in experiments:
            if experiment.going:
                experiment.end_epoch(evaluations.get(experiment))
        if len(self.experiments) > 1:
            self._say_best(experiments)
        ended = [experiment for experiment in experiments if experiment.going and not experiment.epochs_left]
        elapsed_s = time.monotonic() - self._checkpointed_at
        if ended or elapsed_s >= CHECKPOINT_SHARE * self._checkpoint_cost_s:
            self._checkpoint(experiment for experiment in experiments if experiment.going)
        self._finish(ended)

    def _finish(self, experiments: Sequence[Experiment]) -> None:
        late = [experiment for experiment in experiments if experiment.evaluation is None]
        if late and self._validation is not None:
            self._form_units(late)
            with self.clock.stage("validate"):
                evaluations = self._validate(late)
            for experiment, evaluation in evaluations.items():
                experiment.evaluation = evaluation
        gone = {experiment.trainer for experiment in experiments}
        for key, units in self._units.items():
            for unit in units:
                if gone.issuperset(unit.trainers):
                    unit.dissolve()
                else:
                    for trainer in gone.intersection(unit.trainers):
                        unit.remove(trainer)
            self._units[key] = [unit for unit in units if unit.trainers]
        self._units = {key: units for key, units in self._units.items() if units}
        for experiment in experiments:
            if experiment.going:
                experiment.finish()

    # ---- validation -------------------------------------------------------------------------------------------------

    def _validate(self, experiments: Sequence[Experiment]) -> dict[Experiment, Evaluation]:
        """Return how each does on the validation stream, which is read once; one whose scores diverge is stopped."""
        if self._validation is None or not experiments:
            return {}
        evaluators = {experiment: Evaluator(experiment.trainer.metrics) for experiment in experiments}
        with FeatureStream(
            self._validation,
            _taps_of(experiments),
            stop="pass:1",
            log=self._log,
            on_wait=self._on_wait(self._validation),
        ) as stream:
            stream.counts = self.counts[self._validation]
            keys = dict.fromkeys((experiment.config.batch_size, experiment.labels) for experiment in experiments)
            shares = [
                _Share(size, labels.validation, self._units_of(size, labels), stream.start) for size, labels in keys
            ]
            for record in self._records_of(stream):
                relabelled = _Relabelled(record)
                for share in shares:
                    for rows in relabelled.of(share.labels):
                        for batch in share.add(rows):
                            self._score(batch, share, evaluators)
        for share in shares:
            for batch in share.regrouper.rest():
                self._score(batch, share, evaluators)
        return {experiment: evaluator.compute() for experiment, evaluator in evaluators.items() if experiment.going}

    def _score(
        self,
        batch: FeatureBatch,
        share: _Share,
        evaluators: dict[Experiment, Evaluator],
    ) -> None:
        if len(batch) == 0:
            return
        rows = BatchRows(batch, self._validation or "")
        # Copied once: they are kept, and what they lie in now is a record.
        labels, indices = torch.from_numpy(rows.labels.copy()), torch.from_numpy(batch.indices.copy())
        place = f"validation batch {share.scored}"
        share.scored += 1
        for unit in share.units:
            if not unit.trainers:
                continue
            taps = self._of[unit.trainers[0]].config.taps
            found = unit.score(rows.features(taps), rows.labels, place=place, once=rows.once(taps))
            for trainer, scores in found.items():
                experiment = self._of[trainer]
                if isinstance(scores, DivergedError):
                    unit.remove(trainer)
                    self._stop(experiment, scores)
                else:
                    evaluators[experiment].add(*scores, labels, indices)

    # ---- what is left behind ----------------------------------------------------------------------------------------

    def _checkpoint(self, experiments: Iterable[Experiment]) -> None:
        """Write every experiment's checkpoint, then show the positions to Kafka's tools."""
        began = time.monotonic()
        with self.clock.stage("checkpoint"):
            for units in self._units.values():
                for unit in units:
                    unit.sync()
            saved = [experiment for experiment in experiments if experiment.save()]
            self._kept |= {experiment: experiment.position for experiment in saved}
            self._commit(saved)
        self._checkpointed_at = time.monotonic()
        self._checkpoint_cost_s = self._checkpointed_at - began

    def _commit(self, experiments: Iterable[Experiment]) -> None:
        positions: dict[str, dict[tuple[str, int], int]] = {}
        for experiment in experiments:
            topics = {tap_topic(self._stream, tap) for tap in experiment.config.taps}
            positions[experiment.config.name] = {
                place: offset for place, offset in self._offsets.items() if place[0] in topics
            }
        self._lease.commit(positions)
        self._say_refusal()

    def _say_refusal(self) -> None:
        """Say once that the broker does not take positions: they are for lag tools, the truth is in the checkpoints."""
        failure = self._lease.failure()
        if failure is not None and not self._refusal_said:
            self._refusal_said = True
            self.say(
                f"the broker did not take positions ({failure.message}): lag tools, and a producer that waits for "
                "readers, may not see these ones"
            )

    def _say_best(self, experiments: Sequence[Experiment]) -> None:
        """Say in one line which experiment does best so far, by the main metric of the first."""
        judged = [experiment for experiment in experiments if experiment.evaluation is not None]
        metric = judged[0].trainer.main_metric if judged else ""
        values = {
            experiment: experiment.evaluation.metrics[metric]
            for experiment in judged
            if experiment.evaluation is not None and metric in experiment.evaluation.metrics
        }
        if values:
            best = (max if higher_is_better(metric) else min)(values, key=lambda experiment: values[experiment])
            name = best.config.name
            line = (
                f"epoch {best.epoch}: best of {len(values)} is {name} with validation {metric} "
                f"{format_metric(metric, values[best])}"
            )
            facts = {"epoch": best.epoch, "batch": best.position.batch, metric: values[best]}
            self.say(Line(line, experiment=name, **facts))

    def _facts(self) -> dict[str, float]:
        losses = [experiment.trainer.last_loss for experiment in self.experiments if experiment.going]
        known = [loss for loss in losses if loss is not None]
        if not known:
            return {}
        return {"loss": known[0]} if len(self.experiments) == 1 else {"lowest loss": min(known)}

    def _open_bar(self, title: str) -> Progress:
        reading = [experiment for experiment in self.experiments if experiment.epochs_left]
        rows = self._plan.rows_of_first(self._most_epochs)
        total = None if rows is None else sum(rows)
        done = min((experiment.trainer.rows_seen for experiment in reading), default=total or 0)
        return Progress(title, total, "rows", done=done)


def _taps_of(experiments: Iterable[Experiment]) -> list[str]:
    return list(dict.fromkeys(tap for experiment in experiments for tap in experiment.config.taps))

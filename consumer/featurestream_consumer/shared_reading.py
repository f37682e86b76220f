"""Experiments on one reading of a stream: each record is read and decoded once, whatever the batch sizes are.

This is how one experiment is trained too. Every experiment has a position of its own, and takes only the rows from
there on: after a kill, when the checkpoints of some are newer than those of others, those that are ahead wait for the
rows that they have not had. Checkpoints are therefore one file an experiment, each whole by itself: no file holds the
sweep, an experiment can leave, be added or be gone on with alone, and what one checkpoint costs does not depend on how
many experiments have finished.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featurestream.batch import FeatureBatch, Regrouper
from featurestream.errors import BrokerError, DataError, DivergedError, FingerprintError
from featurestream.manifest import Manifest
from featurestream.manifest_topic import read_facts
from featurestream.names import reader_group, tap_topic
from featurestream.ports import Log
from featurestream.position import Position
from featurestream.progress import Progress
from featurestream.reader_lease import ReaderLease, ReaderPlace
from featurestream.stream import FeatureStream
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.experiment import Experiment
from featurestream_consumer.features import as_features
from featurestream_consumer.group import Group, Unit, form_units
from featurestream_consumer.metrics import higher_is_better
from featurestream_consumer.normalization import Normalization
from featurestream_consumer.reporters.console import format_metric
from featurestream_consumer.trainer import Evaluation, Evaluator, Once, Trainer

WAIT_LINE_S = 10.0  # how long nothing comes before the reader says so
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
    """The units of one batch size: they see the same batches, from the earliest of their positions on."""

    size: int
    units: list[Unit]
    start: Position
    regrouper: Regrouper = field(init=False)

    def __post_init__(self) -> None:
        self.regrouper = Regrouper(self.size)

    def add(self, record: FeatureBatch) -> Iterator[FeatureBatch]:
        """Take a record's rows and yield the batches that they complete."""
        if record.position.batch < self.start.batch:
            return
        if record.position.batch == self.start.batch and record.position.row < self.start.row:
            skipped = min(self.start.row - record.position.row, len(record))
            record = record.rows(skipped, len(record))
        yield from self.regrouper.add(record)


class SharedReading:
    """Trains experiments on one stream to their ends.

    Args:
        experiments: held, and all of one stream, one validation stream and one range; their epochs may differ.
        log: where the streams are.
        manifest: the stream's.
        say: takes lines for the user.
        progress: show a bar under this title; None shows none.
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
        self._units: dict[tuple[int, tuple[str, ...]], list[Unit]] = {}
        self._offsets: dict[tuple[str, int], int] = {}  # what the positions are for Kafka's own tools
        self._checkpointed_at = time.monotonic()
        self._checkpoint_cost_s = 0.0
        self._waiting = False
        self._commit_failed = False
        self._bar: Progress | None = None
        self._kept = {experiment: experiment.position for experiment in experiments}  # where a restart would go on
        self._lease = ReaderLease(log, self._stream, self._place)

    def train(self) -> None:
        """Train until every experiment has finished or diverged. An error of the stream's ends all of them."""
        with self._lease:
            self._train()

    def _train(self) -> None:
        self._say_how_often()
        self._take_statistics()
        with ExitStack() as stack:
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

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _open(self, taps: Sequence[str], start: Position, stop: int) -> FeatureStream:
        stream = FeatureStream(
            self._stream, taps, start=start, stop=Position(stop), log=self._log, on_wait=self._wait
        )  # fmt: skip
        if stream.manifest.fingerprint != self._manifest.fingerprint:
            raise FingerprintError(
                f'stream "{self._stream}" had fingerprint {self._manifest.fingerprint} and now has '
                f"{stream.manifest.fingerprint}",
                hint="it was made anew while this experiment ran; train under another --name",
            )
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
        again = passes is not None and (experiment.epoch // passes + 1) * passes < experiment.config.epochs
        return plan.start.batch if again else min(self._kept[experiment], experiment.position).batch

    def _say_how_often(self) -> None:
        """Say where rows will be read again, because the range holds fewer passes than there are epochs."""
        passes = self._plan.passes
        epochs = max(experiment.config.epochs for experiment in self.experiments)
        if passes is not None and epochs > passes and not any(experiment.resumed for experiment in self.experiments):
            count = "1 pass" if passes == 1 else f"{passes} passes"
            self.say(f"{epochs} epochs over {count}: the last {epochs - passes} read rows that were read before")

    def _wait(self, waited_s: float) -> None:
        """Say once, in one line, why nothing goes on."""
        self._lease.nudge()
        if waited_s < WAIT_LINE_S:
            self._waiting = False
            return
        if self._waiting:
            return
        self._waiting = True
        source = self._log.source()
        try:
            lease = read_facts(source, self._stream).lease
        finally:
            source.close()
        producer = "no producer is running" if lease is None or lease.released else f"producer on {lease.host}"
        self.say(f"waiting for stream {self._stream} to go on ({producer}); Ctrl-C stops and keeps what was learnt")

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
            for record in stream:
                if len(record):
                    for normalization, experiment in wanted.items():
                        features = side_by_side(record, experiment.config.taps)
                        normalization.update(as_features(features, experiment.trainer.device))

    def _run_epoch(self, epoch: int, experiments: Sequence[Experiment]) -> None:
        segment = self._plan.segment(epoch)
        self._form_units(experiments)
        behind = [experiment for experiment in experiments if experiment.position.batch < segment.stop]
        if behind:
            start = min(experiment.position for experiment in behind)
            shares = self._shares(behind)
            with self._open(_taps_of(behind), start, segment.stop) as stream:
                for record in stream:
                    self._offsets |= stream.offsets
                    for share in shares:
                        for batch in share.add(record):
                            self._step(batch, share)
                    if self._bar is not None:
                        self._bar.advance(len(record), **self._facts())
            for share in shares:
                for batch in share.regrouper.rest():
                    self._step(batch, share)
        self._end_epoch([experiment for experiment in experiments if experiment.going])

    def _shares(self, experiments: Iterable[Experiment]) -> list[_Share]:
        starts: dict[int, Position] = {}
        for experiment in experiments:
            size = experiment.config.batch_size
            starts[size] = min(starts.get(size, experiment.position), experiment.position)
        return [_Share(size, self._units_of(size), start) for size, start in starts.items()]

    def _units_of(self, size: int) -> list[Unit]:
        return [unit for (own, _), units in self._units.items() if own == size for unit in units]

    # ---- training ---------------------------------------------------------------------------------------------------

    def _form_units(self, experiments: Sequence[Experiment]) -> None:
        """Let experiments that are at the same place take their steps together, where that is exact and pays."""
        parts: dict[tuple[int, tuple[str, ...], Position], list[Trainer]] = defaultdict(list)
        for experiment in experiments:
            config = experiment.config
            parts[config.batch_size, config.taps, experiment.position].append(experiment.trainer)
        formed = {
            key: {trainer for unit in units for trainer in unit.trainers} for key, units in self._units.items()
        }  # fmt: skip
        if len({key[:2] for key in parts}) == len(parts) and formed == {
            key[:2]: set(trainers) for key, trainers in parts.items()
        }:
            return
        self._dissolve()
        for (size, taps, _), trainers in parts.items():
            self._units.setdefault((size, taps), []).extend(form_units(trainers, size))
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
        going = [experiment for experiment in self.experiments if experiment.epochs_left]
        if going and time.monotonic() - self._checkpointed_at >= min(
            experiment.config.checkpoint_seconds for experiment in going
        ):
            self._checkpoint(going)

    def _stop(self, experiment: Experiment, error: DivergedError) -> None:
        experiment.stop(error)
        if len(self.experiments) > 1:
            left = sum(other.going for other in self.experiments)
            self.say(f"{experiment.config.name} stopped: {error.message}; the other {left} go on")

    def _end_epoch(self, experiments: Sequence[Experiment]) -> None:
        for units in self._units.values():
            for unit in units:
                unit.sync()
        evaluations = self._validate(experiments)
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
            for experiment, evaluation in self._validate(late).items():
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
                experiment.finish(self._manifest.data.classes)

    # ---- validation -------------------------------------------------------------------------------------------------

    def _validate(self, experiments: Sequence[Experiment]) -> dict[Experiment, Evaluation]:
        """Return how each does on the validation stream, which is read once; one whose scores diverge is stopped."""
        if self._validation is None or not experiments:
            return {}
        evaluators = {experiment: Evaluator(experiment.trainer.metrics) for experiment in experiments}
        with FeatureStream(
            self._validation, _taps_of(experiments), stop="pass:1", log=self._log, on_wait=self._wait
        ) as stream:
            sizes = dict.fromkeys(experiment.config.batch_size for experiment in experiments)
            shares = [_Share(size, self._units_of(size), stream.start) for size in sizes]
            numbers = dict.fromkeys((share.size for share in shares), 0)
            for record in stream:
                for share in shares:
                    for batch in share.add(record):
                        self._score(batch, share, evaluators, numbers)
        for share in shares:
            for batch in share.regrouper.rest():
                self._score(batch, share, evaluators, numbers)
        return {experiment: evaluator.compute() for experiment, evaluator in evaluators.items() if experiment.going}

    def _score(
        self,
        batch: FeatureBatch,
        share: _Share,
        evaluators: dict[Experiment, Evaluator],
        numbers: dict[int, int],
    ) -> None:
        if len(batch) == 0:
            return
        rows = BatchRows(batch, self._validation or "")
        # Copied once: they are kept, and what they lie in now is a record.
        labels, indices = torch.from_numpy(rows.labels.copy()), torch.from_numpy(batch.indices.copy())
        place = f"validation batch {numbers[share.size]}"
        numbers[share.size] += 1
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
        for units in self._units.values():
            for unit in units:
                unit.sync()
        for experiment in experiments:
            if experiment.save():
                self._kept[experiment] = experiment.position
                self._commit(experiment)
        self._checkpointed_at = time.monotonic()
        self._checkpoint_cost_s = self._checkpointed_at - began

    def _commit(self, experiment: Experiment) -> None:
        config = experiment.config
        topics = {tap_topic(config.stream, tap) for tap in config.taps}
        offsets = {place: offset for place, offset in self._offsets.items() if place[0] in topics}
        try:
            self._log.commit_positions(reader_group(config.stream, config.name), offsets, self._lease.note(config.name))
        except BrokerError as error:
            # The position on the broker is for lag tools alone: the truth is in the checkpoint that was just written.
            if not self._commit_failed:
                self.say(
                    f"the broker did not take the position ({error.message}): lag tools, and a producer that waits for "
                    "readers, will not see this one"
                )
            self._commit_failed = True

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
            self.say(
                f"epoch {best.epoch}: best of {len(values)} is {best.config.name} with validation {metric} "
                f"{format_metric(metric, values[best])}"
            )

    def _facts(self) -> dict[str, float]:
        losses = [experiment.trainer.last_loss for experiment in self.experiments if experiment.going]
        known = [loss for loss in losses if loss is not None]
        if not known:
            return {}
        return {"loss": known[0]} if len(self.experiments) == 1 else {"lowest loss": min(known)}

    def _open_bar(self, title: str) -> Progress:
        epochs = max(experiment.config.epochs for experiment in self.experiments)
        reading = [experiment for experiment in self.experiments if experiment.epochs_left]
        total = None if self._plan.passes is None else sum(map(self._plan.rows, range(epochs)))
        bar = Progress(title, total, "rows")
        bar.done = min((experiment.trainer.rows_seen for experiment in reading), default=total or 0)
        return bar


def _taps_of(experiments: Iterable[Experiment]) -> list[str]:
    return list(dict.fromkeys(tap for experiment in experiments for tap in experiment.config.taps))

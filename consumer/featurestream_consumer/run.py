"""One experiment from beginning to end: the stream, the trainer, the run folder and the reporters put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from featurestream.batch import FeatureBatch
from featurestream.errors import BrokerError, DataError, FingerprintError, UsageError
from featurestream.manifest import Manifest
from featurestream.manifest_topic import read_facts, require_manifest
from featurestream.names import reader_group
from featurestream.ports import Log
from featurestream.position import Position
from featurestream.progress import Progress
from featurestream.stream import FeatureStream
from featurestream_consumer.build import build_trainer, check_config
from featurestream_consumer.checkpoint import load_newest, save_checkpoint
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.features import Rows
from featurestream_consumer.losses import outputs_for
from featurestream_consumer.reporters import Reporters
from featurestream_consumer.runs import RECORD_NAME, Run, open_run
from featurestream_consumer.sibling import check_sibling
from featurestream_consumer.trainer import Evaluation, Trainer

WAIT_LINE_S = 10.0  # how long nothing comes before the reader says so


@dataclass(frozen=True, slots=True)
class Result:
    """What an experiment came to.

    Attributes:
        folder: the run folder.
        metrics: the final metrics: of the validation stream where there is one, else of the last epoch.
        steps: optimiser steps.
        passes: passes of the stream that were read.
        already_finished: nothing was done, because the run folder holds this very run, finished.
    """

    folder: Path
    metrics: dict[str, float]
    steps: int
    passes: int
    already_finished: bool = False


def train(
    config: TrainConfig,
    log: Log,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> Result:
    """Train one experiment, or go on with it where its run folder holds it unfinished.

    Stopped at any moment, also by SIGKILL, and called again with the same configuration, it ends with the weights of
    an undisturbed run (bit for bit on the CPU).

    Args:
        config: what to do.
        log: where the streams are.
        resume: go on with a run that is there; a new one is refused.
        say: takes lines for the user.
        progress: show a bar (plain lines where standard error is no terminal).

    Raises:
        UsageError: for names, arguments and labels that do not fit, before anything is read.
        RunMismatchError: the run folder holds a run of another configuration.
        GoneError, HoleError, FingerprintError: the range cannot be read exactly.
    """
    check_config(config)
    manifest = require_manifest(log, config.stream)
    validation = None if config.validate_stream is None else require_manifest(log, config.validate_stream)
    config = config.model_copy(update={"taps": tuple(manifest.tap(tap).name for tap in config.taps)})
    sizes = _Sizes.of(config, manifest, validation)
    begun = (config.runs / config.name / RECORD_NAME).exists()
    found = None if begun else _resolve(config, log)  # a range that cannot be read leaves no run folder behind
    with open_run(
        config.runs,
        config,
        manifest.fingerprint,
        validation_fingerprint=None if validation is None else validation.fingerprint,
        must_exist=resume,
    ) as run:
        if run.finished:
            say(f"{run.folder} is finished; its weights are in {run.head_path.name}")
            record = run.record
            return Result(run.folder, record["metrics"], record["step"], record["passes"], already_finished=True)
        plan = _settle(run, config, log, manifest, found)
        if plan.passes is not None and config.epochs > plan.passes:
            count = "1 pass" if plan.passes == 1 else f"{plan.passes} passes"
            again = config.epochs - plan.passes
            say(f"{config.epochs} epochs over {count}: the last {again} read rows that were read before")
        return _Experiment(config, log, manifest, sizes, run, plan, say, progress).train()


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What must be known before a head can be built."""

    in_features: int
    outputs: int
    class_labels: bool

    @classmethod
    def of(cls, config: TrainConfig, manifest: Manifest, validation: Manifest | None) -> _Sizes:
        data = manifest.data
        if data.label_kind == "none":
            raise UsageError(
                f'stream "{manifest.stream}" has no labels: there is nothing to train a head on',
                hint="publish it from data with labels (a CSV with a label column, or a folder a class)",
            )
        classes = data.class_count
        if validation is not None:
            check_sibling(manifest, validation, config.taps)
        return cls(
            sum(manifest.tap(tap).numbers for tap in config.taps),
            outputs_for(config.loss, classes=classes, label_numbers=data.label_values),
            data.label_kind == "class",
        )


def _resolve(config: TrainConfig, log: Log) -> EpochPlan:
    """Return the range that the configuration names, as it is on the log now."""
    with FeatureStream(config.stream, config.taps, start=config.start, stop=config.stop, log=log) as stream:
        return EpochPlan(stream.manifest.layout, stream.start, stream.stop)


def _settle(run: Run, config: TrainConfig, log: Log, manifest: Manifest, found: EpochPlan | None) -> EpochPlan:
    """Return which batches each epoch reads. A start or stop is resolved once, and is a number in the record."""
    record = run.record
    if "start" in record:
        return EpochPlan(manifest.layout, Position(**record["start"]), record["stop"])
    plan = found or _resolve(config, log)
    # The last bits of a sum depend on the number of threads: who repeats the run needs it.
    run.update(start=plan.start, stop=plan.stop, threads=torch.get_num_threads())
    return plan


@dataclass
class _Experiment:
    """A run under way."""

    config: TrainConfig
    log: Log
    manifest: Manifest
    sizes: _Sizes
    run: Run
    plan: EpochPlan
    say: Callable[[str], None]
    progress: bool
    epoch: int = 0
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)  # what the position is for Kafka's own tools
    checkpointed_at: float = field(default_factory=time.monotonic)
    waiting: bool = False
    commit_failed: bool = False

    def train(self) -> Result:
        config, run = self.config, self.run
        found = load_newest(run.checkpoints)
        for note in found[1] if found else []:
            self.say(note)
        state = found[0] if found else None
        trainer = build_trainer(
            config,
            in_features=self.sizes.in_features,
            outputs=self.sizes.outputs,
            class_labels=self.sizes.class_labels,
            total_steps=self._total_steps(),
        )
        position = self.plan.segment(0).start
        if state is not None:
            trainer.load_state_dict(state["trainer"])
            self.epoch = state["epoch"]
            position = Position(*state["position"])
            self.say(f"going on at step {trainer.step_count}, epoch {self.epoch}, {position}")
        elif trainer.normalization.needs_statistics:
            self._take_statistics(trainer)
        evaluation: Evaluation | None = None
        with ExitStack() as stack:
            resume_step = None if state is None else trainer.step_count
            bar = stack.enter_context(self._bar(trainer)) if self.progress else None
            self.say = bar.say if bar else self.say
            reporters = stack.enter_context(
                Reporters(config.reporters, run.folder, resume_step=resume_step, say=self.say)
            )
            while self.epoch < config.epochs:
                position = self._epoch(trainer, position, reporters, bar)
                evaluation = self._validate(trainer)
                metrics = trainer.take_metrics() if evaluation is None else evaluation.metrics
                self._report(reporters, "train" if evaluation is None else "validation", trainer, position, metrics)
                trainer.end_epoch(None if evaluation is None else evaluation.metrics.get("loss"))
                self.epoch += 1
                position = self.plan.segment(self.epoch).start
                self._checkpoint(trainer, position)
        return self._finish(trainer, evaluation)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _segment(self, position: Position, stop: int) -> FeatureStream:
        stream = FeatureStream(
            self.config.stream,
            self.config.taps,
            start=position,
            stop=Position(stop),
            batch_size=self.config.batch_size,
            log=self.log,
            on_wait=self._wait,
        )
        if stream.manifest.fingerprint != self.manifest.fingerprint:
            raise FingerprintError(
                f'stream "{self.config.stream}" had fingerprint {self.manifest.fingerprint} and now has '
                f"{stream.manifest.fingerprint}",
                hint="it was made anew while this experiment ran; train under another --name",
            )
        return stream

    def _wait(self, waited_s: float) -> None:
        """Say once, in one line, why nothing goes on."""
        if waited_s < WAIT_LINE_S:
            self.waiting = False
            return
        if self.waiting:
            return
        self.waiting = True
        source = self.log.source()
        try:
            lease = read_facts(source, self.config.stream).lease
        finally:
            source.close()
        producer = "no producer is running" if lease is None or lease.released else f"producer on {lease.host}"
        self.say(
            f"waiting for stream {self.config.stream} to go on ({producer}); Ctrl-C stops and keeps what was learnt"
        )

    def _rows(self, batch: FeatureBatch) -> Rows:
        if batch.labels is None:
            raise DataError(f"batch {batch.position.batch} of {self.config.stream} has no labels")
        parts = [batch.tensor(tap).reshape(len(batch), -1) for tap in self.config.taps]
        features: Tensor = parts[0] if len(parts) == 1 else torch.cat([part.to(torch.float32) for part in parts], dim=1)
        return Rows(features, batch.labels, batch.indices)

    def _take_statistics(self, trainer: Trainer) -> None:
        """Read the first epoch's rows once for the means and deviations that standardisation needs."""
        segment = self.plan.segment(0)
        self.say(f"taking means and deviations of pass {segment.pass_number}")
        for batch in self._segment(segment.start, segment.stop):
            rows = self._rows(batch)
            trainer.normalization.update(torch.as_tensor(rows.features).to(trainer.device, torch.float32))

    # ---- training ---------------------------------------------------------------------------------------------------

    def _epoch(self, trainer: Trainer, position: Position, reporters: Reporters, bar: Progress | None) -> Position:
        """Train on the rest of an epoch, from ``position`` on; return where it ended."""
        stop = self.plan.segment(self.epoch).stop
        if position.batch >= stop:
            return position
        with self._segment(position, stop) as stream:
            for batch in stream:
                if len(batch) == 0:
                    continue
                rows = self._rows(batch)
                loss = trainer.step(rows.features, rows.labels, place=f"batch {batch.position.batch}")
                position = batch.next_position
                if bar is not None:
                    bar.advance(len(batch), loss=loss)
                if trainer.step_count % self.config.report_steps == 0:
                    self._report(reporters, "train", trainer, position, trainer.take_metrics())
                self.offsets |= stream.offsets
                if time.monotonic() - self.checkpointed_at >= self.config.checkpoint_seconds:
                    self._checkpoint(trainer, position)
        return position

    def _validate(self, trainer: Trainer) -> Evaluation | None:
        if self.config.validate_stream is None:
            return None
        with FeatureStream(
            self.config.validate_stream,
            self.config.taps,
            stop="pass:1",
            batch_size=self.config.batch_size,
            log=self.log,
            on_wait=self._wait,
        ) as stream:
            return trainer.evaluate(self._validation_rows(stream))

    def _validation_rows(self, stream: FeatureStream) -> Iterator[Rows]:
        return (self._rows(batch) for batch in stream if len(batch))

    def _report(
        self, reporters: Reporters, kind: str, trainer: Trainer, position: Position, metrics: dict[str, float]
    ) -> None:
        if metrics:
            place = {"step": trainer.step_count, "epoch": self.epoch, "batch": position.batch, "time": time.time()}
            reporters.report({"kind": kind, **place, **metrics})

    def _checkpoint(self, trainer: Trainer, position: Position) -> None:
        """Write weights, optimiser, random state and position as one file, then show the position to Kafka's tools."""
        state = {
            "trainer": trainer.state_dict(),
            "epoch": self.epoch,
            "position": [position.batch, position.row],
        }
        save_checkpoint(self.run.checkpoints, trainer.step_count, state)
        self.checkpointed_at = time.monotonic()
        try:
            self.log.commit_positions(reader_group(self.config.stream, self.config.name), self.offsets)
        except BrokerError as error:
            # The position on the broker is for lag tools alone: the truth is in the checkpoint that was just written.
            if not self.commit_failed:
                self.say(f"the broker did not take the position ({error.message}): lag tools will not see this reader")
            self.commit_failed = True

    def _finish(self, trainer: Trainer, evaluation: Evaluation | None) -> Result:
        run, config = self.run, self.config
        passes = config.epochs if self.plan.passes is None else min(config.epochs, self.plan.passes)
        if evaluation is None:
            evaluation = self._validate(trainer)  # the last epoch was trained by a process that died after it
        metrics = self._last_metrics() if evaluation is None else evaluation.metrics
        classes = self.manifest.data.classes
        run.write_head(
            trainer.head,
            trainer.normalization,
            in_features=self.sizes.in_features,
            outputs=self.sizes.outputs,
            **({"classes": "\n".join(classes)} if classes else {}),
        )
        if evaluation is not None:
            run.write_validation(evaluation.indices, evaluation.labels, evaluation.scores)
        run.finish(
            step=trainer.step_count,
            epoch=self.epoch,
            end=Position(self.plan.segment(config.epochs - 1).stop),
            metrics=metrics,
            main_metric=trainer.main_metric if evaluation is not None else None,
            passes=passes,
        )
        return Result(run.folder, metrics, trainer.step_count, passes)

    def _last_metrics(self) -> dict[str, float]:
        from featurestream_consumer.reporters.console import PLACE
        from featurestream_consumer.reporters.jsonl import read_rows

        rows = read_rows(self.run.metrics_path)
        return {name: value for name, value in rows[-1].items() if name not in PLACE} if rows else {}

    def _total_steps(self) -> int | None:
        """Return the run's optimiser steps, where no sample is missing and the range has an end."""
        layout, size = self.manifest.layout, self.config.batch_size
        if self.plan.passes is None:
            return None
        total = 0
        for epoch in range(self.config.epochs):
            segment = self.plan.segment(epoch)
            rows = sum(layout.rows_of(batch) for batch in range(segment.start.batch, segment.stop))
            total += -(-(rows - segment.start.row) // size)
        return total

    def _bar(self, trainer: Trainer) -> Progress:
        layout = self.manifest.layout
        total = None
        if self.plan.passes is not None:
            total = sum(
                sum(layout.rows_of(batch) for batch in range(segment.start.batch, segment.stop)) - segment.start.row
                for segment in map(self.plan.segment, range(self.config.epochs))
            )
        bar = Progress(self.config.name, total, "rows")
        bar.done = trainer.rows_seen
        return bar

"""One experiment under way: its configuration, its trainer, its place in the stream and its run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import DataError, DivergedError, UsageError
from featurestream.manifest import Manifest
from featurestream.position import Position
from featurestream_consumer.build import build_trainer
from featurestream_consumer.checkpoint import load_newest, save_checkpoint
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.labels import LabelFiles
from featurestream_consumer.losses import outputs_for
from featurestream_consumer.normalization import Normalization
from featurestream_consumer.reporters import Reporters
from featurestream_consumer.reporters.ending import Ending, Pictures
from featurestream_consumer.runs import Run
from featurestream_consumer.sibling import check_sibling
from featurestream_consumer.trainer import Evaluation, Trainer


@dataclass(frozen=True, slots=True)
class Result:
    """What an experiment came to.

    Attributes:
        folder: the run folder.
        metrics: the final metrics: of the validation stream where there is one, else of the last epoch.
        steps: optimiser steps.
        passes: passes of the stream that were read.
        rereads: epochs that read a pass again: passes and rereads are all epochs.
        already_finished: nothing was done, because the run folder holds this very run, finished.
    """

    folder: Path
    metrics: dict[str, float]
    steps: int
    passes: int
    rereads: int
    already_finished: bool = False

    @classmethod
    def of_finished(cls, run: Run) -> Result:
        """Return what a run that has come to its end says about itself."""
        record = run.record
        passes, epochs = record["passes"], record["epoch"]
        return cls(run.folder, record["metrics"], record["step"], passes, epochs - passes, already_finished=True)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What must be known before a head can be built.

    Attributes:
        in_features: numbers in a row, of all taps together.
        outputs: of the head.
        class_labels: whether labels are class numbers.
        classes: their names, where they have any.
        samples: samples of a pass that are trained on, where labels leave some out; None: all.
    """

    in_features: int
    outputs: int
    class_labels: bool
    classes: tuple[str, ...] | None = None
    samples: int | None = None

    @classmethod
    def of(cls, config: TrainConfig, manifest: Manifest, validation: Manifest | None) -> Sizes:
        """Return the sizes of an experiment on these streams. Raises UsageError where it cannot be trained on them."""
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
            None if data.classes is None else tuple(data.classes),
        )

    def steps(self, config: TrainConfig, plan: EpochPlan) -> int | None:
        """Return the optimiser steps of the whole run, where they are known."""
        return plan.steps(config.epochs, config.batch_size, samples=self.samples)

    def build(
        self,
        config: TrainConfig,
        *,
        total_steps: int | None = None,
        normalization: Normalization | None = None,
    ) -> Trainer:
        """Return the trainer of an experiment at its beginning; see :func:`build_trainer`."""
        return build_trainer(
            config,
            in_features=self.in_features,
            outputs=self.outputs,
            class_labels=self.class_labels,
            total_steps=total_steps,
            normalization=normalization,
        )


@dataclass(eq=False)
class Experiment:
    """An experiment whose run folder is held.

    Attributes:
        labels: the label files that it takes labels from.
        classes: the names of its classes, where they have any.
        trainer: the trainer, at its beginning or where a checkpoint left it.
        resumed: whether a checkpoint was there.
        epoch: epochs ended.
        position: the place of the row that it is trained on next.
        evaluation: of the epoch that ended last, where there is a validation stream.
        error: why it stopped before its end, if it has.
        result: what it came to, once it has ended.
        reported: the metrics reported last, by kind of row ("train", "validation").
        saved_at: when its last checkpoint was written; when this process opened it where there is none (monotonic, s).
        pictures: what the samples of a stream look like, where somebody can tell.
    """

    config: TrainConfig
    run: Run
    plan: EpochPlan
    labels: LabelFiles
    classes: tuple[str, ...] | None
    trainer: Trainer
    reporters: Reporters
    resumed: bool
    epoch: int
    position: Position
    evaluation: Evaluation | None = None
    error: DivergedError | None = None
    result: Result | None = None
    reported: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)
    saved_at: float = field(default_factory=time.monotonic, repr=False)
    pictures: Pictures | None = field(default=None, repr=False)
    saved: tuple[int, int] | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        config: TrainConfig,
        run: Run,
        plan: EpochPlan,
        sizes: Sizes,
        normalization: Normalization,
        *,
        labels: LabelFiles,
        reporters: tuple[str, ...],
        say: Callable[[str], None],
        note: Callable[[str], None],
        pictures: Pictures | None = None,
    ) -> Experiment:
        """Return the experiment as its newest whole checkpoint left it, or at its beginning.

        ``say`` takes the lines of its reporters, ``note`` a sentence for each checkpoint that is damaged.
        """
        trainer = sizes.build(config, total_steps=sizes.steps(config, plan), normalization=normalization)
        found = load_newest(run.checkpoints)
        epoch, position = 0, plan.segment(0).start
        if found is None and "lineage" in run.record:
            raise DataError(
                f"{run.folder} is a fork and holds no checkpoint: what it went on from is gone",
                hint="remove the folder and give the fork command again",
            )
        if found is not None:
            state, notes = found
            for sentence in notes:
                note(sentence)
            trainer.load_state_dict(state["trainer"])
            epoch, position = state["epoch"], Position(*state["position"])
        return cls(
            config,
            run,
            plan,
            labels,
            sizes.classes,
            trainer,
            Reporters(reporters, run.folder, resume_step=None if found is None else trainer.step_count, say=say),
            found is not None,
            epoch,
            position,
            pictures=pictures,
            saved=None if found is None else (trainer.step_count, epoch),
        )

    @property
    def going(self) -> bool:
        """Whether there is anything left to do."""
        return self.error is None and self.result is None

    @property
    def epochs_left(self) -> bool:
        """Whether there is anything left to read."""
        return self.going and self.epoch < self.config.epochs

    def go_on_with(self, plan: EpochPlan) -> None:
        """Take a plan that knows one epoch more, and record it: from now on this experiment reads what it says."""
        self.run.update(**plan.facts())
        self.plan = plan

    def report(self, kind: str, metrics: dict[str, float]) -> None:
        """Give a row of metrics to the reporters, none where there are no metrics."""
        if metrics:
            self.reported[kind] = metrics
            place = {
                "step": self.trainer.step_count,
                "epoch": self.epoch,
                "batch": self.position.batch,
                "time": time.time(),
            }
            self.reporters.report({"kind": kind, **place, **metrics})

    def end_epoch(self, evaluation: Evaluation | None) -> None:
        """Report how it did, and go to the beginning of the next epoch."""
        self.evaluation = evaluation
        metrics = self.trainer.take_metrics() if evaluation is None else evaluation.metrics
        self.report("train" if evaluation is None else "validation", metrics)
        self.trainer.end_epoch(None if evaluation is None else evaluation.metrics.get("loss"))
        self.epoch += 1
        self.position = self.plan.segment(self.epoch).start

    def save(self) -> bool:
        """Write weights, optimiser, random state and position as one file, unless the newest holds them already."""
        place = (self.trainer.step_count, self.epoch)
        if place == self.saved:
            return False
        state: dict[str, Any] = {
            "trainer": self.trainer.state_dict(),
            "epoch": self.epoch,
            "position": [self.position.batch, self.position.row],
        }
        save_checkpoint(
            self.run.checkpoints, self.trainer.step_count, state, keep=self.config.keep_checkpoints
        )  # fmt: skip
        self.saved, self.saved_at = place, time.monotonic()
        return True

    def finish(self) -> Result:
        """Write what a finished run holds: head, validation scores, the record's end; let its reporters go."""
        run, config, trainer = self.run, self.config, self.trainer
        passes, rereads = self.plan.counts(config.epochs)
        evaluation = self.evaluation
        metrics = run.last_metrics() if evaluation is None else evaluation.metrics
        run.write_head(
            trainer.head,
            trainer.normalization,
            in_features=trainer.in_features,
            outputs=trainer.outputs,
            **({"classes": "\n".join(self.classes)} if self.classes else {}),
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
            rereads=rereads,
        )
        self.evaluation = None
        self.result = Result(run.folder, metrics, trainer.step_count, passes, rereads)
        ending = Ending("finished", metrics, self.classes, self._validation_pictures(), evaluation is not None)
        self._let_go(ending)
        return self.result

    def stop(self, error: DivergedError) -> None:
        """Record that it has diverged: what was learnt up to the last checkpoint is kept."""
        self.error = error
        self.evaluation = None
        self.run.stop(str(error), diverged_at_step=error.step)
        self._let_go(Ending("diverged", {}, self.classes, None))

    def _let_go(self, ending: Ending) -> None:
        self.reporters.finish(ending)
        self.reporters.close()

    def _validation_pictures(self) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]] | None:
        stream = self.config.validate_stream
        return None if self.pictures is None or stream is None else partial(self.pictures, stream)

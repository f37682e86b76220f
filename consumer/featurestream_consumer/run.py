"""One experiment from beginning to end."""

from __future__ import annotations

from collections.abc import Callable

import torch

from featurestream.manifest_topic import require_manifest
from featurestream.ports import Log
from featurestream.stream import FeatureStream
from featurestream_consumer.build import check_config
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.experiment import Experiment, Result, Sizes
from featurestream_consumer.normalization import build_normalization
from featurestream_consumer.optimizers import check_scheduler
from featurestream_consumer.runs import RECORD_NAME, Run, open_run
from featurestream_consumer.shared_reading import Lines, SharedReading


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
    sizes = Sizes.of(config, manifest, validation)
    begun = (config.runs / config.name / RECORD_NAME).exists()
    found = None
    if not begun:  # what cannot be trained leaves no run folder behind
        found = find_range(config, log)
        check_length(config, found)
    with open_run(
        config.runs,
        config,
        manifest.fingerprint,
        validation_fingerprint=None if validation is None else validation.fingerprint,
        must_exist=resume,
    ) as run:
        if run.finished:
            say(f"{run.folder} is finished; its weights are in {run.head_path.name}")
            return Result.of_finished(run)
        plan = EpochPlan.of_record(manifest.layout, run.record) or found or find_range(config, log)
        settle_range(run, plan)
        lines = Lines(say)
        experiment = Experiment.open(
            config, run, plan, sizes, build_normalization(config.normalize),
            reporters=config.reporters, say=lines, note=say,
        )  # fmt: skip
        if experiment.resumed:
            trainer = experiment.trainer
            say(f"going on at step {trainer.step_count}, epoch {experiment.epoch}, {experiment.position}")
        reading = SharedReading([experiment], log, manifest, say=say, progress=config.name if progress else None)
        lines.say = reading.say
        reading.train()
        if experiment.error is not None:
            raise experiment.error
        return Result.of_finished(run) if experiment.result is None else experiment.result


def find_range(config: TrainConfig, log: Log) -> EpochPlan:
    """Return the range that the configuration names, as it is on the log now."""
    with FeatureStream(config.stream, config.taps, start=config.start, stop=config.stop, log=log) as stream:
        plan = EpochPlan(stream.manifest.layout, stream.start, stream.stop)
    return plan.never_waiting() if config.when_behind == "reread" else plan


def check_length(config: TrainConfig, plan: EpochPlan) -> None:
    """Raise UsageError where the schedule needs the number of optimiser steps and nobody knows it."""
    if config.scheduler is not None:
        known = plan.steps(config.epochs, config.batch_size) is not None
        check_scheduler(config.scheduler, config.scheduler_args, run_length_known=known)


def settle_range(run: Run, plan: EpochPlan) -> None:
    """Put into the record which batches each epoch reads: what was found once is a number from then on."""
    if EpochPlan.of_record(plan.layout, run.record) != plan:
        # The last bits of a sum depend on the number of threads: who repeats the run needs it.
        run.update(**{"threads": torch.get_num_threads()} | run.record | plan.facts())

"""One experiment from beginning to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from featurestream.logs import Line
from featurestream.manifest_topic import require_manifest
from featurestream.ports import Log
from featurestream.stream import FeatureStream
from featurestream.telemetry import Telemetry
from featurestream_consumer.build import check_config
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.experiment import Experiment, Result, Sizes
from featurestream_consumer.label_check import check_labels, labelled_samples, recorded_facts
from featurestream_consumer.labels import open_labels
from featurestream_consumer.monitor import export
from featurestream_consumer.normalization import build_normalization
from featurestream_consumer.optimizers import check_scheduler
from featurestream_consumer.rank_reading import check_ranks, follow, lead
from featurestream_consumer.ranks import Ranks
from featurestream_consumer.reporters.ending import Pictures
from featurestream_consumer.reporters.registry import finish_late
from featurestream_consumer.runs import RECORD_NAME, Run, check_run, open_run, read_record
from featurestream_consumer.shared_reading import Lines, SharedReading


def train(
    config: TrainConfig,
    log: Log,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
    ranks: Ranks | None = None,
    telemetry: Telemetry | None = None,
    pictures: Pictures | None = None,
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
        ranks: the processes that train it together, each of which calls this; None: this one alone.
        telemetry: takes what can be said of the run while it lasts.
        pictures: what the samples of a stream look like, for the reporter ``projector``; None: nobody can tell.

    Raises:
        UsageError: for names, arguments and labels that do not fit, before anything is read.
        RunMismatchError: the run folder holds a run of another configuration.
        GoneError, HoleError, FingerprintError: the range cannot be read exactly.
    """
    check_config(config)
    manifest = require_manifest(log, config.stream)
    validation = None if config.validate_stream is None else require_manifest(log, config.validate_stream)
    fingerprints = manifest.fingerprint, None if validation is None else validation.fingerprint
    config = config.model_copy(update={"taps": tuple(manifest.tap(tap).name for tap in config.taps)})
    files = open_labels(config, manifest, {})
    config = files.sealed(config)
    sizes = Sizes.of(config, *files.relabelled(manifest, validation))
    if ranks is not None:
        config = config.model_copy(update={"device": ranks.device})
        check_ranks(config, manifest, sizes, ranks, say)
        if not ranks.leads:
            return follow(config, log, manifest, sizes, ranks, labels=files, telemetry=telemetry)
    folder = config.runs / config.name
    record = None
    if (folder / RECORD_NAME).exists():
        record = read_record(folder)
        check_run(folder, record, config, *fingerprints)
    # What cannot be trained leaves no run folder behind.
    plan = EpochPlan.of_record(manifest.layout, record or {}) or find_range(config, log)
    facts = recorded_facts(record, files)
    if facts is None:
        facts = check_labels([files], manifest, plan.segment(0), validation, log, say=say).get(files)
    sizes = replace(sizes, samples=labelled_samples(facts))
    check_length(config, sizes.steps(config, plan))
    with open_run(
        config.runs, config, fingerprints[0], validation_fingerprint=fingerprints[1], must_exist=resume
    ) as run:
        if run.finished:
            say(f"{run.folder} is finished; its weights are in {run.head_path.name}")
            finish_late(log, config.stream, [run], say=say)
            return _shared(Result.of_finished(run), ranks)
        plan = EpochPlan.of_record(manifest.layout, run.record) or plan
        settle(run, plan, facts)
        lines = Lines(say)
        experiment = Experiment.open(
            config, run, plan, sizes, build_normalization(config.normalize),
            labels=files, reporters=config.reporters, say=lines, note=say, pictures=pictures,
        )  # fmt: skip
        if experiment.resumed:
            trainer = experiment.trainer
            step, epoch, position = trainer.step_count, experiment.epoch, experiment.position
            line = f"going on at step {step}, epoch {epoch}, {position}"
            say(Line(line, step=step, epoch=epoch, batch=position.batch))
        title = config.name if progress else None
        reading = (
            SharedReading([experiment], log, manifest, say=say, progress=title)
            if ranks is None
            else lead(experiment, log, manifest, ranks, say=say, progress=title)
        )
        lines.say = reading.say
        export(reading, telemetry)
        reading.train()
        if experiment.error is not None:
            raise experiment.error
        return _shared(Result.of_finished(run) if experiment.result is None else experiment.result, ranks)


def _shared(result: Result, ranks: Ranks | None) -> Result:
    """Return the result, after the other ranks have it too."""
    return result if ranks is None else ranks.share(result)


def find_range(config: TrainConfig, log: Log) -> EpochPlan:
    """Return the range that the configuration names, as it is on the log now."""
    with FeatureStream(config.stream, config.taps, start=config.start, stop=config.stop, log=log) as stream:
        plan = EpochPlan(stream.manifest.layout, stream.start, stream.stop)
    return plan.never_waiting() if config.when_behind == "reread" else plan


def check_length(config: TrainConfig, steps: int | None) -> None:
    """Raise UsageError where the schedule needs the number of optimiser steps and nobody knows it."""
    if config.scheduler is not None:
        check_scheduler(config.scheduler, config.scheduler_args, run_length_known=steps is not None)


def settle(run: Run, plan: EpochPlan, labels: dict[str, Any] | None) -> None:
    """Put into the record what was found: which batches each epoch reads, and what is known of a label file."""
    if EpochPlan.of_record(plan.layout, run.record) != plan or run.record.get("labels") != labels:
        # The last bits of a sum depend on the number of threads: who repeats the run needs it.
        facts = {} if labels is None else {"labels": labels}
        run.update(**{"threads": torch.get_num_threads()} | run.record | plan.facts() | facts)

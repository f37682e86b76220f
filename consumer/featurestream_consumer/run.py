"""One experiment from beginning to end."""

from __future__ import annotations

from collections.abc import Callable

import torch

from featurestream.manifest import Manifest
from featurestream.manifest_topic import require_manifest
from featurestream.ports import Log
from featurestream.position import Position
from featurestream.stream import FeatureStream
from featurestream_consumer.build import check_config
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.experiment import Experiment, Result, Sizes
from featurestream_consumer.normalization import build_normalization
from featurestream_consumer.rank_reading import check_ranks, follow, lead
from featurestream_consumer.ranks import Ranks
from featurestream_consumer.runs import RECORD_NAME, Run, open_run
from featurestream_consumer.shared_reading import Lines, SharedReading


def train(
    config: TrainConfig,
    log: Log,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
    ranks: Ranks | None = None,
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
    if ranks is not None:
        config = config.model_copy(update={"device": ranks.device})
        check_ranks(config, manifest, sizes, ranks, say)
        if not ranks.leads:
            return follow(config, log, manifest, sizes, ranks)
    begun = (config.runs / config.name / RECORD_NAME).exists()
    found = None if begun else find_range(config, log)  # a range that cannot be read leaves no run folder behind
    with open_run(
        config.runs,
        config,
        manifest.fingerprint,
        validation_fingerprint=None if validation is None else validation.fingerprint,
        must_exist=resume,
    ) as run:
        if run.finished:
            say(f"{run.folder} is finished; its weights are in {run.head_path.name}")
            return _shared(Result.of_finished(run), ranks)
        plan = settle_range(run, manifest, lambda: found or find_range(config, log))
        lines = Lines(say)
        experiment = Experiment.open(
            config, run, plan, sizes, build_normalization(config.normalize),
            reporters=config.reporters, say=lines, note=say,
        )  # fmt: skip
        if experiment.resumed:
            trainer = experiment.trainer
            say(f"going on at step {trainer.step_count}, epoch {experiment.epoch}, {experiment.position}")
        title = config.name if progress else None
        reading = (
            SharedReading([experiment], log, manifest, say=say, progress=title)
            if ranks is None
            else lead(experiment, log, manifest, ranks, say=say, progress=title)
        )
        lines.say = reading.say
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
        return EpochPlan(stream.manifest.layout, stream.start, stream.stop)


def settle_range(run: Run, manifest: Manifest, find: Callable[[], EpochPlan]) -> EpochPlan:
    """Return which batches each epoch reads. A start or stop is found once, and then is a number in the record."""
    record = run.record
    if "start" in record:
        return EpochPlan(manifest.layout, Position(**record["start"]), record["stop"])
    found = find()
    # The last bits of a sum depend on the number of threads: who repeats the run needs it.
    run.update(start=found.start, stop=found.stop, threads=torch.get_num_threads())
    return found

"""Many experiments on one reading of a stream, each with the result that it would have alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from featurestream.errors import DivergedError, RunMismatchError, UsageError
from featurestream.manifest import Manifest
from featurestream.manifest_topic import require_manifest
from featurestream.ports import Log
from featurestream.position import Position
from featurestream_consumer.build import check_config
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.experiment import Experiment, Result, Sizes
from featurestream_consumer.group import shape_key
from featurestream_consumer.normalization import Normalization, build_normalization
from featurestream_consumer.reporters import default_reporters
from featurestream_consumer.run import find_range, settle_range
from featurestream_consumer.runs import RECORD_NAME, check_run, open_run, read_record
from featurestream_consumer.shared_reading import Lines, SharedReading


@dataclass(frozen=True, slots=True)
class Planned:
    """An experiment of a sweep, checked against its streams.

    Attributes:
        config: what to do, with the taps' names as the stream has them.
        sizes: of its head.
        group: the number of the group of heads that can train together; None for one that trains alone.
        record: what its run folder holds already; None where there is none.
    """

    config: TrainConfig
    sizes: Sizes
    group: int | None
    record: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep that can be run: nothing has been written yet.

    Attributes:
        experiments: in the order of the file.
        manifest: of the stream.
        validation: of the validation stream, where there is one.
        range: what all of them read.
    """

    experiments: tuple[Planned, ...]
    manifest: Manifest
    validation: Manifest | None
    range: EpochPlan

    @property
    def groups(self) -> dict[int, list[TrainConfig]]:
        """The experiments of each group of heads that can train together; whether it pays shows when they do."""
        found: dict[int, list[TrainConfig]] = {}
        for planned in self.experiments:
            if planned.group is not None:
                found.setdefault(planned.group, []).append(planned.config)
        return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an experiment of a sweep ended: with a result, or stopped because it diverged."""

    config: TrainConfig
    result: Result | None
    reason: str | None = None


def check_configs(configs: Sequence[TrainConfig]) -> None:
    """Raise UsageError for what is wrong with an experiment whatever the streams are. It needs no broker."""
    for config in configs:
        with _named(config):
            check_config(config)


def plan_sweep(configs: Sequence[TrainConfig], log: Log) -> SweepPlan:
    """Return the sweep of these experiments, checked whole.

    They share stream, validation stream and range. Raises UsageError for names, arguments, taps and labels that do not
    fit and for an empty range, RunMismatchError where a run folder holds another experiment or was begun elsewhere in
    the stream, FingerprintError where it read another stream, GoneError where part of the range is gone.
    """
    check_configs(configs)
    first = configs[0]
    manifest = require_manifest(log, first.stream)
    validation = None if first.validate_stream is None else require_manifest(log, first.validate_stream)
    planned: list[tuple[TrainConfig, Sizes, dict[str, Any] | None]] = []
    for given in configs:
        with _named(given):
            config = given.model_copy(update={"taps": tuple(manifest.tap(tap).name for tap in given.taps)})
            sizes = Sizes.of(config, manifest, validation)
        folder = config.runs / config.name
        record = None
        if (folder / RECORD_NAME).exists():
            record = read_record(folder)
            check_run(
                folder, record, config, manifest.fingerprint, None if validation is None else validation.fingerprint
            )
        planned.append((config, sizes, record))
    found = _begun_range(planned, manifest)
    if found is None:
        taps = tuple(dict.fromkeys(tap for config, _, _ in planned for tap in config.taps))
        found = find_range(planned[0][0].model_copy(update={"taps": taps}), log)
    keys = [_group_key(config, sizes, found) for config, sizes, _ in planned]
    counts = Counter(key for key in keys if key is not None)
    numbers = {key: number for number, key in enumerate(key for key, count in counts.items() if count > 1)}
    return SweepPlan(
        tuple(
            Planned(config, sizes, numbers.get(key), record)
            for (config, sizes, record), key in zip(planned, keys, strict=True)
        ),
        manifest,
        validation,
        found,
    )


def run_sweep(
    plan: SweepPlan,
    log: Log,
    *,
    say: Callable[[str], None] = lambda _: None,
    progress: str | None = None,
) -> list[Outcome]:
    """Train what the plan holds, in its order, and go on with what was begun; finished and diverged runs are left.

    Stopped at any moment, also by SIGKILL, and called again with the same plan, every head has the weights of an
    undisturbed run (bit for bit on the CPU). ``progress`` is the title of a bar. Raises DivergedError when every
    experiment has diverged, and what the stream or the disk raises.
    """
    done: dict[str, Outcome] = {}
    opened: list[Experiment] = []
    normalizations: dict[tuple[tuple[str, ...], str], Normalization] = {}
    # Lines of sixty experiments at each report would be no use; the sweep says which is best.
    quiet = tuple(name for name in default_reporters() if name != "console")
    lines = Lines(say)
    with ExitStack() as stack:
        for planned in plan.experiments:
            config = planned.config
            if planned.record is not None and planned.record.get("diverged_at_step") is not None:
                done[config.name] = Outcome(config, None, planned.record["reason"])
                continue
            run = stack.enter_context(
                open_run(
                    config.runs,
                    config,
                    plan.manifest.fingerprint,
                    validation_fingerprint=None if plan.validation is None else plan.validation.fingerprint,
                )
            )
            if run.finished:
                done[config.name] = Outcome(config, Result.of_finished(run))
                continue
            range_ = settle_range(run, plan.manifest, lambda: plan.range)
            shared = normalizations.setdefault((config.taps, config.normalize), build_normalization(config.normalize))
            opened.append(
                Experiment.open(
                    config, run, range_, planned.sizes, shared, reporters=config.reporters or quiet, say=lines,
                    note=partial(_say_of, config.name, say),
                )
            )  # fmt: skip
        _say_where(opened, done, say)
        if opened:
            reading = SharedReading(opened, log, plan.manifest, say=say, progress=progress)
            lines.say = reading.say
            reading.train()
    for experiment in opened:
        reason = None if experiment.error is None else str(experiment.error)
        done[experiment.config.name] = Outcome(experiment.config, experiment.result, reason)
    outcomes = [done[planned.config.name] for planned in plan.experiments]
    if all(outcome.result is None for outcome in outcomes):
        raise DivergedError(
            f"all {len(outcomes)} experiments have diverged, the first one because {outcomes[0].reason}", step=None
        )
    return outcomes


def _say_of(name: str, say: Callable[[str], None], sentence: str) -> None:
    say(f"{name}: {sentence}")


def _say_where(opened: Sequence[Experiment], done: dict[str, Outcome], say: Callable[[str], None]) -> None:
    """Say what is left to do where there is something that is not."""
    resumed = sum(experiment.resumed for experiment in opened)
    finished = sum(outcome.result is not None for outcome in done.values())
    parts = [
        f"{count} {what}"
        for count, what in (
            (finished, "finished"),
            (len(done) - finished, "diverged"),
            (resumed, "go on where they were"),
            (len(opened) - resumed if finished or resumed else 0, "begin"),
        )
        if count
    ]
    if parts:
        say(f"of {len(opened) + len(done)} experiments, {', '.join(parts)}")


def _begun_range(
    planned: Sequence[tuple[TrainConfig, Sizes, dict[str, Any] | None]], manifest: Manifest
) -> EpochPlan | None:
    """Return the range of those that were begun: a sweep that has grown reads on what its first experiments read."""
    ranges = {
        config.name: EpochPlan(manifest.layout, Position(**record["start"]), record["stop"])
        for config, _, record in planned
        if record is not None and "start" in record
    }
    if not ranges:
        return None
    one, found = next(iter(ranges.items()))
    for name, other in ranges.items():
        if other != found:
            raise RunMismatchError(
                f'"{one}" reads from {found.start} to batch {found.stop}, "{name}" from {other.start} to batch '
                f"{other.stop}: they were not begun in one sweep",
                hint="give them other names, or train them one by one",
                differences={"range": (str(found), str(other))},
            )
    return found


def _group_key(config: TrainConfig, sizes: Sizes, found: EpochPlan) -> object:
    steps = found.steps(config.epochs, config.batch_size)
    key = shape_key(sizes.build(config, total_steps=steps))
    return None if key is None else (config.taps, config.batch_size, key)


@contextmanager
def _named(config: TrainConfig) -> Iterator[None]:
    """Say in a mistake of the caller's which experiment it is in."""
    try:
        yield
    except UsageError as error:
        error.message = f'experiment "{config.name}": {error.message}'
        raise

"""Many experiments on one reading of a stream, each with the result that it would have alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from featurestream.errors import DivergedError, RunMismatchError, UsageError
from featurestream.logs import Line
from featurestream.manifest import Manifest
from featurestream.manifest_topic import require_manifest
from featurestream.ports import Log
from featurestream.telemetry import Telemetry
from featurestream_consumer.build import check_config
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.experiment import Experiment, Result, Sizes
from featurestream_consumer.group import shape_key
from featurestream_consumer.label_check import check_labels, labelled_samples, recorded_facts
from featurestream_consumer.labels import Cache, LabelFiles, open_labels
from featurestream_consumer.monitor import export
from featurestream_consumer.normalization import Normalization, build_normalization
from featurestream_consumer.reporters import default_reporters
from featurestream_consumer.reporters.ending import Pictures
from featurestream_consumer.reporters.registry import finish_late
from featurestream_consumer.run import find_range, settle
from featurestream_consumer.runs import RECORD_NAME, Run, check_run, open_run, read_record
from featurestream_consumer.shared_reading import Lines, SharedReading


@dataclass(frozen=True, slots=True)
class Planned:
    """An experiment of a sweep, checked against its streams.

    Attributes:
        config: what to do, with the taps' names as the stream has them.
        sizes: of its head.
        labels: the label files that it takes labels from.
        label_facts: what its record holds, or is to hold, of them.
        group: the number of the group of heads that can train together; None for one that trains alone.
        record: what its run folder holds already; None where there is none.
    """

    config: TrainConfig
    sizes: Sizes
    labels: LabelFiles
    label_facts: dict[str, Any] | None
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


def plan_sweep(configs: Sequence[TrainConfig], log: Log, *, say: Callable[[str], None] = lambda _: None) -> SweepPlan:
    """Return the sweep of these experiments, checked whole; ``say`` takes lines about label files.

    They share stream, validation stream and range. Raises UsageError for names, arguments, taps and labels that do not
    fit and for an empty range, RunMismatchError where a run folder holds another experiment or was begun elsewhere in
    the stream, FingerprintError where it read another stream, GoneError where part of the range is gone, DataError for
    a label file that lacks samples.
    """
    check_configs(configs)
    first = configs[0]
    manifest = require_manifest(log, first.stream)
    validation = None if first.validate_stream is None else require_manifest(log, first.validate_stream)
    planned: list[Planned] = []
    cache: Cache = {}
    for given in configs:
        with _named(given):
            config = given.model_copy(update={"taps": tuple(manifest.tap(tap).name for tap in given.taps)})
            files = open_labels(config, manifest, cache)
            config = files.sealed(config)
            sizes = Sizes.of(config, *files.relabelled(manifest, validation))
        folder = config.runs / config.name
        record = None
        if (folder / RECORD_NAME).exists():
            record = read_record(folder)
            check_run(
                folder, record, config, manifest.fingerprint, None if validation is None else validation.fingerprint
            )
        planned.append(Planned(config, sizes, files, recorded_facts(record, files), None, record))
    found = _begun_range(planned, manifest)
    if found is None:
        taps = tuple(dict.fromkeys(tap for one in planned for tap in one.config.taps))
        found = find_range(first.model_copy(update={"taps": taps}), log)
    unknown = [one.labels for one in planned if one.label_facts is None]
    checked = check_labels(unknown, manifest, found.segment(0), validation, log, say=say)
    planned = [_with_labels(one, checked) for one in planned]
    keys = [_group_key(one, found) for one in planned]
    counts = Counter(key for key in keys if key is not None)
    numbers = {key: number for number, key in enumerate(key for key, count in counts.items() if count > 1)}
    return SweepPlan(
        tuple(replace(one, group=numbers.get(key)) for one, key in zip(planned, keys, strict=True)),
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
    telemetry: Telemetry | None = None,
    pictures: Pictures | None = None,
) -> list[Outcome]:
    """Train what the plan holds, in its order, and go on with what was begun; finished and diverged runs are left.

    Stopped at any moment, also by SIGKILL, and called again with the same plan, every head has the weights of an
    undisturbed run (bit for bit on the CPU). ``progress`` is the title of a bar; ``telemetry`` takes what can be said
    of the experiments while they run; ``pictures`` as in :func:`~featurestream_consumer.run.train`. Raises
    DivergedError when every experiment has diverged, and what the stream or the disk raises.
    """
    done: dict[str, Outcome] = {}
    opened: list[Experiment] = []
    finished: list[Run] = []
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
                finished.append(run)
                continue
            settle(run, plan.range, planned.label_facts)
            shared = normalizations.setdefault((config.taps, config.normalize), build_normalization(config.normalize))
            opened.append(
                Experiment.open(
                    config, run, plan.range, planned.sizes, shared, labels=planned.labels,
                    reporters=config.reporters or quiet, say=lines, note=partial(_say_of, config.name, say),
                    pictures=pictures,
                )
            )  # fmt: skip
        if finished:
            finish_late(log, plan.manifest.stream, finished, say=say)
        _say_where(opened, done, say)
        if opened:
            reading = SharedReading(opened, log, plan.manifest, say=say, progress=progress)
            lines.say = reading.say
            export(reading, telemetry)
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
    say(Line(f"{name}: {sentence}", experiment=name))


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


def _with_labels(one: Planned, checked: dict[LabelFiles, dict[str, Any]]) -> Planned:
    facts = one.label_facts or checked.get(one.labels)
    return replace(one, label_facts=facts, sizes=replace(one.sizes, samples=labelled_samples(facts)))


def _begun_range(planned: Sequence[Planned], manifest: Manifest) -> EpochPlan | None:
    """Return the range of those that were begun: a sweep that has grown reads on what its first experiments read."""
    ranges = {
        one.config.name: begun
        for one in planned
        if one.record is not None and (begun := EpochPlan.of_record(manifest.layout, one.record)) is not None
    }
    if not ranges:
        return None
    # Killed while it was recorded what an epoch reads, some know an epoch more than others.
    one, found = max(ranges.items(), key=lambda item: len(item[1].chosen or ()))
    for name, other in ranges.items():
        if not found.goes_on(other):
            raise RunMismatchError(
                f'"{one}" reads {found}, "{name}" {other}: they were not begun in one sweep',
                hint="give them other names, or train them one by one",
                differences={"range": (str(found), str(other))},
            )
    return found


def _group_key(one: Planned, found: EpochPlan) -> object:
    config = one.config
    with _named(config):
        key = shape_key(one.sizes.build(config, total_steps=one.sizes.steps(config, found)))
    return None if key is None else (config.taps, config.batch_size, one.labels, key)


@contextmanager
def _named(config: TrainConfig) -> Iterator[None]:
    """Say in a mistake of the caller's which experiment it is in."""
    try:
        yield
    except UsageError as error:
        error.message = f'experiment "{config.name}": {error.message}'
        raise

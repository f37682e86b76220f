"""Forks: an experiment that goes on from a checkpoint of another one, its parent, with something changed.

A fork is a run folder like any other, which begins with a checkpoint instead of new weights: it is gone on with, swept
and compared as all are. The parent is only read, and may be running. Its record has two keys more::

    "lineage": {"parent": "E1", "folder": "../E1", "fingerprint": ..., "step": 120, "epoch": 3, "batch": 5, "row": 2,
                "changes": {"optimizer_args.lr": [0.1, 0.01]}}
    "fork": {"at": "batch:6", "taken_over": ["head.0.weight", ...], "begun_anew": ["scheduler", ...]}

``folder`` is the parent's, as seen from the fork's own; step, epoch and position are those of the checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch

from featurestream.errors import DataError, FingerprintError, RunMismatchError, UnknownNameError, UsageError
from featurestream.manifest import Manifest
from featurestream.manifest_topic import require_manifest
from featurestream.ports import Log
from featurestream.position import Position
from featurestream_consumer.build import check_config
from featurestream_consumer.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from featurestream_consumer.config import FOUND, TrainConfig, check_experiment_name, differences
from featurestream_consumer.epochs import EpochPlan
from featurestream_consumer.experiment import Result, Sizes
from featurestream_consumer.files import cannot_write, sync_folder
from featurestream_consumer.fork_state import ForkState, Lengths, fork_state
from featurestream_consumer.label_check import check_labels, labelled_samples, relabelled_as_recorded
from featurestream_consumer.labels import open_labels
from featurestream_consumer.reporters.ending import Pictures
from featurestream_consumer.run import train
from featurestream_consumer.runs import (
    RECORD_NAME,
    check_run,
    config_of,
    hold,
    new_record,
    read_record,
    refuse_foreign_folder,
    write_record,
)
from featurestream_consumer.sweep_file import NAMED, merged

#: What a fork has from its parent, with the reason. The words of the command line stand beside the settings' names.
FIXED: Final = {
    "stream": "its weights were learnt on that stream's features",
    "taps": "its weights were learnt on those taps' features",
    "normalize": "its weights were learnt on features that were normalised so",
    "start": "it goes on inside its parent's range, which decides what each epoch reads",
    "stop": "it goes on inside its parent's range, which decides what each epoch reads",
    "when_behind": "it goes on inside its parent's range, which decides what each epoch reads",
    "name": "it is given with --name",
    "runs": "it is given with --runs",
}
OTHER_WORDS: Final = {"tap": "taps", "from": "start", "until": "stop", "validate": "validate_stream"}
PLACE: Final = re.compile(r"(batch|step):(\d+)")
#: What decides which labels a row has: with all of them as they were, the parent has checked its label files already.
LABELLED_BY: Final = ("validate_stream", "unlabelled", *FOUND)
#: Where a fork's folder is made, before it is renamed whole into its place.
UNFINISHED: Final = ".unfinished"
READ_AGAIN: Final = 10  # times that the parent may remove a checkpoint while it is being read


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Where to fork: before batch ``number`` was read, or when ``number`` optimiser steps had been made."""

    kind: Literal["batch", "step"]
    number: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what ``batch:N`` or ``step:N`` names. Raises UsageError for anything else."""
        match = PLACE.fullmatch(text)
        if not match:
            raise UsageError(f'"{text}" is not a place to fork at', hint="expected batch:N or step:N")
        return cls("batch" if match[1] == "batch" else "step", int(match[2]))

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint of the parent's: where it stands, and what it holds."""

    step: int
    epoch: int
    position: Position
    state: dict[str, Any]

    def __str__(self) -> str:
        return f"step {self.step} (epoch {self.epoch}, {self.position})"


def fork(
    parent: Path,
    log: Log,
    *,
    name: str,
    changes: Mapping[str, Any] | None = None,
    at: str | None = None,
    runs: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
    pictures: Pictures | None = None,
) -> Result:
    """Fork the run in the folder ``parent`` and train the fork to its end, or go on with it where it is there.

    The arguments and errors are those of :func:`begin_fork` and of :func:`~featurestream_consumer.run.train`. Stopped
    at any moment, also by SIGKILL, and called again with the same arguments, it ends with the weights of an undisturbed
    fork; one in which nothing is changed ends with its parent's (bit for bit on the CPU).
    """
    config = begin_fork(parent, log, name=name, changes=changes, at=at, runs=runs, say=say)
    return train(config, log, resume=True, say=say, progress=progress, pictures=pictures)


def begin_fork(
    parent: Path,
    log: Log,
    *,
    name: str,
    changes: Mapping[str, Any] | None = None,
    at: str | None = None,
    runs: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TrainConfig:
    """Make the run folder of a fork, unless it is there, and return the fork's configuration; nothing is trained.

    Args:
        parent: the run folder to fork; it is only read, and its run may be running, stopped or finished.
        log: where the streams are.
        name: the fork's name.
        changes: settings of :class:`TrainConfig`; ``optimizer_args.lr`` names one argument. Another name for the head,
            the loss, the optimiser, the scheduler or the augmentation drops the parent's arguments for it.
        at: ``batch:N``, the newest checkpoint from which the parent had batch N still before it (the last time, where
            it read it several times); ``step:N``, the newest one with at most N optimiser steps; None, the newest.
        runs: the folder of the fork's run folder; None, the one that its parent's lies in.
        say: takes lines for the user.

    Raises:
        UsageError: for settings that there are not (with the nearest), that a fork cannot change or that do not fit;
            where no checkpoint is kept from that place (with those that are), or nothing would be left to train.
        RunMismatchError: the folder holds another run, or another fork.
        FingerprintError: the stream was made anew since.
        DataError: no checkpoint of the parent's is whole.
    """
    folder = check_fork(parent, name=name, changes=changes, at=at, runs=runs)
    point = None if at is None else ForkPoint.parse(at)
    record = read_record(parent)
    old = config_of(record, parent)
    new = forked_config(old, changes or {}, name=name, runs=folder.parent)
    manifest = require_manifest(log, new.stream)
    validation = None if new.validate_stream is None else require_manifest(log, new.validate_stream)
    if manifest.fingerprint != record["fingerprint"]:
        raise FingerprintError(
            f"{parent} read a stream with fingerprint {record['fingerprint']}, which now is {manifest.fingerprint}",
            hint="the stream was made anew; train an experiment of its own",
        )
    files = open_labels(new, manifest, {})
    new = files.sealed(new)
    sizes = (
        replace(
            Sizes.of(old, relabelled_as_recorded(manifest, record), None),
            samples=labelled_samples(record.get("labels")),
        ),
        Sizes.of(new, *files.relabelled(manifest, validation)),
    )
    validation_fingerprint = None if validation is None else validation.fingerprint
    if (folder / RECORD_NAME).exists():
        begun = read_record(folder)
        _check_lineage(folder, begun, parent, point)
        check_run(folder, begun, new, manifest.fingerprint, validation_fingerprint)
        return new

    plan = _plan(parent, record, manifest)
    found = _choose(parent, point, plan, old, say)
    segment = plan.segment(found.epoch)
    labels = record.get("labels")
    if any(getattr(old, name) != getattr(new, name) for name in LABELLED_BY):
        labels = check_labels([files], manifest, segment, validation, log, say=say).get(files)
    sizes = sizes[0], replace(sizes[1], samples=labelled_samples(labels))
    left = _steps_left(plan, new, found, sizes[1].samples)
    if left == 0:
        raise UsageError(
            f"nothing is left to train after {found}: it has epochs={new.epochs}, and they are over",
            hint=f"give more (--set epochs={new.epochs + 10}), or fork an earlier checkpoint (--at step:N)",
        )
    lengths = Lengths(sizes[0].steps(old, plan), sizes[1].steps(new, plan), left)
    made = fork_state(found.state["trainer"], old, new, sizes, lengths)
    changed = {key: values for key, values in differences(old, new).items() if key != "name"}
    forked = new_record(new, manifest.fingerprint, validation_fingerprint) | {
        "state": "stopped",
        "reason": "forked, not trained yet",
        **plan.facts(),
        **({} if labels is None else {"labels": labels}),
        "threads": torch.get_num_threads(),
        "lineage": {
            "parent": record["name"],
            "folder": os.path.relpath(parent.resolve(), folder.resolve()),
            "fingerprint": record["fingerprint"],
            "step": found.step,
            "epoch": found.epoch,
            "batch": found.position.batch,
            "row": found.position.row,
            "changes": {key: list(values) for key, values in changed.items()},
        },
        "fork": {"at": at, "taken_over": made.taken_over, "begun_anew": made.begun_anew},
    }
    _write(folder, found.step, found.state | {"trainer": made.state}, forked)
    for sentence in _sentences(forked, found, made, changed):
        say(sentence)
    return new


def check_fork(
    parent: Path,
    *,
    name: str,
    changes: Mapping[str, Any] | None = None,
    at: str | None = None,
    runs: Path | None = None,
) -> Path:
    """Return the folder of the fork that :func:`begin_fork` would make. Raises the UsageError that needs no broker."""
    if at is not None:
        ForkPoint.parse(at)
    if runs is None:  # the folder that the run folder lies in, also where that is "."
        runs = parent.parent if parent.name not in ("", "..") else parent.resolve().parent
    new = forked_config(config_of(read_record(parent), parent), changes or {}, name=name, runs=runs)
    check_config(new)
    folder = new.runs / new.name
    if folder.resolve() == parent.resolve():
        raise UsageError(f"{folder} is the parent's own folder", hint="give the fork another --name")
    return folder


def forked_config(old: TrainConfig, changes: Mapping[str, Any], *, name: str, runs: Path) -> TrainConfig:
    """Return the configuration of the fork ``name`` of ``old``.

    Raises UnknownNameError for a setting that there is not, UsageError for one that a fork cannot change.
    """
    settings: dict[str, Any] = {}
    for key, value in changes.items():
        field, dot, argument = key.partition(".")
        field = OTHER_WORDS.get(field, field)
        if field in FIXED:
            raise UsageError(
                f'a fork cannot change "{key}": {FIXED[field]}',
                hint="train an experiment of its own: featurectl train" if field not in ("name", "runs") else None,
            )
        if (
            field not in TrainConfig.model_fields
            or field in FOUND
            or (dot and (not argument or not field.endswith("_args")))
        ):
            known = [setting for setting in TrainConfig.model_fields if setting not in (*FIXED, *FOUND)]
            dotted = [f"{named}_args.{argument}" for named in NAMED] if dot else []
            raise UnknownNameError("setting of a fork", key, [*known, *dotted])
        settings[field + dot + argument] = value
    own: dict[str, Any] = {"name": check_experiment_name(name), "runs": runs}
    if {"labels", "validate_labels", "validate_stream"} & set(settings):
        own |= dict.fromkeys(FOUND)
    return TrainConfig(**merged(old.record(), settings) | own)


def _plan(parent: Path, record: Mapping[str, Any], manifest: Manifest) -> EpochPlan:
    plan = EpochPlan.of_record(manifest.layout, record)
    if plan is None:
        raise _no_checkpoint(parent)
    return plan


# ---- which checkpoint -------------------------------------------------------------------------------------------


def _choose(
    parent: Path, point: ForkPoint | None, plan: EpochPlan, config: TrainConfig, say: Callable[[str], None]
) -> Kept:
    """Return the newest checkpoint that is whole and not after ``point``."""
    target = None if point is None or point.kind == "step" else _last_reading(parent, point.number, plan, config)
    for _ in range(READ_AGAIN):
        with suppress(FileNotFoundError):  # the parent is running, and has removed one that was listed
            return _look_for(parent, point, target, say)
    raise DataError(
        f"the checkpoints of {parent} come and go faster than they can be read",
        hint="let the parent keep more of them (--keep-checkpoints), or stop it",
    )


def _look_for(
    parent: Path, point: ForkPoint | None, target: tuple[int, Position] | None, say: Callable[[str], None]
) -> Kept:
    seen: list[Kept] = []
    damaged: list[str] = []
    for file in list_checkpoints(parent / "checkpoints"):
        try:
            state = load_checkpoint(file.path)
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None
            damaged.append(error.message)
            continue
        kept = Kept(file.step, state["epoch"], Position(*state["position"]), state)
        if target is not None:
            fits = (kept.epoch, kept.position) <= target
        else:
            fits = point is None or kept.step <= point.number
        if fits:
            for sentence in damaged:
                say(sentence)
            if damaged:
                say(f"forking the checkpoint of {kept}")
            return kept
        seen.append(kept)
    if not seen and not damaged:
        raise _no_checkpoint(parent)
    if not seen:
        raise DataError(f"none of the {len(damaged)} checkpoints of {parent} is whole: {'; '.join(damaged)}")
    listed = "; ".join(map(str, seen))
    raise UsageError(
        f"{parent} keeps no checkpoint from {point} or before: there are {listed}"
        + "".join(f"; {sentence}" for sentence in damaged),
        hint="more are kept where the parent is trained with --keep-checkpoints N",
    )


def _last_reading(parent: Path, batch: int, plan: EpochPlan, config: TrainConfig) -> tuple[int, Position]:
    """Return the epoch in which the parent comes to ``batch`` for the last time, and the place."""
    for epoch in filter(plan.knows, range(config.epochs - 1, -1, -1)):
        segment = plan.segment(epoch)
        if segment.start.batch <= batch < segment.stop:
            return epoch, Position(batch)
    known = [plan.segment(epoch) for epoch in range(config.epochs) if plan.knows(epoch)]
    last = plan.stop or max(segment.stop for segment in known)
    raise UsageError(
        f"{parent} reads no batch {batch}",
        hint=f"its {config.epochs} epochs read batches {known[0].start.batch} to {last - 1}",
    )


def _no_checkpoint(parent: Path) -> UsageError:
    return UsageError(
        f"{parent} has no checkpoint yet",
        hint="there is one after --checkpoint-seconds, and at the end",
    )


def _steps_left(plan: EpochPlan, config: TrainConfig, place: Kept, samples: int | None) -> int | None:
    """Return the optimiser steps that are left where no sample is missing; None where nobody knows.

    ``samples`` is how many samples of a pass are trained on, where that is not all of them.
    """
    if place.epoch >= config.epochs:
        return 0
    rows = plan.rows_of_first(config.epochs, samples=samples)
    segment, layout = plan.segment(place.epoch), plan.layout
    if rows is None or (samples is not None and place.position != segment.start):
        return None
    read = sum(map(layout.rows_of, range(segment.start.batch, place.position.batch)))
    rows[place.epoch] -= read + place.position.row - segment.start.row
    return sum(-(-count // config.batch_size) for count in rows[place.epoch :])


# ---- the folder -------------------------------------------------------------------------------------------------


def _check_lineage(folder: Path, record: Mapping[str, Any], parent: Path, point: ForkPoint | None) -> None:
    """Raise RunMismatchError unless the record is of a fork of ``parent`` that was asked for at this place."""
    lineage = record.get("lineage")
    if lineage is None:
        raise RunMismatchError(
            f"{folder} holds a run that is not a fork", hint="give the fork another --name", differences={}
        )
    where = (folder.resolve() / lineage["folder"]).resolve()
    asked, at = record["fork"]["at"], None if point is None else str(point)
    for what, was, now in (("forks", where, parent.resolve()), ("was forked at", asked, at)):
        if was != now:
            raise RunMismatchError(
                f"{folder} {what} {was or 'the newest checkpoint'}, not {now or 'the newest checkpoint'}",
                hint="give the fork another --name, or the words that it was begun with to go on with it",
                differences={"folder" if what == "forks" else "at": (was, now)},
            )


def _write(folder: Path, step: int, state: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Make the fork's folder: it is there whole, or not at all."""
    unfinished = folder.parent / UNFINISHED / folder.name
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(unfinished, error, safe="nothing was begun") from error
    with _held(unfinished):
        shutil.rmtree(unfinished / "checkpoints", ignore_errors=True)  # a killed process may have left another one
        save_checkpoint(unfinished / "checkpoints", step, state)
        write_record(unfinished, record)
        try:
            if folder.exists():
                with _held(folder):
                    refuse_foreign_folder(folder)
                    shutil.rmtree(folder)
            unfinished.rename(folder)
            sync_folder(folder.parent)
        except OSError as error:
            raise cannot_write(folder, error, safe="the parent as it was") from error
    with suppress(OSError):  # others may be in the making
        unfinished.parent.rmdir()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    lock = hold(folder)
    try:
        yield
    finally:
        os.close(lock)


def _sentences(
    record: Mapping[str, Any], found: Kept, made: ForkState, changed: Mapping[str, tuple[Any, Any]]
) -> Iterator[str]:
    """Yield what the user should know of a new fork."""
    shown = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changed.items()) or "nothing"
    yield f"{record['name']} goes on from {record['lineage']['parent']} at {found}; changed: {shown}"
    if made.begun_anew:
        yield f"begun anew: {', '.join(made.begun_anew)}; taken over: {', '.join(made.taken_over)}"

"""Whether every sample of a stream has a label in a file: found out before training, and put into a run's record.

A manifest says how many samples a stream has, not which: so the first pass is read once, at the tap with the smallest
rows, for all experiments that begin together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import DataError, GoneError, RunMismatchError, UsageError
from featurestream.manifest import Manifest
from featurestream.ports import Log
from featurestream.position import Position
from featurestream.stream import FeatureStream
from featurestream_consumer.epochs import Segment
from featurestream_consumer.labels import LabelFiles, Labels, some_of
from featurestream_consumer.waiting import Waiting


@dataclass(frozen=True, slots=True)
class Survey:
    """What reading a pass has shown about the labels of a file.

    Attributes:
        samples: samples that were seen.
        unlabelled: ids of those that the file does not name.
        used: bool (n,), the file's samples that were seen, also as missing from the stream.
        seen: bool (n,), those that have rows.
    """

    samples: int
    unlabelled: tuple[str, ...]
    used: NDArray[np.bool_]
    seen: NDArray[np.bool_]


def survey(stream: FeatureStream, files: Sequence[Labels]) -> list[Survey]:
    """Return how each file fits the samples in the range of ``stream``, which is read to its end, once."""
    seen = [np.zeros(len(labels.labels), np.bool_) for labels in files]
    used = [np.zeros(len(labels.labels), np.bool_) for labels in files]
    unlabelled: list[dict[int, str]] = [{} for _ in files]
    samples: set[int] = set()
    for record in stream:
        samples.update(record.indices.tolist())
        for number, labels in enumerate(files):
            places = labels.find(record)
            seen[number][places[places >= 0]] = True
            for row in np.flatnonzero(places < 0).tolist():
                unlabelled[number][int(record.indices[row])] = record.ids[row]
            for sample in record.missing:
                place = labels.places.get(sample.id if labels.key == "id" else sample.index)
                if place is not None:
                    used[number][place] = True
    return [
        Survey(len(samples), tuple(lacking.values()), one | other, one)
        for lacking, one, other in zip(unlabelled, seen, used, strict=True)
    ]


def check_labels(
    experiments: Iterable[LabelFiles],
    manifest: Manifest,
    segment: Segment,
    validation: Manifest | None,
    log: Log,
    *,
    say: Callable[[str], None],
) -> dict[LabelFiles, dict[str, Any]]:
    """Return what a run's record says about its labels, for experiments with these files.

    A pass of each stream that is relabelled is read, once for all of them. ``segment`` is what the first epoch reads:
    its pass is read from its beginning, if that is still there. ``say`` takes what is counted: samples whose rows are
    dropped, and samples of a file that no stream has. Raises DataError for samples without a label, unless they are
    dropped, and where none has any; UsageError for classes that only the validation stream has.
    """
    asked = list(dict.fromkeys(files for files in experiments if files != LabelFiles()))
    waiting = Waiting(log, say)
    training: dict[Labels, Survey] = {}
    validated: dict[Labels, Survey] = {}
    if wanted := _distinct(files.training for files in asked):
        with _narrowest(manifest, segment.start, segment.stop, log, waiting) as stream:
            training = _survey(stream, wanted, say)
    wanted = _distinct(files.validation for files in asked)
    if wanted and validation is not None:
        with _narrowest(validation, Position(0), validation.layout.pass_batches, log, waiting) as stream:
            validated = _survey(stream, wanted, say)
    for labels in {**training, **validated}:
        used = np.logical_or.reduce([found[labels].used for found in (training, validated) if labels in found])
        strangers = [name for name, place in labels.places.items() if not used[place]]
        if strangers:
            say(f"samples of {labels.path} that no stream has: {len(strangers)} ({some_of(strangers)})")
    facts: dict[LabelFiles, dict[str, Any]] = {}
    for files in asked:
        _check_classes(files, training, validated)
        facts[files] = files.facts() | {
            what: {"samples": found[labels].samples, "unlabelled": len(found[labels].unlabelled)}
            for what, labels, found in (
                ("training", files.training, training),
                ("validation", files.validation, validated),
            )
            if labels is not None and labels in found
        }
    return facts


def _distinct(files: Iterable[Labels | None]) -> list[Labels]:
    return list(dict.fromkeys(labels for labels in files if labels is not None))


def _survey(stream: FeatureStream, files: Sequence[Labels], say: Callable[[str], None]) -> dict[Labels, Survey]:
    paths = ", ".join(dict.fromkeys(str(labels.path) for labels in files))
    say(f"checking {paths} against a pass of {stream.stream}")
    found = dict(zip(files, survey(stream, files), strict=True))
    for labels, one in found.items():
        where = f'stream "{stream.stream}"'
        if one.unlabelled and not labels.drop:
            raise labels.lacking(one.unlabelled, where)
        if len(one.unlabelled) == one.samples:
            raise DataError(
                f"none of the {one.samples} samples of {where} has a label in {labels.path}",
                hint=f"its first ones are {some_of(one.unlabelled)}; the file's {some_of(list(labels.places))}",
            )
        if one.unlabelled:
            say(
                f"samples of {where} without a label in {labels.path}, whose rows are dropped: "
                f"{len(one.unlabelled)} of {one.samples} ({some_of(one.unlabelled)})"
            )
    return found


def _check_classes(files: LabelFiles, training: Mapping[Labels, Survey], validated: Mapping[Labels, Survey]) -> None:
    """Raise UsageError where classes of the validation stream's samples are those of no sample that is trained on."""
    one, other = files.training, files.validation
    if one is None or other is None or one.labels.dtype != np.int64 or other.labels.dtype != np.int64:
        return
    extra = np.setdiff1d(other.labels[validated[other].seen], one.labels[training[one].seen])
    if len(extra):
        names = [str(number) if other.classes is None else other.classes[number] for number in extra]
        raise UsageError(
            f"classes in validation that training lacks: {some_of(names)}",
            hint="nothing can learn a class that it never sees: give samples of both streams such labels, or of none",
        )


def _narrowest(manifest: Manifest, first: Position, stop: int, log: Log, waiting: Waiting) -> FeatureStream:
    """Return a reader of the pass that ``first`` is in, at the tap with the smallest rows."""
    tap = min(manifest.taps, key=lambda tap: tap.numbers).name
    whole = Position(manifest.layout.pass_start(manifest.layout.pass_of(first.batch)))
    on_wait = waiting.on(manifest.stream)
    try:
        return FeatureStream(manifest.stream, tap, start=whole, stop=Position(stop), log=log, on_wait=on_wait)
    except GoneError:  # rows before the first epoch's are gone: what they were is checked when they come again
        return FeatureStream(manifest.stream, tap, start=first, stop=Position(stop), log=log, on_wait=on_wait)


def recorded_facts(record: Mapping[str, Any] | None, files: LabelFiles) -> dict[str, Any] | None:
    """Return what a run's record says about its labels; None where it says nothing yet.

    Raises RunMismatchError where it trains on other classes than these.
    """
    facts: dict[str, Any] | None = None if record is None else record.get("labels")
    for name, value in files.facts().items() if facts is not None else ():
        if facts is not None and facts.get(name) != value:
            raise RunMismatchError(
                f"the run in the folder learns {facts.get('class_count')} classes, the label file has others",
                hint="train under another --name",
                differences={name: (facts.get(name), value)},
            )
    return facts


def relabelled_as_recorded(manifest: Manifest, record: Mapping[str, Any]) -> Manifest:
    """Return the manifest as if its stream had been made with the labels that a run's record tells of."""
    facts = record.get("labels") or {}
    update = {name: facts[name] for name in ("label_kind", "label_values", "class_count", "classes") if name in facts}
    return manifest.model_copy(update={"data": manifest.data.model_copy(update=update)})


def labelled_samples(facts: Mapping[str, Any] | None) -> int | None:
    """Return how many samples of a pass are trained on, where labels leave some out; None where they do not."""
    counts = (facts or {}).get("training")
    return counts["samples"] - counts["unlabelled"] if counts and counts["unlabelled"] else None

"""Labels of the user's own in the place of a stream's: other questions to the same features, without extraction.

A label file is a CSV with a header: a column ``id`` (the samples' ids) or ``index`` (their indices in the data set),
and ``label``, or ``label0``, ``label1``, ... for several numbers a sample: the names that :meth:`FeatureBatch.frame`
gives its columns. Other columns are not looked at. Labels are understood as the producer understands those of its CSV
files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from featurestream.batch import FeatureBatch
from featurestream.errors import DataError, RunMismatchError, UsageError
from featurestream.manifest import Manifest
from featurestream.table import label_facts, read_labels, read_table
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.losses import has_class_outputs

if TYPE_CHECKING:
    import pandas as pd

Cache = dict[tuple[Path, bool, tuple[str, ...] | None], "Labels"]

EXPECTED: Final = "a header such as id,label or index,label, then a sample a line"
SHOWN: Final = 5  # samples that a message names


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels that a file gives to samples.

    Attributes:
        path: where it was read.
        sha256: of its bytes.
        key: what its lines name: "id" or "index".
        labels: int64 (n,) class numbers, float32 (n,) values or float32 (n, K) targets, of n distinct samples.
        classes: the names of the classes, where it has names.
        drop: leave out rows of samples that it does not name; else they are an error.
    """

    path: Path
    sha256: str
    key: str
    labels: NDArray[np.int64] | NDArray[np.float32]
    classes: tuple[str, ...] | None
    drop: bool
    places: Mapping[Any, int] = field(repr=False)

    def relabelled(self, manifest: Manifest) -> Manifest:
        """Return the manifest as if its stream had been made with these labels; its fingerprint stays."""
        data = manifest.data.model_copy(update=label_facts(self.labels, self.classes))
        return manifest.model_copy(update={"data": data})

    def find(self, batch: FeatureBatch) -> NDArray[np.int64]:
        """Return for each row the place of its label, -1 where it has none."""
        names = batch.ids if self.key == "id" else batch.indices.tolist()
        return np.fromiter((self.places.get(name, -1) for name in names), np.int64, len(batch))

    def apply(self, batch: FeatureBatch) -> Iterator[FeatureBatch]:
        """Yield the rows of a record with these labels: in one piece, or in the pieces between rows without any.

        Positions stay those of the record. Raises DataError for a row without a label, unless such rows are dropped.
        """
        places = self.find(batch)
        lacking = places < 0
        if not lacking.any():
            yield batch.labelled(self.labels[places])
            return
        if not self.drop:
            raise self.lacking([batch.ids[row] for row in np.flatnonzero(lacking)], f"batch {batch.position.batch}")
        labelled = batch.labelled(self.labels[places])
        edges = np.flatnonzero(np.diff(np.concatenate([[True], lacking, [True]])))
        for first, last in edges.reshape(-1, 2).tolist():
            yield labelled.rows(first, last)
        if not len(edges):
            yield labelled.rows(len(batch), len(batch))  # it still says what is missing, and where reading goes on

    def lacking(self, ids: Sequence[str], where: str) -> DataError:
        """Return the error that says which samples have no label."""
        return DataError(
            f"samples of {where} without a label in {self.path}: {len(ids)} ({some_of(ids)})",
            hint="add them to the file, or leave their rows out with --unlabelled drop",
        )


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """The labels that an experiment takes instead of those of its stream, and of its validation stream.

    Equal where both are the same objects: such experiments can share batches.
    """

    training: Labels | None = None
    validation: Labels | None = None

    def sealed(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration with the files' SHA-256, which decide what a run is, wherever the files lie.

        Raises RunMismatchError where it has another one already.
        """
        found = {
            "labels_sha256": None if self.training is None else self.training.sha256,
            "validate_labels_sha256": None if self.validation is None else self.validation.sha256,
        }
        for name, sha256 in found.items():
            wanted = getattr(config, name)
            if wanted not in (None, sha256):
                raise RunMismatchError(
                    f"{name} is to be {wanted}, and is {sha256}",
                    hint="the label file has changed since",
                    differences={name: (wanted, sha256)},
                )
        return config.model_copy(update=found)

    def facts(self) -> dict[str, Any]:
        """Return what a manifest would say of the labels; nothing where they are the stream's own."""
        return {} if self.training is None else label_facts(self.training.labels, self.training.classes)

    def relabelled(self, manifest: Manifest, validation: Manifest | None) -> tuple[Manifest, Manifest | None]:
        """Return both manifests as if their streams had been made with these labels."""
        return (
            manifest if self.training is None else self.training.relabelled(manifest),
            validation
            if self.validation is None or validation is None
            else self.validation.relabelled(validation),
        )  # fmt: skip


def open_labels(config: TrainConfig, manifest: Manifest, cache: Cache) -> LabelFiles:
    """Return the label files that the configuration names, each read once for all that share ``cache``.

    Raises UsageError or DataError for files that cannot be used; see :func:`read_label_file`.
    """
    if config.labels is None and config.validate_labels is None:
        return LabelFiles()
    drop = config.unlabelled == "drop"
    training = None if config.labels is None else _cached(cache, config.labels, drop, None)
    if training is not None and training.labels.dtype == np.int64 and has_class_outputs(config.loss):
        least = int(training.labels.min())
        if least < 0:
            raise UsageError(
                f"{training.path} has the class number {least}, which no output can stand for",
                hint="leave unknown classes out of the file, and their rows with --unlabelled drop",
            )
    if config.validate_stream is None:
        return LabelFiles(training)
    if config.validate_labels is None:
        if training is not None and training.key == "index":
            raise UsageError(
                f"{training.path} names samples by their index, which names others in the validation stream",
                hint="give that stream's labels with --validate-labels, or name samples by id",
            )
        return LabelFiles(training, training)
    known = manifest.data.classes if training is None else training.classes
    validation = _cached(cache, config.validate_labels, drop, None if known is None else tuple(known))
    if known is None and validation.classes is not None:
        raise UsageError(
            f"{validation.path} names classes ({some_of(validation.classes)}), but those trained on are numbers",
            hint="give numbers in both, or names in both",
        )
    return LabelFiles(training, validation)


def _cached(cache: Cache, path: Path, drop: bool, classes: tuple[str, ...] | None) -> Labels:
    key = (path, drop, classes)
    if key not in cache:
        cache[key] = read_label_file(path, drop=drop, classes=classes)
    return cache[key]


def read_label_file(path: Path, *, drop: bool = False, classes: tuple[str, ...] | None = None) -> Labels:
    """Return the labels in a file; with ``classes`` its labels are these names.

    Raises UsageError where there is no such file, it lacks a column or names a class that is not one of ``classes``;
    DataError for what it holds: no table, a line without a sample or a label, two labels for one sample.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"there is no label file {path}", hint=f"expected a CSV with {EXPECTED}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    frame, _ = read_table(path, has_header=lambda _: True, expected=EXPECTED)
    columns = {str(name).lower(): str(name) for name in frame.columns}
    key = "id" if "id" in columns else "index"
    wanted = _label_columns(columns)
    if key not in columns or not wanted:
        raise UsageError(
            f"{path} has the columns {', '.join(columns.values())}",
            hint=f"expected {EXPECTED}; --labels takes no other",
        )
    samples = _samples(frame[columns[key]], path, key)
    for name in wanted:
        empty = frame.index[frame[name] == ""]
        if len(empty):
            raise DataError(
                f"{path}, line {empty[0]}: no label ({len(empty)} such lines)",
                hint="leave such lines out, and their rows with --unlabelled drop",
            )
    if classes is None:
        labels, names = read_labels(frame, wanted, path)
    else:
        labels, names = _of_classes(frame, wanted, path, classes), classes
    places: dict[Any, int] = {}
    for place, (line, sample) in enumerate(zip(frame.index, samples, strict=True)):
        first = places.setdefault(sample, place)
        if first != place and not np.array_equal(labels[first], labels[place]):
            raise DataError(
                f'{path}, line {line}: {key} "{sample}" has another label than on line {frame.index[first]}',
                hint="a sample has one label: keep one of the two lines",
            )
    return Labels(path, hashlib.sha256(content).hexdigest(), key, labels, names, drop, places)


def _label_columns(columns: Mapping[str, str]) -> list[str]:
    if "label" in columns:
        return [columns["label"]]
    numbered = sorted((int(name[5:]), own) for name, own in columns.items() if re.fullmatch(r"label\d+", name))
    return [own for _, own in numbered]


def _samples(column: pd.Series[str], path: Path, key: str) -> list[Any]:
    for line, text in column.items():
        if not text or (key == "index" and not re.fullmatch(r"\d{1,15}", text)):
            raise DataError(
                f'{path}, line {line}: "{text}" is no {key}',
                hint="a sample's index is a whole number from 0" if key == "index" else "expected the sample's id",
            )
    return column.tolist() if key == "id" else [int(text) for text in column]


def _of_classes(frame: pd.DataFrame, wanted: list[str], path: Path, classes: tuple[str, ...]) -> NDArray[np.int64]:
    texts = frame[wanted[0]].tolist()
    unknown = sorted(set(texts) - set(classes))
    if unknown or len(wanted) > 1:
        raise UsageError(
            f"{path} has classes that training lacks: {some_of(unknown)}" if unknown else f"{path} has several labels",
            hint=f"those trained on are {some_of(classes)}: nothing can learn a class that it never sees",
        )
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[text] for text in texts], dtype=np.int64)


def some_of(names: Sequence[object]) -> str:
    """Return the first few of some names, as a message shows them."""
    shown = ", ".join(str(name) for name in names[:SHOWN])
    return f"{shown}, ..." if len(names) > SHOWN else shown

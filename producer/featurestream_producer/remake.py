"""Make the image behind a row again: from the manifest, the data and a record to the tensor that was fed.

Everything follows from integers: a record names each row's sample, and all randomness of its transform comes from
(seed, pass, sample, view). Whether the result is what was fed is not believed but checked, against the checksums that
the record carries (:mod:`.inputs`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from featurestream.errors import DataError, MissingExtraError, StreamMismatchError, UsageError
from featurestream.health import Canary
from featurestream.lookup import is_import_path
from featurestream.manifest import Manifest, manifest_differences
from featurestream.record import Record
from featurestream_producer.canary import transform_canary
from featurestream_producer.datasets import ImageDataset, open_dataset
from featurestream_producer.datasets.decoders import PILLOW
from featurestream_producer.inputs import carried_checksums, input_checksum
from featurestream_producer.prepare import data_facts, made_with
from featurestream_producer.sampling import sample_seed
from featurestream_producer.transforms import Transform, described_transform

SHOWN: Final = 3
TORCHVISION: Final = "torchvision:"


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a record: which sample it is, and which view of it."""

    row: int
    index: int
    id: str
    label: str | None
    view: int


@dataclass(frozen=True, eq=False, slots=True)
class Remade:
    """The image behind a row.

    Attributes:
        place: the row.
        original: the image as it was decoded, mode RGB.
        fed: the backbone's input, float32 (3, size, size).
        checksum: that of ``fed``.
    """

    place: Place
    original: Image.Image
    fed: Tensor
    checksum: str


@dataclass(frozen=True, slots=True)
class Check:
    """What is known of a row's input: the row whose checksum was compared, the same one or the nearest that has one.

    ``row`` is None where the record carries no checksum at all.
    """

    row: int | None
    carried: tuple[int, ...]


def check_code(manifest: Manifest, *, data: str | None = None, trusted: Collection[str] = ()) -> None:
    """Raise UsageError where making an image again would call code that the manifest names and ``trusted`` does not.

    A manifest comes from a topic: whoever may write there must not choose what is imported here. ``data``, where it is
    given, takes the place of the data set that the manifest names.
    """
    if data is None:
        _check_named(manifest, "data set", manifest.data.location or manifest.data.source, trusted)
    _check_named(manifest, "transform", str(manifest.transform.get("name")), trusted)


def _check_named(manifest: Manifest, kind: str, name: str, trusted: Collection[str]) -> None:
    if is_import_path(name) and not name.startswith(TORCHVISION) and name not in trusted:
        raise UsageError(
            f'the manifest of stream "{manifest.stream}" names code of somebody\'s as its {kind}: {name}',
            hint=f"where you know it and want it called, say so with --trust {name}",
        )


def reopen_dataset(manifest: Manifest, *, data: str | None = None, root: Path | None = None) -> ImageDataset:
    """Return the stream's data set, opened as its producer opened it; ``data`` and ``root`` say where it is now.

    JPEG files are decoded by what the producer took. Raises UsageError where the data is not there, MissingExtraError
    where the decoder is not, and what opening it raises.
    """
    facts = manifest.data
    source = data if data is not None else facts.location or facts.source
    if root is None and facts.root is not None and (data is None or Path(facts.root).is_dir()):
        root = Path(facts.root)
    files = Path(source).exists()
    try:
        return open_dataset(
            source, root=root, path_column=facts.path_column, label_column=facts.label_column, split=facts.split,
            decoder=(manifest.decoder or PILLOW) if files else None,
        )  # fmt: skip
    except MissingExtraError:
        raise
    except UsageError as error:
        raise UsageError(
            f'the data of stream "{manifest.stream}" cannot be opened: {error.message}',
            hint=f"say where it is now with --data (and --root); it was {source}",
        ) from error


def check_dataset(manifest: Manifest, dataset: ImageDataset, record: Record) -> None:
    """Raise StreamMismatchError where the data set is not the manifest's: each field, and samples of the batch."""
    facts = manifest.data
    found = data_facts(dataset, root=None, path_column=None, label_column=None, split=facts.split)
    differences = manifest_differences(manifest, manifest.model_copy(update={"data": found}))
    if not differences:
        return
    lines = [f"{field} is {old}, found {new}" for field, old, new in differences]
    moved = [
        f'sample {index} was "{name}", and is "{dataset.ids[index]}"'
        if index < len(dataset)
        else f'"{name}" is not there'
        for index, name in zip(record.indices.tolist(), record.ids, strict=True)
        if index >= len(dataset) or dataset.ids[index] != name
    ]
    if moved:
        more = f", and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
        lines.append(f"in batch {record.batch} {', '.join(moved[:SHOWN])}{more}")
    raise StreamMismatchError(
        f'{dataset.source} is not the data of stream "{manifest.stream}": {"; ".join(lines)}',
        hint="name the data as it was with --data, or bring its files back",
        differences=differences,
    )


def sprites_of(manifest: Manifest, indices: Sequence[int], *, side: int) -> NDArray[np.uint8]:
    """Return small pictures of samples, uint8 (samples, side, side, 3): the middle square of each image.

    A picture is black where the image cannot be decoded. The data must be where the producer found it: UsageError where
    it is not, or is code that the manifest names; StreamMismatchError where it is no longer the stream's.
    """
    _check_named(manifest, "data set", manifest.data.location or manifest.data.source, ())
    dataset = reopen_dataset(manifest)
    if dataset.fingerprint() != manifest.data.sha256:
        raise StreamMismatchError(
            f'{dataset.source} is no longer the data of stream "{manifest.stream}"', hint="bring its files back"
        )
    found = np.zeros((len(indices), side, side, 3), np.uint8)
    for number, index in enumerate(indices):
        with suppress(DataError):
            found[number] = np.asarray(ImageOps.fit(dataset.load(index).convert("RGB"), (side, side)))
    return found


def place_of(record: Record, row: int, view: int | None = None) -> Place:
    """Return a row of a record; with ``view``, the row of that view of the same sample.

    Raises UsageError for a row or a view that the batch has not; it names the samples that have no rows.
    """
    if not 0 <= row < record.rows:
        has = f"rows 0 to {record.rows - 1}" if record.rows else "no rows"
        gone = ""
        if record.missing:
            names = ", ".join(f"{sample.id} ({sample.reason})" for sample in record.missing[:SHOWN])
            more = f", and {len(record.missing) - SHOWN} more" if len(record.missing) > SHOWN else ""
            gone = f"; without a row, as they could not be decoded: {names}{more}"
        raise UsageError(f"batch {record.batch} has {has}, and no row {row}{gone}", hint="count rows from 0")
    if view is not None:
        if not 0 <= view < record.views:
            raise UsageError(f"there is no view {view} of a sample", hint=f"expected 0 to {record.views - 1}")
        row += view - row % record.views
    label = None if record.labels is None else str(record.labels[row].tolist())
    return Place(row, int(record.indices[row]), record.ids[row], label, row % record.views)


class Remaker:
    """Makes the inputs of one record's rows again, and compares them with the checksums that it carries.

    ``canary``: what the stream's first run made of the fixed image; it tells a changed transform from a changed file.
    Construction refuses a data set that is not the manifest's, and a transform that cannot be had: StreamMismatchError,
    UsageError.
    """

    def __init__(self, manifest: Manifest, dataset: ImageDataset, record: Record, canary: Canary | None = None) -> None:
        check_dataset(manifest, dataset, record)
        self.manifest = manifest
        self.record = record
        self._dataset = dataset
        self._transform: Transform = described_transform(manifest.transform)
        self._carried = carried_checksums(record)
        self._canary = canary

    def make(self, place: Place) -> Remade:
        """Return the image behind a row, compared with the row's own checksum where the record carries one.

        Raises DataError for an image that can no longer be decoded, or is not the one that was fed.
        """
        seed = sample_seed(self.manifest.seed, self.record.pass_number, place.index, place.view)
        try:
            original = self._dataset.load(place.index)
            fed = self._transform(original, seed)
        except DataError as error:
            raise DataError(
                f"the image behind row {place.row} could be used once, and cannot now: {error.message}",
                hint="bring the file back as it was",
                **error.facts,
            ) from error
        remade = Remade(place, original, fed, input_checksum(fed))
        carried = self._carried.get(place.row, remade.checksum)
        if carried != remade.checksum:
            raise DataError(
                f"the image behind row {place.row} ({place.id}) is not the one that was fed: its checksum is "
                f"{remade.checksum}, the record says {carried}",
                hint=self._why(),
            )
        return remade

    def check(self, place: Place) -> Check:
        """Return what vouches for a row that :meth:`make` has made: its own checksum, or that of the nearest row.

        The nearest row that has one is made again and compared; DataError where it is not what was fed.
        """
        rows = tuple(sorted(self._carried))
        if place.row in self._carried or not rows:
            return Check(place.row if rows else None, rows)
        nearest = min(rows, key=lambda row: abs(row - place.row))
        self.make(place_of(self.record, nearest))
        return Check(nearest, rows)

    def _why(self) -> str:
        """Return what has changed, as far as it can be told."""
        name = str(self.manifest.transform.get("name"))
        if self._canary is not None and self._canary.transform is not None:
            if transform_canary(self._transform) == self._canary.transform:
                return "the image file has changed since: the transform makes of a fixed image what it made of it then"
            cause = f"the transform {name} makes something else of a fixed image than it did then"
        else:
            cause = f"the image file or the transform {name} has changed since"
        here = made_with("cpu")
        before = {key: value for key, value in self.manifest.made_with.items() if key != "device"}
        others = [
            f"{key} was {value}, this is {here.get(key)}" for key, value in before.items() if here.get(key) != value
        ]
        return "; ".join([cause, *others])

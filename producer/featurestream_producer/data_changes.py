"""Which samples of a data set are others than those that a stream was made of.

Ids and labels are compared whole: the fingerprint covers them. Of the pixels only those of a few images are, at the end
of each lane: reading all files again would take as long as decoding them, and sizes and times of files change when a
data set is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from featurestream.errors import DataError, RecordError
from featurestream.manifest import Manifest
from featurestream.names import tap_topic
from featurestream.ports import RecordSource
from featurestream.record import ITEM_BYTES
from featurestream.seek import Lanes
from featurestream.wire import decode
from featurestream_producer.datasets import ImageDataset
from featurestream_producer.inputs import carried_checksums, input_checksum
from featurestream_producer.resume import lane_records
from featurestream_producer.sampling import sample_seed
from featurestream_producer.transforms import Transform

SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class DataChanges:
    """The samples, by their ids, in which a data set differs from what a stream's records say of it.

    Attributes:
        gone: the stream has them, the data set has not.
        new: the data set has them, the stream has not; empty where the stream does not hold a whole pass.
        relabelled: their label is another one now.
        known: how many samples of the stream its records tell of.
    """

    gone: tuple[str, ...]
    new: tuple[str, ...]
    relabelled: tuple[str, ...]
    known: int

    def text(self) -> str:
        """Return the changes in one line, empty where there are none to be seen."""
        parts = [("gone", self.gone), ("new", self.new), ("with another label", self.relabelled)]
        return "; ".join(f"{what}: {_shown(ids)}" for what, ids in parts if ids)


def find_changes(source: RecordSource, manifest: Manifest, dataset: ImageDataset) -> DataChanges:
    """Return what has changed in ``dataset`` since the stream was created, by the ids and labels in its records.

    Reads the pass that begins at the earliest batch that is left, of the narrowest tap: the ids are in the records, and
    nowhere else. Samples that could not be decoded have no row, but are listed.
    """
    stream: dict[str, object] = {}
    now = {text: _label(dataset, index) for index, text in enumerate(dataset.ids)}
    for name, label in _samples(source, manifest):
        stream[name] = label
    whole = len(stream) == manifest.data.samples
    return DataChanges(
        gone=tuple(sorted(name for name in stream if name not in now)),
        new=tuple(sorted(name for name in now if name not in stream)) if whole else (),
        relabelled=tuple(
            sorted(name for name, label in stream.items() if label is not None and now.get(name, label) != label)
        ),
        known=len(stream),
    )


@dataclass(frozen=True, slots=True)
class ImageChanges:
    """What became of the images of which the last records of a stream carry checksums.

    Attributes:
        looked_at: how many were made again.
        changed: the ids of those that are others now, each once.
        repeatable: making one of these twice gives the same; where it does not, nothing can be told.
    """

    looked_at: int = 0
    changed: tuple[str, ...] = ()
    repeatable: bool = True

    def text(self) -> str:
        """Return what differs in one line."""
        return f"of {self.looked_at} images that were made again, {len(self.changed)} differ: {_shown(self.changed)}"


def find_image_changes(
    source: RecordSource, manifest: Manifest, dataset: ImageDataset, transform: Transform, lanes: Sequence[int]
) -> ImageChanges:
    """Make the images again whose checksums the last record of each lane carries, and compare.

    That is at most two images a lane. ``dataset`` and ``transform`` are those of the manifest by their fingerprint. An
    image that cannot be decoded any more is passed over: it will be missing, and counted so.
    """
    looked_at = 0
    changed: dict[str, None] = {}
    topic = tap_topic(manifest.stream, _narrowest(manifest))
    for lane in lanes:
        found = Lanes(source, manifest.layout, (topic,)).last_record(topic, lane)
        if found is None:
            continue
        try:
            record = decode(found.value)
            carried = carried_checksums(record)
        except RecordError as error:
            raise error.at(found.topic, found.lane, found.offset) from error
        for row, checksum in carried.items():
            index = int(record.indices[row])
            seed = sample_seed(manifest.seed, record.pass_number, index, row % manifest.views)
            try:
                image = dataset.load(index)
                made = input_checksum(transform(image, seed))
            except DataError:
                continue
            looked_at += 1
            if made == checksum:
                continue
            if input_checksum(transform(image, seed)) != made:
                return ImageChanges(repeatable=False)
            changed[record.ids[row]] = None
    return ImageChanges(looked_at, tuple(changed))


def _narrowest(manifest: Manifest) -> str:
    return min(manifest.taps, key=lambda tap: tap.numbers * ITEM_BYTES[manifest.dtype]).name


def _samples(source: RecordSource, manifest: Manifest) -> list[tuple[str, object]]:
    layout = manifest.layout
    topic = tap_topic(manifest.stream, _narrowest(manifest))
    lanes = Lanes(source, layout, (topic,))
    first = lanes.earliest()
    found: list[tuple[str, object]] = []
    for lane in range(layout.lanes):
        end = lanes.greatest(topic, lane, None)
        stop = first + layout.pass_batches if end is None else min(first + layout.pass_batches, end + 1)
        start = layout.next_in_lane(lane, first)
        if end is None or start >= stop:
            continue
        for _, record in lane_records(lanes, topic, lane, range(start, stop, layout.lanes)):
            if record is None:
                continue
            try:
                read = decode(record.value)
            except RecordError as error:
                raise error.at(record.topic, record.lane, record.offset) from error
            labels = [None] * read.rows if read.labels is None else [_plain(label) for label in read.labels]
            found += zip(read.ids, labels, strict=True)
            found += [(sample.id, None) for sample in read.missing]
    return found


def _label(dataset: ImageDataset, index: int) -> object:
    return None if dataset.labels is None else _plain(dataset.labels[index])


def _plain(label: np.generic | np.ndarray) -> object:
    value = label.tolist()
    return tuple(value) if isinstance(value, list) else value


def _shown(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more

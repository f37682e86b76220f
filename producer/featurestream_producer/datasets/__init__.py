"""Where images come from. Every kind becomes an :class:`ImageDataset`; each has a file here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from featurestream.errors import UsageError
from featurestream.lookup import is_import_path
from featurestream_producer.datasets.dataset import ImageDataset
from featurestream_producer.datasets.decoders import PILLOW, choose_decoder
from featurestream_producer.datasets.image import ImageFiles

__all__ = ["ImageDataset", "decoder_of", "open_dataset"]


def open_dataset(
    source: str,
    *,
    root: Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    decoder: str | None = None,
) -> ImageDataset:
    """Return the data set that ``source`` names; no image is read.

    - a folder: one subfolder a class (:mod:`.folder`)
    - a file: a CSV of paths and labels, relative to ``root`` (:mod:`.table`)
    - ``torchvision:NAME``: a data set of torchvision's under ``root`` (:mod:`.torchvision`)
    - ``package.module:function``: whatever it returns (:mod:`.function`)

    ``decoder`` decodes the JPEG files of a folder or a CSV (:mod:`.decoders`); None: the fastest that is installed.

    Raises UsageError when ``source`` is none of these or an argument does not go with it, DataError when what it names
    cannot be used.
    """
    place = Path(source)
    if place.is_dir():
        _refuse(source, "an image folder", root=root, path_column=path_column, label_column=label_column)
        if split is not None:
            raise UsageError(
                f'"{source}" is an image folder and has no splits', hint=f'name the folder itself: "{place / split}"'
            )
        from featurestream_producer.datasets.folder import open_folder

        return _decoded_by(decoder, open_folder(place))
    if place.is_file():
        from featurestream_producer.datasets.table import open_table

        found = open_table(place, root=root, path_column=path_column, label_column=label_column, split=split)
        return _decoded_by(decoder, found)
    if not is_import_path(source):
        raise UsageError(
            f'no such folder or file: "{source}"',
            hint="expected an image folder with one subfolder a class, a CSV of path,label, torchvision:NAME or "
            "package.module:function",
        )
    kind, _, name = source.partition(":")
    _refuse(source, "no table", path_column=path_column, label_column=label_column)
    _refuse(source, "no folder or table of files", decoder=decoder)
    if kind == "torchvision":
        from featurestream_producer.datasets.torchvision import open_torchvision

        return open_torchvision(name, root=root, split=split)
    from featurestream_producer.datasets.function import open_function

    return open_function(source, root=root, split=split)


def decoder_of(dataset: ImageDataset) -> str | None:
    """Return what decodes the JPEG files of a data set; None for Pillow, and where there are no files."""
    load = dataset.load
    return load.decoder if isinstance(load, ImageFiles) and load.decoder != PILLOW else None


def _decoded_by(decoder: str | None, dataset: ImageDataset) -> ImageDataset:
    chosen = choose_decoder(decoder)
    load = dataset.load
    if chosen == PILLOW or not isinstance(load, ImageFiles):
        return dataset
    return replace(dataset, load=replace(load, decoder=chosen))


def _refuse(source: str, what: str, **given: object) -> None:
    """Raise UsageError when an argument was given that this kind of data set would ignore."""
    named = [name for name, value in given.items() if value is not None]
    if named:
        options = ", ".join("--" + name.replace("_", "-") for name in named)
        raise UsageError(f'"{source}" is {what}: {options} would have no effect', hint="leave it out")

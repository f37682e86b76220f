"""An image folder: one subfolder a class."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from featurestream.errors import DataError, UsageError
from featurestream.table import class_numbers
from featurestream_producer.datasets.dataset import ImageDataset
from featurestream_producer.datasets.image import IMAGE_SUFFIXES, ImageFiles

_log = logging.getLogger(__name__)


def open_folder(folder: Path) -> ImageDataset:
    """Return the images in ``folder/<class>/``, at any depth below a class, sorted by class and path.

    Classes are the subfolders in alphabetical order, as torchvision's ImageFolder has them. Hidden folders (``.git``)
    are no classes; files that are no images are counted in the log. Raises UsageError when there is no class folder,
    DataError when one holds no image.
    """
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UsageError(
            f'"{folder}" holds no class folders',
            hint=f'expected one subfolder a class, like "{folder.name}/cat/1.jpg"; for a list of files give a CSV',
        )
    ids: list[str] = []
    names: list[str] = []
    others = 0
    for name in classes:
        found, skipped = _images(folder, name)
        if not found:
            raise DataError(
                f'class folder "{folder / name}" holds no image',
                hint=f"remove it or fill it; known endings: {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
        ids += found
        names += [name] * len(found)
        others += skipped
    if others:
        _log.info("%s: %d files are no images by their ending and were left out", folder, others)
    labels, _ = class_numbers(names)
    return ImageDataset(str(folder), ids, labels, tuple(classes), ImageFiles(folder, ids))


def _images(folder: Path, name: str) -> tuple[list[str], int]:
    """Return the sorted relative paths of the images below ``folder/name``, and the count of other files."""
    found: list[str] = []
    others = 0
    for place, _, files in os.walk(folder / name, followlinks=True):
        for file in files:
            if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
                found.append(Path(place, file).relative_to(folder).as_posix())
            else:
                others += 1
    return sorted(found), others

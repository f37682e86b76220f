"""Validation rows as points in TensorBoard's embedding projector: ``--reporter tensorboard --reporter projector``.

A point is what the head gave a row: its outputs. Beside it stand the sample, its label and, for classes, the class that
was given and whether that is right; where the images are at hand, every point is its picture.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import DataError, FeatureStreamError, MissingExtraError
from featurestream_consumer.files import cannot_write
from featurestream_consumer.reporters.ending import Ending
from featurestream_consumer.reporters.tensorboard import FOLDER_NAME

#: What the page still turns in a browser; of more rows, so many at equal distances are shown.
POINTS: Final = 2000
SPRITE_SIDE: Final = 8192  # pixels of the picture of all pictures that a browser takes
NAME: Final = "projector"
CONFIG_NAME: Final = "projector_config.pbtxt"  # where TensorBoard looks, in the folder of the event files


class ProjectorReporter:
    """Writes the points when the experiment has finished; metrics are not its business."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingExtraError('reporter "projector"', "tensorboard")
        self._folder = folder
        self._say = say

    def report(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: everything was written at the end."""

    def finish(self, ending: Ending) -> None:
        """Write the points of validation.npz. Raises OutsideError for a full disk, DataError for damaged scores."""
        path = self._folder / "validation.npz"
        if ending.state != "finished":
            return
        if not path.is_file():
            self._say("projector: nothing was validated, so there are no points to show")
            return
        try:
            with np.load(path, allow_pickle=False) as held:
                index, label, scores = (held[name] for name in ("index", "label", "scores"))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        chosen = np.unique(np.linspace(0, len(index) - 1, min(len(index), POINTS)).round().astype(np.int64))
        if len(chosen) < len(index):
            self._say(f"projector: {len(chosen)} of {len(index)} validation rows, at equal distances")
        pictures = self._pictures(ending, index[chosen])
        try:
            write_points(
                self._folder / FOLDER_NAME, index[chosen], label[chosen], scores[chosen],
                classes=ending.classes, pictures=pictures,
            )  # fmt: skip
        except OSError as error:
            raise cannot_write(self._folder / FOLDER_NAME, error, safe="the run") from error

    def _pictures(self, ending: Ending, indices: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        if ending.pictures is None:
            self._say("projector: points without pictures: nobody here can make them")
            return None
        try:
            return ending.pictures(indices)
        except FeatureStreamError as error:
            self._say(f"projector: points without pictures: {error.message}")
            return None


def build(folder: Path, resume_step: int | None, say: Callable[[str], None]) -> ProjectorReporter:  # noqa: ARG001 - the shared signature
    """Return a reporter that writes the projector's files into ``folder/tensorboard``."""
    return ProjectorReporter(folder, say)


def write_points(
    folder: Path,
    index: NDArray[np.int64],
    label: NDArray[Any],
    scores: NDArray[Any],
    *,
    classes: Sequence[str] | None = None,
    pictures: NDArray[np.uint8] | None = None,
) -> None:
    """Write points for TensorBoard's projector into ``folder``: in ``projector/``, and the file that names it.

    ``index`` (points,), ``label`` (points,) or (points, K), ``scores`` (points, outputs), ``pictures`` (points, side,
    side, 3). Raises OSError where that fails.
    """
    place = folder / NAME
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    points = io.StringIO()
    np.savetxt(points, scores, fmt="%.6g", delimiter="\t")
    (place / "tensors.tsv").write_text(points.getvalue(), encoding="utf-8")
    with (place / "metadata.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        writer.writerows(_metadata(index, label, scores, classes))
    lines = [
        'tensor_name: "validation"',
        f'tensor_path: "{NAME}/tensors.tsv"',
        f'metadata_path: "{NAME}/metadata.tsv"',
    ]
    if pictures is not None:
        sprite, side = _sprite(pictures)
        sprite.save(place / "sprite.png", "PNG")
        lines.append(f'sprite {{ image_path: "{NAME}/sprite.png" single_image_dim: {side} single_image_dim: {side} }}')
    (folder / CONFIG_NAME).write_text("embeddings {\n  " + "\n  ".join(lines) + "\n}\n", encoding="utf-8")


def _metadata(
    index: NDArray[np.int64], label: NDArray[Any], scores: NDArray[Any], classes: Sequence[str] | None
) -> list[list[str]]:
    if label.ndim > 1 or label.dtype.kind not in "iu" or scores.shape[1] < 2:
        return [["sample", "label"], *([str(i), str(one)] for i, one in zip(index, label.tolist(), strict=True))]
    given = scores.argmax(1)
    rows = [["sample", "label", "given", "right"]]
    for i, one, other in zip(index.tolist(), label.tolist(), given.tolist(), strict=True):
        rows.append([str(i), _named(one, classes), _named(other, classes), "yes" if one == other else "no"])
    return rows


def _named(number: int, classes: Sequence[str] | None) -> str:
    return classes[number] if classes is not None and 0 <= number < len(classes) else str(number)


def _sprite(pictures: NDArray[np.uint8]) -> tuple[Any, int]:
    """Return all pictures in rows of one square picture, as the projector wants them, and the side of each."""
    from PIL import Image

    count, side = pictures.shape[:2]
    across = int(np.ceil(np.sqrt(count)))
    fits = min(side, SPRITE_SIDE // across)
    sheet = np.zeros((across * side, across * side, 3), np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // across * side, number % across * side
        sheet[top : top + side, left : left + side] = picture
    image = Image.fromarray(sheet)
    return (image if fits == side else image.resize((across * fits, across * fits))), fits

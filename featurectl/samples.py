"""Sample images for a first run: scikit-learn's 1,797 handwritten digits as PNG files, with a CSV for each split.

``python -m featurectl.samples DIR`` writes them. The digits are those of E. Alpaydin and C. Kaynak, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998: 8 x 8 grey pixels, ten classes.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

VALIDATION_EVERY: Final = 5  # images 4, 9, 14, ... are for validation: 359 of 1,797

AUGMENTED_SIZE: Final = 64  # pixels a side of what `augment` returns
# Digits are centred, upright and read from left to right. A flip or a crop makes other things of them, and so does
# more than this: a 1 turned far enough is a 7.
TURN_DEGREES: Final = 8.0
SHIFT: Final = 0.06  # of the side
SCALE: Final = 0.08


@dataclass(frozen=True, slots=True)
class Samples:
    """Where the sample images are: two tables with the columns path and label, and the folder of the PNG files."""

    train_csv: Path
    validation_csv: Path
    images: Path


def write_samples(folder: Path) -> Samples:
    """Return the sample images in ``folder``, written where they are not there yet.

    A file that is there is kept, so a second call costs nothing. Each appears under its name only once it is complete,
    the tables last. Raises MissingExtraError without scikit-learn, DataError for a folder that cannot be written.
    """
    from featurestream.errors import DataError

    samples = Samples(folder / "train.csv", folder / "validation.csv", folder / "images")
    if samples.train_csv.exists() and samples.validation_csv.exists():
        return samples
    pixels_NHW, labels_N = _load_digits()
    train: list[tuple[str, int]] = []
    validation: list[tuple[str, int]] = []
    try:
        samples.images.mkdir(parents=True, exist_ok=True)
        for index, label in enumerate(labels_N.tolist()):
            path = samples.images / f"{index:04d}.png"
            if not path.exists():
                _write(path, _png(pixels_NHW[index]))
            split = validation if index % VALIDATION_EVERY == VALIDATION_EVERY - 1 else train
            split.append((f"images/{path.name}", label))
        _write(samples.validation_csv, _table(validation))
        _write(samples.train_csv, _table(train))
    except OSError as error:
        raise DataError(
            f"cannot write the sample images to {folder}: {error.strerror or error}",
            hint="name a folder that can be written, with 10 MB free",
        ) from error
    return samples


def augment(image: Image) -> Tensor:
    """Return a random view of a digit, float32 (3, 64, 64), normalised as ImageNet's weights want it.

    A transform for the producer: ``--transform featurectl.samples:augment --image-size 64``. The digit is turned by up
    to 8 degrees, moved by up to 6 % of the side and scaled by up to 8 %, all uniform, from the place and size that the
    transform ``eval`` gives it. It is never cut nor flipped as ``train`` would: a mirrored 3 is no digit. Draws from
    Python's global generator, which the producer seeds for every image.
    """
    from PIL.Image import Resampling, Transform

    from featurestream_producer.preset import IMAGENET
    from featurestream_producer.transforms import normalise

    size = AUGMENTED_SIZE
    resized = round(size * IMAGENET.resize_size / IMAGENET.image_size)
    angle = math.radians(random.uniform(-TURN_DEGREES, TURN_DEGREES))
    scale = random.uniform(1 - SCALE, 1 + SCALE)
    shift_x, shift_y = random.uniform(-SHIFT, SHIFT) * size, random.uniform(-SHIFT, SHIFT) * size
    # Pillow wants the way back: where in the source each pixel of the result comes from.
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = size / 2 + shift_x, size / 2 + shift_y
    centre = resized / 2
    back = (cosine, sine, centre - cosine * x - sine * y, -sine, cosine, centre + sine * x - cosine * y)
    square = image.resize((resized, resized), Resampling.BILINEAR)
    return normalise(square.transform((size, size), Transform.AFFINE, back, Resampling.BILINEAR), IMAGENET)


def _load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pixels (1797, 8, 8), 0 to 255, and labels (1797,)."""
    from featurestream.errors import MissingExtraError

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the sample images", "demo") from error
    digits: Any = load_digits()
    # The data set counts grey from 0 to 16.
    return (digits.images * (255 / 16)).round().astype("uint8"), digits.target.astype("int64")


def _png(pixels_HW: NDArray[np.uint8]) -> bytes:
    from PIL.Image import fromarray

    buffer = io.BytesIO()
    fromarray(pixels_HW).save(buffer, "PNG")
    return buffer.getvalue()


def _table(rows: Iterable[tuple[str, int]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label"))
    writer.writerows(rows)
    return text.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def main() -> None:
    """Write the sample images into the folder that the command line names, and print where they are."""
    from featurectl.app import run

    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @program.command()
    def write(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write them.")]) -> None:
        """Write 1,797 handwritten digits as PNG files, with train.csv and validation.csv."""
        samples = write_samples(folder)
        typer.echo(f"images in {samples.images}, tables {samples.train_csv} and {samples.validation_csv}")

    run(program, "python -m featurectl.samples")


if __name__ == "__main__":
    main()

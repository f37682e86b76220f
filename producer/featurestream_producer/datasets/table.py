"""A table of images: CSV, with a header or without."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from featurestream.errors import DataError, UnknownNameError, UsageError
from featurestream.table import read_labels, read_table
from featurestream_producer.datasets.dataset import ImageDataset
from featurestream_producer.datasets.image import IMAGE_SUFFIXES, ImageFiles

if TYPE_CHECKING:
    import pandas as pd

_log = logging.getLogger(__name__)

# A first line with one of these words is a header; these are also the columns taken where none is named.
PATH_NAMES = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "img_path",
)
LABEL_NAMES = ("label", "labels", "class", "target", "y", "class_id", "category")
SPLIT_NAME = "split"


def open_table(
    table: Path,
    *,
    root: Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
) -> ImageDataset:
    """Return the images that a CSV lists, in its order.

    Columns are separated by commas, semicolons, tabs or white space, whichever the first line shows; a name
    that ends in ``.gz`` is unpacked. Without a header the first column is the path and the second
    the label. Paths are relative to ``root``, by default the table's folder; an absolute path must lie below it.

    ``label_column`` may name several columns, "a,b,c": then every value must be a number and labels are float32
    (N, 3). One column becomes int64 where all its values are whole numbers, float32 where all are numbers, and else
    the numbers of its sorted distinct values. ``split`` keeps the rows whose column "split" has this value.

    Raises UsageError for what is named wrongly, DataError for what the table holds.
    """
    root = table.parent if root is None else root
    if not root.is_dir():
        raise UsageError(f'no such folder: "{root}"', hint="paths in the table are relative to it (--root)")
    named = path_column is not None or label_column is not None or split is not None
    frame, header = read_table(
        table,
        has_header=lambda cells: named or _has_header(cells, root, table),
        expected="one image a line: path,label",
    )
    columns = [str(name) for name in frame.columns]
    if split is not None:
        frame = _rows_of_split(frame, table, split)
    path_name = _choose(columns, path_column, PATH_NAMES, "path column") or columns[0]
    ids = _ids(frame[path_name], table, root)
    _check_root(ids, root, table)
    wanted = _label_columns(columns, label_column, path_name, header=header)
    labels, classes = read_labels(frame, wanted, table) if wanted else (None, None)
    _log.info("%s: %d rows, path column %r, label columns %r", table, len(ids), path_name, wanted)
    return ImageDataset(str(table), ids, labels, classes, ImageFiles(root, ids))


def _has_header(cells: list[str], root: Path, table: Path) -> bool:
    """Tell whether the first line names columns; UsageError where it could be either: never guess a row away."""
    if {cell.lower() for cell in cells} & {*PATH_NAMES, *LABEL_NAMES, SPLIT_NAME}:
        return True
    suffix = PurePosixPath(cells[0]).suffix.lower()
    if suffix in IMAGE_SUFFIXES or (root / cells[0]).is_file():
        return False
    raise UsageError(
        f'"{table}": cannot tell whether the first line is a header: {", ".join(cells)}',
        hint="name the columns (--path-column, --label-column), or start with a line like path,label",
    )


def _choose(columns: list[str], wanted: str | None, usual: Sequence[str], kind: str) -> str | None:
    """Return the column that was named, else the first one with a usual name, else None."""
    if wanted is not None:
        if wanted not in columns:
            raise UnknownNameError(kind, wanted, columns)
        return wanted
    by_lower = {name.lower(): name for name in reversed(columns)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _label_columns(columns: list[str], wanted: str | None, path_name: str, *, header: bool) -> list[str]:
    if wanted is not None:
        named = [wanted] if wanted in columns else [name.strip() for name in wanted.split(",")]
        for name in named:
            _choose(columns, name, (), "label column")
        return named
    if not header:
        return columns[1:2]
    found = _choose([name for name in columns if name != path_name], None, LABEL_NAMES, "label column")
    return [] if found is None else [found]


def _rows_of_split(frame: pd.DataFrame, table: Path, split: str) -> pd.DataFrame:
    if SPLIT_NAME not in frame.columns:
        raise UsageError(
            f'"{table}" has no column "{SPLIT_NAME}"', hint=f"it has: {', '.join(map(str, frame.columns))}"
        )
    kept = frame[frame[SPLIT_NAME] == split]
    if kept.empty:
        raise UnknownNameError("split", split, sorted(set(frame[SPLIT_NAME])))
    return kept


def _ids(paths: pd.Series[str], table: Path, root: Path) -> list[str]:
    """Return the paths relative to ``root``, in one spelling: ``/`` between parts, no ``.`` and no doubled slash."""
    ids: list[str] = []
    for line, path in paths.items():
        if not path:
            raise DataError(f'"{table}", line {line}: no path', hint="expected one image a line")
        text = path.replace("\\", "/")
        if PurePosixPath(text).is_absolute():
            try:
                text = PurePosixPath(text).relative_to(root.absolute().as_posix()).as_posix()
            except ValueError as error:
                raise UsageError(
                    f'"{table}", line {line}: "{path}" does not lie below "{root}"',
                    hint="give the folder that holds all images: --root",
                ) from error
        ids.append(posixpath.normpath(text))
    return ids


def _check_root(ids: list[str], root: Path, table: Path) -> None:
    """Refuse a root under which none of a few samples exists, before a whole pass finds nothing."""
    tried = ids[:: max(1, len(ids) // 16)]
    if not any((root / path).is_file() for path in tried):
        raise UsageError(
            f'"{table}": none of {len(tried)} images looked for exists, for example "{root / tried[0]}"',
            hint=f'paths are relative to "{root}"; another folder is set with --root',
        )

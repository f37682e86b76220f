"""Tables that people bring: CSV files, the labels in them, and what a manifest says about labels."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_INTEGER: Final = re.compile(r"[+-]?\d+")


def read_table(table: Path, *, has_header: Callable[[list[str]], bool], expected: str) -> tuple[pd.DataFrame, bool]:
    """Return a table as stripped texts, and whether it has a header; the index is the line number in the file.

    Columns are separated by commas, semicolons, tabs or white space, whichever the first line shows; a name that ends
    in ``.gz`` is unpacked. ``has_header`` is asked about the cells of the first line. Lines without any text are left
    out. Raises DataError for a file that cannot be read as a table, or has no rows, with ``expected`` as what to do.
    """
    import pandas as pd

    text = _text(table)
    lines = text.splitlines()
    above = next((number for number, line in enumerate(lines) if line.strip()), None)
    if above is None:
        raise DataError(f'"{table}" is empty', hint=f"expected {expected}")
    separator = _separator(lines[above])
    header = has_header(_cells(lines[above], separator))
    try:
        with warnings.catch_warnings():
            # pandas only warns when it cuts columns off that the first line does not have.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                skiprows=above,
                header=0 if header else None,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,  # they are dropped below, once every row knows its line
                skipinitialspace=True,
                index_col=False,
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        raise DataError(
            f'cannot read "{table}" as a table: {error}', hint=f"the first line separates columns by {separator!r}"
        ) from error
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    frame.index = pd.RangeIndex(above + 1 + header, above + 1 + header + len(frame))
    frame = frame.apply(lambda column: column.str.strip()).fillna("")
    frame = frame[(frame != "").any(axis=1)]
    if frame.empty:
        raise DataError(f'"{table}" has a header and no rows', hint=f"expected {expected}")
    return frame, header


def read_labels(
    frame: pd.DataFrame, columns: Sequence[str], table: Path
) -> tuple[NDArray[np.int64] | NDArray[np.float32], tuple[str, ...] | None]:
    """Return the labels in the columns of a table (as :func:`read_table` returns it), and the names of the classes.

    Several columns must hold numbers and become float32 (N, K). One becomes int64 (N,) where all its values are whole
    numbers, float32 (N,) where all are numbers, and else the numbers of its sorted distinct values, which are the
    names. Raises DataError, with the line, for a row without a value, or one that is not a finite number.
    """
    for name in columns:
        empty = frame.index[frame[name] == ""]
        if len(empty):
            raise DataError(
                f'"{table}", line {empty[0]}: no value in label column "{name}" ({len(empty)} such lines)',
                hint="every image needs one; an unknown class is usually written -1",
            )
    if len(columns) > 1:
        return np.stack([_numbers(frame[name], table) for name in columns], axis=1), None
    texts = frame[columns[0]].tolist()
    if all(_INTEGER.fullmatch(text) for text in texts):
        try:
            return np.array([int(text) for text in texts], dtype=np.int64), None
        except OverflowError as error:
            raise DataError(f'"{table}": a class number in "{columns[0]}" does not fit 64 bits') from error
    if all(_is_number(text) for text in texts):
        return _numbers(frame[columns[0]], table), None
    return class_numbers(texts)


def class_numbers(names: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the names as int64 numbers of the sorted distinct names, and these."""
    classes = tuple(sorted(set(names)))
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[name] for name in names], dtype=np.int64), classes


def label_facts(labels: NDArray[Any] | None, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return what a manifest says of labels: ``label_kind``, ``label_values``, ``class_count`` and ``classes``."""
    if labels is None:
        return {"label_kind": "none", "label_values": 0, "class_count": None, "classes": None}
    if labels.dtype == np.int64:
        names = None if classes is None else list(classes)
        count = max(int(labels.max()) + 1, len(names or ())) or None
        return {"label_kind": "class", "label_values": 1, "class_count": count, "classes": names}
    kind, values = ("value", 1) if labels.ndim == 1 else ("target", int(labels.shape[1]))
    return {"label_kind": kind, "label_values": values, "class_count": None, "classes": None}


def _text(table: Path) -> str:
    try:
        if table.suffix.lower() == ".gz":
            with gzip.open(table, "rt", encoding="utf-8-sig") as file:
                return file.read()
        return table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError, EOFError, zlib.error) as error:
        raise DataError(f'cannot read "{table}": {error}', hint="expected a CSV in UTF-8, plain or .gz") from error


def _separator(line: str) -> str:
    """Return what separates the columns: a tab, the more frequent of comma and semicolon, or white space."""
    if "\t" in line:
        return "\t"
    commas, semicolons = line.count(","), line.count(";")
    if commas or semicolons:
        return "," if commas >= semicolons else ";"
    return r"\s+"


def _cells(line: str, separator: str) -> list[str]:
    if separator == r"\s+":
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _numbers(column: pd.Series[str], table: Path) -> NDArray[np.float32]:
    for line, text in column.items():
        if not (_is_number(text) and math.isfinite(float(text)) and abs(float(text)) <= _FLOAT32_MAX):
            raise DataError(
                f'"{table}", line {line}: {text!r} in label column "{column.name}"',
                hint="expected a finite float32 number",
            )
    return np.array([float(text) for text in column], dtype=np.float32)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

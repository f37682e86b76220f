"""Metrics as JSON lines: metrics.jsonl, the part of a run's record that grows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from featurestream.errors import DataError
from featurestream_consumer.files import cannot_write, write_atomically

FILE_NAME: Final = "metrics.jsonl"


class JsonlReporter:
    """Appends a row a line to ``path``; each line is with the operating system before :meth:`report` returns.

    With ``resume_step`` the file is cut back to the rows up to that step: those after it will come again. So will,
    perhaps, some of that very step (a validation that was made after the checkpoint, or before it); a row whose kind
    and step the file has already is left out.
    """

    def __init__(self, path: Path, *, resume_step: int | None) -> None:
        self._path = path
        kept: list[dict[str, Any]] = []
        if resume_step is not None and path.exists():
            kept = [row for row in read_rows(path) if row["step"] <= resume_step]
        content = "".join(_line(row) for row in kept).encode()
        write_atomically(path, lambda file: file.write(content), safe="the run as it was")
        self._written = {(row["kind"], row["step"]) for row in kept if row["step"] == resume_step}
        try:
            self._file = path.open("ab")
        except OSError as error:
            raise cannot_write(path, error, safe="the run as it was") from error

    def report(self, row: Mapping[str, Any]) -> None:
        """Append the row; a number that is not finite becomes null. Raises OutsideError for a full disk."""
        if (row["kind"], row["step"]) in self._written:
            return
        try:
            self._file.write(_line(row).encode())
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error, safe="the run up to its last checkpoint") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def build(folder: Path, resume_step: int | None, say: Callable[[str], None]) -> JsonlReporter:  # noqa: ARG001 - the shared signature
    """Return a reporter that writes metrics.jsonl in ``folder``."""
    return JsonlReporter(folder / FILE_NAME, resume_step=resume_step)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl; a last line that is still being written is left out.

    Raises DataError for a line that is not a row, or a file that cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line feed is unfinished, or nothing
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}", hint="the file is damaged") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or "kind" not in row:
            raise DataError(f"{path}, line {number} is not a row of metrics", hint="expected kind, step and metrics")
        rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"

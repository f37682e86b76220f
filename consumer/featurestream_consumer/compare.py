"""Runs side by side: what each was, and how well it did, as a table."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from featurestream.errors import DataError, UsageError, nearest
from featurestream_consumer.files import write_atomically
from featurestream_consumer.metrics import higher_is_better
from featurestream_consumer.reporters.console import PLACE
from featurestream_consumer.reporters.jsonl import FILE_NAME, read_rows
from featurestream_consumer.runs import RECORD_NAME, read_record

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES: Final = (".csv", ".md", ".json")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run folder says about its run.

    Attributes:
        folder: the run folder.
        record: what run.json holds.
        metrics: the validation metrics at the end; of the newest validation where the run has not finished; empty
            where there was none.
        main_metric: the metric to compare by; None where nothing was validated.
        history: the rows of validation metrics, in the order of their steps.
    """

    folder: Path
    record: dict[str, Any]
    metrics: dict[str, float]
    main_metric: str | None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.record["name"])

    @property
    def step(self) -> int | None:
        """Optimiser steps made, as far as the record tells."""
        return self.record.get("step", self.history[-1]["step"] if self.history else None)

    @property
    def epoch(self) -> int | None:
        """Epochs ended, as far as the record tells."""
        return self.record.get("epoch", self.history[-1].get("epoch") if self.history else None)

    @property
    def tap(self) -> str:
        """The taps, with + between them."""
        return "+".join(self.record["config"].get("taps", ()))

    @property
    def head(self) -> str:
        """The head with its arguments: ``mlp(hidden=[512, 128])``."""
        config = self.record["config"]
        args = ", ".join(f"{key}={value}" for key, value in config.get("head_args", {}).items())
        return f"{config.get('head')}({args})" if args else str(config.get("head"))


def load_runs(paths: Iterable[Path]) -> list[RunSummary]:
    """Return the runs in ``paths``: run folders, or folders of run folders (all that lie in them, by name).

    Raises UsageError for a path that is neither (with the nearest run), two runs of one name, or no path at all;
    DataError for a record that cannot be read.
    """
    folders: list[Path] = []
    for path in paths:
        if (path / RECORD_NAME).is_file():
            folders.append(path)
            continue
        inside = sorted(record.parent for record in path.glob(f"*/{RECORD_NAME}")) if path.is_dir() else []
        if not inside:
            raise _not_a_run(path)
        folders += inside
    if not folders:
        raise UsageError("there is no run to compare", hint="name run folders, or the folder that holds them")
    found = {folder.resolve(): folder for folder in folders}
    return [load_run(folder) for folder in found.values()]


def load_run(folder: Path) -> RunSummary:
    """Return one run. Raises UsageError for a folder that is no run's, DataError for one that is damaged."""
    record = read_record(folder)
    if not isinstance(record["config"], dict):
        raise DataError(f"{folder / RECORD_NAME} holds no configuration", hint="the file is damaged")
    path = folder / FILE_NAME
    rows = read_rows(path) if path.exists() else []
    history = [row for row in rows if row["kind"] == "validation"]
    last = {key: value for key, value in history[-1].items() if key not in PLACE} if history else {}
    metrics = record.get("metrics") or last
    main = record.get("main_metric") or next(iter(metrics), None)
    return RunSummary(folder, record, dict(metrics), main, history)


def compare_table(runs: Sequence[RunSummary], *, metric: str | None = None) -> pd.DataFrame:
    """Return a row a run, the best first, by ``metric`` (the first run's main metric where it is not given).

    Columns: run, state, stream, tap, head, optimizer, epochs, passes, rereads, steps, start, seed, validation (the
    stream), samples, then every metric that any of the runs has. ``samples`` is a letter: runs with the same letter
    were validated on the same samples in the same order; figures of different letters cannot be compared. Runs without
    the metric come last. Raises UsageError for a metric that no run has.
    """
    import pandas as pd

    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    if metric is None:
        metric = next((run.main_metric for run in runs if run.main_metric), None)
    elif metric not in names:
        raise UsageError(
            f'none of the runs has the metric "{metric}"', hint=f"they have: {', '.join(names)}" if names else None
        )
    letters = sample_letters(runs)
    sign = -1.0 if metric is not None and higher_is_better(metric) else 1.0

    def order(run: RunSummary) -> tuple[bool, float, str]:
        value = run.metrics.get(metric) if metric is not None else None
        return (value is None, 0.0 if value is None else sign * value, run.name)

    rows = []
    for run in sorted(runs, key=order):
        config = run.record["config"]
        rows.append(
            {
                "run": run.name,
                "state": run.record["state"],
                "stream": config.get("stream"),
                "tap": run.tap,
                "head": run.head,
                "optimizer": config.get("optimizer"),
                "epochs": run.epoch,
                "passes": run.record.get("passes"),
                "rereads": run.record.get("rereads"),
                "steps": run.step,
                "start": _start(run.record),
                "seed": config.get("seed"),
                "validation": config.get("validate_stream"),
                "samples": letters[run.folder],
                **{name: run.metrics.get(name) for name in ([metric] if metric else []) + names},
            }
        )
    return pd.DataFrame(rows)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the table's rows as JSON values, keys in the table's order; what is missing is null."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows


def to_markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown, numbers with four digits."""
    head = [str(column) for column in table.columns]
    body = [[_cell(row[column]) for column in head] for row in records(table)]
    widths = [max(len(cells[place]) for cells in [head, *body]) for place in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write the table: ``.csv``, ``.md`` or ``.json`` (a list of objects). Raises UsageError for another suffix."""
    writers = {
        ".csv": lambda: table.to_csv(index=False),
        ".md": lambda: to_markdown(table),
        ".json": lambda: json.dumps(records(table), indent=2) + "\n",
    }
    if path.suffix not in writers:
        raise UsageError(
            f'"{path.name}" does not say what kind of table it is', hint=f"expected {', '.join(TABLE_SUFFIXES)}"
        )
    content = writers[path.suffix]().encode()
    write_atomically(path, lambda file: file.write(content), safe="the runs, which are only read")


def sample_letters(runs: Sequence[RunSummary]) -> dict[Path, str]:
    """Return a letter for each run folder: the same one where the validation stream and its labels are the same."""
    letters: dict[tuple[str, ...], str] = {}
    for run in runs:
        samples = _samples(run)
        if samples and samples not in letters:
            number = len(letters)
            letters[samples] = string.ascii_uppercase[number % 26] + (str(number // 26) if number >= 26 else "")
    letters[()] = "-"
    return {run.folder: letters[_samples(run)] for run in runs}


def _samples(run: RunSummary) -> tuple[str, ...]:
    """Return what tells what a run was validated on from everything else; nothing where it was not."""
    fingerprint, config = run.record["validation_fingerprint"], run.record["config"]
    if fingerprint is None:
        return ()
    labels = config.get("validate_labels_sha256")
    return (fingerprint,) if labels is None else (fingerprint, labels, config["unlabelled"])


def _start(record: dict[str, Any]) -> str:
    """Return where the run started: the position where it is known, else the start point as it was given."""
    start = record.get("start")
    if isinstance(start, dict) and "batch" in start:
        row = f", row {start['row']}" if start.get("row") else ""
        return f"batch {start['batch']}{row}"
    return str(record["config"].get("start"))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")


def _not_a_run(path: Path) -> UsageError:
    if not path.exists():
        what = f"there is no folder {path}"
        around = path.parent
    else:
        what = f"{path} is not a run folder: it has no {RECORD_NAME}, and no folder in it has one"
        around = path.parent
    names = sorted(record.parent.name for record in around.glob(f"*/{RECORD_NAME}")) if around.is_dir() else []
    near = nearest(path.name, names)
    hints = [f'did you mean "{around / near}"?'] if near else []
    if names:
        hints.append(f"runs there: {', '.join(names[:24])}")
    return UsageError(what, hint="; ".join(hints) or "name run folders, or the folder that holds them")

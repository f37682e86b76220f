"""Runs side by side: what each was, how well it did, and what can be said of the differences, as tables."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from featurestream.errors import DataError, UsageError, nearest
from featurestream.experiments import Experiment as Registered
from featurestream.files import check_file
from featurestream_consumer.comparison_text import markdown_table
from featurestream_consumer.files import write_atomically
from featurestream_consumer.lineage import Lineage
from featurestream_consumer.metrics import METRICS, higher_is_better
from featurestream_consumer.paired import (
    SCORES_NAME,
    Pair,
    RowValues,
    RunScores,
    Unpaired,
    compare_pairs,
    read_scores,
)
from featurestream_consumer.reporters.console import PLACE
from featurestream_consumer.reporters.jsonl import FILE_NAME, read_rows
from featurestream_consumer.runs import RECORD_NAME, read_record

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES: Final = (".csv", ".md", ".json")
#: Columns that count, where pandas would make floats of whole numbers as soon as one of them is missing.
COUNTS: Final = ("epochs", "passes", "rereads", "steps", "seed", "paired_samples")


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run folder says about its run.

    Attributes:
        folder: the run folder.
        record: what run.json holds.
        metrics: the validation metrics at the end; of the newest validation where the run has not finished. Of a run
            without a validation stream those of its last training rows.
        main_metric: the metric to compare by; None where nothing was validated.
        history: the rows of validation metrics, in the order of their steps.
        training: the rows of training metrics, likewise: means over the steps since the row before.
        lineage: where it comes from; None for a run that was not forked.
        registered: what the run registry says of it; None for one whose run folder is at hand. ``folder`` is then a
            name and no place.
    """

    folder: Path
    record: dict[str, Any]
    metrics: dict[str, float]
    main_metric: str | None
    history: list[dict[str, Any]] = field(default_factory=list)
    training: list[dict[str, Any]] = field(default_factory=list)
    lineage: Lineage | None = None
    registered: Registered | None = None

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.record["name"])

    @property
    def validated(self) -> bool:
        """Whether it has a validation stream: else its metrics are of rows that it was trained on."""
        return self.record["validation_fingerprint"] is not None

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
        inside = sorted(record.parent for record in path.glob(f"*/{RECORD_NAME}"))
        if not inside:
            raise _not_a_run(path)
        folders += inside
    if not folders:
        raise UsageError("there is no run to compare", hint="name run folders, or the folder that holds them")
    found = {folder.resolve(): folder for folder in folders}
    return [load_run(folder) for folder in found.values()]


def holds_runs(path: Path) -> bool:
    """Tell whether a path is a run folder, or a folder of run folders."""
    return (path / RECORD_NAME).is_file() or any(path.glob(f"*/{RECORD_NAME}"))


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
    training = [row for row in rows if row["kind"] == "train"]
    return RunSummary(folder, record, dict(metrics), main, history, training, Lineage.of(record))


def compare_table(runs: Sequence[RunSummary], *, metric: str | None = None) -> pd.DataFrame:
    """Return a row a run, the best first, by ``metric`` (the first run's main metric where it is not given).

    Columns: run, state, stream, tap, head, optimizer, epochs, passes, rereads, steps, start, seed, validation (the
    stream), samples, then every metric that any of the runs has. ``samples`` is a letter: runs with the same letter
    were validated on the same samples in the same order; figures of different letters cannot be compared. Runs without
    the metric come last. Where any run was validated, those that were not have no metrics: theirs are of training.

    Then what can be said of the run's difference to the best run that it can be compared with, all of it None for that
    one: against (its name), measure (the metric), paired_samples, difference (the run's value less the other's), low
    and high (its interval of 95 %), test, p and p_holm (see :class:`~featurestream_consumer.paired.Pair`). p_holm
    counts all pairs of ``runs``, not these few: which run is the best was found by looking at all. not_compared says
    why a run has no difference where that is not because it is the best.

    At last forked_from: the parent of a fork, where it was left and what was changed.

    Raises UsageError for a metric that no run has, DataError for scores that are damaged.
    """
    import pandas as pd

    runs = without_training_metrics(runs)
    metric = find_metric(runs, metric)
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    letters = sample_letters(runs)
    ordered = best_first(runs, metric)
    judged = _judged(ordered, metric)
    differences = _differences(compare_pairs(judged, every_interval=False), judged)
    rows = []
    for run, difference in zip(ordered, differences, strict=True):
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
                **difference,
                "forked_from": None if run.lineage is None else str(run.lineage),
            }
        )
    return pd.DataFrame(rows).astype(dict.fromkeys(COUNTS, "Int64"))  # 359, and not 359.0, beside a missing one


def pairs_table(runs: Sequence[RunSummary], *, metric: str | None = None) -> pd.DataFrame:
    """Return a row a pair of runs, the better one first, in the order of :func:`compare_table`.

    Columns: a, b, measure, samples, value_a, value_b, difference (a's value less b's), low, high, only_a, only_b, test,
    p, p_holm, not_compared: see :class:`~featurestream_consumer.paired.Pair`. Raises as :func:`compare_table`.
    """
    import pandas as pd

    runs = without_training_metrics(runs)
    metric = find_metric(runs, metric)
    columns = (
        "a", "b", "measure", "samples", "value_a", "value_b", "difference", "low", "high", "only_a", "only_b", "test",
        "p", "p_holm", "not_compared",
    )  # fmt: skip
    rows = [
        {
            "a": pair.a,
            "b": pair.b,
            "measure": pair.measure,
            "samples": pair.samples,
            "value_a": pair.value_a,
            "value_b": pair.value_b,
            "difference": pair.difference,
            "low": pair.low,
            "high": pair.high,
            "only_a": pair.only_a,
            "only_b": pair.only_b,
            "test": pair.test,
            "p": pair.p_value,
            "p_holm": pair.p_holm,
            "not_compared": pair.reason,
        }
        for pair in compare_runs(best_first(runs, metric), metric=metric)
    ]
    return pd.DataFrame(rows, columns=columns, dtype=object)


def compare_runs(runs: Sequence[RunSummary], *, metric: str | None = None) -> list[Pair]:
    """Return every pair of runs, in the order given, judged by ``metric`` (the first run's main metric).

    Runs that have not finished, were not validated or lack the metric have pairs with a reason and no figures.
    Raises UsageError for a metric that no run has, DataError for scores that are damaged.
    """
    metric = find_metric(without_training_metrics(runs), metric)
    return compare_pairs(_judged(runs, metric))


def without_training_metrics(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Return the runs, where any was validated without the metrics of those that were not."""
    if not any(run.validated for run in runs):
        return list(runs)
    return [run if run.validated else replace(run, metrics={}, main_metric=None) for run in runs]


def find_metric(runs: Sequence[RunSummary], metric: str | None) -> str | None:
    """Return ``metric``, or the main metric of the first run that has one; None where none was validated.

    Raises UsageError for a metric that no run has.
    """
    if metric is None:
        return next((run.main_metric for run in runs if run.main_metric), None)
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    if metric not in names:
        raise UsageError(
            f'none of the runs has the metric "{metric}"', hint=f"they have: {', '.join(names)}" if names else None
        )
    return metric


def best_first(runs: Sequence[RunSummary], metric: str | None) -> list[RunSummary]:
    """Return the runs by ``metric``, the best first, equal ones by name, those without it last."""
    sign = -1.0 if metric is not None and higher_is_better(metric) else 1.0

    def order(run: RunSummary) -> tuple[bool, float, str]:
        value = run.metrics.get(metric) if metric is not None else None
        return (value is None, 0.0 if value is None else sign * value, run.name)

    return sorted(runs, key=order)


def registered_run(experiment: Registered, *, now_ms: int) -> RunSummary:
    """Return a run that the registry knows; ``now_ms`` decides whether one that runs counts as lost."""
    run = experiment.run
    record = {
        **run.model_dump(
            mode="json", include={"id", "reason", "config", "fingerprint", "validation_fingerprint", "start"}
        ),
        **run.model_dump(mode="json", include={"stop", "epoch", "step", "passes", "rereads", "main_metric"}),
        "name": experiment.label,
        "state": experiment.state_at(now_ms),
    }
    if run.lineage is not None:
        record["lineage"] = run.lineage
    metrics = {name: value for name, value in run.metrics.items() if value is not None}
    rows = [dict(row) for row in experiment.rows]
    return RunSummary(
        Path(run.stream) / experiment.label,
        record,
        metrics,
        run.main_metric or next(iter(metrics), None),
        [row for row in rows if row["kind"] == "validation"],
        [row for row in rows if row["kind"] == "train"],
        Lineage.of(record),
        experiment,
    )


def _judged(runs: Sequence[RunSummary], metric: str | None) -> list[RunScores | RowValues | Unpaired]:
    return [_scores(run, metric) for run in runs]


def _scores(run: RunSummary, metric: str | None) -> RunScores | RowValues | Unpaired:
    """Return what a run said of every validation row, or why there is nothing that could be compared."""
    if not run.validated:
        return Unpaired(run.name, "it was not validated")
    if run.registered is not None:
        return _registered_values(run.name, run.registered, metric)
    if not (run.folder / SCORES_NAME).is_file():
        finished = run.record["state"] == "finished"
        return Unpaired(run.name, f"it has no {SCORES_NAME}" if finished else "it has not finished")
    if metric not in run.metrics:
        return Unpaired(run.name, f"it has no {metric}")
    scores = read_scores(run.folder, metric)
    if metric == "loss" or metric not in METRICS:
        try:
            scores.row_values()
        except UsageError as error:  # a loss or a metric of the user's that is not here, or has no values of rows
            return Unpaired(run.name, error.message)
    return scores


def _registered_values(name: str, experiment: Registered, metric: str | None) -> RowValues | Unpaired:
    """Return what the registry has of every validation row, or why it has nothing."""
    run, validation = experiment.run, experiment.validation
    if run.state != "finished":
        return Unpaired(name, "it has not finished")
    if metric is None or metric not in run.metrics:
        return Unpaired(name, f"it has no {metric}")
    values = None if validation is None else validation.values_of(metric)
    if validation is None or values is None:
        full = run.validation == "left out" or (validation is not None and metric in validation.left_out)
        why = "they do not fit into a record" if full else "it never came, or rows have no values of their own"
        return Unpaired(name, f"the run registry has no {metric} of its rows ({why}); compare the run folders")
    return RowValues(name, validation.indices(), validation.labels, values, validation.fingerprint, metric)


def _differences(pairs: Sequence[Pair], judged: Sequence[RunScores | RowValues | Unpaired]) -> list[dict[str, Any]]:
    """Return what the table says of each of the runs ``judged``, best first, from all of their pairs."""
    found = dict(zip(combinations(range(len(judged)), 2), pairs, strict=True))
    rows: list[dict[str, Any]] = []
    for number, run in enumerate(judged):
        others = [found[min(number, other), max(number, other)] for other in range(len(judged)) if other != number]
        pair = next((pair for pair in others[:number] if pair.reason is None), None)
        reason = None
        if isinstance(run, Unpaired):
            reason = run.reason
        elif all(other.reason is not None for other in others):
            reason = _first_reason(run, others, judged)
        rows.append(
            {
                "against": pair and pair.a,
                "measure": pair and pair.measure,
                "paired_samples": pair and pair.samples,
                "difference": pair and _minus(pair.difference),
                "low": pair and _minus(pair.high),
                "high": pair and _minus(pair.low),
                "test": pair and pair.test,
                "p": pair and pair.p_value,
                "p_holm": pair and pair.p_holm,
                "not_compared": reason,
            }
        )
    return rows


def _first_reason(
    run: RunScores | RowValues, pairs: Sequence[Pair], judged: Sequence[RunScores | RowValues | Unpaired]
) -> str | None:
    """Return why a run with scores fits no other run with scores; None where there is no other."""
    without = {one.name for one in judged if isinstance(one, Unpaired)}
    for pair in pairs:
        other = pair.b if pair.a == run.name else pair.a
        if other not in without:
            return f"with {other}: {pair.reason}"
    return None


def _minus(value: float | None) -> float | None:
    return None if value is None else 0.0 - value  # 0, and not -0, of 0


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the table's rows as JSON values, keys in the table's order; what is missing is null."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return rows


def to_markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown, numbers with four digits."""
    columns = [str(column) for column in table.columns]
    return markdown_table(columns, [[_cell(row[column]) for column in columns] for row in records(table)])


def write_table(table: pd.DataFrame, path: Path, *, markdown: str | None = None) -> None:
    """Write the table: ``.csv``, ``.md`` (``markdown``, where it is given) or ``.json`` (a list of objects).

    Raises UsageError for another suffix.
    """
    writers = {
        ".csv": lambda: table.to_csv(index=False),
        ".md": lambda: to_markdown(table) if markdown is None else markdown,
        ".json": lambda: json.dumps(records(table), indent=2) + "\n",
    }
    check_file(path, TABLE_SUFFIXES, "table")
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
    return str(value)


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

"""``featurectl compare``: runs side by side, the best first, and what can be said of their differences."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurectl import options

if TYPE_CHECKING:
    from featurestream_consumer.compare import RunSummary
    from featurestream_consumer.comparison_text import ComparisonText

#: What goes first where a terminal is too narrow for all columns: what says least about how well a run did.
FIRST_TO_GO = (
    "stream", "validation", "state", "start", "optimizer", "epochs", "steps", "seed", "head", "tap", "only a", "only b",
    "of a", "of b", "p",
)  # fmt: skip


def compare(
    *,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN]...", help="Run folders, or folders that hold them; with --stream also names."),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(
            metavar="STREAM",
            help="Look names up in this stream's run registry: runs of other machines too. Without RUN: all of them.",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to compare by; without it the first run's main metric.")
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="A row a pair of runs, all of them, instead of a row a run.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the table too: .csv, .md or .json.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw learning curves and differences as a PNG.")
    ] = None,
    grid: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the metric over the two settings that matter most as a PNG."),
    ] = None,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    as_json: options.Json = False,
) -> None:
    """Show runs side by side, the best first, each with its difference to the best on the same samples."""
    from featurectl.output import print_json
    from featurestream.files import check_file
    from featurestream_consumer.compare import (
        TABLE_SUFFIXES,
        compare_table,
        pairs_table,
        records,
        write_table,
    )
    from featurestream_consumer.comparison_text import describe_pairs, describe_runs
    from featurestream_consumer.grid_plot import plot_grid
    from featurestream_consumer.plots import plot_comparison

    for path, suffixes, what in (
        (output, TABLE_SUFFIXES, "table"), (plot, (".png",), "picture"), (grid, (".png",), "picture")
    ):  # fmt: skip
        if path is not None:
            check_file(path, suffixes, what)
    found = _find_runs(runs or [], stream, bootstrap_servers, kafka_config)
    table = (pairs_table if pairs else compare_table)(found, metric=metric)
    rows = records(table)
    lineages = {run.name: run.lineage for run in found}
    text = describe_pairs(rows) if pairs else describe_runs(rows, lineages)
    if as_json:
        for row in rows:
            print_json(row)
    else:
        print_text(text)
    if output is not None:
        write_table(table, output, markdown=text.markdown())
        options.say(f"wrote {output}")
    for path, draw in ((plot, plot_comparison), (grid, plot_grid)):
        if path is not None:
            draw(found, path, metric=metric)
            options.say(f"wrote {path}")
    if not pairs and len({row["samples"] for row in rows} - {"-"}) > 1:
        options.say("different letters under samples: validated on different samples, which cannot be compared")


def _find_runs(
    paths: Sequence[Path], stream: str | None, bootstrap_servers: str | None, kafka_config: Path | None
) -> list[RunSummary]:
    """Return the runs in folders and, where a stream is named, those of its registry: by name, or all of them."""
    import time

    from featurestream.errors import UsageError
    from featurestream.experiments import find_experiment, read_experiments
    from featurestream.manifest_topic import require_manifest
    from featurestream_consumer.compare import holds_runs, load_runs, registered_run

    if stream is None:
        return load_runs(paths)
    with options.open_log(bootstrap_servers, kafka_config) as log:
        require_manifest(log, stream)
        known = read_experiments(log, stream)
    if not known:
        raise UsageError(
            f'no experiment has ever joined the run registry of stream "{stream}"',
            hint="every featurectl train and sweep does by itself; name run folders, without --stream",
        )
    folders = [path for path in paths if holds_runs(path)]
    names = [str(path) for path in paths if path not in folders] if paths else list(known)
    found = [find_experiment(known, stream, name) for name in dict.fromkeys(names)]
    now_ms = round(time.time() * 1000)
    registered = [registered_run(experiment, now_ms=now_ms) for experiment in found]
    return [*(load_runs(folders) if folders else []), *registered]


def print_comparison(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of runs (rows of ``compare_table``); what is the same in all of them goes on a line above it."""
    from featurestream_consumer.comparison_text import describe_runs

    print_text(describe_runs(rows, {}))


def print_text(text: ComparisonText) -> None:
    """Print a comparison: what all rows share, the table, what its figures mean, a tree of the forks."""
    from featurectl.output import print_table

    if text.shared_line:
        typer.echo(text.shared_line)
    left_out: list[str] = []
    if text.columns:
        columns, cells, left_out = _fitting(text.columns, text.cells)
        print_table(columns, cells)
    for line in (*text.notes, *text.tree):
        typer.echo(line)
    if left_out:
        options.say(f"the terminal is too narrow for {', '.join(left_out)}: --json and --output have them")


def _fitting(columns: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the table without the columns for which a terminal is too narrow, and their names."""
    from featurectl.output import least_width

    # Names may be broken into lines; other cells are short.
    columns = [f"~{column}" if column in ("run", "a", "b", "against") else column for column in columns]
    left_out: list[str] = []
    if not sys.stdout.isatty():
        return columns, cells, left_out
    width = shutil.get_terminal_size().columns
    for name in FIRST_TO_GO:
        place = next((number for number, column in enumerate(columns) if column.lstrip(">~") == name), None)
        if place is None or least_width(columns, cells) <= width:
            continue
        left_out.append(name)
        columns = columns[:place] + columns[place + 1 :]
        cells = [row[:place] + row[place + 1 :] for row in cells]
    return columns, cells, left_out

"""``featurectl compare``: runs side by side, the best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from featurectl import options

# Never folded into the line of what all runs share: these are what a table of runs is read for.
ALWAYS_SHOWN = ("run", "tap")


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold them.")],
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to sort by. [default: the first run's main metric]")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the table too: .csv, .md or .json.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw learning curves and final metrics as a PNG.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show runs side by side with their final validation metrics, the best first."""
    from featurectl.output import print_json
    from featurestream_consumer.compare import compare_table, load_runs, records, write_table
    from featurestream_consumer.plots import plot_comparison

    found = load_runs(runs)
    table = compare_table(found, metric=metric)
    rows = records(table)
    if as_json:
        for row in rows:
            print_json(row)
    else:
        print_comparison(rows)
    if csv is not None:
        write_table(table, csv)
        options.say(f"wrote {csv}")
    if plot is not None:
        plot_comparison(found, plot, metric=metric)
        options.say(f"wrote {plot}")
    if len({row["samples"] for row in rows} - {"-"}) > 1:
        options.say("different letters under samples: validated on different samples, which cannot be compared")


def print_comparison(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of runs (rows of ``compare_table``); what is the same in all of them goes on a line above it."""
    from featurectl.output import print_table

    shared = {
        name: _cell(value)
        for name, value in rows[0].items()
        if len(rows) > 1 and name not in ALWAYS_SHOWN and all(row[name] == value for row in rows)
    }
    if shared:
        typer.echo(f"the same in all: {', '.join(f'{name} {value}' for name, value in shared.items() if value != '-')}")
    names = [name for name in rows[0] if name not in shared]
    numeric = {name for name in names if all(isinstance(row[name], (int, float, type(None))) for row in rows)}
    print_table(
        [f">{name}" if name in numeric else name for name in names],
        [[_cell(row[name]) for name in names] for row in rows],
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)

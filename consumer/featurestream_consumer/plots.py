"""Pictures of runs: how they learned, and where they ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featurestream.errors import MissingExtraError, UsageError
from featurestream_consumer.compare import RunSummary, sample_letters
from featurestream_consumer.files import write_atomically
from featurestream_consumer.metrics import higher_is_better
from featurestream_consumer.reporters.console import format_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS_PER_INCH = 150


def plot_comparison(runs: Sequence[RunSummary], path: Path, *, metric: str | None = None) -> None:
    """Write a PNG: on the left a learning curve of the validation metric a run, on the right where each ended.

    ``metric`` is the first run's main metric where it is not given. Runs that were never validated have no curve and
    no bar; where runs were validated on different samples, a letter beside the name tells them apart. Raises
    UsageError when no run has the metric, MissingExtraError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise MissingExtraError("a plot", "consumer") from error
    metric = metric or next((run.main_metric for run in runs if run.main_metric), None)
    shown = [run for run in runs if metric is not None and run.metrics.get(metric) is not None]
    if metric is None or not shown:
        raise UsageError(
            f'none of the runs has the metric "{metric}"' if metric else "none of the runs was validated",
            hint="train with --validate STREAM",
        )
    # The best at the top, and the same colour left and right.
    shown.sort(key=lambda run: run.metrics[metric], reverse=higher_is_better(metric))
    height = max(3.6, 1.4 + 0.32 * len(shown))
    figure = Figure(figsize=(11, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    curves, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = _colours(len(shown))
    _draw_curves(curves, shown, metric, colours)
    _draw_bars(bars, shown, metric, colours)
    write_atomically(
        path,
        lambda file: figure.savefig(file, format="png", dpi=DOTS_PER_INCH),
        safe="the runs, which are only read",
    )


def _draw_curves(axes: Axes, runs: Sequence[RunSummary], metric: str, colours: Sequence[str]) -> None:
    for run, colour in zip(runs, colours, strict=True):
        rows = [row for row in run.history if row.get(metric) is not None]
        axes.plot(
            [row["step"] for row in rows],
            [row[metric] for row in rows],
            color=colour,
            marker="o",
            markersize=3,
            label=run.name,
        )
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(f"validation {metric}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bars(axes: Axes, runs: Sequence[RunSummary], metric: str, colours: Sequence[str]) -> None:
    letters = sample_letters(runs)
    several = len(set(letters.values())) > 1
    labels = [f"{run.name}  ({run.tap}{f', samples {letters[run.folder]}' if several else ''})" for run in runs]
    values = [run.metrics[metric] for run in runs]
    places = range(len(runs))
    axes.barh(places, values, color=colours)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            format_metric(metric, value), (value, place), xytext=(4, 0), textcoords="offset points", va="center"
        )
    finite = [value for value in values if math.isfinite(value)]
    axes.set_xlim(right=max(finite, default=1.0) * 1.18)
    axes.set_xlabel(f"validation {metric}, at the end")
    axes.spines[["top", "right"]].set_visible(False)


def _colours(count: int) -> list[str]:
    """Return matplotlib's ten colours, or as many steps of a scale from the best to the worst as there are runs."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if count <= 10:
        return [f"C{number}" for number in range(count)]
    return [to_hex(colormaps["turbo"](0.05 + 0.9 * number / (count - 1))) for number in range(count)]

"""A heat map of a sweep: how well each pair of values of two settings did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestream.errors import UsageError
from featurestream_consumer.compare import RunSummary, find_metric, sample_letters
from featurestream_consumer.drawing import metric_label, new_figure, scale_of, write_figure
from featurestream_consumer.metrics import higher_is_better
from featurestream_consumer.settings import by_effect, differing_settings, in_order, value_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Grid:
    """The results of a sweep, laid out by two of its settings.

    Attributes:
        rows, columns: the two settings.
        row_values, column_values: their values, as texts.
        averaged: other settings that differ: a cell holds the runs of all of their values.
        cells: the results in each cell, by its row and column number; what no run has is not there.
    """

    rows: str
    columns: str
    row_values: list[str]
    column_values: list[str]
    averaged: list[str]
    cells: dict[tuple[int, int], list[float]]


def grid_of(runs: Sequence[RunSummary], metric: str) -> Grid:
    """Return the runs by the two settings that matter most (:func:`~featurestream_consumer.settings.by_effect`).

    Runs without the metric are left out. The setting with more values is laid along the columns. Raises UsageError
    where fewer than two settings differ, or runs were validated on different samples.
    """
    shown = [run for run in runs if run.metrics.get(metric) is not None]
    if len(set(sample_letters(shown).values())) > 1:
        raise UsageError(
            "the runs were validated on different samples: one picture would compare them",
            hint="name the runs of one sweep",
        )
    results = [run.metrics[metric] for run in shown]
    settings = differing_settings([run.record["config"] for run in shown])
    if len(settings) < 2:
        what = f"differ in {next(iter(settings))} alone" if settings else "do not differ in any setting"
        raise UsageError(
            f"the {len(shown)} validated runs {what}: a grid needs two settings that differ",
            hint="--plot draws runs side by side",
        )
    one, other, *rest = by_effect(settings, results)
    row, column = sorted((one, other), key=lambda key: len(in_order(settings[key])))
    row_values, column_values = in_order(settings[row]), in_order(settings[column])
    cells: dict[tuple[int, int], list[float]] = {}
    for at_row, at_column, result in zip(settings[row], settings[column], results, strict=True):
        cell = row_values.index(value_text(at_row)), column_values.index(value_text(at_column))
        cells.setdefault(cell, []).append(result)
    return Grid(row, column, row_values, column_values, rest, cells)


def plot_grid(runs: Sequence[RunSummary], path: Path, *, metric: str | None = None) -> None:
    """Write a PNG: a heat map of ``metric`` (the first run's main metric) over the two settings that matter most.

    A cell shows the mean of its runs, and below it the least and the greatest where it has several: those of all other
    settings that differ. Brighter is better; the best cell has a frame. Raises UsageError where there is no grid
    (:func:`grid_of`) or no run has the metric, MissingExtraError where matplotlib is not installed.
    """
    write_figure(draw_grid(runs, metric=metric), path)


def draw_grid(runs: Sequence[RunSummary], *, metric: str | None = None) -> Figure:
    """Return the picture of :func:`plot_grid`."""
    import numpy as np

    runs = [run for run in runs if run.validated]
    metric = find_metric(runs, metric)
    if metric is None:
        raise UsageError("none of the runs was validated", hint="train with --validate STREAM")
    grid = grid_of(runs, metric)
    scale = scale_of(metric)
    means = np.full((len(grid.row_values), len(grid.column_values)), np.nan)
    for cell, results in grid.cells.items():
        means[cell] = scale * sum(results) / len(results)
    wide, high = 1.35 * len(grid.column_values) + 2.6, 0.8 * len(grid.row_values) + 1.7
    figure = new_figure(max(5.4, wide), max(2.6, high))
    from matplotlib.patches import Rectangle

    axes = figure.subplots()
    better = higher_is_better(metric)
    image = axes.imshow(means, cmap="cividis" if better else "cividis_r", aspect="auto")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for row, column in np.ndindex(*means.shape):
        found = grid.cells.get((row, column))
        if found is None:
            axes.text(column, row, "no run", ha="center", va="center", fontsize=8)
            continue
        mean = float(means[row, column])
        colour = "black" if (mean > middle) == better else "white"
        axes.text(
            column, row - (0.1 if len(found) > 1 else 0), _number(mean), ha="center", va="center", color=colour,
            fontsize=11,
        )  # fmt: skip
        if len(found) > 1:
            span = f"{_number(scale * min(found))} to {_number(scale * max(found))}"
            axes.text(column, row + 0.22, span, ha="center", va="center", color=colour, fontsize=7.5)
    best = np.unravel_index(np.nanargmax(means) if better else np.nanargmin(means), means.shape)
    axes.add_patch(
        Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5, clip_on=False)
    )
    axes.set_xticks(range(len(grid.column_values)), grid.column_values)
    axes.set_yticks(range(len(grid.row_values)), grid.row_values)
    axes.set_xlabel(grid.columns)
    axes.set_ylabel(grid.rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_title(grid), fontsize=9, loc="left")
    bar = figure.colorbar(image, ax=axes, label=f"validation {metric_label(metric)}")
    bar.outline.set_visible(False)
    return figure


def _title(grid: Grid) -> str:
    sizes = {len(found) for found in grid.cells.values()}
    if not grid.averaged:
        return "one run a cell" if sizes == {1} else "mean of each cell's runs, least to greatest below"
    count = f"{sizes.pop()} runs" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)} runs"
    return f"mean of {count} a cell, over {', '.join(grid.averaged)};\nbelow it least to greatest"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"

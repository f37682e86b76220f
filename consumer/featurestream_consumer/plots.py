"""A picture of runs: how they learned, where they ended, and whether they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from featurestream.errors import UsageError
from featurestream_consumer.compare import RunSummary, best_first, compare_table, find_metric, records, sample_letters
from featurestream_consumer.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    limits,
    metric_label,
    new_figure,
    scale_of,
    shades,
    tidy,
    write_figure,
)
from featurestream_consumer.reporters.console import format_metric
from featurestream_consumer.settings import by_effect, differing_settings, in_order, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: From so many rows a curve has no markers: they would hide it.
MANY_ROWS: Final = 30
#: Rows of the first part of training, which would press all others together, do not decide the axis.
EARLY: Final = 0.25
SIGNIFICANT: Final = 0.05
#: Characters of a name that leaves no room for another one beside it.
LONG_NAME: Final = 28


@dataclass(frozen=True, slots=True)
class _Look:
    """How each run is drawn, by folder, and what its colours mean where there is not one a run."""

    colours: dict[Path, str]
    markers: dict[Path, str]
    alone: bool
    meaning: dict[str, str] = field(default_factory=dict)
    title: str = ""


def plot_comparison(runs: Sequence[RunSummary], path: Path, *, metric: str | None = None) -> None:
    """Write a PNG: learning curves in training and validation, and beside them where each run ended.

    ``metric`` is the first run's main metric where it is not given. Beside the curves there is a row a run, the best
    first: its value at the end, with the interval of 95 % of its difference to the best run that was validated on the
    same samples. An interval that holds the line of the best run says that the two may be equal; a filled mark says
    that they are not (p below 0.05 after Holm's correction over all pairs).

    A fork's curves begin where it left its parent, with a dotted line from there where the parent is shown. Up to
    seven runs have a colour each; more are coloured by the setting that matters most. Runs that were never validated
    are left out. Raises UsageError when no run has the metric, MissingExtraError where matplotlib is not installed.
    """
    write_figure(draw_comparison(runs, metric=metric), path)


def draw_comparison(runs: Sequence[RunSummary], *, metric: str | None = None) -> Figure:
    """Return the picture of :func:`plot_comparison`: its axes are validation, training, and where the runs ended."""
    runs = [run for run in runs if run.validated]
    metric = find_metric(runs, metric)
    shown = [run for run in best_first(runs, metric) if metric is not None and run.metrics.get(metric) is not None]
    if metric is None or not shown:
        raise UsageError("none of the runs was validated", hint="train with --validate STREAM")
    figure = new_figure(12, max(5.4, 1.6 + 0.27 * len(shown)))
    grid = figure.add_gridspec(2, 2, width_ratios=(6, 5))
    look = _look(shown, metric)
    validation = figure.add_subplot(grid[1, 0])
    training = figure.add_subplot(grid[0, 0], sharex=validation)
    in_training = metric if any(row.get(metric) is not None for run in shown for row in run.training) else "loss"
    _draw_curves(training, shown, in_training, look, "training")
    _draw_curves(validation, shown, metric, look, "validation")
    training.tick_params(labelbottom=False)
    validation.set_xlabel("optimiser step")
    if look.alone:
        columns = 1 if max(len(run.name) for run in shown) > LONG_NAME else 3
        training.legend(
            fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, ncols=columns, borderaxespad=0.2
        )  # fmt: skip
    _draw_ends(figure.add_subplot(grid[:, 1]), shown, metric, look)
    return figure


# ---- curves ---------------------------------------------------------------------------------------------------


def _draw_curves(axes: Axes, runs: Sequence[RunSummary], metric: str, look: _Look, kind: str) -> None:
    by_name = {run.name: run for run in runs}
    decisive: list[float] = []
    for place, run in enumerate(runs):
        steps, values = _curve(run, metric, kind)
        colour = look.colours[run.folder]
        axes.plot(
            steps,
            values,
            color=colour,
            marker=look.markers[run.folder] if look.alone and len(steps) <= MANY_ROWS else None,
            markersize=3.5,
            linewidth=1.4 if look.alone else 1.0,
            zorder=3 + (len(runs) - place) / len(runs),  # the best on top
            label=run.name,
        )
        last = steps[-1] if steps else 0
        decisive += [value for step, value in zip(steps, values, strict=True) if step >= EARLY * last]
        if run.lineage is not None and run.lineage.parent in by_name and steps:
            start = _value_at(*_curve(by_name[run.lineage.parent], metric, kind), run.lineage.step)
            if start is not None:
                axes.plot([run.lineage.step, steps[0]], [start, values[0]], color=colour, linestyle=":", linewidth=1.4)
                axes.plot([run.lineage.step], [start], color=colour, marker="o", markersize=8, fillstyle="none")
    found = limits([value for value in decisive if math.isfinite(value)])
    if found is not None:
        axes.set_ylim(found)
    axes.set_ylabel(f"{kind} {metric_label(metric)}")
    tidy(axes)


def _curve(run: RunSummary, metric: str, kind: str) -> tuple[list[int], list[float]]:
    """Return the steps and the values of a run's own rows: of a fork those after it left its parent."""
    rows = run.training if kind == "training" else run.history
    begun = -1 if run.lineage is None else run.lineage.step
    own = [row for row in rows if row.get(metric) is not None and row["step"] > begun]
    return [row["step"] for row in own], [row[metric] * scale_of(metric) for row in own]


def _value_at(steps: Sequence[int], values: Sequence[float], step: int) -> float | None:
    """Return a curve's value at a step, on the line between the two rows around it; None before its first row."""
    found: float | None = None
    for number, at in enumerate(steps):
        if at > step:
            if number:
                share = (step - steps[number - 1]) / (at - steps[number - 1])
                found = values[number - 1] + share * (values[number] - values[number - 1])
            break
        found = values[number]
    return found


# ---- ends -----------------------------------------------------------------------------------------------------


def _draw_ends(axes: Axes, runs: Sequence[RunSummary], metric: str, look: _Look) -> None:
    from matplotlib.lines import Line2D

    scale = scale_of(metric)
    rows = [row for row in records(compare_table(runs, metric=metric)) if row[metric] is not None]
    letters = sample_letters(runs)
    several = len(set(letters.values())) > 1
    taps = len({run.tap for run in runs}) > 1
    best = {row["against"]: 0.0 for row in rows if row["against"]}
    drawn = [run.metrics[metric] * scale for run in runs]
    for place, (run, row) in enumerate(zip(runs, rows, strict=True)):
        value = run.metrics[metric] * scale
        if run.name in best:
            best[run.name] = value
            axes.axvline(value, color=GREY, linewidth=1, linestyle="--", zorder=1)
            if several:
                axes.annotate(
                    letters[run.folder], (value, 0.0), xycoords=("data", "axes fraction"), xytext=(3, 4),
                    textcoords="offset points", fontsize=8, color=GREY,
                )  # fmt: skip
        sure = row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT
        if row["difference"] is not None:
            around = [best[row["against"]] + scale * row[end] for end in ("low", "high")]
            axes.plot(around, [place, place], color=look.colours[run.folder], linewidth=1.6, solid_capstyle="butt")
            drawn += around
        axes.plot(
            [value],
            [place],
            color=look.colours[run.folder],
            marker=look.markers[run.folder],
            markersize=6.5,
            markerfacecolor=look.colours[run.folder] if sure or run.name in best else "white",
            linestyle="none",
        )
        axes.annotate(
            format_metric(metric, run.metrics[metric]), (1.0, place), xycoords=("axes fraction", "data"),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(runs)), [_label(run, letters if several else {}, taps=taps) for run in runs], fontsize=8)
    axes.set_ylim(len(runs) - 0.4, -0.6)
    found = limits([value for value in drawn if math.isfinite(value)])
    if found is not None:
        axes.set_xlim(found)
    axes.set_xlabel(f"validation {metric_label(metric)} at the end")
    samples = {row["paired_samples"] for row in rows if row["paired_samples"]}
    if samples:
        on = f", {samples.pop():,} samples" if len(samples) == 1 else ""
        axes.set_title(
            f"bar: 95 % interval of the difference to the best (paired{on})\n"
            f"filled: best, or differs from it (Holm p < {SIGNIFICANT})",
            fontsize=8, loc="left", color="#404040",
        )  # fmt: skip
    tidy(axes, "x")
    if look.meaning:
        handles = [Line2D([], [], color=colour, linewidth=3, label=value) for value, colour in look.meaning.items()]
        axes.legend(handles=handles, title=look.title, fontsize=8, title_fontsize=8, loc="best", framealpha=0.9)


def _label(run: RunSummary, letters: dict[Path, str], *, taps: bool) -> str:
    """Return a run's name, with what sets it apart and the name does not say."""
    facts = [
        *([run.tap] if taps and run.tap not in run.name else []),
        *([f"samples {letters[run.folder]}"] if letters else []),
        *([run.record["state"]] if run.record["state"] != "finished" else []),
    ]
    return f"{run.name} ({', '.join(facts)})" if facts else run.name


# ---- colours --------------------------------------------------------------------------------------------------


def _look(runs: Sequence[RunSummary], metric: str) -> _Look:
    """Return a colour and a marker a run where there are enough; else a colour for each value of one setting."""
    if len(runs) <= len(COLOURS):
        return _Look(
            {run.folder: COLOURS[number] for number, run in enumerate(runs)},
            {run.folder: MARKERS[number] for number, run in enumerate(runs)},
            alone=True,
        )
    markers = {run.folder: "o" for run in runs}
    settings: dict[str, list[Any]] = {
        key: values
        for key, values in differing_settings([run.record["config"] for run in runs]).items()
        if len(in_order(values)) <= len(COLOURS)
    }
    if settings:
        key = by_effect(settings, [run.metrics[metric] for run in runs])[0]
        meaning = dict(zip(in_order(settings[key]), COLOURS, strict=False))
        colours = {run.folder: meaning[value_text(value)] for run, value in zip(runs, settings[key], strict=True)}
        return _Look(colours, markers, False, meaning, key)
    return _Look({run.folder: colour for run, colour in zip(runs, shades(len(runs)), strict=True)}, markers, False)

"""A picture of a probe: how well each tap does, in the order of the result: by depth, where taps were named so."""

from __future__ import annotations

from pathlib import Path

from featurestream.errors import MissingExtraError
from featurestream_consumer.files import write_atomically
from featurestream_consumer.probe_result import ProbeResult

DOTS_PER_INCH = 150


def plot_depth(result: ProbeResult, path: Path) -> None:
    """Write a PNG: a line a probe, a place a tap. Raises MissingExtraError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a plot", "consumer") from error
    figure = Figure(figsize=(max(5.0, 2.2 + 0.9 * len(result.taps)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines: dict[str, list[float | None]] = {
        "ridge, best penalty": [tap.best.score for tap in result.taps],
        "LDA": [tap.lda for tap in result.taps],
        "nearest class mean": [tap.ncm for tap in result.taps],
    }
    for number, (name, values) in enumerate(lines.items()):
        shown = [value for value in values if value is not None]
        if shown:  # where labels are values, ridge is the only one
            axes.plot(shown, color=f"C{number}", marker="os^"[number], linestyle=("-", "--", ":")[number], label=name)
    axes.set_xticks(
        range(len(result.taps)),
        [f"{tap.tap}\n({tap.features:,})" for tap in result.taps],
        rotation=0 if len(result.taps) <= 6 else 60,
    )
    axes.set_xlim(-0.3, len(result.taps) - 0.7)
    measure = "accuracy" if result.measure == "accuracy" else "R²"
    axes.set_title(f"{result.stream}: {measure} by depth")
    axes.set_xlabel("tap (features)")
    axes.set_ylabel(f"{measure} on {result.validation_rows:,} rows\n{result.validation}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    write_atomically(
        path,
        lambda file: figure.savefig(file, format="png", dpi=DOTS_PER_INCH),
        safe=f"the probe's result in {result.folder}",
    )

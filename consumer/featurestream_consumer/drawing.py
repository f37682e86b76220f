"""What all pictures of runs have in common: how they are made and written, their colours, their words for a metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from featurestream.errors import MissingExtraError
from featurestream_consumer.files import write_atomically
from featurestream_consumer.metrics import METRICS
from featurestream_consumer.reporters.console import SHARES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH: Final = 120
#: Colours that people with any kind of colour vision tell apart: M. Okabe, K. Ito, Color Universal Design (2008).
#: Without its yellow, which is too pale for a line on white.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS: Final = "osD^vPX"
GREY: Final = "#767676"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches. Raises MissingExtraError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise MissingExtraError("a plot", "consumer") from error
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    write_atomically(
        path,
        lambda file: figure.savefig(file, format="png", dpi=DOTS_PER_INCH, pil_kwargs={"optimize": True}),
        safe="the runs, which are only read",
    )


def shades(count: int) -> list[str]:
    """Return ``count`` steps of a scale from dark to light that any kind of colour vision sees as one."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](0.88 * number / max(1, count - 1))) for number in range(count)]


def scale_of(metric: str) -> float:
    """Return what a metric's values are multiplied with in a picture: 100 for a share, which is shown in percent."""
    return 100.0 if metric in SHARES else 1.0


def metric_label(metric: str) -> str:
    """Return a metric with its unit: ``top1 (%)``, ``mse (squared label units)``."""
    if metric in SHARES:
        return f"{metric} (%)"
    if metric == "loss" or metric not in METRICS:
        return metric
    return f"{metric} ({METRICS[metric].unit})"


def tidy(axes: Axes, grid: str = "both") -> None:
    """Take the frame's upper and right side away and draw a faint grid along ``grid`` ("x", "y" or "both")."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e4e4e4", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def limits(values: Sequence[float], margin: float = 0.06) -> tuple[float, float] | None:
    """Return limits of an axis with a margin around ``values``; None where there is nothing to go by."""
    if not values:
        return None
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room

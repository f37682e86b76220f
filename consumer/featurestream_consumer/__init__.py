"""The consumer: reads a stream of features and trains heads on it.

What is public can be imported from here: ``from featurestream_consumer import TrainConfig, train``. It is loaded when
it is first asked for, so that importing the package costs nothing.

>>> import featurestream_consumer
>>> sorted(featurestream_consumer.__all__) == featurestream_consumer.__all__
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from featurestream.lazy import load_when_asked

if TYPE_CHECKING:
    from featurestream_consumer.compare import compare_runs, compare_table, load_run, load_runs, pairs_table
    from featurestream_consumer.config import TrainConfig
    from featurestream_consumer.grid_plot import plot_grid
    from featurestream_consumer.head_file import read_head
    from featurestream_consumer.paired import (
        compare_pairs,
        holm,
        mcnemar_exact,
        paired_difference,
        read_scores,
        sign_flip,
    )
    from featurestream_consumer.plots import plot_comparison
    from featurestream_consumer.probe_plot import plot_depth
    from featurestream_consumer.run import train
    from featurestream_consumer.sweep import plan_sweep, run_sweep
    from featurestream_consumer.sweep_file import SweepFile, read_sweep

# `from featurestream_consumer.probe import probe` is the way to what has its module's name.
_MODULES: Final = {
    "SweepFile": "sweep_file",
    "TrainConfig": "config",
    "compare_pairs": "paired",
    "compare_runs": "compare",
    "compare_table": "compare",
    "holm": "paired",
    "load_run": "compare",
    "load_runs": "compare",
    "mcnemar_exact": "paired",
    "paired_difference": "paired",
    "pairs_table": "compare",
    "plan_sweep": "sweep",
    "plot_comparison": "plots",
    "plot_depth": "probe_plot",
    "plot_grid": "grid_plot",
    "read_head": "head_file",
    "read_scores": "paired",
    "read_sweep": "sweep_file",
    "run_sweep": "sweep",
    "sign_flip": "paired",
    "train": "run",
}

__all__ = [
    "SweepFile",
    "TrainConfig",
    "compare_pairs",
    "compare_runs",
    "compare_table",
    "holm",
    "load_run",
    "load_runs",
    "mcnemar_exact",
    "paired_difference",
    "pairs_table",
    "plan_sweep",
    "plot_comparison",
    "plot_depth",
    "plot_grid",
    "read_head",
    "read_scores",
    "read_sweep",
    "run_sweep",
    "sign_flip",
    "train",
]


__getattr__ = load_when_asked(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

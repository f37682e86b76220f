"""Pictures of runs: what is drawn where, and what cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from featurestream.errors import UsageError
from featurestream_consumer.compare import load_runs
from featurestream_consumer.drawing import COLOURS
from featurestream_consumer.grid_plot import draw_grid, grid_of, plot_grid
from featurestream_consumer.plots import draw_comparison, plot_comparison
from tests.comparing import lineage, write_run

GOOD, BAD = [1] * 12, [0] * 10 + [1] * 2


def points(axes) -> dict[str, list[tuple[float, float]]]:
    """The points of each line with a name, to four digits."""
    return {
        line.get_label(): [(int(step), round(float(value), 4)) for step, value in zip(*line.get_data(), strict=True)]
        for line in axes.get_lines()
    }


def test_each_run_has_a_curve_of_validation_and_one_of_training_in_percent(tmp_path: Path) -> None:
    write_run(tmp_path, "good", GOOD)
    write_run(tmp_path, "bad", BAD, history=[(5, 0.125), (10, 0.25)])
    validation, training, _ = draw_comparison(load_runs([tmp_path])).axes
    assert validation.get_ylabel() == "validation top1 (%)"
    assert points(validation) == {"good": [(10, 25.0), (20, 50.0)], "bad": [(5, 12.5), (10, 25.0)]}
    assert training.get_ylabel() == "training top1 (%)"
    assert points(training)["good"] == [(10, 35.0), (20, 60.0)]


def test_ends_stand_best_first_with_the_interval_of_the_difference_around_the_best(tmp_path: Path) -> None:
    write_run(tmp_path, "bad", BAD, taps=["fc"])
    write_run(tmp_path, "good", GOOD)
    write_run(tmp_path, "other", [1, 0], fingerprint="e" * 32)
    *_, ends = draw_comparison(load_runs([tmp_path])).axes
    assert [label.get_text() for label in ends.get_yticklabels()] == [
        "good (layer3, samples A)", "other (layer3, samples B)", "bad (fc, samples A)",
    ]  # fmt: skip
    (bar,) = [line for line in ends.get_lines() if line.get_linestyle() == "-"]
    low, high = bar.get_xdata()
    assert 0 <= low < 100 * 2 / 12 < high < 100
    marks = [line for line in ends.get_lines() if line.get_marker() not in ("None", None, "")]
    assert [float(mark.get_xdata()[0]) for mark in marks] == pytest.approx([100.0, 50.0, 100 * 2 / 12])
    # The best, and the one that differs from it (10 samples apart, all on one side): p = 2 / 1024.
    assert [mark.get_markerfacecolor() for mark in marks] == [COLOURS[0], "white", COLOURS[2]]


def test_a_forks_curve_begins_where_it_left_its_parent(tmp_path: Path) -> None:
    """At step 15, half-way between the parent's rows of steps 10 (25 %) and 20 (50 %)."""
    write_run(tmp_path, "E1", BAD)
    write_run(
        tmp_path,
        "E2",
        GOOD,
        history=[(10, 0.25), (25, 0.75)],
        lineage=lineage("E1", 15, optimizer_args__lr=(0.1, 0.01)),
    )
    validation, *_ = draw_comparison(load_runs([tmp_path])).axes
    assert points(validation)["E2"] == [(25, 75.0)]
    (joint,) = [line for line in validation.get_lines() if line.get_linestyle() == ":"]
    assert list(zip(*joint.get_data(), strict=True)) == [(15, 37.5), (25, 75.0)]


def test_a_fork_without_its_parent_has_no_joint(tmp_path: Path) -> None:
    write_run(tmp_path, "E2", GOOD, history=[(25, 0.75)], lineage=lineage("E1", 15))
    validation, *_ = draw_comparison(load_runs([tmp_path])).axes
    assert [line.get_linestyle() for line in validation.get_lines()] == ["-"]


def test_many_runs_are_coloured_by_the_setting_that_matters_most(tmp_path: Path) -> None:
    for number in range(8):
        right = [1] * (6 if number % 2 else 10) + [0] * (6 if number % 2 else 2)
        write_run(tmp_path, f"run{number}", right, taps=["fc" if number % 2 else "layer2"], seed=number)
    validation, _, ends = draw_comparison(load_runs([tmp_path])).axes
    assert {line.get_label(): line.get_color() for line in validation.get_lines()} == {
        f"run{number}": COLOURS[number % 2] for number in range(8)
    }
    assert ends.get_legend().get_title().get_text() == "tap"
    assert [text.get_text() for text in ends.get_legend().get_texts()] == ["layer2", "fc"]


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    write_run(tmp_path, "good", GOOD)
    plot_comparison(load_runs([tmp_path]), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"
        assert image.width == 1440


def test_runs_that_were_never_validated_cannot_be_drawn(tmp_path: Path) -> None:
    """Their metrics are of training."""
    write_run(tmp_path, "blind", GOOD, fingerprint=None)
    runs = load_runs([tmp_path])
    with pytest.raises(UsageError, match="none of the runs was validated; train with --validate STREAM"):
        plot_comparison(runs, tmp_path / "plot.png")
    with pytest.raises(UsageError, match="none of the runs was validated"):
        plot_grid(runs, tmp_path / "plot.png")
    with pytest.raises(UsageError, match='none of the runs has the metric "top3"'):
        plot_comparison(runs, tmp_path / "plot.png", metric="top3")


# ---- the grid -------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three taps, two learning rates and two seeds, but for one run: top1 by hand, in eighths."""
    eighths = {"layer2": (2, 3), "layer3": (4, 5), "fc": (6, 8)}
    for tap, (slow, fast) in eighths.items():
        for lr, best in ((0.1, fast), (0.01, slow)):
            for seed in (0, 1):
                if (tap, lr) != ("fc", 0.01):
                    right = best - seed
                    write_run(
                        tmp_path, f"{tap}-{lr}-{seed}", [1] * right + [0] * (8 - right), taps=[tap],
                        optimizer_args={"lr": lr}, seed=seed,
                    )  # fmt: skip
    return tmp_path


def test_a_grid_is_laid_over_the_two_settings_that_matter_most(sweep: Path) -> None:
    grid = grid_of(load_runs([sweep]), "top1")
    assert (grid.rows, grid.row_values) == ("optimizer_args.lr", ["0.01", "0.1"])
    assert (grid.columns, grid.column_values) == ("tap", ["fc", "layer2", "layer3"])
    assert grid.averaged == ["seed"]
    assert grid.cells == {
        (0, 1): [2 / 8, 1 / 8], (0, 2): [4 / 8, 3 / 8],
        (1, 0): [8 / 8, 7 / 8], (1, 1): [3 / 8, 2 / 8], (1, 2): [5 / 8, 4 / 8],
    }  # fmt: skip


def test_a_cell_shows_its_mean_and_its_ends_and_the_best_one_has_a_frame(sweep: Path) -> None:
    axes = draw_grid(load_runs([sweep])).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == [
        "no run", "18.8", "12.5 to 25.0", "43.8", "37.5 to 50.0",
        "93.8", "87.5 to 100.0", "31.2", "25.0 to 37.5", "56.2", "50.0 to 62.5",
    ]  # fmt: skip
    (frame,) = axes.patches
    assert frame.get_xy() == (-0.5, 0.5)
    assert axes.get_title(loc="left") == "mean of 2 runs a cell, over seed;\nbelow it least to greatest"


def test_of_a_loss_less_is_better(sweep: Path) -> None:
    axes = draw_grid(load_runs([sweep]), metric="loss").axes[0]
    assert axes.patches[0].get_xy() == (-0.5, 0.5)
    assert "0.0625" in [text.get_text() for text in axes.texts]


def test_what_is_no_grid_is_told(tmp_path: Path) -> None:
    write_run(tmp_path, "one", GOOD)
    write_run(tmp_path, "same", GOOD)
    with pytest.raises(
        UsageError, match="the 2 validated runs do not differ in any setting: a grid needs two settings"
    ):
        grid_of(load_runs([tmp_path]), "top1")
    write_run(tmp_path, "other", GOOD, seed=1)
    with pytest.raises(UsageError, match="the 3 validated runs differ in seed alone"):
        grid_of(load_runs([tmp_path]), "top1")
    write_run(tmp_path, "foreign", GOOD, seed=1, taps=["fc"], fingerprint="e" * 32)
    with pytest.raises(UsageError, match="validated on different samples"):
        plot_grid(load_runs([tmp_path]), tmp_path / "grid.png")

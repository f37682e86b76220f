"""A sweep file says which experiments there are, and every mistake in it is told before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurestream.errors import DataError, UnknownNameError, UsageError
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.sweep_file import SweepFile, experiment_name, parse_yaml, read_sweep


def experiments(**content: Any) -> list[TrainConfig]:
    return SweepFile(**{"stream": "s", "base": {"tap": "avgpool"}, **content}).experiments(Path("runs"), name="abl")


def test_a_grid_is_every_combination_the_last_key_fastest() -> None:
    found = experiments(grid={"optimizer_args.lr": [0.1, 0.01], "seed": [0, 1]})
    assert [(config.optimizer_args["lr"], config.seed) for config in found] == [
        (0.1, 0),
        (0.1, 1),
        (0.01, 0),
        (0.01, 1),
    ]
    assert [config.name for config in found] == [
        "abl-lr0.1-seed0", "abl-lr0.1-seed1", "abl-lr0.01-seed0", "abl-lr0.01-seed1",
    ]  # fmt: skip


def test_runs_are_added_to_the_grid_and_named_by_what_they_set() -> None:
    found = experiments(
        grid={"seed": [0, 1]},
        runs=[{"head": "linear"}, {"name": "wide", "head_args": {"hidden": [512, 512]}}],
        base={"tap": "avgpool", "name": "E", "head_args.hidden": 64},
    )
    assert [config.name for config in found] == ["E-seed0", "E-seed1", "E-head_linear", "wide"]
    assert [config.head_args for config in found] == [{"hidden": 64}, {"hidden": 64}, {}, {"hidden": [512, 512]}]


def test_the_keys_of_the_command_line_mean_the_same_here() -> None:
    found = experiments(
        **{"validate": "t", "from": "-1h", "until": "latest", "passes": 7, "runs": [{"epochs": 3}, {"seed": 1}]}
    )
    assert [(config.start, config.stop, config.validate_stream) for config in found] == [("-1h", "latest", "t")] * 2
    assert [config.epochs for config in found] == [3, 7]


def test_arguments_named_one_by_one_go_over_the_bases() -> None:
    base = {"tap": "a", "optimizer": "SGD", "optimizer_args": {"lr": 0.1, "momentum": 0.9}}
    (one, other, whole) = experiments(
        base=base, runs=[{"optimizer_args.lr": 1}, {"optimizer": "Adam"}, {"optimizer_args": {"lr": 2}}]
    )
    assert one.optimizer_args == {"lr": 1, "momentum": 0.9}
    assert other.optimizer_args == {}, "momentum of SGD means nothing to Adam"
    assert whole.optimizer_args == {"lr": 2}


def test_names_are_made_safe_for_folders_and_never_too_long() -> None:
    assert experiment_name("E", {"taps": ["layer3", "avg pool"], "head_args.hidden": [64, 32]}) == (
        "E-tap_layer3xavg_pool-hidden64x32"
    )
    assert experiment_name("E", {"a_args.x": 1, "b_args.x": True}) == "E-a_args.x1-b_args.x_true"
    long = experiment_name("E", {"head_args.hidden": list(range(100))})
    assert len(long) == 100
    assert long != experiment_name("E", {"head_args.hidden": [*range(99), 7]})


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ({"steam": "s"}, UnknownNameError, 'unknown key in the sweep file "steam"; did you mean "stream"?'),
        ({"grid": {"sed": [1]}}, UnknownNameError, 'unknown setting in grid "sed"; did you mean "seed"?'),
        ({"grid": {"optimizer_arg.lr": [1]}}, UnknownNameError, 'did you mean "optimizer_args.lr"?'),
        ({"base": {"taps": "t", "hed": "mlp"}, "grid": {"seed": [1]}}, UnknownNameError, 'did you mean "head"?'),
        ({"runs": [{"x": 1}]}, UnknownNameError, 'unknown setting in runs[0] "x"'),
        ({"grid": {"lr": [0.1]}}, UnknownNameError, "arguments follow what takes them: optimizer_args.lr"),
        ({}, UsageError, "the sweep has no experiments; give grid"),
        ({"grid": {"seed": []}}, UsageError, "the sweep has no experiments: seed in grid has no values"),
        (
            {"runs": [{"name": "a"}, {"name": "a", "seed": 1}]},
            UsageError,
            'two experiments of the sweep are called "a"',
        ),
        ({"grid": {"seed": [1, 1]}}, UsageError, 'two experiments of the sweep are called "abl-seed1"'),
        ({"grid": {"name": ["a", "b"]}}, UsageError, "a grid cannot vary the name"),
        ({"grid": {"stream": ["a", "b"]}}, UsageError, '"stream" in grid cannot differ between the experiments'),
        ({"grid": {"seed": 3}}, UsageError, "grid.seed: input should be a valid list, got 3"),
        ({"epochs": 0, "grid": {"seed": [1]}}, UsageError, "epochs: input should be greater than or equal to 1, got 0"),
        ({"runs": [{"batch_size": 0}]}, UsageError, 'experiment "abl-batch_size0": batch_size (rows an optimiser step'),
        ({"base": {}, "grid": {"seed": [1]}}, UsageError, "taps"),
        ({"epochs": 1, "passes": 2}, UsageError, 'the sweep file gives "epochs" and "passes", which say the same'),
        (
            {"base": {"taps": "t", "optimizer_args": 5}, "grid": {"optimizer_args.lr": [1]}},
            UsageError,
            "optimizer_args (the optimiser's arguments): input should be a valid dictionary, got 5",
        ),
    ],
)
def test_what_is_wrong_with_a_sweep_file_is_said(content: dict[str, Any], kind: type[UsageError], message: str) -> None:
    with pytest.raises(kind) as caught:
        experiments(**content)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_yaml_is_read_as_people_mean_it(tmp_path: Path) -> None:
    path = tmp_path / "lr.yaml"
    path.write_text(
        "stream: s\nfrom: 2026-01-31T12:00:00Z\nbase: {tap: t}\ngrid: {optimizer_args.lr: [1e-3, 1.5E+2, .5]}\n"
    )
    found = read_sweep(path)
    assert found.grid == {"optimizer_args.lr": [0.001, 150.0, 0.5]}
    assert found.start.startswith("2026-01-31T12:00:00")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("stream: s\nstream: t\n", UsageError, 'line 2: the key "stream" is there twice'),
        ("a: [1", DataError, "is not YAML: while parsing a flow sequence"),
        ("", UsageError, "holds nothing"),
        ("- 1\n", UsageError, "holds list"),
        ("a: !!python/object/apply:os.system [ls]\n", DataError, "is not YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(kind) as caught:
        read_sweep(path)
    assert message in str(caught.value)
    with pytest.raises(UsageError, match="there is no file"):
        read_sweep(tmp_path / "y.yaml")


def test_a_text_that_looks_like_a_number_elsewhere_stays_one() -> None:
    assert parse_yaml("{a: 1e, b: e3, c: '1e3', d: -1h, e: 12}", "here") == {
        "a": "1e", "b": "e3", "c": "1e3", "d": "-1h", "e": 12,
    }  # fmt: skip

"""featurectl streams and compare on a stream's run registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestream.experiments import ExperimentsTopic, Place, read_experiments
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from tests.support import make_manifest, publish


@pytest.fixture
def runs(log, tmp_path: Path) -> Path:
    """The folder of two finished runs, E0 and E1, which the registry of the stream ``toy`` knows."""
    publish(log, make_manifest("toy", samples=30, lanes=3, passes=2))
    publish(log, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    for seed in range(2):
        train(
            TrainConfig(
                name=f"E{seed}", stream="toy", taps="layer3", head="linear", epochs=3, batch_size=7, seed=seed,
                validate_stream="toy-validation", runs=tmp_path / "runs", device="cpu", reporters="jsonl",
            ),
            log,
        )  # fmt: skip
    return tmp_path / "runs"


def test_streams_shows_where_each_experiment_is(cli, log, runs) -> None:
    [facts] = cli("streams", "toy", "--json").rows
    shown = {one["experiment"]: one for one in facts["experiments"]}
    assert list(shown) == ["E0", "E1"]
    # 3 epochs of 30 rows over 2 passes of 8 batches.
    assert {key: shown["E0"][key] for key in ("state", "lag_batches", "epoch", "rows", "batches", "rereads")} == {
        "state": "finished", "lag_batches": None, "epoch": 3, "rows": 90, "batches": 24, "rereads": 1,
    }  # fmt: skip
    lines = cli("streams", "toy").out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("experiment"))
    assert lines[place + 1].split()[:2] == ["E0", "finished"]
    assert "batch 8" in lines[place + 1]
    assert "top1" in lines[place + 1]


def test_streams_shows_how_far_an_experiment_that_runs_is_behind(cli, log, runs) -> None:
    run = read_experiments(log, "toy")["E0"].run
    with ExperimentsTopic(log, "toy") as topic:
        topic.write_run(run.model_copy(update={"state": "running", "position": Place(batch=9), "rows_per_s": 1234.5}))
    [facts] = cli("streams", "toy", "--json").rows
    assert [(one["state"], one["lag_batches"]) for one in facts["experiments"]] == [("running", 7), ("finished", None)]
    [line] = [line for line in cli("streams", "toy").out.splitlines() if line.startswith("E0 ") and "running" in line]
    assert "1,23" in line


def test_compare_takes_names_from_the_registry_and_folders(cli, runs) -> None:
    of_folders = cli("compare", runs, "--json").rows
    assert cli("compare", "--stream", "toy", "--json").rows == of_folders
    assert cli("compare", "--stream", "toy", "E1", "E0", "--json").rows == of_folders
    assert cli("compare", "--stream", "toy", "E1", runs / "E0", "--json").rows == of_folders
    assert cli("compare", "--stream", "toy").out == cli("compare", runs).out


def test_compare_draws_what_the_registry_knows(cli, runs, tmp_path) -> None:
    outcome = cli("compare", "--stream", "toy", "--plot", tmp_path / "plot.png", "-o", tmp_path / "table.md")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "| E0 " in (tmp_path / "table.md").read_text()


def test_compare_says_what_it_does_not_find(cli, log, runs) -> None:
    outcome = cli("compare", "--stream", "toy", "E7")
    assert outcome.code == 2
    assert 'unknown experiment of stream toy "E7"' in outcome.err
    assert "E0, E1" in outcome.err
    outcome = cli("compare", "--stream", "toy-validation")
    assert outcome.code == 2
    assert 'no experiment has ever joined the run registry of stream "toy-validation"' in outcome.err
    assert 'there is no stream "tyo"; did you mean "toy"?' in cli("compare", "--stream", "tyo").err
    assert cli("compare").code == 2


def test_an_experiment_is_forgotten_and_its_folder_stays(cli, log, runs) -> None:
    outcome = cli("streams", "toy", "--forget", "E0")
    assert outcome.code == 0, outcome.err
    assert f"{runs / 'E0'} on " in outcome.err
    assert list(read_experiments(log, "toy")) == ["E1"]
    assert (runs / "E0" / "run.json").is_file()
    outcome = cli("streams", "--forget", "E1")
    assert outcome.code == 2
    assert "--forget needs the stream" in outcome.err

"""Experiments over HTTP: those of run registries, and readers that only Kafka knows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from featurectl.streams import experiment_json
from featurestream import MemoryLog
from featurestream.experiments import ExperimentsTopic, MetricsChunk, Place, RunRecord, read_experiments
from featurestream.names import reader_group, tap_topic
from featurestream.reader_lease import ReaderNote
from tests.gateway.serving import Served, serving
from tests.support import make_manifest, publish

ROWS = [{"kind": "train", "step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
MANIFEST = make_manifest("toy")


def run_record(**changes: Any) -> RunRecord:
    """Return what a run says of itself at batch 4, row 1, of the six that there are."""
    given: dict[str, Any] = {
        "name": "E1", "id": "0123456789ab", "state": "stopped", "stream": "toy", "host": "h", "folder": "/runs/E1",
        "started_at": "2026-01-31T12:00:00+00:00", "updated_at": "2026-01-31T12:01:00+00:00",
        "fingerprint": MANIFEST.fingerprint, "config": {"tap": "avgpool"}, "start": Place(batch=0),
        "position": Place(batch=4, row=1), "epoch": 0, "epochs": 2, "step": 3, "rows": 15, "batches": 4, "passes": 2,
        "rereads": 0, "metrics": {"loss": 0.5}, "metric_rows": 3, "metric_chunks": 1,
    }  # fmt: skip
    return RunRecord(**given | changes)


def register(log: MemoryLog, stream: str, *runs: RunRecord) -> None:
    """Write runs, each with three rows of metrics, into a stream's registry."""
    with ExperimentsTopic(log, stream) as topic:
        topic.create()
        for run in runs:
            topic.write_run(run)
            topic.write_metrics(run.key, 0, MetricsChunk(first=0, rows=ROWS))
        topic.flush()


@pytest.fixture
def log() -> MemoryLog:
    """A log with a stream of batches of 4, 4, 2, 4, 4, 2 rows, and no experiment."""
    found = MemoryLog()
    publish(found, MANIFEST)
    return found


def commit(log: MemoryLog, name: str, offsets: dict[int, int], note: str = "") -> None:
    """Commit the next offsets of both lanes of the tap avgpool."""
    log.commit_positions(
        reader_group("toy", name), {(tap_topic("toy", "avgpool"), lane): to for lane, to in offsets.items()}, note
    )


def test_a_registered_experiment_is_what_its_registry_says(log: MemoryLog) -> None:
    """From batch 4, row 1, to the end there are 3 rows and 2."""
    register(log, "toy", run_record())
    with serving(log) as served:
        (found,) = served.json("/v1/experiments")["experiments"]
        assert found == {
            "name": "E1", "stream": "toy", "live": False, "position": {"batch": 4, "row": 1}, "lag_batches": 2,
            "lag_rows": 5, "state": "stopped", "record": run_record().model_dump(mode="json"),
        }  # fmt: skip
        assert served.json("/v1/experiments/E1") == found


def test_its_numbers_are_those_that_featurectl_streams_prints(log: MemoryLog) -> None:
    register(log, "toy", run_record(state="running"))
    with serving(log) as served:
        (found,) = served.json("/v1/experiments")["experiments"]
    (experiment,) = read_experiments(log, "toy").values()
    printed = json.loads(json.dumps(experiment_json(experiment, 6, now_ms=experiment.stamp_ms)))
    assert found["live"]
    assert (found["name"], found["state"], found["lag_batches"]) == (
        printed["experiment"], printed["state"], printed["lag_batches"],
    )  # fmt: skip
    assert found["record"] == {key: printed[key] for key in found["record"]}


def test_what_an_experiment_reports_is_there_at_once_and_its_metrics_go_on(log: MemoryLog) -> None:
    register(log, "toy", run_record())
    with serving(log) as served:
        first = served.json("/v1/experiments/E1/metrics")
        assert first == {"name": "E1", "stream": "toy", "metrics": ROWS, "next": 3}
        more = {"kind": "train", "step": 4, "loss": 0.25}
        with ExperimentsTopic(log, "toy") as topic:
            topic.write_metrics("E1/0123456789ab", 0, MetricsChunk(first=0, rows=[*ROWS, more]))
            topic.write_run(run_record(metric_rows=4))
            topic.flush()
        found = served.json("/v1/experiments/E1/metrics", after=3)
        while not found["metrics"]:  # what is shown may be a second old
            found = served.json("/v1/experiments/E1/metrics", after=3)
        assert (found["metrics"], found["next"]) == ([more], 4)


@pytest.mark.parametrize(
    ("offsets", "batch", "rows"),
    [({0: 0, 1: 0}, 0, 20), ({0: 1, 1: 1}, 2, 12), ({0: 2, 1: 1}, 3, 10), ({0: 3, 1: 3}, 6, 0)],
)
def test_a_reader_that_has_only_committed_has_its_place_and_lag(
    log: MemoryLog, offsets: dict[int, int], batch: int, rows: int
) -> None:
    """Lane 0 holds batches 0, 2 and 4, lane 1 holds 1, 3 and 5."""
    commit(log, "mine", offsets)
    with serving(log) as served:
        (found,) = served.json("/v1/experiments")["experiments"]
        assert found == {
            "name": "mine", "stream": "toy", "live": False, "position": {"batch": batch, "row": 0},
            "lag_batches": 6 - batch, "lag_rows": rows, "state": None, "record": None,
        }  # fmt: skip
        assert served.json("/v1/experiments/mine/metrics")["metrics"] == []


def test_a_reader_whose_lease_is_alive_is_where_its_lease_says(log: MemoryLog) -> None:
    import time

    note = ReaderNote(batch=5, needs=3, taps=("avgpool",), beat_ms=round(time.time() * 1000)).model_dump_json()
    commit(log, "mine", {0: 1, 1: 1}, note)
    with serving(log) as served:
        found = served.json("/v1/experiments/mine")
        assert (found["live"], found["position"], found["lag_batches"]) == (True, {"batch": 5, "row": 0}, 1)


def test_a_registered_experiment_is_not_listed_twice(log: MemoryLog) -> None:
    register(log, "toy", run_record())
    commit(log, "E1", {0: 1, 1: 1})
    with serving(log) as served:
        assert [one["name"] for one in served.json("/v1/experiments")["experiments"]] == ["E1"]


def test_a_name_on_two_streams_must_say_which(log: MemoryLog) -> None:
    publish(log, make_manifest("zoo"))
    register(log, "toy", run_record())
    register(log, "zoo", run_record(stream="zoo"))
    with serving(log) as served:
        found = served.problem("/v1/experiments/E1")
        assert (found["status"], found["streams"]) == (409, ["toy", "zoo"])
        assert served.json("/v1/experiments/E1", stream="zoo")["stream"] == "zoo"
        assert [one["stream"] for one in served.json("/v1/experiments", stream="toy")["experiments"]] == ["toy"]


def test_an_unknown_experiment_is_not_found_and_the_nearest_is_suggested(log: MemoryLog) -> None:
    register(log, "toy", run_record())
    with serving(log) as served:
        found = served.problem("/v1/experiments/e1x")
        assert (found["status"], 'did you mean "E1"?' in found["hint"]) == (404, True)
        assert served.problem("/v1/compare", run="nobody")["status"] == 422


def test_a_registry_that_cannot_be_read_leaves_the_others(log: MemoryLog) -> None:
    publish(log, make_manifest("zoo"))
    register(log, "zoo", run_record(stream="zoo"))
    register(log, "toy", run_record())
    sink = log.sink()
    sink.append("toy.experiments", 0, key=b"run/E2/x", value=b"no JSON")
    sink.flush()
    sink.close()
    with serving(log) as served:
        found = served.json("/v1/experiments")
        assert [one["stream"] for one in found["experiments"]] == ["zoo"]
        assert [(one["stream"], one["status"]) for one in found["problems"]] == [("toy", 502)]


def test_a_comparison_is_what_featurectl_compare_prints(log: MemoryLog, served_comparison: Served) -> None:
    found = served_comparison.json("/v1/compare")
    assert (found["stream"], found["metric"]) == ("toy", "loss")
    assert [(row["run"], row["loss"], row["state"]) for row in found["runs"]] == [
        ("E1", 0.5, "stopped"), ("E2", 0.75, "stopped"),
    ]  # fmt: skip
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [("E1", "E2")]
    assert found["pairs"][0]["not_compared"]
    assert served_comparison.problem("/v1/compare", metric="top1")["status"] == 422


@pytest.fixture
def served_comparison(log: MemoryLog) -> Any:
    """A gateway on a registry with two runs, the second one worse."""
    config = {"tap": "avgpool", "head": "linear", "stream": "toy", "name": "E"}
    register(
        log, "toy",
        run_record(config=config, main_metric="loss"),
        run_record(
            config=config, main_metric="loss", name="E2", id="ba9876543210", folder="/runs/E2", metrics={"loss": 0.75}
        ),
    )  # fmt: skip
    with serving(log) as found:
        yield found

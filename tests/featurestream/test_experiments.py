"""The run registry: what experiments say of themselves, read from a log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurestream.errors import RecordError, UnknownNameError, UsageError
from featurestream.experiments import (
    CHUNK_BYTES,
    ExperimentsFollower,
    ExperimentsTopic,
    MetricsChunk,
    Place,
    RunRecord,
    chunks_of,
    find_experiment,
    forget_experiment,
    read_experiments,
)
from featurestream.memory import MemoryLog
from featurestream.names import check_tap_name, experiments_topic
from featurestream.validation import pack_validation

NOW_MS = 1_800_000_000_000


def run(name: str = "E1", id_: str = "aaaaaaaaaaaa", **changes: Any) -> RunRecord:
    facts: dict[str, Any] = {
        "name": name, "id": id_, "state": "running", "stream": "toy", "host": "node7", "folder": f"/runs/{name}",
        "started_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:01Z", "fingerprint": "f" * 32,
        "config": {"head": "mlp"}, "start": Place(batch=0), "position": Place(batch=4, row=2), "epoch": 1, "epochs": 3,
        "step": 12, "rows": 40, "batches": 4, "passes": 2, "rereads": 0, "metrics": {"top1": 0.5},
        "metric_rows": 0, "metric_chunks": 0,
    }  # fmt: skip
    return RunRecord(**(facts | changes))


def rows(count: int) -> list[dict[str, Any]]:
    return [{"kind": "train", "step": step, "loss": 1 / (1 + step)} for step in range(count)]


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog(clock=lambda: NOW_MS / 1000)


@pytest.fixture
def topic(log: MemoryLog):
    with ExperimentsTopic(log, "toy") as topic:
        topic.create()
        yield topic


def write(topic: ExperimentsTopic, record: RunRecord, metrics: list[dict[str, Any]] | None = None) -> None:
    chunks = chunks_of(metrics or [])
    for number, chunk in enumerate(chunks):
        topic.write_metrics(record.key, number, chunk)
    topic.write_run(record.model_copy(update={"metric_rows": len(metrics or []), "metric_chunks": len(chunks)}))


def test_a_stream_that_nobody_has_joined_has_no_experiments(log: MemoryLog) -> None:
    assert read_experiments(log, "toy") == {}


def test_the_topic_is_compacted_and_no_taps(log: MemoryLog, topic: ExperimentsTopic) -> None:
    assert log.topics() == {"toy.experiments": 1}
    assert log.settings("toy.experiments")["cleanup.policy"] == "compact"
    with pytest.raises(UsageError, match='"experiments" cannot name a tap'):
        check_tap_name("experiments")


def test_the_last_word_of_a_run_counts(log: MemoryLog, topic: ExperimentsTopic) -> None:
    write(topic, run())
    write(topic, run(state="finished", metrics={"top1": 0.75}), rows(130))
    write(topic, run("E2", "bbbbbbbbbbbb"))
    found = read_experiments(log, "toy")
    assert list(found) == ["E1", "E2"]
    assert (found["E1"].run.state, found["E1"].run.metrics) == ("finished", {"top1": 0.75})
    assert found["E1"].rows == rows(130)
    assert found["E2"].rows == []


def test_130_rows_are_three_chunks_and_large_rows_have_chunks_of_their_own() -> None:
    assert [(chunk.first, len(chunk.rows)) for chunk in chunks_of(rows(130))] == [(0, 64), (64, 64), (128, 2)]
    assert [(chunk.first, len(chunk.rows)) for chunk in chunks_of(rows(3), first=128)] == [(128, 3)]
    large = [{"step": n, "text": "x" * (CHUNK_BYTES // 2)} for n in range(3)]
    assert [len(chunk.rows) for chunk in chunks_of(large)] == [1, 1, 1]
    assert chunks_of([]) == []


def test_a_run_that_was_cut_back_has_only_the_rows_that_count(log: MemoryLog, topic: ExperimentsTopic) -> None:
    write(topic, run(), rows(130))
    topic.write_metrics(run().key, 1, MetricsChunk(first=64, rows=rows(70)[64:]))
    topic.write_run(run(metric_rows=70, metric_chunks=2))
    assert read_experiments(log, "toy")["E1"].rows == rows(70)


def test_rows_whose_chunk_is_not_there_yet_are_left_out(log: MemoryLog, topic: ExperimentsTopic) -> None:
    topic.write_metrics(run().key, 1, MetricsChunk(first=64, rows=rows(70)[64:]))
    topic.write_run(run(metric_rows=70, metric_chunks=2))
    assert read_experiments(log, "toy")["E1"].rows == []


def test_validation_rows_are_there_once_the_run_says_so(log: MemoryLog, topic: ExperimentsTopic) -> None:
    validation = pack_validation("v", np.arange(3), np.arange(3), {"top1": np.array([True, False, True])})
    assert validation is not None
    topic.write_validation(run().key, validation)
    topic.write_run(run())
    assert read_experiments(log, "toy")["E1"].validation is None
    topic.write_run(run(validation="published"))
    assert read_experiments(log, "toy")["E1"].validation == validation


def test_runs_of_one_name_on_two_machines_are_told_apart(log: MemoryLog, topic: ExperimentsTopic) -> None:
    write(topic, run("E1", "aaaaaaaaaaaa", host="node7"))
    write(topic, run("E1", "abbbbbbbbbbb", host="node8"))
    found = read_experiments(log, "toy")
    assert list(found) == ["E1@aaaaaaaaaaaa", "E1@abbbbbbbbbbb"]
    assert find_experiment(found, "toy", "E1@ab").run.host == "node8"
    with pytest.raises(UsageError, match='2 runs of stream "toy" are called "E1"; say which: E1@aaaaaaaaaaaa') as error:
        find_experiment(found, "toy", "E1")
    assert "on node8, begun 2026-01-01T00:00:00Z" in str(error.value)
    with pytest.raises(UnknownNameError, match="E1@aaaaaaaaaaaa"):
        find_experiment(found, "toy", "E2")


def test_a_run_in_the_folder_of_an_earlier_one_has_taken_its_place(log: MemoryLog, topic: ExperimentsTopic) -> None:
    write(topic, run("E1", "bbbbbbbbbbbb", started_at="2026-01-02T00:00:00Z"))
    write(topic, run("E1", "aaaaaaaaaaaa"))
    assert {label: one.run.id for label, one in read_experiments(log, "toy").items()} == {"E1": "bbbbbbbbbbbb"}


def test_a_run_without_a_word_for_40_seconds_counts_as_lost(log: MemoryLog, topic: ExperimentsTopic) -> None:
    write(topic, run())
    write(topic, run("E2", state="stopped"))
    found = read_experiments(log, "toy")
    assert [found["E1"].state_at(NOW_MS + seconds * 1000) for seconds in (0, 40, 41)] == ["running", "running", "lost"]
    assert found["E2"].state_at(NOW_MS + 41_000) == "stopped"


@pytest.mark.parametrize(
    ("changes", "lag"),
    [
        ({}, 6),
        ({"stop": 8}, 4),
        ({"position": Place(batch=12)}, 0),
        ({"state": "stopped"}, 6),
        ({"state": "finished"}, None),
    ],
)
def test_lag_counts_the_batches_from_the_position_to_the_end(
    changes: dict[str, Any], lag: int | None, log, topic
) -> None:
    write(topic, run(**changes))
    assert read_experiments(log, "toy")["E1"].lag(10) == lag


class CountingLog(MemoryLog):
    """A log that counts the records that are read from it."""

    polled = 0

    def source(self):
        source = super().source()
        read = source.read

        def counting(*place):
            reader = read(*place)
            poll = reader.poll

            def counted(timeout_s):
                self.polled += 1
                return poll(timeout_s)

            reader.poll = counted
            return reader

        source.read = counting
        return source


def test_a_follower_reads_each_record_once() -> None:
    log = CountingLog()
    with ExperimentsTopic(log, "toy") as topic, ExperimentsFollower(log, "toy") as follower:
        assert follower.look() == {}
        topic.create()
        write(topic, run(), rows(3))
        assert follower.look()["E1"].rows == rows(3)
        assert log.polled == 2
        assert list(follower.look()) == ["E1"]
        write(topic, run("E2"))
        assert list(follower.look()) == ["E1", "E2"]
        assert log.polled == 3


def test_a_follower_begins_anew_with_a_topic_that_was_made_anew(log: MemoryLog, topic: ExperimentsTopic) -> None:
    with ExperimentsFollower(log, "toy") as follower:
        for number in range(3):
            write(topic, run(f"E{number}"))
        assert len(follower.look()) == 3
        log.delete_topics([experiments_topic("toy")])
        assert follower.look() == {}
        topic.create()
        write(topic, run("E9"))
        assert list(follower.look()) == ["E9"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (b"run/E1/aaaaaaaaaaaa", b"no JSON", "not a runrecord"),
        (b"run/E1/aaaaaaaaaaaa", b'{"name": "E1"}', "not a runrecord as schemas/ describes it: id"),
        (b"metrics/E1/aaaaaaaaaaaa/x", b"{}", '"x" is not the number of a chunk'),
        (b"validation/E1/aaaaaaaaaaaa", b"[]", "not a validation"),
    ],
)
def test_a_record_that_is_none_of_ours_is_named_with_its_place(key, value, message, log, topic) -> None:
    write(topic, run())
    sink = log.sink()
    sink.append("toy.experiments", 0, key=key, value=value)
    with pytest.raises(RecordError, match=message) as error:
        read_experiments(log, "toy")
    assert (error.value.topic, error.value.offset) == ("toy.experiments", 1)


def test_unknown_keys_and_fields_change_nothing(log: MemoryLog, topic: ExperimentsTopic) -> None:
    write(topic, run())
    sink = log.sink()
    sink.append("toy.experiments", 0, key=b"later/E1", value=b"?")
    more = run("E2").model_dump_json()[:-1] + ', "later": 1}'
    sink.append("toy.experiments", 0, key=b"run/E2/aaaaaaaaaaaa", value=more.encode())
    assert list(read_experiments(log, "toy")) == ["E1", "E2"]


def test_an_experiment_is_forgotten_with_all_its_records(log: MemoryLog, topic: ExperimentsTopic) -> None:
    validation = pack_validation("v", np.arange(3), np.arange(3), {"top1": np.array([True, False, True])})
    assert validation is not None
    write(topic, run(id_="cccccccccccc", started_at="2025-01-01T00:00:00Z", state="failed"), rows(1))
    topic.write_validation(run().key, validation)
    write(topic, run(state="finished", validation="published"), rows(130))
    write(topic, run("E2"))
    assert [gone.id for gone in forget_experiment(log, "toy", "E1", now_ms=NOW_MS)] == ["cccccccccccc", "aaaaaaaaaaaa"]
    assert list(read_experiments(log, "toy")) == ["E2"]
    with ExperimentsFollower(log, "toy") as follower:
        follower.look()
        registry = follower.registry
    assert (list(registry.runs), registry.validations) == (["E2/aaaaaaaaaaaa"], {})
    assert not any(registry.chunks.values())


def test_an_experiment_that_runs_is_not_forgotten(log: MemoryLog, topic: ExperimentsTopic) -> None:
    write(topic, run())
    with pytest.raises(UsageError, match=r'experiment "E1" is running on node7: it would be back at once; stop it'):
        forget_experiment(log, "toy", "E1", now_ms=NOW_MS)
    assert forget_experiment(log, "toy", "E1", now_ms=NOW_MS + 41_000)

"""featurectl streams: what is there, in numbers that fit together."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from featurestream.cluster import Cluster
from featurestream.health import Canary, Health, InputHealth, TapCanary, TapHealth
from featurestream.kafka import KafkaLog
from featurestream.manifest import End, Lease, PassRecord, RetentionWarning
from featurestream.manifest_topic import ManifestTopic
from featurestream.memory import MemoryLog
from featurestream.names import manifest_topic, reader_group
from featurestream_producer.lease import this_host
from tests.support import create, make_manifest, publish

AT = "2026-01-01T00:00:00.000+00:00"


def lease_of(pid: int, *, host: str | None = None, released: bool = False) -> Lease:
    started = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0.0
    return Lease(
        producer="p", host=host or this_host(), pid=pid, process_started=started, since=AT, heartbeat=AT,
        released=released,
    )  # fmt: skip


def finish(log, name: str, passes: int) -> None:
    with ManifestTopic(log, name) as topic:
        for number in range(passes):
            topic.write_pass(
                PassRecord(
                    number=number, samples=10, missing=0, first_batch=3 * number, last_batch=3 * number + 2,
                    started_at=AT, finished_at=AT, order_checksum="0" * 16,
                )
            )  # fmt: skip
        topic.write_end(End(passes=passes, batches=3 * passes, at=AT))


def test_an_empty_cluster_says_how_to_make_a_stream(cli, log) -> None:
    outcome = cli("streams")
    assert outcome.code == 0
    assert outcome.out == (
        "there are no streams yet; make one with featurectl produce, or see a whole run: featurectl demo\n"
    )
    assert cli("streams", "--json").out == ""


def test_the_list_has_a_line_a_stream(cli, log) -> None:
    publish(log, make_manifest("toy"))
    finish(log, "toy", 2)
    publish(log, make_manifest("endless", passes=None), range(4))
    lines = cli("streams").out.splitlines()
    assert lines[0].split()[:7] == ["stream", "model", "taps", "samples", "passes", "batches", "bytes"]
    assert lines[1].split()[:7] == ["endless", "toy", "layer3,", "avgpool", "10", "0/endless", "4"]
    assert lines[2].split()[:7] == ["toy", "toy", "layer3,", "avgpool", "10", "2/2", "6"]


def test_the_facts_of_a_finished_stream(cli, log) -> None:
    before = round(time.time() * 1000)
    publish(log, make_manifest("toy"))
    finish(log, "toy", 2)
    # Lane 0 of each tap holds batches 0, 2, 4 and lane 1 holds 1, 3, 5. E1 has read all but the last of each lane.
    log.commit_positions(reader_group("toy", "E1"), {("toy.layer3", 0): 2, ("toy.layer3", 1): 2})
    log.commit_positions(reader_group("toy", "done"), {("toy.avgpool", 0): 3, ("toy.avgpool", 1): 3})
    log.commit_positions(reader_group("other", "E1"), {("toy.layer3", 0): 0})
    [facts] = cli("streams", "--json").rows
    size = sum(
        len(record.value or b"") + len(record.key or b"") + sum(len(name) + len(text) for name, text in record.headers)
        for topic in ("toy.layer3", "toy.avgpool")
        for lane in (0, 1)
        for offset in range(3)
        for record in [log.source().record_at(topic, lane, offset)]
    )
    assert facts.pop("bytes") == pytest.approx(size, rel=0.15)
    assert facts.pop("first_appended_at") <= facts.pop("last_appended_at")
    assert facts == {
        "stream": "toy",
        "model": "toy",
        "weights": "random",
        "taps": ["layer3", "avgpool"],
        "samples": 10,
        "passes_done": 2,
        "passes": 2,
        "complete": True,
        "first_batch": 0,
        "next_batch": 6,
        "producer": "none",
        "readers": [{"experiment": "E1", "lag_batches": 2}, {"experiment": "done", "lag_batches": 0}],
    }
    assert before <= round(time.time() * 1000)


def test_a_warning_that_retention_comes_near_to_a_reader_is_shown(cli, log) -> None:
    publish(log, make_manifest("toy"))
    warning = RetentionWarning(reader="E1", batch=3, tap="avgpool", share=0.8, by="time", text="E1 is slow", at=AT)
    with ManifestTopic(log, "toy") as topic:
        topic.write_retention_warning(warning.model_copy(update={"text": "the one before"}))
        topic.write_retention_warning(warning)
    [facts] = cli("streams", "toy", "--json").rows
    assert facts["retention_warnings"] == [warning.model_dump(mode="json")]
    assert next(line for line in cli("streams", "toy").out.splitlines() if "warning" in line).endswith(
        f"{AT}: E1 is slow"
    )


def test_one_stream_is_shown_with_its_manifest_taps_and_passes(cli, log) -> None:
    publish(log, make_manifest("toy"))
    finish(log, "toy", 2)
    [facts] = cli("streams", "toy", "--json").rows
    assert [tap["name"] for tap in facts["taps"]] == ["layer3", "avgpool"]
    assert facts["taps"][1] | {"bytes": 0} == {
        "name": "avgpool", "spec": "avgpool", "shape": [3], "row_bytes": 12, "records": 6, "bytes": 0
    }  # fmt: skip
    assert facts["pass_batches"] == 3
    assert [done["last_batch"] for done in facts["pass_records"]] == [2, 5]
    assert facts["manifest"]["fingerprint"] == make_manifest("toy").fingerprint
    assert facts["end"]["batches"] == 6
    text = cli("streams", "toy").out
    assert "passes      2 of 2 done, complete\n" in text
    assert "on the log  6 batches from batch:0 on, 3 a pass; about " in text


def seen_by(worker: int, *, sketch: float = 1.0, mean: float = 0.5, warnings: tuple[str, ...] = ()) -> Health:
    """One worker's health: 8 batches, of which 128 rows of 2 numbers were looked at."""
    taps = [
        TapHealth(
            name=name, rows=128, numbers=256, mean=mean, variance=0.25, spread=0.16, freedom=240, zeros=64, largest=3.0,
            peak=3.0, at_peak=1, separability=1.5, probe_rows=128,
        )
        for name in ("layer3", "avgpool")
    ]  # fmt: skip
    return Health(
        worker=worker, workers=2, device="cpu", lanes=[worker], batches=8, at=AT,
        canary=Canary(
            device="cpu", transform="0" * 16,
            taps=[TapCanary(name="layer3", checksum=f"{sketch:.14f}", sketch=[sketch, 0.0])],
        ),
        inputs=InputHealth(
            numbers=100, mean=[0.0, 0.1, 0.2], std=[1.0, 1.0, 1.0], least=[-1.0] * 3, largest=[1.0] * 3, outside=0,
            expected_mean=[0.5] * 3, expected_std=[0.5] * 3,
        ),
        taps=taps, warnings=list(warnings),
    )  # fmt: skip


def write_health(log, *health: Health) -> None:
    publish(log, make_manifest("toy"))
    with ManifestTopic(log, "toy") as topic:
        topic.write_canary(health[0].canary)
        for one in health:
            topic.write_health(one.worker, one)


def test_the_health_of_a_stream_is_shown(cli, log) -> None:
    write_health(log, seen_by(0), seen_by(1))
    lines = [" ".join(line.split()) for line in cli("streams", "toy").out.splitlines()]
    assert "batches looked at cpu (8), cpu (8)" in lines
    assert "inputs mean 0 0.1 0.2, std 1 1 1 of red, green, blue; as colours from 0.00 to 1.00" in lines
    assert "fixed input the same on all devices, bit for bit" in lines
    assert "warnings none" in lines
    assert "tap rows looked at mean std std between rows zeros largest separability" in lines
    assert "avgpool 256 0.5 0.5 0.4 25.0% 3 1.5" in lines
    [facts] = cli("streams", "toy", "--json").rows
    assert [one["worker"] for one in facts["health"]] == [0, 1]
    assert facts["health"][0]["taps"][1]["zeros"] == 64
    assert facts["canary"]["taps"][0]["sketch"] == [1.0, 0.0]
    assert facts["warnings"] == []


def test_warnings_and_devices_that_disagree_are_shown(cli, log) -> None:
    write_health(log, seen_by(0, warnings=("the images are upside down",)), seen_by(1, sketch=1.2, mean=5.0))
    out = cli("streams", "toy").out
    assert "fixed input        devices are at most 20.00% apart\n" in out
    assert "warning            the images are upside down\n" in out
    assert 'warning            tap "layer3": cpu and cpu (worker 0) disagree on a fixed input: 20.0% apart' in out
    assert 'tap "avgpool": cpu (worker 0) has mean 0.5, std 0.5; cpu (worker 1) has 5 and 0.5: the devices dis' in out
    [facts] = cli("streams", "toy", "--json").rows
    assert len(facts["warnings"]) == 4


def test_a_worker_that_is_no_more_is_not_shown(cli, log) -> None:
    write_health(log, seen_by(0), seen_by(1))
    with ManifestTopic(log, "toy") as topic:
        topic.write_health(1, None)
    [facts] = cli("streams", "toy", "--json").rows
    assert [one["worker"] for one in facts["health"]] == [0]


def test_a_stream_of_an_older_producer_has_no_health(cli, log) -> None:
    publish(log, make_manifest("toy"))
    assert "warnings" not in cli("streams", "toy").out
    [facts] = cli("streams", "toy", "--json").rows
    assert (facts["health"], facts["canary"], facts["warnings"]) == ([], None, [])


def test_what_retention_has_deleted_is_not_counted(cli, log) -> None:
    publish(log, make_manifest("toy"))
    log.delete_before("toy.avgpool", 0, 1)  # batch 0: what is left begins at batch 1
    [facts] = cli("streams", "--json").rows
    assert (facts["first_batch"], facts["next_batch"]) == (1, 6)
    [facts] = cli("streams", "toy", "--json").rows
    assert [tap["records"] for tap in facts["taps"]] == [6, 5]


def test_a_stream_without_records_is_shown(cli, log) -> None:
    create(log, make_manifest("toy"))
    [facts] = cli("streams", "--json").rows
    assert (facts["first_batch"], facts["next_batch"], facts["bytes"], facts["first_appended_at"]) == (0, 0, 0, None)
    assert "on the log  nothing yet" in cli("streams", "toy").out


@pytest.mark.parametrize(
    ("lease", "state"),
    [
        (lease_of(os.getppid()), "live"),
        (lease_of(os.getppid(), released=True), "ended"),
        (lease_of(2**22 + 1), "lost"),
        (lease_of(1, host="elsewhere"), "live"),
    ],
)
def test_the_producers_state_comes_from_its_lease(cli, log, lease, state) -> None:
    create(log, make_manifest("toy"))
    with ManifestTopic(log, "toy") as topic:
        topic.write_lease(lease)
    assert cli("streams", "--json").rows[0]["producer"] == state


def test_several_ranks_are_one_producer_that_lives_while_one_of_them_does(cli, log) -> None:
    create(log, make_manifest("toy"))
    ranks = {"run": "run", "ranks": 2}
    with ManifestTopic(log, "toy") as topic:
        topic.write_lease(lease_of(os.getppid(), released=True).model_copy(update=ranks))
        topic.write_lease(lease_of(os.getppid()).model_copy(update=ranks | {"rank": 1}))
    assert cli("streams", "--json").rows[0]["producer"] == "live"
    assert [lease["rank"] for lease in cli("streams", "toy", "--json").rows[0]["leases"]] == [0, 1]
    shown = cli("streams", "toy").out
    assert f"rank 1      process {os.getppid()} on {this_host()}, last heartbeat" in shown


def test_a_producer_elsewhere_without_a_heartbeat_is_lost(cli, monkeypatch) -> None:
    import contextlib

    from featurectl import options

    log = MemoryLog(clock=lambda: time.time() - 60)
    monkeypatch.setattr(options, "open_log", lambda *_: contextlib.nullcontext(log))
    create(log, make_manifest("toy"))
    with ManifestTopic(log, "toy") as topic:
        topic.write_lease(lease_of(1, host="elsewhere"))
    assert cli("streams", "--json").rows[0]["producer"] == "lost"


def test_an_unknown_stream_is_the_callers_mistake_and_the_nearest_is_suggested(cli, log) -> None:
    publish(log, make_manifest("digits-train"))
    outcome = cli("streams", "digits-trian")
    assert outcome.code == 2
    assert outcome.err == (
        'error: there is no stream "digits-trian"; did you mean "digits-train"?; there are: digits-train\n'
    )


def test_of_many_streams_the_first_are_named_and_the_others_counted(cli, log) -> None:
    for number in range(100, 130):
        publish(log, make_manifest(f"s{number}"))
    err = cli("streams", "digits").err
    assert err.startswith('error: there is no stream "digits"; there are: s100, s101, ')
    assert err.endswith(", s123, ... 6 more\n")


def test_a_stream_that_cannot_be_read_hides_no_other_and_decides_the_exit_code(cli, log) -> None:
    publish(log, make_manifest("good"))
    log.create_topic(manifest_topic("bad"), 1, {})
    sink = log.sink()
    sink.append(manifest_topic("bad"), 0, key=b"manifest", value=b"not JSON")
    outcome = cli("streams", "--json")
    assert [row["stream"] for row in outcome.rows] == ["good"]
    assert outcome.code == 3
    assert outcome.err.startswith("stream bad cannot be shown: record at bad.manifest, lane 0, offset 0: ")


@pytest.mark.broker
def test_a_stream_on_kafka_is_listed_with_its_readers(cli, broker: Cluster, unique: str) -> None:
    with KafkaLog(broker) as log:
        publish(log, make_manifest(unique))
        log.commit_positions(reader_group(unique, "E1"), {(f"{unique}.layer3", 0): 1, (f"{unique}.layer3", 1): 3})
    outcome = cli("streams", "--json")
    assert outcome.err.startswith("no cluster named: using the embedded Kafka ")
    facts = next(row for row in outcome.rows if row["stream"] == unique)
    assert (facts["first_batch"], facts["next_batch"]) == (0, 6)
    assert facts["readers"] == [{"experiment": "E1", "lag_batches": 2}]
    named = cli("streams", unique, "--bootstrap-servers", broker.bootstrap_servers)
    assert (named.code, named.err) == (0, "")
    assert "E1" in named.out

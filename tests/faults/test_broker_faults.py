"""A broker that is killed, stands still, or finds its files torn and garbled, under a publisher and two readers."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from featurestream.broker import EmbeddedBroker, maven
from featurestream.broker.jars import install_jars, jar_folder, kafka_version, locked_jars
from featurestream.broker.java import find_java
from featurestream.errors import RecordError
from featurestream.kafka import KafkaLog
from featurestream.stream import FeatureStream
from featurestream_producer.run import produce
from tests.faults.harm import cluster_of, flip, kill_broker, last_batch, segments, stopped, tear
from tests.faults.oracle import Files, examine
from tests.faults.traffic import Traffic
from tests.faults.witness import WitnessedLog
from tests.producing import config, write_images
from tests.support import append, create, make_batch_record, make_manifest, publish

pytestmark = pytest.mark.broker

SLOW = pytest.mark.slow


@pytest.mark.parametrize(("seed", "kills"), [(1, 1), pytest.param(2, 2, marks=SLOW), pytest.param(3, 3, marks=SLOW)])
def test_a_broker_that_is_killed_and_started_again_loses_and_doubles_nothing(
    doomed: EmbeddedBroker, unique: str, tmp_path: Path, account, *, seed: int, kills: int
) -> None:
    chance = random.Random(seed)
    one = account("broker SIGKILL and restart")
    traffic = Traffic(cluster_of(doomed), unique, tmp_path)
    moments = sorted(chance.sample(range(20, 200), kills))
    print(f"seed {seed}: SIGKILL after {moments} acknowledgements")
    for acks in moments:
        traffic.wait_for(acks)
        with traffic.harmed("SIGKILL"):
            kill_broker(doomed)
            doomed.up()
        one.injected += 1
    one.judge(traffic.verdict(), traffic.stall_s)


COMMITTING = """
import sys
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog
address, name = sys.argv[1:]
log, number = KafkaLog(Cluster(address)), 0
while True:
    try:
        log.commit_positions(f"featurestream.{name}.E1", {(name, 0): number}, str(number))
    except BrokerError:
        continue
    number += 1
    print(number, flush=True)
"""


def test_a_reader_that_commits_while_its_broker_dies_lives_on(doomed: EmbeddedBroker, unique: str, account) -> None:
    """The admin client's way to a group aborted the process: "Assertion `eonce->refcnt > 0' failed"."""
    one = account("broker SIGKILL under readers that commit")
    cluster = cluster_of(doomed)
    with KafkaLog(cluster) as log:
        log.create_topic(unique, 1, {})
    command = [sys.executable, "-c", COMMITTING, cluster.bootstrap_servers, unique]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            for _ in range(2):
                for _ in range(5):
                    assert reader.stdout.readline(), reader.communicate()[1]
                kill_broker(doomed)
                doomed.up()
                one.injected += 1
            for _ in range(20):
                assert reader.stdout.readline(), reader.communicate()[1]
            with KafkaLog(cluster) as log:
                assert set(log.committed_positions()[f"featurestream.{unique}.E1"]) == {(unique, 0)}
        finally:
            reader.kill()


@SLOW
@pytest.mark.parametrize("seconds", [5, 30])
def test_a_broker_that_stands_still_is_waited_for(
    doomed: EmbeddedBroker, unique: str, tmp_path: Path, account, *, seconds: int
) -> None:
    one = account(f"broker SIGSTOP for {seconds} s")
    traffic = Traffic(cluster_of(doomed), unique, tmp_path)
    traffic.wait_for(50)
    with traffic.harmed("SIGSTOP"), stopped(doomed.status().pid or 0):
        threading.Event().wait(seconds)
    one.injected += 1
    one.judge(traffic.verdict(), traffic.stall_s)
    assert traffic.stall_s > seconds - 1, "nobody was stopped"


@SLOW
@pytest.mark.parametrize("seed", [4, 5, 6])
def test_a_torn_write_at_the_end_of_each_segment_is_cut_off_and_costs_nothing(
    doomed: EmbeddedBroker, unique: str, tmp_path: Path, account, *, seed: int
) -> None:
    chance = random.Random(seed)
    one = account("torn tail of a segment after SIGKILL")
    traffic = Traffic(cluster_of(doomed), unique, tmp_path)
    acks = chance.randrange(30, 150)
    print(f"seed {seed}: SIGKILL after {acks} acknowledgements")
    traffic.wait_for(acks)
    with traffic.harmed("a torn tail"):
        kill_broker(doomed)
        for tap in ("layer3", "avgpool"):
            for segment in segments(doomed.home, f"{unique}.{tap}"):
                tear(segment, chance)
                one.injected += 1
        doomed.up()
    one.judge(traffic.verdict(), traffic.stall_s)


def test_an_acknowledged_batch_that_a_dying_disk_garbled_is_told_and_made_again(
    doomed: EmbeddedBroker, unique: str, tmp_path: Path, account
) -> None:
    """One broker keeps one copy: what it loses is lost, never in silence; and the same command heals the stream."""
    one = account("garbled tail of a segment after SIGKILL")
    images = write_images(tmp_path / "images")
    with KafkaLog(cluster_of(doomed)) as log:
        witnessed = WitnessedLog(log, tmp_path)
        produce(config(images, unique), witnessed, say=lambda _: None)
        (_, _, segment) = segments(doomed.home, f"{unique}.late")
        kill_broker(doomed)
        content = segment.read_bytes()
        place = last_batch(content)
        (records,) = struct.unpack_from(">i", content, place + 57)  # so many of ours in Kafka's own last batch
        flip(segment, place + 100)
        one.injected += 1
        address = cluster_of(doomed).bootstrap_servers
        verdict = examine(unique, address, Files(acked=tmp_path / "acked.txt"))
        assert verdict.broken == ["A1"]
        cut = [(offset, 3 * offset + 2) for offset in range(4 - records, 4)]
        assert sorted(verdict.violations["A1"]) == [
            f"{unique}.late, partition 2, offset {offset} or later: batch {batch} was acknowledged and is not there"
            for offset, batch in cut
        ]
        produce(config(images, unique), witnessed, say=lambda _: None)
        one.judge(examine(unique, address, witnessed.files))


def test_a_byte_that_flips_on_disk_is_named_with_its_place_by_reader_and_oracle(
    doomed: EmbeddedBroker, unique: str, account
) -> None:
    one = account("flipped byte in a stored segment")
    with KafkaLog(cluster_of(doomed)) as log:
        manifest = publish(log, make_manifest(unique, samples=30, lanes=3))
    doomed.down()
    (_, segment, _) = segments(doomed.home, f"{unique}.avgpool")
    flip(segment, segment.read_bytes().index(make_batch_record(manifest, 13, "avgpool").payload.tobytes()))
    one.injected += 1
    cluster = cluster_of(doomed)
    where = f"{unique}.avgpool, lane 1, offset 4"
    with KafkaLog(cluster) as log, FeatureStream(unique, log=log) as stream:
        with pytest.raises(RecordError, match=f"{where}: .*checksum"):
            list(stream)
        assert stream.position.batch == 13, "all before it came"
    verdict = examine(unique, cluster.bootstrap_servers)
    assert verdict.broken == ["A4"]
    assert verdict.violations["A4"][0].startswith(f"{unique}.avgpool, partition 1, offset 4: the checksum")


@SLOW
def test_kafkas_own_tool_finds_the_flipped_byte_in_the_same_batch(
    doomed: EmbeddedBroker, unique: str, tmp_path: Path, account
) -> None:
    """DumpLogSegments, of a jar that the broker does not need: downloaded for this test."""
    tools = kafka_tools(tmp_path)
    with KafkaLog(cluster_of(doomed)) as log:
        manifest = make_manifest(unique, samples=30, lanes=3)
        create(log, manifest)
        for batch in range(16):
            append(log, manifest, [batch])  # a batch of Kafka's for each of ours
    doomed.down()
    (_, segment, _) = segments(doomed.home, f"{unique}.avgpool")
    assert invalid_offsets(tools, segment) == []
    flip(segment, segment.read_bytes().index(make_batch_record(manifest, 10, "avgpool").payload.tobytes()))
    assert invalid_offsets(tools, segment) == [3]
    verdict = examine(unique, cluster_of(doomed).bootstrap_servers)
    assert [line.split(": ")[0] for line in verdict.violations["A4"]] == [f"{unique}.avgpool, partition 1, offset 3"]
    account("flipped byte in a stored segment").injected += 1


def kafka_tools(folder: Path) -> str:
    """Return the class path of Kafka's own tools; skips where their jar cannot be had."""
    context = maven.open_context(folder / "maven")
    artifact = context.project("org.apache.kafka", "kafka-tools").at_version(kafka_version()).artifact("")
    try:
        jar = artifact.resolve()
    except (OSError, RuntimeError) as error:  # of requests, and of jgo
        pytest.skip(f"no kafka-tools to be had: {error}")
    return os.pathsep.join(str(path) for path in [*install_jars(locked_jars(), jar_folder()), jar])


def invalid_offsets(tools: str, segment: Path) -> list[int]:
    """Return the first offset of each batch whose checksum Kafka finds wrong."""
    command = [find_java().path, "-cp", tools, "org.apache.kafka.tools.DumpLogSegments", "--files", segment]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=120)
    batches = re.findall(r"baseOffset: (\d+) .*?isvalid: (\w+)", done.stdout)
    assert len(batches) == 5
    return [int(offset) for offset, valid in batches if valid == "false"]

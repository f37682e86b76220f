"""Three brokers, replication 3, min.insync.replicas 2: nothing that was acknowledged is lost with one of them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog
from featurestream.names import tap_topic
from tests.faults.cuts import leader_of
from tests.faults.traffic import Traffic
from tests.faults.trio import NODES, Trio, trio, trio_properties
from tests.producer_killing import END_S
from tests.support import append, create, make_manifest

pytestmark = pytest.mark.broker

SLOW = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Three brokers that the tests of this module may kill; each test leaves them running."""
    with trio(tmp_path_factory.mktemp("trio")) as nodes:
        yield nodes


def wait_until_in_sync(nodes: Trio, *topics: str) -> None:
    """Return when every partition has its three replicas again."""
    admin = AdminClient({"bootstrap.servers": nodes.cluster.bootstrap_servers})
    tick = threading.Event()
    for _ in range(int(END_S / 0.1)):
        found = [admin.list_topics(topic, timeout=30).topics[topic].partitions.values() for topic in topics]
        if all(len(partition.isrs) == 3 for partitions in found for partition in partitions):
            return
        tick.wait(0.1)
    raise AssertionError("the replicas did not come back")


def test_a_node_of_three_differs_from_the_embedded_broker_in_what_three_need():
    ports = {1: (1001, 1002), 2: (2001, 2002), 3: (3001, 3002)}
    lines = trio_properties(2, ports).splitlines()
    assert "controller.quorum.voters=1@127.0.0.1:1002,2@127.0.0.1:2002,3@127.0.0.1:3002" in lines
    assert "node.id=2" in lines
    assert "min.insync.replicas=2" in lines
    assert "auto.create.topics.enable=false" in lines
    assert len({line.split("=")[0] for line in lines}) == len(lines)


def harmed(nodes: Trio, stream: str, folder: Path, seed: int) -> tuple[Traffic, random.Random, list[str]]:
    """Return traffic on a stream of three replicas that has begun."""
    chance = random.Random(seed)
    traffic = Traffic(nodes.cluster, stream, folder)
    acks = chance.randrange(20, 100)
    print(f"seed {seed}: after {acks} acknowledgements")
    traffic.wait_for(acks)
    return traffic, chance, [tap_topic(stream, tap.name) for tap in traffic.manifest.taps]


@pytest.mark.parametrize("seed", [21, pytest.param(22, marks=SLOW), pytest.param(23, marks=SLOW)])
def test_a_leader_that_is_killed_loses_nothing(nodes: Trio, unique: str, tmp_path: Path, account, *, seed: int) -> None:
    one = account("three brokers: SIGKILL of a lane's leader")
    traffic, chance, topics = harmed(nodes, unique, tmp_path, seed)
    victim = leader_of(nodes, topics[0], chance.randrange(3))
    with traffic.harmed("SIGKILL of a leader"):  # two of three go on
        nodes.kill(victim)
    one.injected += 1
    traffic.wait_for(len(traffic.acks) + 5)
    nodes.start(victim)
    one.judge(traffic.verdict(), traffic.stall_s)
    wait_until_in_sync(nodes, *topics)


@SLOW
@pytest.mark.parametrize("seed", [24, 25])
def test_a_controller_that_is_killed_loses_nothing(
    nodes: Trio, unique: str, tmp_path: Path, account, *, seed: int
) -> None:
    one = account("three brokers: SIGKILL of the controller")
    traffic, _, topics = harmed(nodes, unique, tmp_path, seed)
    victim = nodes.controller()
    with traffic.harmed("SIGKILL of the controller"):
        nodes.kill(victim)
    one.injected += 1
    traffic.wait_for(len(traffic.acks) + 5)
    nodes.start(victim)
    assert nodes.controller() != victim
    one.judge(traffic.verdict(), traffic.stall_s)
    wait_until_in_sync(nodes, *topics)


@SLOW
def test_two_of_three_that_are_killed_stop_writes_in_words_and_cost_nothing(
    nodes: Trio, unique: str, tmp_path: Path, account
) -> None:
    one = account("three brokers: SIGKILL of two of three")
    traffic, chance, topics = harmed(nodes, unique, tmp_path, 26)
    lost = f"{unique}-lost"
    with KafkaLog(nodes.cluster, delivery_s=5.0) as log:
        manifest = make_manifest(lost, samples=40, lanes=3)
        create(log, manifest)
        victims = chance.sample(NODES, 2)
        nodes.kill(*victims)
        one.injected += 2
        acks = len(traffic.acks)
        with pytest.raises(BrokerError) as caught:
            append(log, manifest, range(3))
        print(caught.value)
        assert len(traffic.acks) <= acks + 1, "what one of three has is not acknowledged"
        with traffic.harmed("SIGKILL of two of three"):
            nodes.start(*victims)
    one.judge(traffic.verdict(), traffic.stall_s)
    wait_until_in_sync(nodes, *topics)


@SLOW
def test_a_rolling_restart_loses_nothing(nodes: Trio, unique: str, tmp_path: Path, account) -> None:
    one = account("three brokers: rolling restart")
    traffic, _, topics = harmed(nodes, unique, tmp_path, 27)
    for node in NODES:
        with traffic.harmed(f"restart of node {node}"):
            nodes.terminate(node)
            nodes.start(node)
            wait_until_in_sync(nodes, *topics)
        one.injected += 1
    one.judge(traffic.verdict(), traffic.stall_s)


def own_network() -> str | None:
    """Return why this machine lets a test have no network of its own, None where it does."""
    probe = ["unshare", "--net", "ip", "link", "add", "probe0", "type", "bridge"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return done.stderr.strip() or None if done.returncode else None


@SLOW
def test_a_broker_that_is_cut_off_the_network_loses_nothing(tmp_path: Path, account) -> None:
    if (reason := own_network()) is not None:
        pytest.skip(f"no network namespaces here: {reason}")
    one = account("three brokers: network cut of leader and controller")
    command = ["unshare", "--net", sys.executable, "-m", "tests.faults.cuts", str(tmp_path), "31"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print("\n".join(found["lines"]))
    one.injected, one.stall_s = found["injected"], found["stall_s"]
    one.lost, one.doubled, one.silent = found["lost"], found["doubled"], found["silent"]
    assert one.lost + one.doubled + one.silent == 0, found["lines"]
    assert found["lines"][0].startswith("A1 holds")

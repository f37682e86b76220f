"""Three brokers, each behind a network cable that can be pulled: ``python -m tests.faults.cuts FOLDER SEED``.

It must be run in a network namespace of its own (``unshare --net``), in which it is the machine of the producer and the
readers; each broker gets one more, joined to the first by a pair of virtual cards and a bridge. Everything vanishes
with the processes. What came of it is printed as JSON.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from confluent_kafka.admin import AdminClient

from featurestream.names import tap_topic
from tests.faults.traffic import Traffic
from tests.faults.trio import NODES, Trio, trio

HOSTS = {node: f"10.77.0.{node}" for node in NODES}
BRIDGE = "10.77.0.254"
CUT_S = 8.0


@dataclass
class Cuts:
    """What came of it."""

    injected: int
    lost: int
    doubled: int
    silent: int
    stall_s: float
    lines: list[str]


def run(*command: str) -> None:
    """Run a program that must succeed."""
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def wired() -> Iterator[dict[int, int]]:
    """Lay the cables; yield, by node, the process whose namespace is the broker's."""
    holders = {node: subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) for node in NODES}
    try:
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "bridge0", "type", "bridge")
        run("ip", "addr", "add", f"{BRIDGE}/24", "dev", "bridge0")
        run("ip", "link", "set", "bridge0", "up")
        for node, holder in holders.items():
            await_namespace(holder.pid)
            run("ip", "link", "add", f"cable{node}", "type", "veth", "peer", "name", "card", "netns", str(holder.pid))
            run("ip", "link", "set", f"cable{node}", "master", "bridge0", "up")
            inside = ("nsenter", "--net", "--target", str(holder.pid))
            run(*inside, "ip", "link", "set", "lo", "up")
            run(*inside, "ip", "addr", "add", f"{HOSTS[node]}/24", "dev", "card")
            run(*inside, "ip", "link", "set", "card", "up")
        yield {node: holder.pid for node, holder in holders.items()}
    finally:
        for holder in holders.values():
            holder.kill()
            holder.wait()


def await_namespace(pid: int) -> None:
    """Return when a process has left our namespace."""
    tick, ours = threading.Event(), Path("/proc/self/ns/net").readlink()
    for _ in range(500):
        if Path(f"/proc/{pid}/ns/net").readlink() != ours:
            return
        tick.wait(0.01)
    raise AssertionError("unshare did nothing")


def leader_of(nodes: Trio, topic: str, lane: int) -> int:
    """Return the leader of a partition."""
    admin = AdminClient({"bootstrap.servers": nodes.cluster.bootstrap_servers})
    leader: int = admin.list_topics(topic, timeout=30).topics[topic].partitions[lane].leader
    return leader


def cut_off(folder: Path, seed: int) -> Cuts:
    """Pull the cable of a lane's leader, then of the controller, under traffic; return the verdict."""
    chance = random.Random(seed)
    with wired() as holders:
        launch = {node: ("nsenter", "--net", "--target", str(pid)) for node, pid in holders.items()}
        with trio(folder / "trio", hosts=HOSTS, launch=launch) as nodes:
            traffic = Traffic(nodes.cluster, "cut", folder / "traffic")
            injected = 0
            for what in ("leader", "controller"):
                traffic.wait_for(len(traffic.acks) + chance.randrange(10, 60))
                topic = tap_topic("cut", traffic.manifest.taps[0].name)
                node = leader_of(nodes, topic, chance.randrange(3)) if what == "leader" else nodes.controller()
                with traffic.harmed(f"a cut of the {what}'s network"):
                    run("ip", "link", "set", f"cable{node}", "down")
                    threading.Event().wait(CUT_S)
                    run("ip", "link", "set", f"cable{node}", "up")
                injected += 1
            verdict = traffic.verdict()
    found = {name: len(lines) for name, lines in verdict.violations.items()}
    silent = sum(count for name, count in found.items() if name not in ("A1", "A2"))
    return Cuts(injected, found["A1"], found["A2"], silent, traffic.stall_s, [*verdict.lines(), *traffic.said])


if __name__ == "__main__":
    print(json.dumps(asdict(cut_off(Path(sys.argv[1]), int(sys.argv[2])))))

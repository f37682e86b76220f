"""Three brokers on one machine: combined KRaft nodes, replication 3, min.insync.replicas 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from featurestream.broker.archive import find_archive
from featurestream.broker.config import HOST, broker_command, format_command, server_properties
from featurestream.broker.jars import install_jars, jar_folder, locked_jars
from featurestream.broker.java import find_java
from featurestream.broker.ports import is_free
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka.admin import ping
from tests.faults.harm import END_S

NODES = (1, 2, 3)
#: Beside the embedded broker's own: what three nodes need, and time limits with which a leader is replaced in 3 s.
TOGETHER = {
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1000",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.election.backoff.max.ms": "300",
}
# Beside the tests, in a session of its own: when their end of the pipe closes, in whatever way, the nodes are killed.
GUARD = """
import sys, psutil
sys.stdin.read()
for process in psutil.process_iter():
    try:
        if process.cmdline()[1:2] == [sys.argv[1]]:
            process.kill()
    except psutil.Error:
        pass
"""


def trio_properties(
    node: int, ports: Mapping[int, tuple[int, int]], hosts: Mapping[int, str] | None = None
) -> str:  # fmt: skip
    """Return one node's server.properties: the embedded broker's, with what three of them need."""
    hosts = hosts or dict.fromkeys(NODES, HOST)
    broker, controller = ports[node]
    text = server_properties(broker, controller)
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    found |= TOGETHER | {
        "node.id": str(node),
        "listeners": f"PLAINTEXT://{hosts[node]}:{broker},CONTROLLER://{hosts[node]}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{hosts[node]}:{broker}",
        "controller.quorum.voters": ",".join(f"{one}@{hosts[one]}:{ports[one][1]}" for one in NODES),
    }
    return "".join(f"{name}={value}\n" for name, value in found.items())


class Trio:
    """Three brokers in ``folder``, each with its data and log in a folder of its own.

    ``launch`` is put before a node's command: a program that starts it elsewhere, such as in a network namespace.
    """

    def __init__(
        self, folder: Path, hosts: Mapping[int, str] | None = None,
        launch: Mapping[int, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.hosts = dict(hosts or dict.fromkeys(NODES, HOST))
        self._launch = launch or {}
        self._mark = f"-Dfeaturestream.home={folder}"
        self._java = find_java()
        self._jars = install_jars(locked_jars(), jar_folder())
        classes = find_archive(self._java, self._jars, jar_folder())
        self._archive = classes.options("trio") if classes is not None and classes.file.exists() else []
        free = (port for port in range(21_000, 32_000) if is_free(port))
        self._ports = {node: (next(free), next(free)) for node in NODES}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for node in NODES:
            home = folder / f"node-{node}"
            home.mkdir(parents=True)
            (home / "server.properties").write_text(trio_properties(node, self._ports, self.hosts))
            subprocess.run(
                format_command(self._java, self._jars), cwd=home, check=True, capture_output=True, timeout=END_S
            )

    @property
    def cluster(self) -> Cluster:
        """Where they answer."""
        return Cluster(",".join(f"{self.hosts[node]}:{self._ports[node][0]}" for node in NODES))

    def start(self, *nodes: int) -> None:
        """Start nodes; returns when each of them answers clients."""
        for node in nodes:
            home = self.folder / f"node-{node}"
            command = [
                arg.replace("-Xmx512m", "-Xmx256m") for arg in broker_command(self._java, self._jars, self._mark)
            ]
            with (home / "broker.log").open("ab") as log:
                self.processes[node] = subprocess.Popen(
                    [*self._launch.get(node, ()), *command],
                    cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
        for node in nodes:
            self.wait_for(node)

    def wait_for(self, node: int) -> None:
        """Return when a node answers."""
        end = time.monotonic() + END_S
        while True:
            try:
                return ping(f"{self.hosts[node]}:{self._ports[node][0]}", 2.0)
            except BrokerError:
                assert self.processes[node].poll() is None, f"node {node} ended: see {self.folder}"
                assert time.monotonic() < end, f"node {node} does not answer"

    def kill(self, *nodes: int) -> None:
        """Send SIGKILL to nodes."""
        for node in nodes:
            self.processes[node].kill()
        for node in nodes:
            self.processes[node].wait(END_S)

    def terminate(self, node: int) -> None:
        """Stop a node as its operator does."""
        self.processes[node].terminate()
        self.processes[node].wait(END_S)

    def controller(self) -> int:
        """Return the active controller, as the nodes have last voted."""
        states = [
            json.loads(path.read_text())
            for path in self.folder.glob("node-*/data/__cluster_metadata-0/quorum-state")
        ]  # fmt: skip
        newest = max(states, key=lambda state: (state["leaderEpoch"], state["leaderId"]))
        leader: int = newest["leaderId"]
        return leader

    def close(self) -> None:
        """Kill whatever runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(END_S)


@contextmanager
def trio(folder: Path, **options: Mapping[int, object]) -> Iterator[Trio]:
    """Run three brokers; they are gone after the block, and when this process is killed inside it."""
    nodes = Trio(folder, **options)  # type: ignore[arg-type]
    guard = subprocess.Popen(
        [sys.executable, "-c", GUARD, f"-Dfeaturestream.home={folder}"], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        nodes.start(*NODES)
        yield nodes
    finally:
        nodes.close()
        guard.communicate(timeout=END_S)
        mine = [p.pid for p in psutil.process_iter() if p.pid != os.getpid() and _is_of(p, folder)]
        assert mine == [], "a node is left behind"


def _is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        return bool(process.cmdline()[1:2] == [f"-Dfeaturestream.home={folder}"])
    except psutil.Error:
        return False

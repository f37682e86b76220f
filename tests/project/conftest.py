"""docker-compose.yml, played without docker: its Kafka from the released jars, then every service's own command."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

from featurestream.broker.config import CLUSTER_ID, broker_command, format_command
from featurestream.broker.jars import install_jars, jar_folder, locked_jars
from featurestream.broker.java import find_java
from featurestream.kafka.admin import ping
from tests.conftest import guarded
from tests.project.documents import ROOT

LIMIT_S = 300


@dataclass(frozen=True)
class Kafka:
    """A running Kafka with the settings of the service ``kafka``: the address inside, and the one for the host."""

    inside: str
    host: str


@dataclass(frozen=True)
class Composed:
    """What the services of docker-compose.yml have left behind: files in ``folder``, what each one printed."""

    folder: Path
    environment: dict[str, str]
    finished: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """docker-compose.yml, its anchors resolved."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="session")
def compose_kafka(compose: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Kafka with the settings of the service ``kafka``, on free ports of loopback."""
    home = tmp_path_factory.mktemp("compose-kafka")
    settings = compose["services"]["kafka"]["environment"]
    assert settings["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"
    free = dict(zip(("9092", "9093", "9094"), free_ports(3), strict=True))
    lines = ["log.dirs=data"]
    for name, value in settings.items():
        if name.startswith("KAFKA_") and name != "KAFKA_LOG_DIRS":
            # A name becomes a property as the image does it; addresses become addresses of this machine.
            text = re.sub(r"(?<=:)909[234]\b", lambda found: str(free[found[0]]), str(value))
            text = re.sub(r"://(?:kafka)?:", "://127.0.0.1:", text)
            lines.append(f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={text}")
    (home / "server.properties").write_text("\n".join(lines) + "\n", encoding="utf-8")

    java, jars = find_java(), install_jars(locked_jars(), jar_folder())
    command = [settings["CLUSTER_ID"] if word == CLUSTER_ID else word for word in format_command(java, jars)]
    subprocess.run(command, cwd=home, check=True, capture_output=True)
    # The mark is the one by which the guard finds the process, should these tests be killed.
    running = broker_command(java, jars, f"-Dfeaturestream.home={home}")
    with guarded(home), (home / "broker.log").open("w") as log:
        process = subprocess.Popen(running, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            kafka = Kafka(f"127.0.0.1:{free['9092']}", f"127.0.0.1:{free['9094']}")
            ping(kafka.inside, 60)
            yield kafka
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="session")
def composed(compose: dict[str, Any], compose_kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    """Every service has run its command, in the order and at the same time as docker compose would start them."""
    folder = tmp_path_factory.mktemp("composed")
    # A container's environment: nothing of this machine's, and the programs on its path.
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
    }
    services = {name: service for name, service in compose["services"].items() if name != "kafka"}
    for service in services.values():
        environment |= {
            name: value.replace("kafka:9092", compose_kafka.inside) for name, value in service["environment"].items()
        }
    done = Composed(folder, environment)
    order = TopologicalSorter({name: set(service.get("depends_on", ())) for name, service in services.items()})
    order.prepare()
    while order.is_active():
        ready = order.get_ready()
        with contextlib.ExitStack() as stack:
            started = {
                name: stack.enter_context(start(shlex.split(services[name]["command"]), folder, environment))
                for name in ready
                if name != "kafka"
            }
            for name, process in started.items():
                printed, _ = process.communicate(timeout=LIMIT_S)
                done.finished[name] = subprocess.CompletedProcess(process.args, process.returncode, printed)
        order.done(*ready)
    return done


@contextlib.contextmanager
def start(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a command; whatever happens in the block, it is over after it."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]

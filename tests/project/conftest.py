"""docker-compose.yml, played without docker: its Kafka from the released jars, then every service's own command."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import yaml

from featurestream.broker.config import CLUSTER_ID, broker_command, format_command
from featurestream.broker.jars import install_jars, jar_folder, locked_jars, parse_lock
from featurestream.broker.java import find_java
from featurestream.kafka.admin import ping
from tests.conftest import guarded
from tests.project.documents import ROOT

LIMIT_S = 300
INSIDE, CONTROLLER, HOST, AGENT = "9092", "9093", "9094", "9404"  # the ports of a node


@dataclass(frozen=True)
class Kafka:
    """A running node with the settings of a service: its address inside, the one for the host, and its metrics."""

    inside: str
    host: str
    metrics: str


@dataclass(frozen=True)
class Composed:
    """What the services of docker-compose.yml have left behind: files in ``folder``, what each one printed."""

    folder: Path
    environment: dict[str, str]
    finished: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)


def load_compose(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return docker-compose.yml, its anchors and variables resolved, with the services of the profiles asked for."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    text = re.sub(r"\$\{(\w+):-(.*?)\}", lambda found: environment.get(found[1], found[2]), text)
    loaded: dict[str, Any] = yaml.safe_load(text)
    wanted = {*environment.get("COMPOSE_PROFILES", "").split(",")}
    services = loaded["services"].items()
    chosen = {name: one for name, one in services if not one.get("profiles") or wanted & {*one["profiles"]}}
    return {**loaded, "services": chosen}


def read_environment(path: Path) -> dict[str, str]:
    """Return the variables of an env file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """docker-compose.yml as ``docker compose up`` takes it."""
    return load_compose({})


@pytest.fixture(scope="session")
def cluster_compose() -> dict[str, Any]:
    """docker-compose.yml as ``docker compose --env-file deploy/cluster.env up`` takes it."""
    return load_compose(read_environment(ROOT / "deploy" / "cluster.env"))


@pytest.fixture(scope="session")
def compose_kafka(compose: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Kafka with the settings of the service ``kafka``, on free ports of loopback."""
    with run_nodes(compose, tmp_path_factory.mktemp("compose-kafka")) as nodes:
        yield nodes["kafka"]


@contextlib.contextmanager
def run_nodes(compose: dict[str, Any], folder: Path) -> Iterator[dict[str, Kafka]]:
    """Run every service that is a node of Kafka, as its image would, with its agent, on free ports of loopback."""
    services = {name: one for name, one in compose["services"].items() if one["image"] == "featurestream-kafka"}
    free = iter(free_ports(4 * len(services)))
    ports = {name: dict(zip((INSIDE, CONTROLLER, HOST, AGENT), free, strict=False)) for name in services}
    with contextlib.ExitStack() as stack:
        for name, service in services.items():
            home = folder / name
            home.mkdir()
            stack.enter_context(running_node(name, service, ports, home))
        found = {}
        for name, own in ports.items():
            found[name] = Kafka(
                f"127.0.0.1:{own[INSIDE]}", f"127.0.0.1:{own[HOST]}", f"http://127.0.0.1:{own[AGENT]}/metrics"
            )
            ping(found[name].inside, 90)
        yield found


@contextlib.contextmanager
def running_node(name: str, service: dict[str, Any], ports: dict[str, dict[str, int]], home: Path) -> Iterator[None]:
    """Run one node in a home; it is over after the block."""
    settings = service["environment"]
    assert settings["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"
    published = {outside: inside for _, outside, inside in (port.split(":") for port in service["ports"])}

    def here(found: re.Match[str]) -> str:
        before, host, port = found.groups()
        if host == "127.0.0.1":
            host, port = name, published[port]
        return f"{before}127.0.0.1:{ports[host or name][port]}"

    lines = ["log.dirs=data"]
    for key, value in settings.items():
        if key.startswith("KAFKA_") and key != "KAFKA_LOG_DIRS":
            # A name becomes a property as the image does it; addresses become addresses of this machine.
            text = re.sub(r"(@|://)([\w.-]*):(\d+)", here, str(value))
            lines.append(f"{key.removeprefix('KAFKA_').lower().replace('_', '.')}={text}")
    (home / "server.properties").write_text("\n".join(lines) + "\n", encoding="utf-8")

    java, jars = find_java(), install_jars(locked_jars(), jar_folder())
    agent = agent_option(ports[name][AGENT])  # the image gives it to whatever Java it starts
    program, *words = [settings["CLUSTER_ID"] if word == CLUSTER_ID else word for word in format_command(java, jars)]
    subprocess.run([program, agent, *words], cwd=home, check=True, capture_output=True)
    # The mark is the one by which the guard finds the process, should these tests be killed.
    program, *words = broker_command(java, jars, f"-Dfeaturestream.home={home}")
    running = [program, agent, *words]
    with guarded(home), (home / "broker.log").open("w") as log:
        process = subprocess.Popen(running, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.kill()  # asked to end, the last of three would wait for the other two
            process.wait(60)


def agent_option(port: int) -> str:
    """Return what the image of Kafka tells Java of its agent, with the files and a port of this machine."""
    (option,) = re.findall(r"^ENV KAFKA_OPTS=(.*)$", (ROOT / "deploy/kafka/Dockerfile").read_text(), re.MULTILINE)
    lock = parse_lock((ROOT / "deploy/kafka/agent.lock").read_text(encoding="utf-8"))
    (jar,) = install_jars(lock, platformdirs.user_cache_path("featurestream") / "kafka-agent")
    assert option == f"-javaagent:/opt/agent/agent.jar={AGENT}:/opt/agent/agent.yaml"
    return f"-javaagent:{jar}=127.0.0.1:{port}:{ROOT / 'deploy/kafka/agent.yaml'}"


@pytest.fixture(scope="session")
def composed(compose: dict[str, Any], compose_kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Composed:
    """Every service that ends has run its command, in the order and at the same time as docker compose starts them."""
    folder = tmp_path_factory.mktemp("composed")
    services = {name: one for name, one in compose["services"].items() if one["restart"] == "on-failure:5"}
    environment = container_environment(folder)
    for service in services.values():
        environment |= settings_of(service, compose_kafka)
    done = Composed(folder, environment)
    order = TopologicalSorter(
        {name: {*service.get("depends_on", ())} & {*services} for name, service in services.items()}
    )
    order.prepare()
    while order.is_active():
        ready = order.get_ready()
        with contextlib.ExitStack() as stack:
            started = {
                name: stack.enter_context(start(words_of(services[name]), folder, environment)) for name in ready
            }
            for name, process in started.items():
                printed, _ = process.communicate(timeout=LIMIT_S)
                done.finished[name] = subprocess.CompletedProcess(process.args, process.returncode, printed)
        order.done(*ready)
    return done


def container_environment(folder: Path) -> dict[str, str]:
    """Return a container's environment: nothing of this machine's, and the programs on its path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    return {"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8"} | {
        # Where these sources are imported from a path, their programs are too.
        name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ
    }  # fmt: skip


def settings_of(service: dict[str, Any], kafka: Kafka) -> dict[str, str]:
    """Return a service's environment, with the Kafka of this machine."""
    return {name: str(value).replace("kafka:9092", kafka.inside) for name, value in service["environment"].items()}


def words_of(service: dict[str, Any]) -> list[str]:
    """Return a service's command: here all of them share one network, so that each takes a port that is free."""
    words = shlex.split(service["command"])
    here = {"9400": "0", "0.0.0.0": "127.0.0.1"}
    return [here.get(word, word) for word in words]


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

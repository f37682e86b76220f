"""docker-compose.yml and the images that it builds: valid, and every service's command does its work."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka.admin import AdminClient

from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.stream import FeatureStream
from tests.project.conftest import (
    Composed,
    Kafka,
    container_environment,
    free_ports,
    load_compose,
    read_environment,
    run_nodes,
    settings_of,
    start,
    words_of,
)
from tests.project.documents import ROOT, Command
from tests.project.test_project_documents import check_exists
from tests.support import make_manifest, publish

SERVICES = (
    "samples", "producer", "producer-validation", "trainer-layer2", "trainer-layer3", "trainer-avgpool", "compare",
)  # fmt: skip
LASTING = ("kafka", "gateway", "prometheus", "grafana")
PROFILES = {"gpu": ("producer-gpu", "trainer-gpu"), "cluster": ("kafka-2", "kafka-3")}
IMAGES = ("producer", "consumer", "gateway")
DOCKERFILES = (*(f"{image}/Dockerfile" for image in IMAGES), "deploy/kafka/Dockerfile")
GATEWAY_IS_HERE = importlib.util.find_spec("featurestream_gateway") is not None
COMPOSE_PROGRAM = "FEATURESTREAM_DOCKER_COMPOSE"


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    """All services, those of the profiles too."""
    return load_compose({"COMPOSE_PROFILES": ",".join(PROFILES)})["services"]


def run_tool(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment's."""
    program, *arguments = map(str, words)
    return subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, cwd=ROOT,
    )  # fmt: skip


def check_against_specification(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a file against the JSON Schema that the Compose Specification publishes."""
    return run_tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, each with its arguments."""
    lines = (ROOT / dockerfile).read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line and not line.startswith("#")]


# ---- the file -------------------------------------------------------------------------------------------------------


def test_the_file_is_valid_by_the_compose_specification() -> None:
    done = check_against_specification(ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stdout


def test_a_file_that_is_not_valid_is_refused(compose: dict[str, Any], tmp_path: Path) -> None:
    wrong = compose | {"services": {"producer": compose["services"]["producer"] | {"comand": "featurectl"}}}
    (tmp_path / "docker-compose.yml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    done = check_against_specification(tmp_path / "docker-compose.yml")
    assert done.returncode == 1
    assert "comand" in done.stdout


@pytest.mark.skipif(COMPOSE_PROGRAM not in os.environ, reason=f"${COMPOSE_PROGRAM} names no docker-compose program")
@pytest.mark.parametrize(
    ("options", "profile"),
    [([], ""), (["--profile", "gpu"], "gpu"), (["--env-file", "deploy/cluster.env"], "cluster")],
)
def test_docker_compose_takes_the_file_for_what_these_tests_do(options: list[str], profile: str) -> None:
    done = subprocess.run(
        [os.environ[COMPOSE_PROGRAM], *options, "config", "--format", "json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout)["services"]
    cluster = read_environment(ROOT / "deploy/cluster.env") if profile == "cluster" else {"COMPOSE_PROFILES": profile}
    ours = load_compose(cluster)["services"]
    assert taken.keys() == ours.keys()
    for name, service in ours.items():
        expected = {key: str(value) for key, value in service.get("environment", {}).items()}
        assert (taken[name].get("environment") or {}) == expected
        command = service.get("command")
        assert taken[name]["command"] == (shlex.split(command) if isinstance(command, str) else command)


def test_the_services_are_those_that_end_those_that_last_and_those_of_the_profiles(
    compose: dict[str, Any], everything: dict[str, Any]
) -> None:
    assert set(compose["services"]) == {*SERVICES, *LASTING}
    assert set(everything) == {*SERVICES, *LASTING, *PROFILES["gpu"], *PROFILES["cluster"]}


def test_every_service_waits_for_services_that_exist_in_a_state_that_they_reach(everything: dict[str, Any]) -> None:
    for service in everything.values():
        for other, wait in service.get("depends_on", {}).items():
            expected = "service_healthy" if "healthcheck" in everything[other] else "service_completed_successfully"
            assert wait["condition"] == expected
            needed = not everything[other].get("profiles") or everything[other]["profiles"] == service.get("profiles")
            assert wait.get("required", True) == needed, "a service of another profile need not be there"


def test_what_lasts_is_looked_after_and_what_ends_is_tried_again(everything: dict[str, Any]) -> None:
    for name, service in everything.items():
        lasts = name in (*LASTING, *PROFILES["cluster"])
        assert service["restart"] == ("unless-stopped" if lasts else "on-failure:5")
        assert ("healthcheck" in service) == lasts


def test_no_service_can_become_more_than_it_is(everything: dict[str, Any]) -> None:
    for name, service in everything.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if "build" in service:
            user = [arguments for word, arguments in instructions(service["build"]["dockerfile"]) if word == "USER"]
            assert user == ["1000"]
        else:
            assert service["user"] in {"nobody", "472"}


def test_every_image_that_is_not_built_here_has_a_version(everything: dict[str, Any]) -> None:
    named = [service["image"] for service in everything.values() if "build" not in service]
    named += [arguments.split()[0] for file in DOCKERFILES for word, arguments in instructions(file) if word == "FROM"]
    assert named
    assert [image for image in named if not re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", image)] == []


def test_every_volume_lies_in_a_folder_that_the_image_makes_for_its_user(
    compose: dict[str, Any], everything: dict[str, Any]
) -> None:
    for service in everything.values():
        file = service.get("build", {}).get("dockerfile", "")
        if file not in DOCKERFILES[:-1]:
            continue
        made = instructions(file)
        assert ("WORKDIR", "/srv/featurestream") in made
        (making,) = [arguments for word, arguments in made if word == "RUN" and "chown" in arguments]
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            assert source in compose["volumes"]
            assert Path(target).parent == Path("/srv/featurestream")
            assert Path(target).name in making.partition("chown featurestream")[2].split()


def test_every_volume_is_declared_and_what_is_mounted_from_here_is_only_read(
    compose: dict[str, Any], everything: dict[str, Any]
) -> None:
    for service in everything.values():
        for volume in service.get("volumes", ()):
            source, _, *mode = volume.split(":")
            if source.startswith("./"):
                assert (ROOT / source).is_dir()
                assert mode == ["ro"]
            else:
                assert source in compose["volumes"]


def test_ports_are_published_on_loopback_only_each_once(everything: dict[str, Any]) -> None:
    ports = [port for service in everything.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports) == 6


def test_every_command_of_ours_exists_with_its_options(everything: dict[str, Any]) -> None:
    commands = {name: one["command"] for name, one in everything.items() if isinstance(one.get("command"), str)}
    for name, command in commands.items():
        program, *words = shlex.split(command)
        if program == "featurectl" and (name != "gateway" or GATEWAY_IS_HERE):
            check_exists(Command(f"service {name}", tuple(words)))


def test_the_profile_gpu_asks_for_gpus_and_uses_them(everything: dict[str, Any]) -> None:
    for name in PROFILES["gpu"]:
        (device,) = everything[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
        assert "--device cuda" in everything[name]["command"]


def test_prometheus_asks_every_service_that_answers_and_with_the_gateways_token(
    compose: dict[str, Any], everything: dict[str, Any]
) -> None:
    settings = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in settings["scrape_configs"]}
    asked = {target for job in jobs.values() for one in job["static_configs"] for target in one["targets"]}
    answering = {f"{name}:9400" for name, one in everything.items() if "--metrics-port 9400" in str(one.get("command"))}
    answering |= {f"{name}:9404" for name, one in everything.items() if one["image"] == "featurestream-kafka"}
    assert asked == {*answering, "gateway:8080"}
    (mounted,) = everything["prometheus"]["configs"]
    assert jobs["gateway"]["authorization"] == {"credentials_file": mounted["target"]}
    token = everything["gateway"]["environment"]["FEATURESTREAM_GATEWAY_TOKEN"]
    assert compose["configs"][mounted["source"]]["content"] == token


# ---- the images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DOCKERFILES)
def test_hadolint_finds_nothing_in_a_dockerfile(file: str) -> None:
    done = run_tool("hadolint", "--config", ".hadolint.yaml", file)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\n", encoding="utf-8")
    done = run_tool("hadolint", "--config", ".hadolint.yaml", tmp_path / "Dockerfile")
    assert done.returncode == 1
    assert "DL3007" in done.stdout


@pytest.mark.parametrize("file", DOCKERFILES)
def test_an_image_runs_as_a_user_without_rights(file: str) -> None:
    words = [word for word, _ in instructions(file)]
    assert "RUN" not in words[words.index("USER") :]


@pytest.mark.parametrize("file", DOCKERFILES)
def test_an_image_copies_what_exists_and_what_the_builder_is_sent(file: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    sent = [line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")]
    for word, arguments in instructions(file):
        if word == "COPY" and not arguments.startswith("--from"):
            *sources, _ = arguments.split()
            for source in sources:
                assert (ROOT / source).exists()
                assert any(fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in sent)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_extras_that_there_are_with_the_versions_they_ask_for(image: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = (ROOT / image / "Dockerfile").read_text(encoding="utf-8")
    (named,) = re.findall(r'"/src\[([\w,]+)\]"', text)
    assert image in named.split(",")
    assert set(named.split(",")) <= set(extras)
    asked = {requirement for extra in named.split(",") for requirement in extras[extra]}
    (first,) = re.findall(r"pip install (\"torch.*)$", text, re.MULTILINE)
    assert set(shlex.split(first)) <= asked


def test_the_images_share_the_layers_up_to_pytorch() -> None:
    one, *others = (instructions(f"{image}/Dockerfile") for image in IMAGES)
    installing = next(place for place, (word, _) in enumerate(one) if word == "RUN")
    for other in others:
        assert one[: installing + 1] == other[: installing + 1]


# ---- the services ---------------------------------------------------------------------------------------------------


@pytest.mark.broker
def test_the_kafka_of_the_file_tells_each_side_the_address_that_it_can_reach(compose_kafka: Kafka) -> None:
    for address in (compose_kafka.inside, compose_kafka.host):
        brokers = AdminClient({"bootstrap.servers": address}).list_topics(timeout=10).brokers
        assert [f"{broker.host}:{broker.port}" for broker in brokers.values()] == [address]


@pytest.mark.broker
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_to_its_end(composed: Composed, name: str) -> None:
    done = composed.finished[name]
    assert done.returncode == 0, done.stdout


@pytest.mark.broker
@pytest.mark.timeout(900)
def test_the_services_leave_three_experiments_and_compare_them(composed: Composed) -> None:
    for name in ("layer2", "layer3", "avgpool"):
        for file in ("run.json", "metrics.jsonl", "head.safetensors", "validation.npz"):
            assert (composed.folder / "runs" / name / file).is_file()
        assert name in composed.finished["compare"].stdout


@contextlib.contextmanager
def gateway_running(compose: dict[str, Any], kafka: Kafka, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the service ``gateway`` until it is healthy, by what its health check asks; give it and its address."""
    service = compose["services"]["gateway"]
    (port,) = free_ports(1)
    words = [str(port) if word == "8080" else word for word in words_of(service)]
    address = f"http://127.0.0.1:{port}"
    assert "http://127.0.0.1:8080/healthz" in service["healthcheck"]["test"][-1]
    with start(words, folder, container_environment(folder) | settings_of(service, kafka)) as process:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(f"{address}/healthz", timeout=5).close()
                break
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process, address


@pytest.mark.broker
@pytest.mark.timeout(900)
@pytest.mark.skipif(not GATEWAY_IS_HERE, reason="there is no gateway in this tree")
def test_the_gateway_shows_the_streams_to_whoever_has_the_token_and_ends_when_it_is_told(
    compose: dict[str, Any], composed: Composed, compose_kafka: Kafka
) -> None:
    token = compose["services"]["gateway"]["environment"]["FEATURESTREAM_GATEWAY_TOKEN"]
    with gateway_running(compose, compose_kafka, composed.folder) as (process, address):
        asking = urllib.request.Request(f"{address}/v1/streams", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asking, timeout=30) as answer:
            shown = answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(f"{address}/metrics", timeout=30)
        refused.value.close()
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=30)
        assert process.returncode == 0, printed
    assert "demo-train" in shown
    assert "demo-validation" in shown


@pytest.mark.broker
@pytest.mark.timeout(600)
def test_three_brokers_keep_three_copies_of_every_record(
    cluster_compose: dict[str, Any], tmp_path: Path, unique: str
) -> None:
    """The services of the profile ``cluster``: one quorum; and each node leads a third of the lanes."""
    with run_nodes(cluster_compose, tmp_path) as nodes:
        assert list(nodes) == ["kafka", "kafka-2", "kafka-3"]
        addresses = cluster_compose["services"]["producer"]["environment"]["FEATURESTREAM_BOOTSTRAP_SERVERS"]
        assert addresses == ",".join(f"{name}:9092" for name in nodes)
        with KafkaLog(Cluster(",".join(node.inside for node in nodes.values()))) as log:
            manifest = publish(log, make_manifest(unique, lanes=3, taps=("avgpool",)))
            topic = f"{unique}.avgpool"
            assert log.settings(topic)["min.insync.replicas"] == "2"
            assert len(FeatureStream(unique, log=log).read_all()) == 20
        for node in nodes.values():
            found = AdminClient({"bootstrap.servers": node.host}).list_topics(topic, timeout=10)
            assert len(found.brokers) == 3
            lanes = found.topics[topic].partitions.values()
            assert [len(lane.isrs) for lane in lanes] == [3] * manifest.lanes
            assert {lane.leader for lane in lanes} == {1, 2, 3}

"""docker-compose.yml and the images that it builds: valid, and every service's command does its work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka.admin import AdminClient

from tests.project.conftest import Composed, Kafka
from tests.project.documents import ROOT

SERVICES = ("samples", "producer", "producer-validation", "trainer-layer3", "trainer-avgpool", "compare")
IMAGES = ("producer", "consumer")


def check_against_specification(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a file against the JSON Schema that the Compose Specification publishes."""
    return subprocess.run(
        [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def instructions(image: str) -> list[tuple[str, str]]:
    """Return the instructions of an image's Dockerfile, each with its arguments."""
    lines = (ROOT / image / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line and not line.startswith("#")]


def test_the_file_is_valid_by_the_compose_specification() -> None:
    done = check_against_specification(ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stdout


def test_a_file_that_is_not_valid_is_refused(compose: dict[str, Any], tmp_path: Path) -> None:
    wrong = compose | {"services": {"producer": compose["services"]["producer"] | {"comand": "featurectl"}}}
    (tmp_path / "docker-compose.yml").write_text(yaml.safe_dump(wrong), encoding="utf-8")
    done = check_against_specification(tmp_path / "docker-compose.yml")
    assert done.returncode == 1
    assert "comand" in done.stdout


def test_the_services_are_kafka_and_the_ones_played_here(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"kafka", *SERVICES}


def test_every_service_waits_for_services_that_exist_in_a_state_that_they_reach(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        for other, wait in service.get("depends_on", {}).items():
            expected = "service_healthy" if "healthcheck" in services[other] else "service_completed_successfully"
            assert wait == {"condition": expected}


def test_every_volume_lies_in_a_folder_that_the_image_makes_for_its_user(compose: dict[str, Any]) -> None:
    for name in SERVICES:
        service = compose["services"][name]
        made = instructions(Path(service["build"]["dockerfile"]).parent.name)
        assert ("WORKDIR", "/srv/featurestream") in made
        (making,) = [arguments for word, arguments in made if word == "RUN" and "chown" in arguments]
        for volume in service["volumes"]:
            source, target = volume.split(":")
            assert source in compose["volumes"]
            assert Path(target).parent == Path("/srv/featurestream")
            assert Path(target).name in making.partition("chown featurestream")[2].split()


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:9094:9094"]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_user_without_rights(image: str) -> None:
    words = [word for word, _ in instructions(image)]
    assert ("USER", "featurestream") in instructions(image)
    assert "RUN" not in words[words.index("USER") :]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_copies_what_exists_and_what_the_builder_is_sent(image: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    sent = [line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")]
    for word, arguments in instructions(image):
        if word == "COPY":
            *sources, _ = arguments.split()
            for source in sources:
                assert (ROOT / source).exists()
                assert any(fnmatch(source, pattern) for pattern in sent)


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


def test_the_two_images_share_the_layers_up_to_pytorch() -> None:
    one, other = (instructions(image) for image in IMAGES)
    installing = next(place for place, (word, _) in enumerate(one) if word == "RUN")
    assert one[: installing + 1] == other[: installing + 1]


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
def test_the_services_leave_two_experiments_and_compare_them(composed: Composed) -> None:
    for name in ("layer3", "avgpool"):
        for file in ("run.json", "metrics.jsonl", "head.safetensors", "validation.npz"):
            assert (composed.folder / "runs" / name / file).is_file()
        assert name in composed.finished["compare"].stdout

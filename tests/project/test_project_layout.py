"""The repository is laid out as its documents say, and nothing in it is tied to one machine or one registry."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.project.documents import ROOT, parts

PACKAGES = (
    "featurestream", "featurectl", "producer/featurestream_producer", "consumer/featurestream_consumer",
    "gateway/featurestream_gateway",
)  # fmt: skip
TOP = (
    "README.md", "GLOSSARY.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml",
    "mkdocs.yml", "docker-compose.yml", ".dockerignore", ".ci/run", "docs/README.md", "docs/adr", "schemas/README.md",
    "benchmarks", "producer/README.md", "producer/Dockerfile", "consumer/README.md", "consumer/Dockerfile",
    "gateway/README.md",
)  # fmt: skip

# In two pieces each, so that this file does not contain what it looks for.
HOSTS = [
    name + "." + domain
    for name, domain in (
        ("pypi", "org"), ("files.pythonhosted", "org"), ("pythonhosted", "org"), ("download.pytorch", "org"),
        ("maven", "org"), ("repo.maven.apache", "org"), ("maven", "google.com"), ("jitpack", "io"),
        ("registry.npmjs", "org"), ("crates", "io"), ("proxy.golang", "org"), ("deb.debian", "org"),
        ("docker", "io"), ("ghcr", "io"), ("quay", "io"), ("gcr", "io"), ("public.ecr", "aws"), ("anaconda", "org"),
    )
]  # fmt: skip
# Folders of people and machines; /photos and /srv in an example are nobody's.
HOME = re.compile(r"(?<![\w.$}])/(?:home|root|Users|work|mnt)/\w")


def own_files() -> list[Path]:
    """Return every text file that belongs to the repository."""
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a file in a work tree of git
    files += [path for top in parts() for path in top.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(files)


def texts() -> list[tuple[str, str]]:
    """Return (name, text) of every file of ours that is text."""
    found = []
    for path in own_files():
        try:
            found.append((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:  # golden messages and pictures
            continue
    return found


@pytest.mark.parametrize("name", TOP)
def test_the_repository_has(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_tells_type_checkers_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_wheel_and_the_type_checker_take_the_same_five_packages() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    names = {Path(package).name for package in PACKAGES}
    assert set(tool["hatch"]["build"]["targets"]["wheel"]["packages"]) == set(PACKAGES)
    assert set(tool["mypy"]["packages"]) == names
    assert set(tool["importlinter"]["root_packages"]) == names


@pytest.mark.parametrize("package", PACKAGES)
def test_each_folder_with_code_is_a_regular_package(package: str) -> None:
    """A folder without __init__.py is silently left out of wheels and of import contracts."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_the_licence_is_apache_2() -> None:
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_licences_of_what_is_vendored_go_into_the_wheel() -> None:
    """Each of them is named in pyproject.toml, which is what build tools copy."""
    vendored = [str(path.relative_to(ROOT)) for path in (ROOT / "gateway").rglob("LICENSE*")]
    assert vendored == ["gateway/featurestream_gateway/page/uplot/LICENSE"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license-files"] == ["LICENSE", *vendored]
    assert project["license"] == "Apache-2.0 AND MIT"


def test_no_file_names_the_host_of_a_registry() -> None:
    """What is downloaded comes from wherever the machine is configured to get it."""
    found = [(name, host) for name, text in texts() for host in HOSTS if host in text]
    assert found == []


def test_no_file_names_a_place_on_one_machine() -> None:
    found = [(name, match[0]) for name, text in texts() if (match := HOME.search(text))]
    assert found == []


def test_the_searches_above_find_what_they_look_for() -> None:
    assert "see https://" + "files.pythonhosted" + ".org/x" in [f"see https://{host}/x" for host in HOSTS]
    assert HOME.search("open('" + "/ho" + "me/me/data')")
    assert not HOME.search("docker run --volume $PWD/home/x:/photos")

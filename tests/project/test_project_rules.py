"""Every rule that `make check` holds fails once, on a violation that is planted here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.project.documents import ROOT

PROGRAMS = Path(sys.executable).parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
SOURCES = ("featurestream", "featurectl", "producer", "consumer", "gateway")

LAYERS = "The command line sees the programs, the programs see the library, the programs never see each other"
CLIENT = "Only featurestream.kafka imports the Kafka client"
WIRE = "The wire format imports neither torch nor Kafka"

PLANTED_IMPORTS = [
    ("producer/featurestream_producer/config.py", "import featurestream_consumer", LAYERS),
    ("consumer/featurestream_consumer/config.py", "import featurestream_producer", LAYERS),
    ("consumer/featurestream_consumer/config.py", "import featurectl", LAYERS),
    ("gateway/featurestream_gateway/settings.py", "import featurestream_consumer", LAYERS),
    ("producer/featurestream_producer/config.py", "import featurestream_gateway", LAYERS),
    ("featurestream/position.py", "import featurestream_producer", LAYERS),
    ("featurestream/stream.py", "import confluent_kafka", CLIENT),
    ("featurectl/app.py", "import confluent_kafka", CLIENT),
    ("producer/featurestream_producer/config.py", "import confluent_kafka", CLIENT),
    ("gateway/featurestream_gateway/settings.py", "import confluent_kafka", CLIENT),
    ("featurestream/wire/value.py", "import torch", WIRE),
    ("featurestream/record.py", "import torch", WIRE),
    ("featurestream/wire/value.py", "import featurestream.kafka", WIRE),
]

# A line or two for each rule family that pyproject.toml selects; the path says which settings apply.
PLANTED_LINES = {
    "E": ("E711", "featurestream/planted.py", '"""A module."""\n\nimport os\n\nSAME = os.name == None\n'),
    "F": ("F401", "featurestream/planted.py", '"""A module."""\n\nimport os\n'),
    "W": ("W605", "featurestream/planted.py", '"""A module."""\n\nTEXT = "\\d"\n'),
    "I": ("I001", "featurestream/planted.py", '"""A module."""\n\nimport os\nimport ast\n\nBOTH = (os, ast)\n'),
    "N": ("N801", "featurestream/planted.py", '"""A module."""\n\n\nclass lower:\n    """A class."""\n'),
    "UP": ("UP007", "featurestream/planted.py", '"""A."""\n\nfrom typing import Union\n\nx: Union[int, str] = 1\n'),
    "B": ("B006", "featurestream/planted.py", '"""A."""\n\n\ndef f(x: list[int] = []) -> None:\n    """Do."""\n'),
    "A": ("A001", "featurestream/planted.py", '"""A module."""\n\nlist = 1\n'),
    "C4": ("C401", "featurestream/planted.py", '"""A module."""\n\nX = set(x for x in "ab")\n'),
    "PT": ("PT011", "tests/test_planted.py", "import pytest\n\nwith pytest.raises(ValueError):\n    int('')\n"),
    "RET": ("RET505", "featurestream/planted.py",
            '"""A."""\n\n\ndef f(x: int) -> int:\n    """Do."""\n    if x:\n        return 1\n'
            "    else:\n        return 2\n"),
    "SIM": ("SIM118", "featurestream/planted.py", '"""A module."""\n\nX = 1 in {1: 2}.keys()\n'),
    "TID": ("TID251", "featurestream/planted.py", '"""A module."""\n\nimport producer\n\nX = producer\n'),
    "ARG": ("ARG001", "featurestream/planted.py", '"""A."""\n\n\ndef f(x: int) -> int:\n    """Do."""\n    return 1\n'),
    "PL": ("PLW0603", "featurestream/planted.py",
           '"""A."""\n\nX = 1\n\n\ndef f() -> None:\n    """Do."""\n    global X\n    X = 2\n'),
    "RUF": ("RUF005", "featurestream/planted.py", '"""A module."""\n\nX = [1]\nY = X + [2]\n'),
    "D1": ("D103", "featurestream/planted.py", '"""A module."""\n\n\ndef f() -> None:\n    pass\n'),
    "T20": ("T201", "featurestream/planted.py", '"""A module."""\n\nprint("x")\n'),
    "BLE": ("BLE001", "featurestream/planted.py",
            '"""A."""\n\ntry:\n    X = 1\nexcept Exception:\n    X = 2\n'),
    "S": ("S301", "featurestream/planted.py", '"""A."""\n\nimport pickle\n\nX = pickle.loads(b"")\n'),
}  # fmt: skip


def run(*command: str, folder: Path = ROOT, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment; its standard output has everything that it printed."""
    paths = os.pathsep.join(str(folder / place) for place in (".", "producer", "consumer", "gateway"))
    return subprocess.run(
        [str(PROGRAMS / command[0]), *command[1:]],
        cwd=folder, input=given, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        # In front of what is installed: the copy is checked, not the sources.
        env={**os.environ, "PYTHONPATH": paths, "NO_COLOR": "1", "COLUMNS": "200"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the five packages with their settings, into which a violation may be written."""
    folder = tmp_path_factory.mktemp("copy")
    for source in SOURCES:
        shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_import_contracts_are_kept(copy: Path) -> None:
    done = run("lint-imports", folder=copy)
    assert done.returncode == 0, done.stdout
    assert f"{len(SETTINGS['importlinter']['contracts'])} kept, 0 broken" in done.stdout


@pytest.mark.parametrize(("module", "line", "contract"), PLANTED_IMPORTS)
def test_an_import_that_a_contract_forbids_is_named(copy: Path, module: str, line: str, contract: str) -> None:
    path = copy / module
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n{line}\n", encoding="utf-8")
    try:
        done = run("lint-imports", folder=copy)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1, done.stdout
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())


def test_each_contract_has_a_planted_violation() -> None:
    assert {contract for _, _, contract in PLANTED_IMPORTS} == {
        contract["name"] for contract in SETTINGS["importlinter"]["contracts"]
    }


@pytest.mark.parametrize("family", PLANTED_LINES)
def test_a_line_that_the_linter_forbids_is_named(family: str) -> None:
    rule, path, source = PLANTED_LINES[family]
    done = run("ruff", "check", "--no-cache", "--stdin-filename", path, "-", given=source)
    assert done.returncode == 1, done.stdout
    assert rule in done.stdout


def test_each_rule_family_has_a_planted_line() -> None:
    assert set(PLANTED_LINES) == set(SETTINGS["ruff"]["lint"]["select"])


@pytest.mark.parametrize(
    "line", ["import producer", "from producer import x", "import consumer", "from consumer import x", "import gateway"]
)
def test_the_folders_names_cannot_be_imported(line: str) -> None:
    done = run("ruff", "check", "--no-cache", "--select", "TID251", "--stdin-filename", "x.py", "-", given=f"{line}\n")
    assert done.returncode == 1, done.stdout
    assert f"import featurestream_{line.split()[1]}" in done.stdout


def test_a_line_that_is_not_formatted_is_named() -> None:
    done = run("ruff", "format", "--no-cache", "--check", "--stdin-filename", "x.py", "-", given="x = {  'a':1 }\n")
    assert done.returncode == 1, done.stdout


@pytest.mark.parametrize(
    ("package", "source", "named"),
    [
        ("featurestream", "def f(x):\n    return x\n", "no-untyped-def"),
        ("featurestream", "def f(x: list) -> None: ...\n", "type-arg"),
        ("featurectl", "x: int = 'one'\n", "assignment"),
        ("featurestream_producer", "x: int = 'one'\n", "assignment"),
        ("featurestream_consumer", "x: int = 'one'\n", "assignment"),
        ("featurestream_gateway", "x: int = 'one'\n", "assignment"),
    ],
)
def test_a_type_error_is_named(tmp_path: Path, package: str, source: str, named: str) -> None:
    """In featurestream as strictly as mypy can; elsewhere as mypy is by default."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "planted.py").write_text(source, encoding="utf-8")
    settings = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache"))
    done = run("mypy", *settings, f"{package}/planted.py", folder=tmp_path)
    assert done.returncode == 1, done.stdout
    assert f"[{named}]" in done.stdout

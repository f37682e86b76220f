"""featurectl as a user has it: words in; an exit code and two texts out."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from featurectl import options
from featurectl.app import main
from featurestream.memory import MemoryLog


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int | str | None
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The JSON objects of standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run ``featurectl WORDS`` in this process, with all that stands between a command and its exit code."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["featurectl", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return Outcome(end.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> MemoryLog:
    """The log that every command of this test opens, whatever cluster it is told."""
    log = MemoryLog()
    monkeypatch.setattr(options, "open_log", lambda *_: contextlib.nullcontext(log))
    return log

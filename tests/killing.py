"""Commands that are killed at chosen moments: featurectl in forked copies of a process that has imported everything.

Run as a program it is that process: it reads an order a line, starts the command in a copy of itself, kills it when its
moment has come, and prints how it ended. A copy takes milliseconds where a new process would import PyTorch anew, and
is forked before there is any client, thread or random number in it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

Kind = Literal["start", "calls", "seconds", "written", "renamed", "validation", "folder"]


@dataclass(frozen=True)
class Moment:
    """When a command is killed, by SIGKILL.

    ``start``: at the Nth call or return of any function, Python's or C's; ``calls``: likewise, counted from the first
    batch that is read to train on. Both are the same moment on any machine. ``seconds``: from outside, so many seconds
    after its start, but after ``calls`` at the latest, where they are given. The others are the Nth time that a
    checkpoint is written and not yet renamed, that it is renamed and those before not yet removed, that rows of the
    validation stream are scored, that a fork's folder is whole and not yet in its place.
    """

    kind: Kind
    number: float
    calls: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.number:g}"


def moments(seeds: Sequence[int], *, start: int, calls: int, seconds: float) -> list[Moment]:
    """Return a random moment for each seed: of ten, five by calls, two by time, and one of each other kind.

    None is after more calls, or more seconds, than are given.
    """
    kinds: tuple[Kind, ...] = ("calls", "written", "start", "seconds", "calls", "validation", "calls", "seconds",
                               "renamed", "calls")  # fmt: skip
    found = []
    for place, seed in enumerate(seeds):
        chance, kind = random.Random(seed), kinds[place % len(kinds)]
        if kind == "seconds":
            found.append(Moment(kind, chance.uniform(0, seconds), calls))
        else:
            found.append(Moment(kind, chance.randrange(1, {"calls": calls, "start": start}.get(kind, 4))))
    return found


@dataclass(frozen=True)
class Ending:
    """How a command ended: the signal that killed it, or its exit code; and all that it has printed."""

    killed_by: int | None
    code: int | None
    printed: str

    @property
    def killed(self) -> bool:
        """Whether it was killed by SIGKILL."""
        return self.killed_by == signal.SIGKILL


class Stage:
    """Where commands live and die; made by :func:`stage`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._output = folder / "printed.txt"

    def run(self, words: Sequence[object], moment: Moment | None = None) -> Ending:
        """Run ``featurectl WORDS`` to its end, or to its moment."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"words": [str(word) for word in words], "moment": moment and asdict(moment)}
        self._process.stdin.write(json.dumps(order | {"output": str(self._output)}) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        printed = self._output.read_text(errors="replace")
        if os.WIFSIGNALED(status):
            return Ending(os.WTERMSIG(status), None, printed)
        return Ending(None, os.WEXITSTATUS(status), printed)


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Start the process that commands are copies of; it ends with the block. ``folder`` holds what they print."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.killing"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        yield Stage(process, folder)
    finally:
        process.communicate(timeout=60)


# ---- in the process that is copied, and in its copies -----------------------------------------------------------

LIMIT_S: Final = 120


def _serve() -> None:
    import torch._dynamo  # noqa: F401 - what torch imports with the first optimiser; the rest a command's own modules

    from featurectl.app import main
    from featurestream.kafka import KafkaLog  # noqa: F401
    from featurestream_consumer import fork, sweep  # noqa: F401

    # Blocked, a child's end waits until it is asked for.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    for line in sys.stdin:
        order = json.loads(line)
        moment = Moment(**order["moment"]) if order["moment"] else None
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            os._exit(_live(order, moment, main))
        limit_s = moment.number if moment is not None and moment.kind == "seconds" else LIMIT_S
        deadline = time.monotonic() + limit_s
        pid, status = os.waitpid(child, os.WNOHANG)
        while not pid:
            left = deadline - time.monotonic()
            if left <= 0 or signal.sigtimedwait([signal.SIGCHLD], left) is None:
                os.kill(child, signal.SIGKILL)
                pid, status = os.waitpid(child, 0)
            else:
                pid, status = os.waitpid(child, os.WNOHANG)
        print(status, flush=True)


def _live(order: dict[str, Any], moment: Moment | None, main: Any) -> int:
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["featurectl", *order["words"]]
    if moment is not None:
        _arm(moment)
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _arm(moment: Moment) -> None:
    left = moment.calls if moment.kind == "seconds" else moment.number

    def count(*_: object) -> None:
        nonlocal left
        left = left and left - 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    from featurestream.batch import FeatureBatch, Regrouper
    from featurestream_consumer.files import TEMPORARY_PREFIX
    from featurestream_consumer.trainer import Evaluator

    replace, rename, add, regroup = Path.replace, Path.rename, Evaluator.add, Regrouper.add

    def counted_replace(self: Path, target: Path) -> Path:
        checkpoint = self.name.startswith(f"{TEMPORARY_PREFIX}step-")
        if checkpoint and moment.kind == "written":
            count()
        found = replace(self, target)
        if checkpoint and moment.kind == "renamed":
            count()
        return found

    def counted_rename(self: Path, target: Path) -> Path:
        if self.is_dir():
            count()
        return rename(self, target)

    def counted_add(self: Evaluator, *scores: Any) -> None:
        count()
        add(self, *scores)

    def counting_add(self: Regrouper, batch: FeatureBatch) -> Iterator[FeatureBatch]:
        if sys.getprofile() is None:
            sys.setprofile(count)
        return regroup(self, batch)

    if moment.kind == "start":
        sys.setprofile(count)
    elif moment.kind in ("calls", "seconds"):
        Regrouper.add = counting_add  # type: ignore[method-assign]
    elif moment.kind in ("written", "renamed"):
        Path.replace = counted_replace  # type: ignore[method-assign,assignment]
    elif moment.kind == "validation":
        Evaluator.add = counted_add  # type: ignore[method-assign]
    elif moment.kind == "folder":
        Path.rename = counted_rename  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    _serve()

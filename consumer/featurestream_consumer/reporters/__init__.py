"""Reporters by name: where the rows of metrics go while an experiment trains.

A row is a flat dict: ``kind`` ("train" or "validation"), ``step``, ``epoch``, ``batch`` (the batch read next),
``time`` (seconds since 1970) and the metrics. To add a reporter, write a module with a ``build(folder, resume_step,
say)`` and put it into ``REPORTERS``; from outside, ``package.module:function`` with the same signature works.

The run registry is no reporter by name: :mod:`~featurestream_consumer.reporters.registry` needs the log, and one of it
serves all experiments of a process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from featurestream.closing import Closing
from featurestream.lookup import look_up
from featurestream_consumer.reporters import console, jsonl, mlflow, projector, tensorboard
from featurestream_consumer.reporters.ending import Ending

Row = Mapping[str, Any]


class Reporter(Protocol):
    """Somewhere metrics go.

    Rows come in the order of their steps, from one thread. A row that was reported is visible to others at the
    latest after :meth:`close`. After a resume, a row that the reporter has already (same kind, same step) is not
    doubled.
    """

    def report(self, row: Row) -> None:
        """Take a row. Raises OutsideError when it cannot be written."""

    def close(self) -> None:
        """Write what is held back and let go; a second call does nothing."""


@runtime_checkable
class EndingReporter(Protocol):
    """A reporter that wants to know how the experiment ended: one that has this method is told."""

    def finish(self, ending: Ending) -> None:
        """Take the end, before :meth:`Reporter.close`; a run that was stopped, and can go on, has none.

        The run folder is complete. Raises OutsideError when something cannot be written.
        """


#: Name to ``build(folder, resume_step, say)``: the run folder; the step of the checkpoint that the run goes on from,
#: None for a new run; and what shows a line of text to the user.
Build = Callable[[Path, int | None, Callable[[str], None]], Reporter]

REPORTERS: Final[dict[str, Build]] = {
    "console": console.build,
    "jsonl": jsonl.build,
    "tensorboard": tensorboard.build,
    "projector": projector.build,
    "mlflow": mlflow.build,
}


def default_reporters() -> tuple[str, ...]:
    """Return console and jsonl, tensorboard where it is installed, and mlflow where it is and a server is named."""
    found = ["console", "jsonl"]
    if importlib.util.find_spec("tensorboard") is not None:
        found.append("tensorboard")
    if mlflow.named_server() and importlib.util.find_spec("mlflow") is not None:
        found.append("mlflow")
    return tuple(found)


def check_reporters(names: Iterable[str]) -> None:
    """Raise UnknownNameError for a name that no reporter has."""
    for name in names:
        look_up("reporter", name, REPORTERS)


class Reporters(Closing):
    """Several reporters as one; close it, or use it as a context manager.

    jsonl is always among them: metrics.jsonl is part of the run's record.
    """

    def __init__(
        self, names: Iterable[str], folder: Path, *, resume_step: int | None, say: Callable[[str], None]
    ) -> None:
        chosen = tuple(dict.fromkeys((*(names or default_reporters()), "jsonl")))
        builds = [look_up("reporter", name, REPORTERS) for name in chosen]
        self._reporters: list[Reporter] = []
        try:
            for build in builds:
                self._reporters.append(build(folder, resume_step, say))
        except BaseException:
            self.close()
            raise

    def report(self, row: Row) -> None:
        """Give a row to each."""
        for reporter in self._reporters:
            reporter.report(row)

    def finish(self, ending: Ending) -> None:
        """Tell those that want to know how the experiment ended."""
        for reporter in self._reporters:
            if isinstance(reporter, EndingReporter):
                reporter.finish(ending)

    def close(self) -> None:
        """Close each."""
        for reporter in self._reporters:
            reporter.close()

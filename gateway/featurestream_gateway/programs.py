"""What the gateway needs of the other programs: handed to it as functions, because programs never import each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from featurestream.experiments import Experiment
from featurestream.ports import Log, RecordSource

Committed = Mapping[str, Mapping[tuple[str, int], int]]  # group -> (topic, lane) -> next offset


class Report(Protocol):
    """A stream as it is at one moment; its numbers are those that ``featurectl streams`` shows."""

    def summary(self) -> dict[str, Any]:
        """Return what the list of all streams shows, as JSON values."""

    def everything(self) -> dict[str, Any]:
        """Return everything, as JSON values."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The image behind a row: the bytes of a PNG, and what is told of it as JSON values."""

    png: bytes
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Experiments against each other: a row a run and a row a pair, as ``featurectl compare --json`` prints them."""

    metric: str | None
    runs: list[dict[str, Any]]
    pairs: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Programs:
    """The functions of other programs that the gateway calls. Each may raise MissingExtraError.

    Attributes:
        report: (source, stream, what groups have committed, milliseconds since the epoch) -> a stream's report.
        picture: (log, stream, batch, row, view) -> the image behind a row.
        compare: (experiments of one stream's registry, metric or None) -> their comparison.
    """

    report: Callable[[RecordSource, str, Committed, int], Report]
    picture: Callable[[Log, str, int, int, int | None], Picture]
    compare: Callable[[Sequence[Experiment], str | None], Comparison]

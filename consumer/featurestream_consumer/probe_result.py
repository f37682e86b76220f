"""What a probe of a stream found, tap by tap."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from featurestream.position import Position

Measure = Literal["accuracy", "r2"]


class RidgeScore(NamedTuple):
    """One penalty of ridge regression: its share of the features' variance, its size, and how well it did."""

    penalty: float
    alpha: float
    score: float


@dataclass(frozen=True, slots=True)
class TapProbe:
    """What the probes found at one tap.

    Attributes:
        tap: its name.
        layer: the backbone's layer.
        features: D, numbers in a row.
        ridge: every penalty with its score, in the order in which they were asked for.
        ncm, lda: scores of nearest class mean and linear discriminant analysis; None where labels are values.
        checksum: xxh3-64 of the sums: two readings with the same one agree bit for bit.
        solve_s: seconds from the sums to the probes.
    """

    tap: str
    layer: str
    features: int
    ridge: tuple[RidgeScore, ...]
    ncm: float | None
    lda: float | None
    checksum: str
    solve_s: float

    @property
    def best(self) -> RidgeScore:
        """The penalty with the highest score on the validation rows; of equal ones the greatest penalty."""
        return max(self.ridge, key=lambda found: (found.score, found.penalty))


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe came to.

    Attributes:
        stream: the stream that was read.
        validation: the validation stream, or which samples were held out.
        measure: "accuracy", the share of validation rows whose class is right; or, where labels are values, "r2", the
            share of their variance that is explained (all numbers of a label taken together).
        start, stop: the range that was read: from a position up to, and without, a batch.
        rows: rows that the probes were fitted to.
        validation_rows: rows that they were judged on.
        left_out: rows of either that were not used, because a number of their label is not known.
        taps: in the order in which they were asked for, else the manifest's.
        read_s, validate_s: seconds spent reading and adding up, and judging.
        folder: where the record lies.
    """

    stream: str
    validation: str
    measure: Measure
    start: Position
    stop: int
    rows: int
    validation_rows: int
    left_out: int
    taps: tuple[TapProbe, ...]
    read_s: float
    validate_s: float
    folder: Path

    def record(self) -> dict[str, Any]:
        """Return the result as JSON values, from which :meth:`from_record` makes it again."""
        return {key: value for key, value in asdict(self).items() if key != "folder"}

    @classmethod
    def from_record(cls, record: dict[str, Any], folder: Path) -> Self:
        """Return the result that :meth:`record` gave."""
        taps = tuple(
            TapProbe(**{**tap, "ridge": tuple(RidgeScore(*found) for found in tap["ridge"])}) for tap in record["taps"]
        )
        return cls(**{**record, "start": Position(**record["start"]), "taps": taps, "folder": folder})

    def facts(self) -> list[dict[str, Any]]:
        """Return a row a tap: flat JSON values with stable keys, but for ``ridge_by_lambda``."""
        return [
            {
                "stream": self.stream,
                "tap": tap.tap,
                "layer": tap.layer,
                "features": tap.features,
                "measure": self.measure,
                "ridge": tap.best.score,
                "lambda": tap.best.penalty,
                "alpha": tap.best.alpha,
                "lda": tap.lda,
                "ncm": tap.ncm,
                "validation": self.validation,
                "validation_rows": self.validation_rows,
                "rows": self.rows,
                "left_out": self.left_out,
                "start_batch": self.start.batch,
                "start_row": self.start.row,
                "stop_batch": self.stop,
                "read_s": self.read_s,
                "solve_s": tap.solve_s,
                "validate_s": self.validate_s,
                "checksum": tap.checksum,
                "ridge_by_lambda": [{"lambda": found.penalty, "ridge": found.score} for found in tap.ridge],
            }
            for tap in self.taps
        ]

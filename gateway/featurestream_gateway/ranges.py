"""Which rows a request means, and those rows as they were read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from featurestream.errors import UsageError
from featurestream.manifest import Manifest
from featurestream.ports import LogRecord
from featurestream.position import Position, StartPoint, parse_start
from featurestream.seek import resolve_start, resolve_stop
from featurestream_gateway.catalogue import Catalogue
from featurestream_gateway.cursor import Cursor, parse_cursor
from featurestream_gateway.problems import RefusedError

More = Literal["now", "later", "never"]

COUNTED: Final = ("batch", "pass", "position")  # places that are numbers of batches, not looked up on the log


@dataclass(frozen=True, slots=True)
class Range:
    """What is wanted of a stream: rows from ``begin`` to ``stop`` (exclusive; None: without end) of some taps."""

    manifest: Manifest
    taps: tuple[str, ...]
    begin: Position
    stop: Position | None

    def cursor(self, at: Position) -> Cursor:
        """Return the cursor that goes on at a place of this range."""
        return Cursor(self.manifest.stream, self.manifest.fingerprint, self.taps, at, self.stop)

    def is_over(self, at: Position) -> bool:
        """Tell whether there is nothing of the range from ``at`` on."""
        return self.stop is not None and at >= self.stop


@dataclass(frozen=True, slots=True)
class BatchPiece:
    """Rows ``first`` to ``last`` (exclusive) of one batch: its record at each tap, as it stands on the log."""

    number: int
    first: int
    last: int
    rows: int  # of the whole batch
    records: tuple[LogRecord, ...]  # in the order of the range's taps

    @property
    def next(self) -> Position:
        """The place after the piece."""
        return Position(self.number + 1) if self.last == self.rows else Position(self.number, self.last)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a range, as one answer holds it."""

    range: Range
    batches: tuple[BatchPiece, ...]
    until: Position  # the place after the last row
    more: More

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(batch.last - batch.first for batch in self.batches)

    @property
    def next(self) -> str | None:
        """The cursor that goes on after this piece; None where the range has ended."""
        return None if self.more == "never" else self.range.cursor(self.until).text()


def parse_place(text: str, *, now: float) -> StartPoint:
    """Return what a start point, or ``position:B:R``, means."""
    kind, _, numbers = text.partition(":")
    if kind != "position":
        return parse_start(text, now=now)
    batch, colon, row = numbers.partition(":")
    if not colon or not all(part.isascii() and part.isdigit() and len(part) <= 15 for part in (batch, row)):
        raise UsageError(f'"{text}" is not a place', hint="expected position:B:R, such as position:3:7")
    return StartPoint("position", int(batch), int(row))


def find_range(catalogue: Catalogue, stream: str, taps: Sequence[str], begin: str, until: str | None) -> Range:
    """Return the range that parameters name; without ``until`` it ends where the stream does. No taps: all.

    Raises UsageError for places that are none, and for two numbers of which the second is not the greater;
    StreamNotFoundError; UnknownNameError for taps; GoneError. A range of times in which nothing was published is empty.
    """
    now = time.time()
    start_point = parse_place(begin, now=now)
    stop_point = None if until is None else parse_place(until, now=now)
    manifest = catalogue.manifest(stream)
    names = choose_taps(manifest, taps)
    lanes = catalogue.lanes(manifest, names)
    start = resolve_start(start_point, lanes)
    total = manifest.total_batches
    end = None if total is None else Position(total)
    if stop_point is not None:
        if stop_point.kind == "position":
            named = Position(stop_point.value, stop_point.row)
        else:
            named = Position(resolve_stop(stop_point, lanes))
        end = named if end is None else min(end, named)
    if end is not None and start >= end:
        if start_point.kind in COUNTED and (stop_point is None or stop_point.kind in COUNTED):
            raise UsageError(
                f"nothing to read: the range starts at {start} ({begin}) and stops before {end} "
                f"({until or 'the end of the stream'})",
                hint=f"see what is there: /v1/streams/{stream}",
            )
        start = end
    return Range(manifest, names, start, end)


def continue_range(catalogue: Catalogue, text: str, *, stream: str | None, taps: Sequence[str]) -> Range:
    """Return the range that a cursor goes on with.

    Raises UsageError where it is no cursor, RefusedError (other-stream) where it is not one of ``stream`` as it is now,
    or not of ``taps`` (none named: those of the cursor).
    """
    cursor = parse_cursor(text)
    if stream is not None and cursor.stream != stream:
        raise RefusedError(
            "other-stream",
            f'the cursor is one of stream "{cursor.stream}", not of "{stream}"',
            hint="a cursor goes on where its answer ended; begin here with from",
            stream=cursor.stream,
        )
    manifest = catalogue.manifest(cursor.stream)
    if cursor.fingerprint != manifest.fingerprint:
        raise RefusedError(
            "other-stream",
            f'the cursor is of fingerprint {cursor.fingerprint}, but stream "{manifest.stream}" has '
            f"{manifest.fingerprint}: it was made anew",
            hint="begin again with from",
            fingerprint=manifest.fingerprint,
        )
    known = {tap.name for tap in manifest.taps}
    if not cursor.taps or len(set(cursor.taps)) < len(cursor.taps) or not known.issuperset(cursor.taps):
        raise UsageError("the cursor names taps that the stream does not have", hint="begin again with from")
    if taps and choose_taps(manifest, taps) != cursor.taps:
        raise RefusedError(
            "other-stream",
            f"the cursor is of the taps {', '.join(cursor.taps)}, not of {', '.join(taps)}",
            hint="leave taps out, or begin again with from",
            taps=list(cursor.taps),
        )
    return Range(manifest, cursor.taps, cursor.at, cursor.stop)


def choose_taps(manifest: Manifest, names: Sequence[str]) -> tuple[str, ...]:
    """Return the taps that are named, by name or spec, each once; all where none is."""
    if not names:
        return tuple(tap.name for tap in manifest.taps)
    found = tuple(manifest.tap(name).name for name in names)
    if len(set(found)) < len(found):
        raise UsageError(f"taps {', '.join(names)}: one of them twice", hint="name each tap once")
    return found

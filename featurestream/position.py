"""Places in a stream: a reader's position, and the start and stop points that people type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from numbers import Real
from typing import Final, Literal

from featurestream.errors import UsageError

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FORMS: Final = (
    "earliest, latest, offset:N, batch:N, pass:N, an ISO 8601 time (2026-01-31T12:00Z), epoch seconds, "
    "or a time ago (-30s, -15m, -1h, -2d)"
)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A reader's place: the batch, and the row in it, that are read NEXT. Valid on any copy of the stream."""

    batch: int
    row: int = 0

    def __str__(self) -> str:
        return f"batch {self.batch}, row {self.row}" if self.row else f"batch {self.batch}"


@dataclass(frozen=True, slots=True)
class StartPoint:
    """Where to start, or where to stop (exclusive), as the user named it.

    ``kind`` and ``value``: "earliest" and "latest" have no value (0); "offset", "batch" and "pass" a number;
    "time" milliseconds since the epoch; "position" is a saved :class:`Position`.
    """

    kind: Literal["earliest", "latest", "offset", "batch", "pass", "time", "position"]
    value: int = 0
    row: int = 0

    def __str__(self) -> str:
        if self.kind in ("earliest", "latest"):
            return self.kind
        if self.kind == "time":
            # Seconds as a float would lose the last millisecond in some centuries.
            time = datetime.fromtimestamp(self.value // 1000, UTC) + timedelta(milliseconds=self.value % 1000)
            return time.astimezone().isoformat(timespec="milliseconds")
        if self.kind == "position":
            return str(Position(self.value, self.row))
        return f"{self.kind}:{self.value}"


def parse_start(text: str | int | float | datetime | Position | StartPoint, *, now: float) -> StartPoint:
    """Return the start point that ``text`` names.

    A number, or a text that is one, is seconds since the epoch; a time without a zone is local time, as everywhere
    on this machine; ``now`` (seconds since the epoch) is what times ago count from. Raises UsageError with the
    accepted forms.
    """
    if isinstance(text, StartPoint):
        return text
    if isinstance(text, Position):
        return StartPoint("position", text.batch, text.row)
    if isinstance(text, datetime):
        return _at_moment(text)
    if isinstance(text, Real) and not isinstance(text, bool):  # NumPy's numbers too
        try:
            return _at(float(text))
        except OverflowError as error:
            raise UsageError("no log can hold a time of so many digits", hint=f"expected {FORMS}") from error
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is not a start point", hint=f"expected {FORMS}")
    if text in ("earliest", "latest"):
        return StartPoint("earliest" if text == "earliest" else "latest")
    kind, colon, number = text.partition(":")
    if colon and kind in ("offset", "batch", "pass"):
        if not re.fullmatch(r"[0-9]{1,18}", number):
            raise UsageError(f'"{text}": {kind} takes a number from 0, got "{number}"', hint=f"such as {kind}:12")
        return StartPoint(kind, int(number))  # type: ignore[arg-type]  # one of the three literals, checked above
    if ago := re.fullmatch(r"-([0-9]+(?:\.[0-9]+)?)([smhd])", text):
        return _at(now - float(ago[1]) * UNITS_S[ago[2]])
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text) and not re.fullmatch(r"[0-9]{8}", text):
        return _at(float(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f'"{text}" is not a start point', hint=f"expected {FORMS}") from error
    return _at_moment(moment)


def _at_moment(moment: datetime) -> StartPoint:
    try:
        return _at(moment.timestamp())
    except (ValueError, OverflowError, OSError) as error:  # a local time before the first one that the machine knows
        raise UsageError(f"{moment} is not a time that a log can hold", hint=f"expected {FORMS}") from error


def _at(seconds: float) -> StartPoint:
    # A negative number would reach Kafka as one of its special values (-1 is "end", -2 "start").
    if not 0 <= seconds < 253_370_764_800:  # the year 9999: one later, a time zone could move it out of the calendar
        raise UsageError(
            f"{seconds} seconds since the epoch is not a time that a log can hold", hint=f"expected {FORMS}"
        )
    return StartPoint("time", round(seconds * 1000))

"""How commands print facts: tables and lists for people, JSON lines for programs."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import typer

from featurestream.logs import printable

MARKS: Final = ">~"
GAP: Final = 2  # characters between two columns
WORDS: Final = 24  # characters a line that a text which may be broken gets at least
_UNLIMITED: Final = 100_000  # characters in a line that nobody looks at on a terminal


def print_json(facts: Mapping[str, Any]) -> None:
    """Print one JSON object on one line, keys in the order given. Numbers that are not finite become null."""
    typer.echo(json.dumps(_finite(facts), ensure_ascii=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under the names of their columns.

    A name that begins with ``>`` has its column aligned right; one that begins with ``~`` is of texts that may be
    broken into lines. On a terminal that is too narrow for the others, every row becomes a list of its own. Where
    nobody looks, every row is one line of plain text, whatever its length.
    """
    names = [column.lstrip(MARKS) for column in columns]
    cells = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in _drawn(columns, cells, _UNLIMITED).splitlines():
            typer.echo(line.rstrip())
        return
    width = shutil.get_terminal_size().columns
    if least_width(columns, cells) <= width:
        typer.echo(_drawn(columns, cells, width), nl=False)
        return
    for number, row in enumerate(cells):
        if number:
            typer.echo("")
        print_facts(zip(names, row, strict=True))


def least_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return the characters that a table needs at least: all of its cells, but of breakable ones only a few words."""
    from rich.cells import cell_len

    least = 0
    for place, column in enumerate(columns):
        whole = max([cell_len(column.lstrip(MARKS)), *(cell_len(row[place]) for row in rows)])
        least += GAP + (min(whole, WORDS) if column.startswith("~") else whole)
    return least - GAP


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line, the values under each other."""
    pairs = list(facts)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        typer.echo(printable(f"{name:<{width}}  {value}".rstrip()))


def count_text(count: int) -> str:
    """Return a whole number with its thousands apart: ``1,797``."""
    return f"{count:,}"


def time_text(milliseconds: int | None) -> str:
    """Return a moment (milliseconds since the epoch) in local time to the second, as --from takes it."""
    if milliseconds is None:
        return "-"
    return datetime.fromtimestamp(milliseconds / 1000).isoformat(sep=" ", timespec="seconds")


def span_text(first_ms: int | None, last_ms: int | None) -> str:
    """Return from when to when, in local time to the minute; the second date only where it is another."""
    if first_ms is None or last_ms is None:
        return "-"
    first, last = (datetime.fromtimestamp(moment / 1000) for moment in (first_ms, last_ms))
    until = f"{last:%H:%M}" if last.date() == first.date() else f"{last:%Y-%m-%d %H:%M}"
    return f"{first:%Y-%m-%d %H:%M} to {until}"


def time_json(milliseconds: int | None) -> str | None:
    """Return a moment (milliseconds since the epoch) as ISO 8601 in UTC."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column.lstrip(MARKS),
            justify="right" if column.startswith(">") else "left",
            no_wrap=not column.startswith("~"),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a cell such as "layer2[:gap]" is no markup
    drawn = io.StringIO()
    Console(file=drawn, width=width, force_terminal=sys.stdout.isatty(), legacy_windows=False).print(table)
    return drawn.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value

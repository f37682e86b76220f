"""What a comparison says to people: a table without what all runs share, and what its figures mean in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from featurestream_consumer.lineage import Lineage, family_tree
from featurestream_consumer.paired import MCNEMAR

#: Never folded into the line of what all runs share: these are what a table of runs is read for.
ALWAYS_SHOWN: Final = ("run", "tap")
#: What is said in words, or stands in another cell.
UNSHOWN: Final = (
    "against", "measure", "paired_samples", "low", "high", "test", "not_compared", "forked_from",
)  # fmt: skip
INTERVAL: Final = "95 % interval"
HEADINGS: Final = {"p_holm": "Holm", "value_a": "of a", "value_b": "of b", "only_a": "only a", "only_b": "only b"}
TESTS: Final = {MCNEMAR: "McNemar's exact test"}


@dataclass(frozen=True, slots=True)
class ComparisonText:
    """A comparison as people read it.

    Attributes:
        shared: what is the same in all rows, by the name of its column.
        columns: the names of the others; one that begins with ``>`` is of numbers.
        cells: a row a run, or a pair, in the order given.
        notes: sentences: what the differences are, and which runs have none and why.
        tree: the lines of a tree of the forks; none where there are none.
    """

    shared: dict[str, str]
    columns: list[str]
    cells: list[list[str]]
    notes: list[str]
    tree: list[str]

    @property
    def shared_line(self) -> str | None:
        """What is the same in all rows, in one line; None where nothing is."""
        told = [f"{name} {value}" for name, value in self.shared.items() if value != "-"]
        return f"the same in all: {', '.join(told)}" if told else None

    def markdown(self) -> str:
        """Return it as Markdown."""
        parts = [f"{self.shared_line[0].upper()}{self.shared_line[1:]}.\n"] if self.shared_line else []
        parts.append(markdown_table([column.lstrip(">") for column in self.columns], self.cells))
        parts += ["".join(f"- {note}\n" for note in self.notes)] if self.notes else []
        parts += ["```text\n" + "".join(f"{line}\n" for line in self.tree) + "```\n"] if self.tree else []
        return "\n".join(parts)


def describe_runs(rows: Sequence[Mapping[str, Any]], lineages: Mapping[str, Lineage | None]) -> ComparisonText:
    """Return the text of a table of runs: rows of :func:`~featurestream_consumer.compare.compare_table`.

    ``lineages`` are those of the runs, by name.
    """
    compared = [row for row in rows if row["difference"] is not None]
    several = len({row["against"] for row in compared}) > 1
    hidden = {*UNSHOWN} - ({"against"} if several else set())
    if not compared:
        hidden |= {"difference", "p", "p_holm"}
    notes = []
    kinds = dict.fromkeys((row["against"], row["measure"], row["paired_samples"], row["test"]) for row in compared)
    for against, measure, samples, test in kinds:
        notes.append(f"difference: {measure} less that of {against}, {_paired(samples, test)}")
    missing: dict[str, list[str]] = {}
    for row in rows:
        if row["not_compared"] is not None:
            missing.setdefault(row["not_compared"], []).append(row["run"])
    notes += [f"not compared: {', '.join(names)} ({reason})" for reason, names in missing.items()]
    return _text(rows, hidden, notes, family_tree(lineages))


def describe_pairs(rows: Sequence[Mapping[str, Any]]) -> ComparisonText:
    """Return the text of a table of pairs: rows of :func:`~featurestream_consumer.compare.pairs_table`."""
    compared = [row for row in rows if row["not_compared"] is None]
    kinds = dict.fromkeys((row["measure"], row["samples"], row["test"]) for row in compared)
    notes = [f"difference: {measure} of a less that of b, {_paired(samples, test)}" for measure, samples, test in kinds]
    missing: dict[str, list[str]] = {}
    for row in rows:
        if row["not_compared"] is not None:
            missing.setdefault(row["not_compared"], []).append(f"{row['a']} and {row['b']}")
    if not rows:
        notes.append("one run alone makes no pair")
    for reason, names in missing.items():
        notes.append(f"not compared: {names[0] if len(names) == 1 else f'{len(names)} pairs'} ({reason})")
    return _text(compared, {"measure", "samples", "low", "high", "test", "not_compared"}, notes, [])


def markdown_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns under each other in the source too."""
    lines = [list(columns), *([cell.replace("|", "\\|") for cell in row] for row in cells)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def _text(rows: Sequence[Mapping[str, Any]], hidden: set[str], notes: list[str], tree: list[str]) -> ComparisonText:
    if not rows:
        return ComparisonText({}, [], [], notes, tree)
    names = [name for name in rows[0] if name not in hidden]
    figures = {"difference", "p", "p_holm"}
    shared = {
        name: _cell(name, rows[0])
        for name in names
        if len(rows) > 1
        and name not in (*ALWAYS_SHOWN, "a", "b")
        and name not in figures
        and all(row[name] == rows[0][name] for row in rows)
    }
    names = [name for name in names if name not in shared]
    columns, cells = [], [[] for _ in rows]  # type: tuple[list[str], list[list[str]]]
    for name in names:
        numeric = all(isinstance(row[name], (int, float, type(None))) for row in rows)
        columns.append((">" if numeric else "") + HEADINGS.get(name, name))
        for row, line in zip(rows, cells, strict=True):
            line.append(_cell(name, row))
        if name == "difference":
            columns.append(f">{INTERVAL}")
            for row, line in zip(rows, cells, strict=True):
                line.append("-" if row["low"] is None else f"[{row['low']:+.4f}, {row['high']:+.4f}]")
    return ComparisonText(shared, columns, cells, notes, tree)


def _paired(samples: int, test: str) -> str:
    return (
        f"on the same {samples:,} samples, with its interval (paired bootstrap, BCa); p: "
        f"{TESTS.get(test, f'{test} test')}; Holm: p corrected for all pairs of these runs"
    )


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if value is None:
        return "-"
    if name in ("p", "p_holm"):
        return f"{value:.4f}" if value >= 0.00005 else f"{value:.0e}"
    if name == "difference":
        return f"{value:+.4f}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)

"""Where a run that was forked comes from: its parent, the place where it left it, and what was changed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from featurestream.errors import DataError


@dataclass(frozen=True, slots=True)
class Lineage:
    """What run.json says of a fork.

    Attributes:
        parent: the parent's name.
        step, epoch: optimiser steps made and epochs ended at the fork.
        batch, row: the position that was read next.
        changes: the settings that were changed, each with the parent's value and the fork's.
    """

    parent: str
    step: int
    epoch: int
    batch: int
    row: int
    changes: Mapping[str, tuple[Any, Any]]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self | None:
        """Return the lineage in a run's record; None for a run that was not forked.

        Raises DataError for one that is damaged.
        """
        told = record.get("lineage")
        if told is None:
            return None
        try:
            changes = {str(key): (old, new) for key, (old, new) in told["changes"].items()}
            step, epoch, batch, row = (int(told[key]) for key in ("step", "epoch", "batch", "row"))
            return cls(str(told["parent"]), step, epoch, batch, row, changes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f'the lineage of run "{record["name"]}" cannot be read: {error}',
                hint="expected parent, step, epoch, batch, row and changes; the file is damaged",
            ) from error

    @property
    def place(self) -> str:
        """Where the fork left its parent: ``batch 120``, or ``batch 120, row 7``."""
        return f"batch {self.batch}, row {self.row}" if self.row else f"batch {self.batch}"

    @property
    def changed(self) -> str:
        """What was changed: ``optimizer_args.lr 0.1 -> 0.01``."""
        return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in self.changes.items()) or "nothing changed"

    def __str__(self) -> str:
        return f"{self.parent} at {self.place}: {self.changed}"


def family_tree(lineages: Mapping[str, Lineage | None]) -> list[str]:
    """Return the lines of a tree of all forks in ``lineages`` (by run name), parents above them.

    Runs without forks that are none themselves are left out. A parent that is not in ``lineages`` is said to be not
    shown. Forks of one parent are in the order in which they left it.
    """
    children: dict[str, list[tuple[str, Lineage]]] = {}
    for name, lineage in lineages.items():
        if lineage is not None:
            children.setdefault(lineage.parent, []).append((name, lineage))
    for forks in children.values():
        forks.sort(key=lambda fork: (fork[1].step, fork[0]))
    roots = [name for name in children if lineages.get(name) is None]
    lines: list[str] = []
    for root in roots:
        lines.append(root if root in lineages else f"{root} (not shown)")
        lines += _branches(children, root, "")
    return lines


def _branches(children: Mapping[str, Sequence[tuple[str, Lineage]]], parent: str, indent: str) -> Iterator[str]:
    forks = children.get(parent, ())
    for number, (name, lineage) in enumerate(forks, start=1):
        last = number == len(forks)
        corner = "└── " if last else "├── "
        yield f"{indent}{corner}{name}  forked at {lineage.place} (step {lineage.step}): {lineage.changed}"
        yield from _branches(children, name, indent + ("    " if last else "│   "))

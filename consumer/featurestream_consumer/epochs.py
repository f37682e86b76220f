"""Which batches each epoch reads: a pass read once, or a pass read again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from featurestream.layout import Layout
from featurestream.position import Position


@dataclass(frozen=True, slots=True)
class Segment:
    """The batches of one epoch: from ``start`` up to, and without, batch ``stop``; all of pass ``pass_number``."""

    pass_number: int
    start: Position
    stop: int


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """An experiment's range of batches, cut at the ends of passes.

    The first epoch is what the range holds of its first pass: a start in the middle of a pass makes it shorter. From
    there on every epoch reads the next pass, waiting for it where it is not there yet. Where a range holds fewer
    passes than there are epochs, it is read again from its start; an endless one (``stop`` None) always has a next
    pass. All of this is arithmetic.

    With ``chosen`` it is not: each epoch's pass is found when the epoch before has ended (:meth:`choose`), because
    whether the next pass is there then is a fact of that moment. ``chosen`` are the passes of the first epochs.
    """

    layout: Layout
    start: Position
    stop: int | None
    chosen: tuple[int, ...] | None = None

    @classmethod
    def of_record(cls, layout: Layout, record: Mapping[str, Any]) -> Self | None:
        """Return the plan that a run's record holds; None where nothing has been found yet."""
        if "start" not in record:
            return None
        chosen = record.get("epoch_passes")
        return cls(layout, Position(**record["start"]), record["stop"], None if chosen is None else tuple(chosen))

    def facts(self) -> dict[str, Any]:
        """Return what a run's record holds of the plan."""
        facts = {"start": self.start, "stop": self.stop}
        return facts if self.chosen is None else facts | {"epoch_passes": self.chosen}

    def never_waiting(self) -> Self:
        """Return the plan of this range whose epochs choose among the passes that are there; the first is given."""
        return replace(self, chosen=(self.first_pass,))

    def goes_on(self, other: EpochPlan) -> bool:
        """Tell whether this is ``other``, or knows what it knows and some epochs more."""
        if self.chosen is None or other.chosen is None:
            return self == other
        return replace(self, chosen=self.chosen[: len(other.chosen)]) == other

    def __str__(self) -> str:
        end = "on" if self.stop is None else f"to batch {self.stop}"
        passes = "" if self.chosen is None else f" (passes {', '.join(map(str, self.chosen))})"
        return f"from {self.start} {end}{passes}"

    @property
    def first_pass(self) -> int:
        """The pass that the range begins in."""
        return self.layout.pass_of(self.start.batch)

    @property
    def passes(self) -> int | None:
        """How many passes, or parts of passes, the range holds; None where it is endless."""
        return None if self.stop is None else self.layout.pass_of(self.stop - 1) - self.first_pass + 1

    @property
    def next_pass(self) -> int | None:
        """The pass after those that were chosen; None where the range holds no more."""
        new = max(self.chosen or (), default=self.first_pass - 1) + 1
        return new if self.stop is None or self.layout.pass_start(new) < self.stop else None

    # ---- what each epoch reads --------------------------------------------------------------------------------------

    def knows(self, epoch: int) -> bool:
        """Tell whether it is known what epoch ``epoch`` (from 0) reads."""
        return self.chosen is None or epoch < len(self.chosen)

    def segment(self, epoch: int) -> Segment:
        """Return what epoch ``epoch`` (from 0) reads, which must be known."""
        if self.chosen is not None:
            return self._segment_of(self.chosen[epoch])
        passes = self.passes
        return self._segment_of(self.first_pass + (epoch if passes is None else epoch % passes))

    def rereads(self, epoch: int) -> bool:
        """Tell whether epoch ``epoch`` (from 0), which must be known, reads a pass again."""
        if self.chosen is None:
            return self.passes is not None and epoch >= self.passes
        return self.chosen[epoch] in self.chosen[:epoch]

    def choose(self, *, complete: int, earliest: int) -> Self:
        """Return the plan with one epoch more.

        It reads the next pass if that is there to its end, else one that was read before: the one that was read least
        often, of several the earliest. Only where there is none of those either does it wait for the next pass.

        Args:
            complete: the first batch that is not there yet.
            earliest: the first batch that is still there: a pass that has lost its beginning is not chosen.
        """
        chosen, new = self.chosen or (), self.next_pass
        if new is not None and self._segment_of(new).stop <= complete:
            return replace(self, chosen=(*chosen, new))
        times = Counter(chosen)
        whole = [number for number in times if self._segment_of(number).start.batch >= earliest]
        if new is not None and not whole:
            return replace(self, chosen=(*chosen, new))
        # Where none is whole, and none is to come, the reader says what is gone.
        again = min(whole or times, key=lambda number: (times[number], number))
        return replace(self, chosen=(*chosen, again))

    def counts(self, epochs: int) -> tuple[int, int]:
        """Return how many passes the first ``epochs`` epochs read, and how many of these epochs were re-reads."""
        if self.chosen is not None:
            passes = len(set(self.chosen[:epochs]))
        else:
            passes = epochs if self.passes is None else min(epochs, self.passes)
        return passes, epochs - passes

    def _segment_of(self, number: int) -> Segment:
        start = self.start if number == self.first_pass else Position(self.layout.pass_start(number))
        stop = self.layout.pass_start(number + 1)
        return Segment(number, start, stop if self.stop is None else min(stop, self.stop))

    # ---- how much that is -------------------------------------------------------------------------------------------

    def rows(self, epoch: int) -> int:
        """Return the rows of epoch ``epoch`` (from 0), which must be known, where no sample is missing."""
        segment = self.segment(epoch)
        if self._is_whole(segment):
            return self.layout.samples * self.layout.views
        return sum(map(self.layout.rows_of, range(segment.start.batch, segment.stop))) - segment.start.row

    def rows_of_first(self, epochs: int, *, samples: int | None = None) -> list[int] | None:
        """Return the rows of each of the first ``epochs`` epochs, where no sample is missing.

        ``samples`` is how many samples of a pass count, where not all of them do. None where nobody knows: which
        passes are read again is open and they differ in length, or a part of a pass is read and not all samples count.
        """
        if self.chosen is not None and not self._all_whole:
            return None
        known = [epoch if self.chosen is None else 0 for epoch in range(epochs)]  # chosen ones are all alike here
        if samples is None:
            return [self.rows(epoch) for epoch in known]
        if all(self._is_whole(self.segment(epoch)) for epoch in known):
            return [samples * self.layout.views] * epochs
        return None

    def steps(self, epochs: int, batch_size: int, *, samples: int | None = None) -> int | None:
        """Return the optimiser steps of ``epochs`` epochs; see :meth:`rows_of_first`."""
        rows = self.rows_of_first(epochs, samples=samples)
        return None if rows is None else sum(-(-count // batch_size) for count in rows)

    @property
    def _all_whole(self) -> bool:
        last = None if self.passes is None else self._segment_of(self.first_pass + self.passes - 1)
        return self._is_whole(self._segment_of(self.first_pass)) and (last is None or self._is_whole(last))

    def _is_whole(self, segment: Segment) -> bool:
        first = self.layout.pass_start(segment.pass_number)
        return segment.start == Position(first) and segment.stop == first + self.layout.pass_batches

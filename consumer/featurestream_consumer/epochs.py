"""Which batches each epoch reads: a pass read once, or a pass read again."""

from __future__ import annotations

from dataclasses import dataclass

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

    Epoch 0 is what the range holds of its first pass: a start in the middle of a pass makes it shorter. Where a range
    holds fewer passes than there are epochs, it is read again from its start; an endless one (``stop`` None) always
    has a next pass.
    """

    layout: Layout
    start: Position
    stop: int | None

    @property
    def passes(self) -> int | None:
        """How many passes, or parts of passes, the range holds; None where it is endless."""
        if self.stop is None:
            return None
        return self.layout.pass_of(self.stop - 1) - self.layout.pass_of(self.start.batch) + 1

    def segment(self, epoch: int) -> Segment:
        """Return what epoch ``epoch`` (from 0) reads."""
        passes = self.passes
        place = epoch if passes is None else epoch % passes
        number = self.layout.pass_of(self.start.batch) + place
        start = self.start if place == 0 else Position(self.layout.pass_start(number))
        stop = self.layout.pass_start(number + 1)
        return Segment(number, start, stop if self.stop is None else min(stop, self.stop))

    def rows(self, epoch: int) -> int:
        """Return the rows of epoch ``epoch``, where no sample is missing."""
        segment = self.segment(epoch)
        return sum(map(self.layout.rows_of, range(segment.start.batch, segment.stop))) - segment.start.row

    def steps(self, epochs: int, batch_size: int) -> int | None:
        """Return the optimiser steps of ``epochs`` epochs, where no sample is missing; None for an endless range."""
        if self.passes is None:
            return None
        return sum(-(-self.rows(epoch) // batch_size) for epoch in range(epochs))

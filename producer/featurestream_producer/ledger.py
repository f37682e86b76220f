"""Which passes are finished: counting what was sent, and waiting until all of it is durable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurestream.layout import Layout
from featurestream.record import MissingSample
from featurestream_producer.resume import PassSoFar


@dataclass(frozen=True, slots=True)
class FinishedPass:
    """A pass of which every batch is durable in every tap."""

    number: int
    missing: int
    gone: int
    started_ms: int | None


@dataclass(slots=True)
class Ledger:
    """The accounts of one run of the producer, kept by whoever hears from all its workers.

    ``durable[w]``: every batch of worker w's lanes below this one is durable. ``next_pass``: the first pass that has
    no record yet. ``passes``: what is known of the passes from there on, beginning with what was on the log before.
    """

    layout: Layout
    next_pass: int
    durable: dict[int, int]
    passes: dict[int, PassSoFar]
    batches: int = 0
    rows: int = 0
    bytes: int = 0
    missing: dict[int, MissingSample] = field(default_factory=dict)  # by sample, however often a pass meets it

    @classmethod
    def open(
        cls, layout: Layout, next_pass: int, durable: Mapping[int, int], so_far: Mapping[int, PassSoFar]
    ) -> Ledger:  # fmt: skip
        """Return the accounts as they stand before the first batch of this run."""
        return cls(layout, next_pass, dict(durable), dict(so_far))

    def sent(self, batch: int, *, rows: int, size: int, missing: Sequence[MissingSample], at_ms: int) -> None:
        """Note a batch that was appended, with its rows and the bytes of all its records."""
        this = self.passes.setdefault(self.layout.pass_of(batch), PassSoFar())
        this.missing += len(missing)
        if this.started_ms is None:
            this.started_ms = at_ms
        self.batches += 1
        self.rows += rows
        self.bytes += size
        self.missing |= {sample.index: sample for sample in missing}

    def is_durable(self, worker: int, below: int) -> list[FinishedPass]:
        """Note that all of a worker's batches below ``below`` are durable; return the passes that this finishes."""
        self.durable[worker] = max(self.durable[worker], below)
        return self.finished()

    def finished(self) -> list[FinishedPass]:
        """Return the passes that are complete and were not returned before, in order."""
        found = []
        while min(self.durable.values()) >= self.layout.pass_start(self.next_pass + 1):
            this = self.passes.pop(self.next_pass, None) or PassSoFar()  # a short pass may have no batch in these lanes
            found.append(FinishedPass(self.next_pass, this.missing, this.gone, this.started_ms))
            self.next_pass += 1
        return found

    @property
    def safe_below(self) -> int:
        """Every batch below this one is known to be durable."""
        return min(self.durable.values())

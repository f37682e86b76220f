"""Where everything is: the arithmetic of samples, batches, passes, lanes and offsets."""

from __future__ import annotations

from dataclasses import dataclass, field

from featurestream.errors import UsageError


@dataclass(frozen=True, slots=True)
class Layout:
    """The numbers that place every row of a stream.

    Attributes:
        samples: N, samples in the dataset.
        batch_samples: R, samples in a batch; the last batch of a pass may have fewer.
        lanes: L, partitions of every tap's topic.
        views: V, rows of one sample in a pass.
        pass_batches: batches in a pass: ceil(N / R).
    """

    samples: int
    batch_samples: int
    lanes: int
    views: int = 1
    pass_batches: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("samples", "batch_samples", "lanes", "views"):
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"a stream's layout needs {name} >= 1, got {value}")
        object.__setattr__(self, "pass_batches", -(-self.samples // self.batch_samples))

    def pass_of(self, batch: int) -> int:
        """Return the pass that a batch belongs to."""
        return batch // self.pass_batches

    def pass_start(self, pass_number: int) -> int:
        """Return the first batch of a pass."""
        return pass_number * self.pass_batches

    def lane_of(self, batch: int) -> int:
        """Return a batch's lane."""
        return batch % self.lanes

    def offset_of(self, batch: int) -> int:
        """Return a batch's offset in its lane, where that lane holds no duplicate and was never mirrored."""
        return batch // self.lanes

    def batch_at(self, lane: int, offset: int) -> int:
        """Return the batch at an offset of a lane that holds no duplicate and was never mirrored."""
        return offset * self.lanes + lane

    def sample_range(self, batch: int) -> range:
        """Return which places of its pass's permutation a batch covers."""
        first = batch % self.pass_batches * self.batch_samples
        return range(first, first + self.samples_of(batch))

    def samples_of(self, batch: int) -> int:
        """Return how many samples a batch covers."""
        return min(self.batch_samples, self.samples - batch % self.pass_batches * self.batch_samples)

    def rows_of(self, batch: int) -> int:
        """Return the rows of a batch from which no sample is missing."""
        return self.samples_of(batch) * self.views

    def next_in_lane(self, lane: int, at_least: int) -> int:
        """Return the first batch of ``lane`` that is not below ``at_least``."""
        return at_least + (lane - at_least) % self.lanes

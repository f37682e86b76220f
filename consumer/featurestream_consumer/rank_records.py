"""Which rows of each batch a rank holds: records split between ranks, batches that are those of one process.

Rank r of W reads the records b with b mod W = r: whole lanes where W divides their number. Which rank holds a row is so
the same in every pass, and after every resume. A batch is the rows that one process would have taken next, in whatever
records they lie; each rank has those that lie in its own, and may have none::

    records (rank)   | 0 (0) ....... | 1 (1) ..... | 2 (0) ....... | 3 (1) .....
    batches          | A ...... | B ...... | C ...... | D ...... | ...

Where images could not be decoded a record has fewer rows than the layout says, and only its reader knows: so after each
round, in which every rank has read one record, the ranks tell each other how many rows they have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from featurestream.batch import FeatureBatch, concatenate
from featurestream.errors import InternalError
from featurestream.names import tap_topic
from featurestream.position import Position
from featurestream.stream import FeatureStream
from featurestream_consumer.ranks import AllInterrupted, Ranks

#: How often a rank that waits for the stream tells the others that it is there.
SIGN_OF_LIFE_S: Final = 5.0


class RankRecord(NamedTuple):
    """A record as every rank knows it.

    Attributes:
        position: the place of its first row that is read.
        rows: how many are read.
        own: the rows, on the rank that has read it; None on the others.
    """

    position: Position
    rows: int
    own: FeatureBatch | None

    def place(self, row: int) -> Position:
        """Return the place of the ``row``-th row that is read; of the one after the last, the next record's begin."""
        batch, first = self.position.batch, self.position.row
        return Position(batch + 1) if row == self.rows else Position(batch, first + row)


class RankRecords:
    """The records of a stream's range, in order, each read by one of the ranks.

    Args:
        ranks: who they are.
        stream: the range, which must have a stop; it becomes a reader of this rank's share.
        on_wait: called with the seconds that this rank has waited for others that wait for the stream.
        interrupted: whether this rank was told to end: then all of them end, with KeyboardInterrupt, at one record.

    Attributes:
        offsets: (topic, lane) -> the offset after the last record used, whichever rank has read it.
    """

    def __init__(
        self,
        ranks: Ranks,
        stream: FeatureStream,
        *,
        on_wait: Callable[[float], None],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        start = stream.start.batch
        stream.shard = ((ranks.rank - start) % ranks.count, ranks.count)
        self.offsets: dict[tuple[str, int], int] = {}
        self._ranks = ranks
        self._stream = stream
        self._on_wait = on_wait
        self._interrupted = interrupted
        self._places = [
            (tap_topic(stream.stream, tap), lane) for tap in stream.taps for lane in range(stream.manifest.layout.lanes)
        ]
        self._met_at = time.monotonic()

    def __iter__(self) -> Iterator[RankRecord]:
        """Yield every record of the range on every rank. All ranks must take the same number of them."""
        rank, count = self._ranks.rank, self._ranks.count
        number, stop = self._stream.start.batch, self._stream.stop
        if stop is None:
            raise InternalError("ranks read a range that has no end")
        own_records = iter(self._stream)
        while number < stop:
            numbers = range(number, min(number - number % count + count, stop))
            own = next(own_records) if any(each % count == rank for each in numbers) else None
            rows = self._exchange(-1 if own is None else len(own))
            for each in numbers:
                start = self._stream.start if each == self._stream.start.batch else Position(each)
                yield RankRecord(start, rows[each % count], own if each % count == rank else None)
            number = numbers.stop

    def wait(self) -> None:
        """Take part in the ranks' meetings while the stream has no next record here; call it from time to time."""
        if time.monotonic() - self._met_at >= SIGN_OF_LIFE_S:
            self._meet(waiting=True, rows=-1)

    def _exchange(self, rows: int) -> list[int]:
        """Return the rows that each rank's record of this round has, once all have theirs."""
        began = time.monotonic()
        while (found := self._meet(waiting=False, rows=rows)) is None:
            self._on_wait(time.monotonic() - began)
        return found

    def _meet(self, *, waiting: bool, rows: int) -> list[int] | None:
        """Meet the other ranks; return None where one of them still waits for the stream."""
        count = self._ranks.count
        told = np.full(2 + count + len(self._places), -1, np.int64)
        told[0] = self._interrupted()
        told[1] = waiting
        told[2 + self._ranks.rank] = rows
        told[2 + count :] = [self._stream.offsets.get(place, -1) for place in self._places]
        heard = self._ranks.largest(told)
        self._met_at = time.monotonic()
        if heard[0]:
            raise AllInterrupted
        if heard[1]:
            return None
        known = zip(self._places, heard[2 + count :].tolist(), strict=True)
        self.offsets = {place: offset for place, offset in known if offset >= 0}
        return [int(each) for each in heard[2 : 2 + count]]


@dataclass(frozen=True, slots=True)
class RankBatch:
    """A batch as one rank has it.

    Attributes:
        position: the place of its first row, whoever holds that.
        next_position: the place of the row after its last.
        rows: how many it has on all ranks.
        own: those that this rank holds; None where it holds none.
    """

    position: Position
    next_position: Position
    rows: int
    own: FeatureBatch | None


class RankRegrouper:
    """The rows of records in batches of ``size`` rows: those of a :class:`~featurestream.batch.Regrouper`.

    The records must be of one pass.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._own: list[FeatureBatch] = []
        self._held = 0
        self._begin = self._end = Position(0)

    def add(self, record: RankRecord) -> Iterator[RankBatch]:
        """Take a record and yield the batches that it completes."""
        first = 0
        while record.rows - first >= self.size - self._held:
            last = first + self.size - self._held
            self._take(record, first, last)
            yield self._whole()
            first = last
        if first < record.rows:
            self._take(record, first, record.rows)

    def rest(self) -> Iterator[RankBatch]:
        """Yield the rows that no batch has been made of yet."""
        if self._held:
            yield self._whole()

    def _take(self, record: RankRecord, first: int, last: int) -> None:
        if not self._held:
            self._begin = record.place(first)
        self._end = record.place(last)
        self._held += last - first
        if record.own is not None:
            self._own.append(record.own.rows(first, last))

    def _whole(self) -> RankBatch:
        batch = RankBatch(self._begin, self._end, self._held, concatenate(self._own) if self._own else None)
        self._own, self._held = [], 0
        return batch

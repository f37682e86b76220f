"""Where a batch, an offset or a time lies in the lanes of a stream.

Everything is arithmetic, corrected by what is found: a lane without duplicates holds batch b at offset b div L; a
duplicate (of a producer that died between sending and knowing, or of a zombie) only pushes later records further; a
mirrored topic shifts all offsets; a transaction's marker and what was compacted away leave offsets without a record.
Numbers in a lane never skip: a record's number is at most L more than the greatest number before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurestream.errors import GoneError, RecordError, UsageError
from featurestream.layout import Layout
from featurestream.ports import Bounds, LogRecord, Place, RecordSource
from featurestream.position import Position, StartPoint
from featurestream.wire import parse_headers


def batch_of(record: LogRecord) -> int:
    """Return the number of the batch that a record holds, from its headers alone."""
    try:
        return parse_headers(record.headers).batch
    except RecordError as error:
        raise error.at(record.topic, record.lane, record.offset) from error


@dataclass(frozen=True, slots=True)
class Lanes:
    """The lanes that a reader of some taps reads, and what they hold.

    A range of batches is read from all of them: a batch is there when every tap has it. Their bounds are asked for
    together.
    """

    source: RecordSource
    layout: Layout
    topics: Sequence[str]
    _never_early: set[Place] = field(default_factory=set, init=False, repr=False, compare=False)

    def places(self) -> list[Place]:
        """Return every (topic, lane)."""
        return [(topic, lane) for topic in self.topics for lane in range(self.layout.lanes)]

    def earliest(self) -> int:
        """Return the first batch from which on every lane still holds everything."""
        return max([0, *(first - self.layout.lanes + 1 for first in self._first_left(self._bounds()).values())])

    def next_missing(self) -> int:
        """Return the first batch that is not (yet) complete: all before it are there, or are gone."""
        bounds = self._bounds()
        greatest = self._greatest(bounds)
        first_left = self._first_left({place: held for place, held in bounds.items() if greatest[place] is None})
        return min(
            first_left[place] if number is None else number + self.layout.lanes for place, number in greatest.items()
        )

    def after_end(self) -> int:
        """Return one more than the greatest batch that any lane holds."""
        return self._after(self._bounds())

    def since_offset(self, offset: int) -> int:
        """Return the first batch such that it and all later ones lie at ``offset`` or beyond in their lanes.

        Raises GoneError where a lane no longer holds the offset, UsageError where none holds it yet.
        """
        bounds = self._bounds()
        if offset > max(high for _, high in bounds.values()):
            raise UsageError(
                f"offset {offset} lies beyond the end of every lane ({max(high for _, high in bounds.values())})",
                hint="start at latest to read what comes next",
            )
        if any(offset < low for low, _ in bounds.values()):
            raise self._gone(f"offset {offset}")
        return self._after({place: Bounds(low, min(offset, high)) for place, (low, high) in bounds.items()})

    def since_time(self, time_ms: int) -> int:
        """Return the first batch such that it and all later ones, in every lane, were appended at or after a time.

        That is one more than the greatest batch appended before it. Where retention may have deleted records that were
        appended after the time, the answer cannot be known: GoneError.
        """
        return self.begin_at_time(time_ms)[0]

    def begin_at_time(self, time_ms: int) -> tuple[int, dict[Place, int]]:
        """Return :meth:`since_time`, and where that was learned on the way, the offsets to read from.

        Those are, for each lane, the offset of the first batch in it that is not below the answer, as
        :meth:`offsets_of` finds it.
        """
        ends = self.source.offsets_at_time(self.places(), time_ms)
        bounds = self._bounds()
        batch = self._since_by_arithmetic(ends, bounds)
        if batch is None:
            return self._since(ends, bounds), {}
        # No lane holds a batch before its own offset: what stands there, or next, comes before all later ones.
        return batch, {
            place: min(self.layout.offset_of(self.layout.next_in_lane(place[1], batch)), held.high)
            for place, held in bounds.items()
        }

    def _since(self, ends: Mapping[Place, int], bounds: Mapping[Place, Bounds]) -> int:
        """Return the answer for a time that lies before the offset ``ends`` of each lane, whatever the lanes hold."""
        # Where a record from before the time is left, nothing after it is gone.
        open_ended = {place: held for place, held in bounds.items() if ends[place] <= held.low}
        begins_with = self._first_batches(open_ended)
        for place, held in open_ended.items():
            if begins_with[place] != place[1] if place in begins_with else held.low > 0:
                raise self._gone("a time before what is left")
        return self._after({place: Bounds(low, max(low, ends[place])) for place, (low, _) in bounds.items()})

    def _since_by_arithmetic(self, ends: Mapping[Place, int], bounds: Mapping[Place, Bounds]) -> int | None:
        """Return what :meth:`_since` would, with a look at few records, where the lanes are as the arithmetic says.

        That is: in no lane a batch stands before its own offset, so that below ``ends`` no lane can hold a greater one
        than has its offset there; and the greatest of those is found in its place. Else None.
        """
        before = {place: end - 1 for place, end in ends.items() if end > bounds[place].low}
        if any(held.low > 0 for place, held in bounds.items() if place not in before):
            return None  # what was appended before the time may be gone
        batches = {place: self.layout.batch_at(place[1], offset) for place, offset in before.items()}
        greatest = max(batches.values(), default=-1)
        for place, offset in before.items():
            # Where retention has taken a lane's beginning, what is left of it could be the end of a stretch of
            # duplicates: such a lane is looked at for itself.
            if (batches[place] == greatest or bounds[place].low > 0) and not self._stands_at(place, offset):
                return None
        return greatest + 1 if all(self._is_never_early(*held) for held in bounds.items()) else None

    def _is_never_early(self, place: Place, bounds: Bounds) -> bool:
        """Return whether the first record left tells that no batch stands before its own offset; it is looked at once.

        It does where it stands at its own: numbers never skip, so none gets ahead of the offsets after it. In a
        mirrored lane, where batches may stand earlier, a duplicate could seem to be the greatest of those before it.
        """
        if bounds.high > 0 and place not in self._never_early:
            if not self._stands_at(place, bounds.low):
                return False
            self._never_early.add(place)
        return True

    def _stands_at(self, place: Place, offset: int) -> bool:
        """Return whether an offset holds the batch that arithmetic puts there."""
        record = self.record_from(place, offset)
        return (
            record is not None
            and record.offset == offset
            and batch_of(record) == self.layout.batch_at(place[1], offset)
        )

    def offset_of(self, topic: str, lane: int, batch: int) -> int:
        """Return an offset from which on reading meets ``batch``, where every earlier number met is a duplicate.

        Nearly always it is the batch's own offset, found at the first look; the lane's end where it is not there yet.
        Raises GoneError where it is no longer there.
        """
        return self.offsets_of({(topic, lane): batch})[topic, lane]

    def offsets_of(self, batches: Mapping[Place, int]) -> dict[Place, int]:
        """Return the offset of a batch in each lane, as :meth:`offset_of` does."""
        bounds = self.source.all_bounds(list(batches))
        return {place: self._search(place, batch, bounds[place]) for place, batch in batches.items()}

    def _search(self, place: Place, batch: int, bounds: Bounds) -> int:
        low, high = bounds
        nominal = self.layout.offset_of(batch)
        if low <= nominal < high:
            record = self.record_from(place, nominal)
            if record is not None and batch_of(record) == batch:
                return record.offset
        first = self._first_batches({place: bounds}).get(place)
        if first is None:
            if low > 0 and nominal < high:  # everything was deleted, and this batch had been there
                raise self._gone(f"batch {batch}")
            return high
        if first > batch:
            raise self._gone(f"batch {batch}")
        # Every number from `first` to `batch` comes after `low`, each at least once: the batch cannot stand earlier.
        bound = low + (batch - first) // self.layout.lanes
        if bound >= high:
            greatest = self._greatest({place: bounds})[place]
            return high if greatest is None or greatest < batch else low
        met = self.record_from(place, bound)
        return bound if met is None or batch_of(met) <= batch else low

    def first_left(self, topic: str, lane: int) -> int:
        """Return the first batch that a lane of one tap still holds; what comes next where it holds none."""
        return self._first_left({(topic, lane): self.source.bounds(topic, lane)})[topic, lane]

    def greatest(self, topic: str, lane: int, end: int | None) -> int | None:
        """Return the greatest batch in a lane of one tap below the offset ``end`` (None: all); None where none is."""
        low, high = self.source.bounds(topic, lane)
        return self._greatest({(topic, lane): Bounds(low, high if end is None else min(end, high))})[topic, lane]

    def first_record(self, topic: str, lane: int) -> LogRecord | None:
        """Return the first record that a lane of one tap still holds; None where it holds none."""
        low, high = self.source.bounds(topic, lane)
        return self.record_from((topic, lane), low) if low < high else None

    def last_record(self, topic: str, lane: int) -> LogRecord | None:
        """Return the last record of a lane of one tap; None where it holds none."""
        return self._last_within((topic, lane), self.source.bounds(topic, lane))

    def record_from(self, place: Place, offset: int) -> LogRecord | None:
        """Return the record at an offset or the first one after it; None where there is nothing but markers."""
        try:
            return self.source.record_at(*place, offset)
        except GoneError:
            return None

    def _bounds(self) -> dict[Place, Bounds]:
        return self.source.all_bounds(self.places())

    def _first_batches(self, bounds: Mapping[Place, Bounds]) -> dict[Place, int]:
        """Return the first batch of each lane that holds any record within bounds."""
        found = {place: self.record_from(place, low) for place, (low, high) in bounds.items() if low < high}
        return {
            place: batch_of(first)
            for place, first in found.items()
            if first is not None and first.offset < bounds[place].high
        }

    def _first_left(self, bounds: Mapping[Place, Bounds]) -> dict[Place, int]:
        first = self._first_batches(bounds)
        # An empty lane: what comes next, where it never held a duplicate.
        return {place: first.get(place, self.layout.batch_at(place[1], low)) for place, (low, _) in bounds.items()}

    def _after(self, bounds: Mapping[Place, Bounds]) -> int:
        """Return one more than the greatest batch that any lane holds within bounds."""
        return max(0 if greatest is None else greatest + 1 for greatest in self._greatest(bounds).values())

    def _greatest(self, bounds: Mapping[Place, Bounds]) -> dict[Place, int | None]:
        """Return the greatest batch that each lane holds within bounds, None where it holds none there."""
        found: dict[Place, int | None] = dict.fromkeys(bounds)
        for place, first in self._first_batches(bounds).items():
            low = bounds[place].low
            last = self._last_within(place, bounds[place])
            if last is None:
                continue  # retention was faster
            found[place] = batch_of(last)
            # Records beyond the dense sequence first, first + L, ... are duplicates. After the greatest number came
            # only duplicates, so it stands among the last `duplicates` records before the end.
            duplicates = (last.offset - low) - (batch_of(last) - first) // self.layout.lanes
            if duplicates > 0:
                found[place] = self._greatest_between(place, max(low, last.offset - duplicates), last)
        return found

    def _last_within(self, place: Place, bounds: Bounds) -> LogRecord | None:
        """Return the last record within bounds: nearly always that of the last offset, found at the first look."""
        low, high = bounds
        found, without, step = None, high, 1
        while found is None and without > low:
            begin = max(low, high - step)
            record = self.record_from(place, begin)
            if record is not None and record.offset < high:
                found = record
            else:
                without, step = begin, 2 * step
        # From `without` to the end there is no record: the last one stands between the one found and there.
        while found is not None and without - found.offset > 1:
            middle = (found.offset + without) // 2
            record = self.record_from(place, middle)
            if record is not None and record.offset < high:
                found = record
            else:
                without = middle
        return found

    def _greatest_between(self, place: Place, offset: int, last: LogRecord) -> int:
        """Return the greatest batch from an offset to the record ``last`` of a lane."""
        greatest = batch_of(last)
        reader = self.source.read(*place, offset)
        try:
            while (record := reader.poll(10.0)) is not None and record.offset < last.offset:
                greatest = max(greatest, batch_of(record))
        finally:
            reader.close()
        return greatest

    def _gone(self, what: str) -> GoneError:
        earliest = self.earliest()
        return GoneError(
            f"{what} is gone: retention has deleted the batches before {earliest}",
            hint=f"what is left begins at batch:{earliest} (pass {self.layout.pass_of(earliest)}); "
            "start at earliest to skip what is gone",
            first_left=earliest,
        )


def resolve_start(point: StartPoint, lanes: Lanes) -> Position:
    """Return the position that a start point means on a log now. Raises GoneError where it is no longer there."""
    return find_start(point, lanes)[0]


def find_start(point: StartPoint, lanes: Lanes) -> tuple[Position, dict[Place, int]]:
    """Return :func:`resolve_start`, and, where that was learned on the way, the offset to read from in each lane."""
    layout = lanes.layout
    match point.kind:
        case "earliest":
            return Position(lanes.earliest()), {}
        case "latest":
            return Position(lanes.after_end()), {}
        case "offset":
            return Position(lanes.since_offset(point.value)), {}
        case "time":
            batch, offsets = lanes.begin_at_time(point.value)
            return Position(batch), offsets
        case "pass":
            return Position(layout.pass_start(point.value)), {}
        case "batch" | "position":
            return Position(point.value, point.row), {}


def resolve_stop(point: StartPoint, lanes: Lanes) -> int:
    """Return the batch before which a reader stops: ``latest`` is what is complete now, else as for starting."""
    if point.kind == "latest":
        return lanes.next_missing()
    position = resolve_start(point, lanes)
    return position.batch + (1 if position.row else 0)

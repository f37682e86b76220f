"""Where a batch, an offset or a time lies in the lanes of a stream.

Everything is arithmetic, corrected by what is found: a lane without duplicates holds batch b at offset b div L; a
duplicate (of a producer that died between sending and knowing, or of a zombie) only pushes later records further; a
mirrored topic shifts all offsets. Numbers in a lane never skip: a record's number is at most L more than the greatest
number before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featurestream.errors import GoneError, RecordError, UsageError
from featurestream.layout import Layout
from featurestream.ports import LogRecord, RecordSource
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

    A range of batches is read from all of them: a batch is there when every tap has it.
    """

    source: RecordSource
    layout: Layout
    topics: Sequence[str]

    def places(self) -> Iterable[tuple[str, int]]:
        """Return every (topic, lane)."""
        return ((topic, lane) for topic in self.topics for lane in range(self.layout.lanes))

    def earliest(self) -> int:
        """Return the first batch from which on every lane still holds everything."""
        return max([0, *(self.first_left(topic, lane) - self.layout.lanes + 1 for topic, lane in self.places())])

    def next_missing(self) -> int:
        """Return the first batch that is not (yet) complete: all before it are there, or are gone."""
        return min(
            greatest + self.layout.lanes if greatest is not None else self.first_left(topic, lane)
            for topic, lane, greatest in self._greatest_before({})
        )

    def after_end(self) -> int:
        """Return one more than the greatest batch that any lane holds."""
        return max(0 if greatest is None else greatest + 1 for _, _, greatest in self._greatest_before({}))

    def since_offset(self, offset: int) -> int:
        """Return the first batch such that it and all later ones lie at ``offset`` or beyond in their lanes.

        Raises GoneError where a lane no longer holds the offset, UsageError where none holds it yet.
        """
        bounds = {place: self.source.bounds(*place) for place in self.places()}
        if offset > max(high for _, high in bounds.values()):
            raise UsageError(
                f"offset {offset} lies beyond the end of every lane ({max(high for _, high in bounds.values())})",
                hint="start at latest to read what comes next",
            )
        if any(offset < low for low, _ in bounds.values()):
            raise self._gone(f"offset {offset}")
        places = {place: min(offset, high) for place, (_, high) in bounds.items()}
        return max([0, *(g + 1 for _, _, g in self._greatest_before(places) if g is not None)])

    def since_time(self, time_ms: int) -> int:
        """Return the first batch such that it and all later ones, in every lane, were appended at or after a time.

        That is one more than the greatest batch appended before it. Where retention may have deleted records that were
        appended after the time, the answer cannot be known: GoneError.
        """
        places: dict[tuple[str, int], int] = {}
        for topic, lane in self.places():
            offset = self.source.offset_at_time(topic, lane, time_ms)
            places[topic, lane] = offset
            low, high = self.source.bounds(topic, lane)
            if offset > low:
                continue  # a record from before the time is left, so nothing after it is gone
            if (low < high and batch_of(self.source.record_at(topic, lane, low)) != lane) or (low == high and low > 0):
                raise self._gone("a time before what is left")
        return max([0, *(g + 1 for _, _, g in self._greatest_before(places) if g is not None)])

    def offset_of(self, topic: str, lane: int, batch: int) -> int:
        """Return an offset from which on reading meets ``batch``, where every earlier number met is a duplicate.

        Nearly always it is the batch's own offset, found at the first look; the lane's end where it is not there yet.
        Raises GoneError where it is no longer there.
        """
        low, high = self.source.bounds(topic, lane)
        nominal = self.layout.offset_of(batch)
        if low <= nominal < high:
            record = self.source.record_at(topic, lane, nominal)
            if batch_of(record) == batch:
                return record.offset
        if low == high:
            if nominal < high:  # everything was deleted, and this batch had been there
                raise self._gone(f"batch {batch}")
            return high
        first = batch_of(self.source.record_at(topic, lane, low))
        if first > batch:
            raise self._gone(f"batch {batch}")
        # Every number from `first` to `batch` comes after `low`, each at least once: the batch cannot stand earlier.
        bound = low + (batch - first) // self.layout.lanes
        if bound >= high:
            greatest = self.greatest(topic, lane, high)
            return high if greatest is None or greatest < batch else low
        return bound if batch_of(self.source.record_at(topic, lane, bound)) <= batch else low

    def first_left(self, topic: str, lane: int) -> int:
        """Return the first batch that a lane of one tap still holds; what comes next where it holds none."""
        low, high = self.source.bounds(topic, lane)
        if low < high:
            return batch_of(self.source.record_at(topic, lane, low))
        return low * self.layout.lanes + lane  # an empty lane: what comes next, where it never held a duplicate

    def greatest(self, topic: str, lane: int, end: int | None) -> int | None:
        """Return the greatest batch in a lane of one tap below the offset ``end`` (None: all); None where none is."""
        low, high = self.source.bounds(topic, lane)
        end = high if end is None else min(end, high)
        if end <= low:
            return None
        last = self.source.record_at(topic, lane, end - 1)
        greatest = batch_of(last)
        first = batch_of(self.source.record_at(topic, lane, low))
        # Records beyond the dense sequence first, first + L, ... are duplicates. After the greatest number came only
        # duplicates, so it stands among the last `duplicates` records before the end.
        duplicates = (last.offset - low) - (greatest - first) // self.layout.lanes
        if duplicates > 0:
            reader = self.source.read(topic, lane, max(low, last.offset - duplicates))
            try:
                while (record := reader.poll(10.0)) is not None and record.offset < last.offset:
                    greatest = max(greatest, batch_of(record))
            finally:
                reader.close()
        return greatest

    def _greatest_before(self, places: dict[tuple[str, int], int]) -> list[tuple[str, int, int | None]]:
        """Return, for every lane, the greatest batch below the offset given for it (default: its end)."""
        found = []
        for topic, lane in self.places():
            end = places.get((topic, lane))
            found.append((topic, lane, self.greatest(topic, lane, end)))
        return found

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
    layout = lanes.layout
    match point.kind:
        case "earliest":
            return Position(lanes.earliest())
        case "latest":
            return Position(lanes.after_end())
        case "offset":
            return Position(lanes.since_offset(point.value))
        case "time":
            return Position(lanes.since_time(point.value))
        case "pass":
            return Position(layout.pass_start(point.value))
        case "batch" | "position":
            return Position(point.value, point.row)


def resolve_stop(point: StartPoint, lanes: Lanes) -> int:
    """Return the batch before which a reader stops: ``latest`` is what is complete now, else as for starting."""
    if point.kind == "latest":
        return lanes.next_missing()
    position = resolve_start(point, lanes)
    return position.batch + (1 if position.row else 0)

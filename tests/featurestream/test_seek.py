"""Batches, offsets and times are found exactly, whatever duplicates a lane holds and whatever retention took."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestream.absent import no_offset
from featurestream.errors import GoneError, UsageError
from featurestream.memory import MemoryLaneReader, MemoryLog
from featurestream.names import tap_topic
from featurestream.ports import Bounds, LogRecord, Place
from featurestream.position import Position, StartPoint
from featurestream.seek import Lanes, batch_of, resolve_start, resolve_stop
from tests.support import append, create, make_manifest, publish

MANIFEST = make_manifest(lanes=2, taps=("layer3",), passes=None)
TOPIC = tap_topic("toy", "layer3")


class Clock:
    """A clock that a test moves by hand, in milliseconds."""

    def __init__(self) -> None:
        self.ms = 1_000

    def __call__(self) -> float:
        return self.ms / 1000 + 1e-6  # so that no rounding takes a millisecond away


def lanes_of(log: MemoryLog) -> Lanes:
    return Lanes(log.source(), MANIFEST.layout, [TOPIC])


def stamped(batches: list[tuple[int, int]]) -> MemoryLog:
    """Return a log where each (batch, time in ms) was appended in turn."""
    clock = Clock()
    log = MemoryLog(clock)
    create(log, MANIFEST)
    for batch, ms in batches:
        clock.ms = ms
        append(log, MANIFEST, [batch])
    return log


def test_a_time_is_one_more_than_the_greatest_batch_appended_before_it():
    # lane 0 holds batches 0 and 2, lane 1 holds 1 and 3; batch 3 was appended before batch 2
    log = stamped([(0, 1000), (1, 2000), (3, 3000), (2, 4000), (4, 5000)])
    since = lanes_of(log).since_time
    assert since(1000) == 0, "a stamp on the boundary is at or after"
    assert since(1001) == 1
    assert since(2000) == 1
    assert since(2001) == 2
    assert since(3000) == 2
    assert since(3001) == 4, "batch 2 came later, but batch 3, after it in the order, came before"
    assert since(5000) == 4
    assert since(5001) == 5, "after the last record: only what comes later"
    assert since(0) == 0, "before the first record: everything"


def test_a_time_before_what_retention_left_is_refused_because_the_answer_cannot_be_known():
    log = stamped([(0, 1000), (1, 1000), (2, 2000), (3, 2000), (4, 3000), (5, 3000)])
    log.delete_before(TOPIC, 0, 1)
    log.delete_before(TOPIC, 1, 1)
    with pytest.raises(GoneError, match="before 2") as error:
        lanes_of(log).since_time(1500)
    assert error.value.first_left == 2
    assert lanes_of(log).since_time(2500) == 4, "a later time has a record before it, so nothing is missing"


def test_earliest_is_the_first_batch_from_which_every_lane_holds_everything():
    log = stamped([(n, 1000) for n in range(8)])
    assert lanes_of(log).earliest() == 0
    log.delete_before(TOPIC, 0, 2)  # batches 0 and 2 are gone; 1, 3, 4, 5, ... are left
    assert lanes_of(log).earliest() == 3


def test_latest_starts_after_the_greatest_batch_and_stops_before_the_first_missing_one():
    log = stamped([(0, 1), (1, 1), (3, 1), (5, 1)])  # batches 2 and 4 are still on their way
    assert resolve_start(StartPoint("latest"), lanes_of(log)) == Position(6)
    assert resolve_stop(StartPoint("latest"), lanes_of(log)) == 2


def test_an_empty_stream_starts_at_batch_0_wherever_it_is_asked_to():
    log = MemoryLog()
    create(log, MANIFEST)
    for kind in ("earliest", "latest", "time"):
        assert resolve_start(StartPoint(kind, 5), lanes_of(log)) == Position(0)
    assert resolve_stop(StartPoint("latest"), lanes_of(log)) == 0


def test_an_offset_is_the_first_batch_that_lies_there_or_later_in_every_lane():
    log = stamped([(n, 1000) for n in range(6)])
    lanes = lanes_of(log)
    assert [lanes.since_offset(offset) for offset in range(4)] == [0, 2, 4, 6]
    with pytest.raises(UsageError, match="offset 4 lies beyond the end"):
        lanes.since_offset(4)
    log.delete_before(TOPIC, 1, 1)
    with pytest.raises(GoneError, match="offset 0 is gone"):
        lanes.since_offset(0)


def test_a_pass_starts_at_its_first_batch():
    log = MemoryLog()
    publish(log, MANIFEST, range(6))
    assert resolve_start(StartPoint("pass", 1), lanes_of(log)) == Position(3)


def test_a_batch_that_retention_took_is_gone_and_the_error_says_what_is_left():
    log = stamped([(n, 1000) for n in range(8)])
    log.delete_before(TOPIC, 0, 2)
    with pytest.raises(GoneError, match=r"batch 2 is gone.*batch:3 \(pass 1\)"):
        lanes_of(log).offset_of(TOPIC, 0, 2)


# ---- any history of a lane ------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[int]:
    """Return the numbers of one lane of two (0, 2, 4, ...) as a run of producers may leave them.

    Each step appends the next number, or repeats an earlier stretch, as a producer does that died before it knew.
    """
    history = [0]
    for _ in range(draw(st.integers(0, 25))):
        if draw(st.integers(0, 3)):
            history.append(max(history) + 2)
        else:
            start = draw(st.integers(0, max(history) // 2)) * 2
            length = draw(st.integers(1, 4))
            history += [number for number in range(start, start + 2 * length, 2) if number <= max(history)]
    return history


@settings(max_examples=150, deadline=None, derandomize=True)
@given(histories(), st.data())
def test_reading_from_where_a_batch_is_found_meets_it_before_any_later_one(history, data):
    log = stamped([(batch, 1000 + n) for n, batch in enumerate(history)])
    batch = data.draw(st.integers(0, max(history) // 2)) * 2
    offset = lanes_of(log).offset_of(TOPIC, 0, batch)
    numbers = [number for number in history[offset:] if number >= batch]
    assert numbers[0] == batch, f"{history} from {offset}"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(histories(), st.data())
def test_a_time_counts_the_greatest_batch_before_it_also_behind_duplicates(history, data):
    log = stamped([(batch, 1000 + n) for n, batch in enumerate(history)])
    cut = data.draw(st.integers(0, len(history)))
    expected = max(history[:cut], default=-1) + 1
    assert lanes_of(log).since_time(1000 + cut) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(histories())
def test_the_end_is_found_behind_duplicates(history):
    log = stamped([(batch, 1000) for batch in history])
    assert lanes_of(log).after_end() == max(history) + 1


class Marked:
    """A source whose lane 0 has ``gaps[n]`` offsets without a record before its n-th one, and the last gap at the end.

    So it is after transactions, whose markers are no records, and where a topic was compacted.
    """

    def __init__(self, log: MemoryLog, gaps: list[int]) -> None:
        self._source = log.source()
        self._held = self._source.bounds(TOPIC, 0).high
        self.offsets = [sum(gaps[: n + 1]) + n for n in range(self._held)]
        self._high = sum(gaps) + self._held

    def bounds(self, topic: str, lane: int) -> Bounds:
        return Bounds(0, self._high) if lane == 0 else self._source.bounds(topic, lane)

    def all_bounds(self, places: list[Place]) -> dict[Place, Bounds]:
        return {place: self.bounds(*place) for place in places}

    def offsets_at_time(self, places: list[Place], time_ms: int) -> dict[Place, int]:
        found = self._source.offsets_at_time(places, time_ms)
        return found | {(TOPIC, 0): [*self.offsets, self._high][found[TOPIC, 0]]}

    def record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        number = next((n for n, at in enumerate(self.offsets) if at >= offset), None)
        if number is None:
            raise no_offset(topic, lane, offset, Bounds(0, self._high))
        return self._source.record_at(topic, lane, number)._replace(offset=self.offsets[number])

    def read(self, topic: str, lane: int, offset: int) -> MarkedReader:
        number = next((n for n, at in enumerate(self.offsets) if at >= offset), self._held)
        return MarkedReader(self, self._source.read(topic, lane, number))

    def close(self) -> None:
        self._source.close()


class MarkedReader:
    """Reads such a lane."""

    def __init__(self, source: Marked, reader: MemoryLaneReader) -> None:
        self._source = source
        self._reader = reader

    def poll(self, timeout_s: float) -> LogRecord | None:
        record = self._reader.poll(timeout_s)
        return None if record is None else record._replace(offset=self._source.offsets[record.offset])

    def close(self) -> None:
        self._reader.close()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(histories(), st.data())
def test_a_lane_with_offsets_that_hold_no_record_is_as_one_without(history, data):
    log = stamped([(batch, 1000) for batch in history])
    few = st.sampled_from((0, 0, 1, 1, 2, 5))
    source = Marked(log, data.draw(st.lists(few, min_size=len(history) + 1, max_size=len(history) + 1)))
    lanes = Lanes(source, MANIFEST.layout, [TOPIC])
    assert lanes.after_end() == max(history) + 1
    assert lanes.next_missing() == 1, "the other lane holds nothing"
    assert batch_of(lanes.first_record(TOPIC, 0)) == history[0]
    assert batch_of(lanes.last_record(TOPIC, 0)) == history[-1]
    batch = data.draw(st.integers(0, max(history) // 2 + 1)) * 2
    offset = lanes.offset_of(TOPIC, 0, batch)
    met = [number for number, at in zip(history, source.offsets, strict=True) if at >= offset and number >= batch]
    assert met[:1] == ([batch] if batch <= max(history) else []), f"{history} from {offset}"
    cut = data.draw(st.integers(0, source.bounds(TOPIC, 0).high))
    before = [number for number, at in zip(history, source.offsets, strict=True) if at < cut]
    assert lanes.since_offset(cut) == max(before, default=-1) + 1


def test_a_lane_of_nothing_but_markers_is_as_an_empty_one():
    log = MemoryLog()
    create(log, MANIFEST)
    lanes = Lanes(Marked(log, [2]), MANIFEST.layout, [TOPIC])
    assert (lanes.earliest(), lanes.next_missing(), lanes.after_end()) == (0, 0, 0)
    assert lanes.offset_of(TOPIC, 0, 0) == 2, "the end: what comes next"
    assert (lanes.first_record(TOPIC, 0), lanes.last_record(TOPIC, 0), lanes.greatest(TOPIC, 0, None)) == (None,) * 3


def test_a_shifted_lane_of_a_mirror_is_read_by_its_numbers():
    # a mirror that began at batch 4: lane 0 holds 4, 6, 8 at offsets 0, 1, 2
    log = stamped([(n, 1000) for n in (4, 5, 6, 7, 8, 9)])
    lanes = lanes_of(log)
    assert lanes.earliest() == 4
    record = log.source().record_at(TOPIC, 0, lanes.offset_of(TOPIC, 0, 8))
    assert batch_of(record) == 8
    with pytest.raises(GoneError):
        lanes.offset_of(TOPIC, 0, 2)


# ---- times by arithmetic, and by looking at every lane ---------------------------------------------------------------


class Careful(Lanes):
    """Lanes that take nothing from arithmetic: a time's batch is sought in every one of them."""

    def _since_by_arithmetic(self, ends: object, bounds: object) -> None:
        return None


def answer(lanes: Lanes, time_ms: int) -> tuple[object, ...]:
    """Return the batch of a time, or what the error says."""
    try:
        return (lanes.since_time(time_ms),)
    except GoneError as error:
        return str(error), error.hint, error.first_left


def meets(history: list[int], low: int, offset: int, batch: int) -> bool:
    """Return whether reading from an offset meets a batch, or nothing yet, before any later one; nothing is gone."""
    later = [number for number in history[offset:] if number >= batch]
    return low <= offset <= len(history) and later[:1] in ([], [batch]) and batch not in history[:low]


@st.composite
def two_lanes(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Return the numbers of both lanes, the stamp of each, and the offset before which retention has deleted.

    Most lanes begin with their first batch, those of a mirror with a later one; most hold no duplicate.
    """
    shift = draw(st.sampled_from((0, 0, 0, 2, 4)))
    numbers, stamps, lows = [], [], []
    for lane in (0, 1):
        plain = [2 * n for n in range(draw(st.integers(0, 9)))]
        numbers.append([lane + shift + number for number in draw(st.one_of(st.just(plain), histories()))])
        size = len(numbers[lane])
        stamps.append(sorted(draw(st.lists(st.integers(1000, 1012), min_size=size, max_size=size))))
        lows.append(draw(st.one_of(st.just(0), st.integers(0, size))))
    return numbers, stamps, lows


def build(numbers: list[list[int]], stamps: list[list[int]], lows: list[int]) -> MemoryLog:
    appended = sorted((ms, lane, n) for lane in (0, 1) for n, ms in enumerate(stamps[lane]))
    log = stamped([(numbers[lane][n], ms) for ms, lane, n in appended])
    for lane in (0, 1):
        log.delete_before(TOPIC, lane, lows[lane])
    return log


@settings(max_examples=600, deadline=None, derandomize=True)
@given(two_lanes(), st.integers(999, 1014))
def test_a_time_found_by_arithmetic_is_the_one_found_by_looking_at_every_lane(held, time_ms):
    numbers, stamps, lows = held
    log = build(*held)
    lanes = lanes_of(log)
    expected = answer(Careful(log.source(), MANIFEST.layout, [TOPIC]), time_ms)
    assert answer(lanes, time_ms) == expected
    assert answer(lanes, time_ms) == expected, "also with what it remembers"
    if len(expected) == 1:
        batch, offsets = lanes.begin_at_time(time_ms)
        for (_, lane), offset in offsets.items():
            wanted = MANIFEST.layout.next_in_lane(lane, batch)
            assert meets(numbers[lane], lows[lane], offset, wanted), f"batch {wanted} from {offset}"
    if lows == [0, 0] and numbers[0][:1] in ([], [0]) and numbers[1][:1] in ([], [1]):
        before = [n for lane in (0, 1) for n, ms in zip(numbers[lane], stamps[lane], strict=True) if ms < time_ms]
        assert expected == (max(before, default=-1) + 1,)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(histories(), st.data())
def test_a_time_is_found_by_arithmetic_as_without_where_offsets_hold_no_record(history, data):
    log = stamped([(batch, 1000 + n) for n, batch in enumerate(history)])
    few = st.sampled_from((0, 0, 0, 0, 1, 2))
    source = Marked(log, data.draw(st.lists(few, min_size=len(history) + 1, max_size=len(history) + 1)))
    cut = data.draw(st.integers(0, len(history)))
    found = Lanes(source, MANIFEST.layout, [TOPIC]).since_time(1000 + cut)
    assert found == Careful(source, MANIFEST.layout, [TOPIC]).since_time(1000 + cut) == max([-1, *history[:cut]]) + 1


class Counted:
    """A source that writes down what it is asked."""

    def __init__(self, log: MemoryLog) -> None:
        self._source = log.source()
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> object:
        self.asked.append(name)
        return getattr(self._source, name)


def test_a_time_in_lanes_as_the_arithmetic_has_them_takes_one_look_at_each_lane_once_and_one_more():
    log = stamped([(n, 1000 + n) for n in range(8)])
    source = Counted(log)
    lanes = Lanes(source, MANIFEST.layout, [TOPIC])
    assert lanes.begin_at_time(1003) == (3, {(TOPIC, 0): 2, (TOPIC, 1): 1})
    assert source.asked == ["offsets_at_time", "all_bounds", "record_at", "record_at", "record_at"]
    source.asked.clear()
    assert lanes.begin_at_time(1005) == (5, {(TOPIC, 0): 3, (TOPIC, 1): 2})
    assert source.asked == ["offsets_at_time", "all_bounds", "record_at"]


def test_a_batch_that_is_not_there_yet_is_read_from_the_end_of_its_lane():
    log = stamped([(0, 1000), (1, 1000), (3, 1000), (5, 1000)])  # batches 2 and 4 are still on their way
    assert lanes_of(log).begin_at_time(2000) == (6, {(TOPIC, 0): 1, (TOPIC, 1): 3})


def test_a_duplicate_of_a_mirrored_lane_that_stands_where_another_log_has_it_is_not_taken_for_the_greatest():
    # the mirror began at batch 4; offset 3 holds a duplicate of batch 6, as it does in the lane that was copied
    log = stamped([(batch, 1000 + n) for n, batch in enumerate((4, 6, 8, 6))])
    assert lanes_of(log).since_time(1004) == 9


def test_a_lane_that_is_empty_as_yet_holds_nothing_before_a_time():
    assert lanes_of(stamped([(0, 1000)])).begin_at_time(2000) == (1, {(TOPIC, 0): 1, (TOPIC, 1): 0})


def test_what_is_left_of_a_mirrored_lane_may_begin_within_duplicates():
    # of lane 0 the batches 10 and 14 are left, at offsets 5 and 6: the 10 where the arithmetic has it, by chance
    lane_0, lane_1 = (4, 6, 8, 10, 12, 10, 14), (1, 3, 5, 7, 9, 11, 13)
    log = stamped([(batch, 1000) for batch in lane_0 + lane_1])
    log.delete_before(TOPIC, 0, 5)
    assert lanes_of(log).since_time(2000) == 15


def test_where_retention_takes_what_a_time_is_found_by_the_range_is_refused():
    log = stamped([(n, 1000 + n) for n in range(8)])

    class Deleting(Counted):
        def all_bounds(self, places: list[Place]) -> dict[Place, Bounds]:
            bounds = self._source.all_bounds(places)
            for lane in (0, 1):
                log.delete_before(TOPIC, lane, 3)
            return bounds

    lanes = Lanes(Deleting(log), MANIFEST.layout, [TOPIC])
    batch, offsets = lanes.begin_at_time(1004)
    assert offsets == {}, "nothing was learned"
    with pytest.raises(GoneError, match="retention has deleted the batches before 6"):
        lanes.offsets_of({(TOPIC, lane): MANIFEST.layout.next_in_lane(lane, batch) for lane in (0, 1)})

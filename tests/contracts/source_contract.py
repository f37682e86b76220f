"""What every RecordSource and LaneReader promises.

Subclasses give the fixtures ``log``, ``topic`` (three lanes) and ``delete_before(topic, lane, offset)``, which plays
retention.
"""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from featurestream.errors import GoneError, StreamNotFoundError, UsageError

LATE_MS = 4_000_000_000_000  # the year 2096
STAMP_S = 30.0


def at_time(source, topic, lane, time_ms):
    return source.offsets_at_time([(topic, lane)], time_ms)[topic, lane]


class SourceContract:
    @pytest.fixture
    def source(self, log):
        source = log.source()
        yield source
        source.close()

    @pytest.fixture
    def append(self, log):
        sink = log.sink()

        def append(topic, lane, *values):
            for value in values:
                sink.append(topic, lane, key=b"k", value=value)
            sink.flush()

        yield append
        sink.close()

    @pytest.fixture
    def ten(self, topic, append):
        """Lane 0 holds b"0" to b"9"."""
        append(topic, 0, *(b"%d" % number for number in range(10)))
        return topic

    @pytest.fixture
    def stamped(self, topic, source, append):
        """Lane 0 holds four records with four stamps, at the offsets returned with them."""
        found = []
        until = time.monotonic() + STAMP_S
        while len(found) < 4:
            append(topic, 0, b"x")
            record = source.record_at(topic, 0, source.bounds(topic, 0).high - 1)
            if not found or record.timestamp_ms > found[-1].timestamp_ms + 1:
                found.append(record)
            assert time.monotonic() < until, "the log's clock stands still"
        return found

    # ---- bounds

    def test_an_empty_lane_holds_nothing(self, topic, source):
        assert source.bounds(topic, 2) == (0, 0)

    def test_bounds_are_the_first_offset_and_the_next_one(self, ten, source, append, delete_before):
        assert source.bounds(ten, 0) == (0, 10)
        delete_before(ten, 0, 4)
        append(ten, 0, b"10")
        assert source.bounds(ten, 0) == (4, 11)
        assert source.bounds(ten, 1) == (0, 0)

    @pytest.mark.parametrize("lane", [0, 3, 1000])
    def test_a_topic_or_a_lane_that_is_not_there_is_named(self, topic, source, lane):
        name = topic if lane else topic + "-not"
        questions = [
            lambda: source.bounds(name, lane),
            lambda: at_time(source, name, lane, 0),
            lambda: source.record_at(name, lane, 0),
            lambda: source.read(name, lane, 0).poll(10.0),
        ]
        for question in questions:
            with pytest.raises(StreamNotFoundError, match=f'"{name}" with a lane {lane}'):
                question()

    def test_the_bounds_of_many_lanes_are_those_of_each(self, ten, source, append):
        append(ten, 2, b"0")
        places = [(ten, 0), (ten, 1), (ten, 2)]
        assert source.all_bounds(places) == {(ten, 0): (0, 10), (ten, 1): (0, 0), (ten, 2): (0, 1)}
        assert source.all_bounds([]) == {}
        with pytest.raises(StreamNotFoundError, match="with a lane 3"):
            source.all_bounds([*places, (ten, 3)])

    # ---- times

    def test_many_lanes_are_asked_for_one_time_together(self, stamped, source, append):
        third = stamped[2]
        append(third.topic, 2, b"later")
        places = [(third.topic, lane) for lane in range(3)]
        found = source.offsets_at_time(places, third.timestamp_ms)
        assert found == {places[0]: third.offset, places[1]: 0, places[2]: 0}
        assert source.offsets_at_time(places, LATE_MS) == {places[0]: stamped[3].offset + 1, places[1]: 0, places[2]: 1}

    def test_a_time_before_the_first_record_is_the_first_offset(self, stamped, source):
        first = stamped[0]
        assert at_time(source, first.topic, 0, first.timestamp_ms - 1) == 0
        assert at_time(source, first.topic, 0, 0) == 0
        assert at_time(source, first.topic, 0, -5) == 0

    def test_a_record_appended_at_the_time_counts(self, stamped, source):
        for record in stamped:
            assert at_time(source, record.topic, 0, record.timestamp_ms) == record.offset

    def test_between_two_records_it_is_the_later_one(self, stamped, source):
        for earlier, later in itertools.pairwise(stamped):
            found = at_time(source, later.topic, 0, earlier.timestamp_ms + 1)
            assert earlier.offset < found <= later.offset
            assert source.record_at(later.topic, 0, found - 1).timestamp_ms <= earlier.timestamp_ms

    def test_a_time_after_the_last_record_is_the_end(self, stamped, source):
        topic = stamped[0].topic
        assert at_time(source, topic, 0, LATE_MS) == source.bounds(topic, 0).high
        assert at_time(source, topic, 1, 0) == 0  # an empty lane

    def test_where_everything_left_is_later_it_is_the_first_that_is_left(self, stamped, source, delete_before):
        third = stamped[2]
        delete_before(third.topic, 0, third.offset)
        for time_ms in (0, stamped[0].timestamp_ms, stamped[1].timestamp_ms, third.timestamp_ms):
            assert at_time(source, third.topic, 0, time_ms) == third.offset
        assert at_time(source, third.topic, 0, stamped[3].timestamp_ms) == stamped[3].offset
        assert at_time(source, third.topic, 0, LATE_MS) == stamped[3].offset + 1

    def test_where_nothing_is_left_it_is_the_end(self, ten, source, delete_before):
        delete_before(ten, 0, 10)
        assert source.bounds(ten, 0) == (10, 10)
        assert at_time(source, ten, 0, 0) == 10

    def test_stamps_never_fall_along_a_lane(self, stamped, source):
        topic = stamped[0].topic
        stamps = [source.record_at(topic, 0, offset).timestamp_ms for offset in range(*source.bounds(topic, 0))]
        assert stamps == sorted(stamps)

    # ---- one record

    def test_any_record_can_be_looked_up_in_any_order(self, ten, source):
        for offset in (9, 0, 5, 9, 4, 9):
            record = source.record_at(ten, 0, offset)
            assert (record.offset, record.value) == (offset, b"%d" % offset)

    def test_below_what_is_left_the_first_one_left_is_the_next(self, ten, source, delete_before):
        delete_before(ten, 0, 6)
        assert source.record_at(ten, 0, 2).offset == 6

    def test_at_the_end_there_is_no_record(self, ten, source):
        for lane, offset in ((0, 10), (0, 11), (1, 0)):
            with pytest.raises(GoneError, match=f"lane {lane} has no record at offset {offset}"):
                source.record_at(ten, lane, offset)

    # ---- reading

    def test_a_reader_starts_where_it_is_told(self, ten, source):
        reader = source.read(ten, 0, 7)
        assert [reader.poll(10.0).value for _ in range(3)] == [b"7", b"8", b"9"]
        assert reader.poll(0.0) is None
        reader.close()

    def test_two_readers_of_a_lane_do_not_touch_each_other(self, ten, source):
        one, two = source.read(ten, 0, 0), source.read(ten, 0, 5)
        assert [one.poll(10.0).offset, two.poll(10.0).offset, one.poll(10.0).offset] == [0, 5, 1]
        one.close()
        assert two.poll(10.0).offset == 6
        two.close()

    def test_many_lanes_can_be_read_in_any_interleaving(self, topic, source, append):
        for lane in range(3):
            append(topic, lane, *(b"%d/%d" % (lane, number) for number in range(4)))
        readers = [source.read(topic, lane, 0) for lane in range(3)]
        merged = [readers[number % 3].poll(10.0).value for number in range(12)]
        assert merged == [b"%d/%d" % (number % 3, number // 3) for number in range(12)]
        for reader in readers:
            reader.close()

    def test_at_the_end_a_reader_waits_for_what_comes(self, ten, source, append):
        reader = source.read(ten, 0, 10)
        assert reader.poll(0.05) is None
        writer = threading.Thread(target=append, args=(ten, 0, b"10"))
        writer.start()
        record = reader.poll(20.0)
        writer.join()
        assert (record.offset, record.value) == (10, b"10")
        reader.close()

    def test_a_reader_of_an_empty_lane_waits_for_its_first_record(self, topic, source, append):
        reader = source.read(topic, 1, 0)
        assert reader.poll(0.05) is None
        append(topic, 1, b"first")
        assert reader.poll(20.0).value == b"first"
        reader.close()

    def test_an_offset_beyond_the_end_is_an_error_at_once_and_for_ever(self, ten, source, append):
        reader = source.read(ten, 0, 11)
        with pytest.raises(GoneError, match="has no record at offset 11; the lane holds offsets 0 to 9") as error:
            reader.poll(20.0)
        assert (error.value.offset, error.value.bounds) == (11, (0, 10))
        append(ten, 0, b"10", b"11")
        with pytest.raises(GoneError, match="offset 11"):
            reader.poll(0.0)
        reader.close()

    def test_an_offset_that_retention_has_deleted_is_an_error(self, ten, source, delete_before):
        delete_before(ten, 0, 6)
        reader = source.read(ten, 0, 2)
        with pytest.raises(GoneError, match="has no record at offset 2; the lane holds offsets 6 to 9"):
            reader.poll(20.0)
        reader.close()

    def test_a_reader_outlives_its_source(self, log, ten):
        source = log.source()
        reader = source.read(ten, 0, 8)
        source.close()
        source.close()
        assert reader.poll(10.0).value == b"8"
        reader.close()

    def test_closing_a_reader_twice_is_once_and_polling_it_is_refused(self, ten, source):
        reader = source.read(ten, 0, 0)
        reader.close()
        reader.close()
        with pytest.raises(UsageError, match="closed"):
            reader.poll(0.0)

    def test_a_reader_whose_topic_is_deleted_says_so(self, log, ten, source):
        reader = source.read(ten, 0, 9)
        assert reader.poll(10.0).value == b"9"
        log.delete_topics([ten])
        with pytest.raises(StreamNotFoundError, match=f'no topic "{ten}"'):
            self.poll_for(reader, 60.0)
        reader.close()

    @staticmethod
    def poll_for(reader, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            reader.poll(1.0)

"""What every RecordSink promises. Subclasses give the fixtures ``log`` and ``topic`` (three lanes)."""

from __future__ import annotations

import numpy as np
import pytest

from featurestream.errors import BrokerError, UsageError


def read_lane(log, topic, lane):
    """Return what a lane holds now, from its first offset to its end."""
    source = log.source()
    low, high = source.bounds(topic, lane)
    reader = source.read(topic, lane, low)
    records = [reader.poll(10.0) for _ in range(high - low)]
    reader.close()
    source.close()
    return records


def values(log, topic, lane):
    return [record.value for record in read_lane(log, topic, lane)]


class SinkContract:
    @pytest.fixture
    def sink(self, log):
        sink = log.sink()
        yield sink
        sink.close()

    def test_a_lane_holds_the_records_in_the_order_of_the_calls(self, log, topic, sink):
        for number in range(30):
            sink.append(topic, number % 3, key=b"k", value=b"%d" % number)
        sink.flush()
        assert values(log, topic, 0) == [b"%d" % number for number in range(0, 30, 3)]
        assert values(log, topic, 2) == [b"%d" % number for number in range(2, 30, 3)]

    def test_a_record_comes_back_whole(self, log, topic, sink):
        value = np.arange(12, dtype=np.uint8)
        headers = [("batch", b"17"), ("empty", b""), ("batch", b"again")]
        sink.append(topic, 1, key=b"0/17", value=value, headers=headers)
        sink.flush()
        (record,) = read_lane(log, topic, 1)
        assert (record.topic, record.lane, record.offset, record.key) == (topic, 1, 0, b"0/17")
        assert record.headers == (("batch", b"17"), ("empty", b""), ("batch", b"again"))
        assert record.value == bytes(range(12))
        assert isinstance(record.value, bytes)
        assert record.timestamp_ms > 1_700_000_000_000

    def test_the_buffer_of_a_value_may_be_reused_at_once(self, log, topic, sink):
        buffer = np.zeros(4096, dtype=np.uint8)
        for number in range(50):
            buffer[:] = number
            sink.append(topic, 0, key=b"k", value=buffer)
        buffer[:] = 255
        sink.flush()
        assert values(log, topic, 0) == [bytes([number]) * 4096 for number in range(50)]

    def test_a_tombstone_has_no_value_and_an_empty_value_is_none(self, log, topic, sink):
        sink.append(topic, 0, key=b"k", value=None)
        sink.append(topic, 0, key=b"k", value=b"")
        sink.append(topic, 0, key=b"k", value=np.empty(0, dtype=np.uint8))
        sink.flush()
        assert values(log, topic, 0) == [None, b"", b""]

    def test_it_counts_records_and_bytes(self, topic, sink):
        sink.append(topic, 0, key=b"key", value=b"12345")
        sink.append(topic, 1, key=b"key", value=np.zeros(7, dtype=np.uint8))
        sink.append(topic, 2, key=b"key", value=None)
        assert (sink.records, sink.bytes, sink.blocked_s) == (3, 12, 0.0)

    def test_an_array_with_gaps_is_refused_and_the_sink_goes_on(self, log, topic, sink):
        with pytest.raises(UsageError, match="C-contiguous"):
            sink.append(topic, 0, key=b"k", value=np.arange(10, dtype=np.uint8)[::2])
        sink.append(topic, 0, key=b"k", value=b"next")
        sink.flush()
        assert values(log, topic, 0) == [b"next"]

    def test_flushing_nothing_returns(self, sink):
        sink.flush()
        sink.flush()

    def test_what_is_flushed_waits_no_longer(self, sink, topic):
        self.append_and_flush(sink, topic, 1)
        assert sink.queued == 0

    def test_after_a_failure_it_takes_no_more_records_and_says_why(self, log, topic, sink):
        sink.append(topic, 0, key=b"k", value=b"before")
        sink.flush()
        with pytest.raises(BrokerError, match=rf"{topic}.* lane 7") as first:
            self.append_and_flush(sink, topic, 7)
        with pytest.raises(BrokerError) as second:
            sink.append(topic, 0, key=b"k", value=b"after")
        with pytest.raises(BrokerError) as third:
            sink.flush()
        assert str(first.value) == str(second.value) == str(third.value)
        assert values(log, topic, 0) == [b"before"]

    @staticmethod
    def append_and_flush(sink, topic, lane):
        sink.append(topic, lane, key=b"k", value=b"x")
        sink.flush()

    def test_closing_twice_is_once_and_what_comes_after_is_refused(self, log, topic):
        sink = log.sink()
        sink.append(topic, 0, key=b"k", value=b"x")
        sink.flush()
        sink.close()
        sink.close()
        with pytest.raises(UsageError, match="closed"):
            sink.append(topic, 0, key=b"k", value=b"x")
        with pytest.raises(UsageError, match="closed"):
            sink.flush()

    def test_two_sinks_may_write_to_one_lane(self, log, topic, sink):
        other = log.sink()
        for number in range(4):
            chosen = sink if number % 2 else other
            chosen.append(topic, 0, key=b"k", value=b"%d" % number)
            chosen.flush()
        other.close()
        assert values(log, topic, 0) == [b"0", b"1", b"2", b"3"]

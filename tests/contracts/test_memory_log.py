"""The in-process log keeps the contract of the ports."""

from __future__ import annotations

import threading

import pytest

from featurestream.errors import UsageError
from featurestream.memory import MemoryLog
from tests.contracts.log_contract import LogContract
from tests.contracts.sink_contract import SinkContract
from tests.contracts.source_contract import SourceContract


class OnMemory:
    @pytest.fixture
    def log(self):
        return MemoryLog()

    @pytest.fixture
    def topic(self, log):
        log.create_topic("t", 3, {})
        return "t"

    @pytest.fixture
    def delete_before(self, log):
        return log.delete_before


class TestMemorySink(OnMemory, SinkContract):
    pass


class TestMemorySource(OnMemory, SourceContract):
    def test_stamps_are_the_clocks_in_milliseconds_and_never_fall(self):
        times = iter([100.0, 101.0005, 99.0, 101.5])
        log = MemoryLog(clock=lambda: next(times))
        log.create_topic("t", 1, {})
        sink, source = log.sink(), log.source()
        for _ in range(4):
            sink.append("t", 0, key=b"k", value=b"v")
        assert [source.record_at("t", 0, offset).timestamp_ms for offset in range(4)] == [
            100_000,
            101_000,
            101_000,
            101_500,
        ]
        assert [source.offsets_at_time([("t", 0)], ms) for ms in (99_999, 100_000, 101_000, 101_001)] == [
            {("t", 0): offset} for offset in (0, 0, 1, 3)
        ]

    def test_retention_that_overtakes_a_reader_is_seen_at_its_next_poll(self, log, ten, source):
        reader = source.read(ten, 0, 0)
        reader.poll(0.0)
        log.delete_before(ten, 0, 5)
        with pytest.raises(Exception, match="has no record at offset 1; the lane holds offsets 5 to 9"):
            reader.poll(0.0)

    @pytest.mark.parametrize("offset", [-1, 11])
    def test_only_what_is_there_can_be_deleted(self, log, ten, offset):
        with pytest.raises(UsageError, match=f"before {offset} of a lane that holds 0 to 10"):
            log.delete_before(ten, 0, offset)


class TestMemoryLog(LogContract):
    @pytest.fixture
    def log(self):
        return MemoryLog()

    @pytest.fixture
    def name(self):
        return "toy.layer3"

    def test_the_settings_of_a_topic_can_be_looked_at(self, log):
        log.create_topic("t", 1, {"retention.ms": "5"})
        assert log.settings("t") == {"retention.ms": "5"}

    def test_threads_may_append_together(self, log):
        log.create_topic("t", 1, {})

        def append(number):
            sink = log.sink()
            for count in range(200):
                sink.append("t", 0, key=b"%d" % number, value=b"%d" % count)

        threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        source = log.source()
        records = [source.record_at("t", 0, offset) for offset in range(*source.bounds("t", 0))]
        assert [record.offset for record in records] == list(range(800))
        for number in range(4):
            assert [r.value for r in records if r.key == b"%d" % number] == [b"%d" % count for count in range(200)]

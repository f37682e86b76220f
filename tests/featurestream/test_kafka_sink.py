"""KafkaSink beyond the contract: limits, refusals, back-pressure."""

from __future__ import annotations

import time

import numpy as np
import pytest

from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog, KafkaSink
from featurestream.tail import settled_bounds

pytestmark = pytest.mark.broker


@pytest.fixture
def log(broker):
    with KafkaLog(broker) as log:
        yield log


def end_of(log, topic, lane):
    with log.source() as source:
        return source.bounds(topic, lane).high


def test_a_record_that_the_client_does_not_send_is_refused_with_its_size(log, unique):
    log.create_topic(unique, 1, {})
    with log.sink() as sink:
        with pytest.raises(
            BrokerError, match=rf"a record of 1000001 bytes for {unique}, lane 0 is larger.*fewer rows.*message\.max"
        ):
            sink.append(unique, 0, key=b"k", value=np.zeros(1_000_001, dtype=np.uint8))
        with pytest.raises(BrokerError, match="1000001 bytes"):
            sink.append(unique, 0, key=b"k", value=b"small")
    assert end_of(log, unique, 0) == 0


def test_nothing_follows_a_record_that_the_topic_refuses(broker, log, unique):
    log.create_topic(unique, 2, {})  # with the stock limit of 1,048,588 bytes

    def append(sink):
        for number in range(40):
            sink.append(unique, number % 2, key=b"%d" % number, value=bytes(1_200_000 if number == 20 else 100_000))
        sink.flush()

    larger = Cluster(broker.bootstrap_servers, {"message.max.bytes": "4000000"})
    with KafkaSink(larger) as sink, log.source() as source:
        with pytest.raises(
            BrokerError, match=rf"a record for {unique}, lane 0 .* than the topic .* allows.*fewer rows"
        ):
            append(sink)
        # The sink is still open: what its client would go on sending has time to arrive.
        ends = settled_bounds(source, [(unique, 0), (unique, 1)], quiet_s=1.0)
        for lane in range(2):
            keys = [source.record_at(unique, lane, offset).key for offset in range(ends[unique, lane].high)]
            assert keys == [b"%d" % number for number in range(lane, 40, 2)][: len(keys)]
            assert b"20" not in keys


def test_a_topic_that_is_not_there_is_an_error(log, unique):
    with log.sink() as sink:
        sink.append(unique, 0, key=b"k", value=b"v")
        with pytest.raises(BrokerError, match=f"a record for {unique}, lane 0 was not written: there is no such topic"):
            sink.flush()


def test_a_full_queue_blocks_and_loses_nothing(broker, log, unique):
    log.create_topic(unique, 1, {})
    value = np.zeros(400_000, dtype=np.uint8)
    with KafkaSink(broker, queue_kbytes=1_000) as sink:
        for number in range(40):
            value[0] = number
            sink.append(unique, 0, key=b"k", value=value)
        sink.flush()
        assert sink.blocked_s > 0
        assert (sink.records, sink.bytes) == (40, 16_000_000)
    with log.source() as source:
        assert [source.record_at(unique, 0, offset).value[0] for offset in range(40)] == list(range(40))


def test_closing_gives_up_what_is_not_flushed_without_waiting(log, unique):
    log.create_topic(unique, 1, {})
    sink = log.sink()
    sink.append(unique, 0, key=b"k", value=b"durable")
    sink.flush()
    for _ in range(100):
        sink.append(unique, 0, key=b"k", value=bytes(500_000))
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 5
    assert 1 <= end_of(log, unique, 0) <= 101

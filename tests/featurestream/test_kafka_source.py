"""KafkaSource beyond the contract: transactions of other programs, null headers, many threads, settings."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from featurestream.errors import GoneError, StreamNotFoundError, UsageError
from featurestream.kafka import KafkaLog, KafkaSource
from featurestream.kafka import source as module
from featurestream.stream import FeatureStream
from tests.contracts.source_contract import SourceContract
from tests.support import make_manifest, poll_for, publish

pytestmark = pytest.mark.broker


@pytest.fixture
def log(broker):
    with KafkaLog(broker) as log:
        yield log


@pytest.fixture
def source(broker):
    with KafkaSource(broker, stall_s=0.5) as source:  # so that a false alarm comes soon
        yield source


@pytest.fixture
def transactional(broker, unique):
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "transactional.id": unique})
    producer.init_transactions(30)
    return producer


def test_a_transactions_marker_is_no_record_and_no_damage(log, source, transactional, unique):
    log.create_topic(unique, 1, {})
    transactional.begin_transaction()
    for number in range(3):
        transactional.produce(unique, b"%d" % number, partition=0)
    transactional.commit_transaction(30)
    reader = source.read(unique, 0, 0)
    assert [reader.poll(10.0).value for _ in range(3)] == [b"0", b"1", b"2"]
    assert [reader.poll(0.5) for _ in range(5)] == [None] * 5
    reader.close()

    assert source.bounds(unique, 0) == (0, 4)  # the marker takes an offset
    with pytest.raises(GoneError, match="no record at offset 3"):
        source.record_at(unique, 0, 3)
    assert source.offsets_at_time([(unique, 0)], 4_000_000_000_000) == {(unique, 0): 4}


def test_records_of_an_open_or_aborted_transaction_are_not_read(log, source, transactional, unique):
    log.create_topic(unique, 1, {})
    transactional.begin_transaction()
    transactional.produce(unique, b"open", partition=0)
    assert transactional.flush(10) == 0
    assert source.bounds(unique, 0) == (0, 0)
    reader = source.read(unique, 0, 0)
    assert [reader.poll(0.5) for _ in range(5)] == [None] * 5
    transactional.abort_transaction(30)
    transactional.begin_transaction()
    transactional.produce(unique, b"committed", partition=0)
    transactional.commit_transaction(30)
    assert reader.poll(20.0).value == b"committed"
    assert source.record_at(unique, 0, 0).value == b"committed"
    reader.close()


def test_a_time_before_what_is_left_is_the_first_that_is_left_while_deleted_segments_still_lie_on_disk(
    broker, log, source, unique
):
    log.create_topic(unique, 1, {"segment.bytes": "1048576", "message.timestamp.type": "LogAppendTime"})
    with log.sink() as sink:
        for number in range(4):  # a segment each
            sink.append(unique, 0, key=b"%d" % number, value=bytes(600_000))
            sink.flush()
    stamps = [source.record_at(unique, 0, offset).timestamp_ms for offset in range(4)]
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    for done in admin.delete_records([TopicPartition(unique, 0, 2)]).values():
        done.result(10)
    # Now the broker answers "after everything" for the first of these times.
    found = [source.offsets_at_time([(unique, 0)], ms) for ms in (0, stamps[0], stamps[3], stamps[3] + 1)]
    assert found == [{(unique, 0): offset} for offset in (2, 2, 3, 4)]


def test_null_keys_and_null_headers_of_other_programs_are_read(broker, log, source, unique):
    log.create_topic(unique, 1, {})
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
    producer.produce(unique, b"v", partition=0, headers=[("a", None), ("b", "text")])
    producer.flush(10)
    record = source.record_at(unique, 0, 0)
    assert (record.key, record.headers) == (None, (("a", b""), ("b", b"text")))


def test_look_ups_may_come_from_many_threads(log, source, unique):
    log.create_topic(unique, 2, {})
    with log.sink() as sink:
        for number in range(40):
            sink.append(unique, number % 2, key=b"k", value=b"%d" % number)
        sink.flush()

    def look(number):
        source.bounds(unique, number % 2)
        return int(source.record_at(unique, number % 2, number // 2).value)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look, range(40))) == list(range(40))


FINDER, READER = 1, 1000


@pytest.fixture
def clients(monkeypatch):
    """Return the clients that sources and readers open from now on, each by how many records it reads ahead."""
    opened = []

    def open_client(kind, settings):
        opened.append(settings["queued.min.messages"])
        return real(kind, settings)

    real = module.open_client
    monkeypatch.setattr(module, "open_client", open_client)
    return opened


def test_a_stream_takes_a_client_for_the_manifest_one_a_lane_and_two_for_look_ups(broker, log, unique, clients):
    manifest = make_manifest(unique, lanes=2, taps=("layer3",))
    publish(log, manifest)
    clients.clear()
    with FeatureStream(unique, start="0", bootstrap_servers=broker.bootstrap_servers) as stream:
        assert clients == [FINDER, READER]
        batches = iter(stream)
        next(batches)
        assert clients == [FINDER, READER, FINDER, READER]
        next(batches)
    assert clients == [FINDER, READER, FINDER, READER, READER]


@pytest.fixture
def losable(monkeypatch):
    """Return the clients that sources and readers open from now on.

    One whose ``lost`` is set hears nothing more; ``first_s`` of the class is how long each of them hears nothing.
    """
    opened = []

    class Losable(Consumer):
        lost = False
        first_s = 0.0

        def __init__(self, settings, **others):
            super().__init__(settings, **others)
            self.hears_at, self.held = time.monotonic() + self.first_s, []
            opened.append(self)

        def poll(self, timeout):
            message = super().poll(timeout)
            if message is not None:
                self.held.append(message)
            silent = self.lost or time.monotonic() < self.hears_at
            return self.held.pop(0) if self.held and not silent else None

        def offsets_for_times(self, places, timeout):
            if self.lost:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            return super().offsets_for_times(places, timeout=timeout)

    monkeypatch.setattr(module, "Consumer", Losable)
    for name, seconds in (("PROBE_S", 0.1), ("PAUSE_S", 0.1), ("LOST_S", 0.3)):
        monkeypatch.setattr(module, name, seconds)
    return opened


def test_readers_and_look_ups_whose_clients_are_lost_take_others_and_miss_nothing(broker, log, unique, losable):
    log.create_topic(unique, 1, {})
    with KafkaSource(broker) as source, log.sink() as sink:
        reader = source.read(unique, 0, 0)
        sink.append(unique, 0, key=b"k", value=b"0")
        assert poll_for(reader, 10.0).value == b"0"
        for client in losable:
            client.lost = True
        sink.append(unique, 0, key=b"k", value=b"1")
        assert poll_for(reader, 20.0).value == b"1"
        finder, first, *others = losable
        assert [client.lost for client in (finder, first, *others)] == [True, True, False, False]
        assert source.bounds(unique, 0) == (0, 2)
        reader.close()


def test_a_client_that_is_only_slow_is_given_longer_each_time_until_it_has_its_records(broker, log, unique, losable):
    log.create_topic(unique, 1, {})
    with KafkaSource(broker) as source, log.sink() as sink:
        sink.append(unique, 0, key=b"k", value=b"0")
        type(losable[0]).first_s = 1.5  # five times as long as the first is given
        reader = source.read(unique, 0, 0)
        assert poll_for(reader, 20.0).value == b"0"
        clients = len(losable)
        assert clients > 2
        losable[-1].hears_at = time.monotonic() + 1.0  # and it stays slow: the reader has learned that
        sink.append(unique, 0, key=b"k", value=b"1")
        assert poll_for(reader, 20.0).value == b"1"
        assert len(losable) == clients
        reader.close()


def test_a_client_that_is_not_lost_is_kept(broker, log, unique, losable):
    log.create_topic(unique, 1, {})
    with KafkaSource(broker) as source:
        reader = source.read(unique, 0, 0)
        assert poll_for(reader, 2.0) is None
        assert len(losable) == 2
        reader.close()


def test_a_lane_that_is_known_and_gone_all_the_same_is_named_by_its_reader(broker, log, unique):
    log.create_topic(unique, 1, {})
    with KafkaSource(broker, stall_s=0.5, known={(unique, 7)}) as source:
        reader = source.read(unique, 7, 0)
        with pytest.raises(StreamNotFoundError, match=f'"{unique}" with a lane 7'):
            SourceContract.poll_for(reader, 60.0)
        reader.close()


def test_a_log_knows_nothing_of_a_topic_that_it_has_deleted(log, unique):
    log.create_topic(unique, 1, {})
    with log.source() as source:
        source.bounds(unique, 0)
    log.delete_topics([unique])
    with log.source() as source, pytest.raises(StreamNotFoundError, match=f'"{unique}" with a lane 0'):
        source.read(unique, 0, 0)


def test_a_closed_source_answers_no_more(log, unique):
    log.create_topic(unique, 1, {})
    source = log.source()
    source.close()
    for use in (
        lambda: source.bounds(unique, 0),
        lambda: source.record_at(unique, 0, 0),
        lambda: source.offsets_at_time([(unique, 0)], 0),
        lambda: source.read(unique, 0, 0),
    ):
        with pytest.raises(UsageError, match="source is closed"):
            use()


def test_a_topic_is_created_with_the_settings_given_and_one_broker_has_one_replica(broker, log, unique):
    from confluent_kafka import TopicCollection
    from confluent_kafka.admin import ConfigResource, ResourceType

    log.create_topic(unique, 2, {"retention.ms": "123456", "message.timestamp.type": "LogAppendTime"})
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    resource = ConfigResource(ResourceType.TOPIC, unique)
    settings = admin.describe_configs([resource])[resource].result(10)
    assert settings["retention.ms"].value == "123456"
    assert settings["message.timestamp.type"].value == "LogAppendTime"
    assert settings["min.insync.replicas"].value == "1"
    described = admin.describe_topics(TopicCollection([unique]))[unique].result(10)
    assert [len(lane.replicas) for lane in described.partitions] == [1, 1]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("no-such-setting", {"retention.bananas": "1"}, "retention.bananas"),
        ("bad-value", {"retention.ms": "soon"}, "soon"),
        ("bad name?", {}, "bad name"),
    ],
)
def test_a_topic_that_kafka_does_not_create_is_the_callers_mistake(log, name, settings, said):
    with pytest.raises(UsageError, match=rf'cannot create the topic ".*{said}'):
        log.create_topic(name, 1, settings)
    assert name not in log.topics()

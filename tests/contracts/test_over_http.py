"""What is read through a gateway is read as on the log behind it: the suites of the ports run on both kinds of log."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from featurestream.errors import GoneError
from featurestream.kafka import KafkaLog
from featurestream.memory import MemoryLog
from featurestream.names import tap_topic
from featurestream.stream import FeatureStream
from tests.contracts.log_contract import SETTINGS
from tests.contracts.over_http import OverHttp
from tests.contracts.source_contract import SourceContract
from tests.contracts.stream_contract import StreamContract, indices
from tests.gateway.serving import serving
from tests.support import create, make_manifest, publish


class OnMemory:
    @pytest.fixture(scope="class")
    @classmethod
    def direct(cls):
        return MemoryLog()

    @pytest.fixture(scope="class")
    @classmethod
    def log(cls, direct):
        with serving(direct) as served:
            yield OverHttp(direct, served.url)

    @pytest.fixture
    def name(self, unique):
        return unique

    @pytest.fixture
    def delete_before(self, direct):
        return direct.delete_before


class OnKafka:
    @pytest.fixture(scope="class")
    @classmethod
    def direct(cls, broker):
        with KafkaLog(broker) as log:
            yield log

    @pytest.fixture(scope="class")
    @classmethod
    def log(cls, direct):
        with serving(direct) as served:
            yield OverHttp(direct, served.url)

    @pytest.fixture
    def name(self, unique):
        return unique

    @pytest.fixture
    def delete_before(self, broker):
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})

        def delete_before(topic, lane, offset):
            for done in admin.delete_records([TopicPartition(topic, lane, offset)]).values():
                done.result(timeout=10)

        return delete_before


class LanesOfAStream(SourceContract):
    @pytest.fixture
    def topic(self, log, name):
        """A topic of three lanes beside those of a stream: a gateway shows no others."""
        create(log, make_manifest(name, lanes=1, taps=("layer3",)))
        log.create_topic(tap_topic(name, "other"), 3, SETTINGS)
        return tap_topic(name, "other")


class TestSourceOverHttpOnMemory(OnMemory, LanesOfAStream):
    def test_topics_of_other_programs_are_not_shown(self, log, direct, name, topic):
        direct.create_topic("else", 1, {})
        direct.create_topic("else.thing", 1, {})
        shown = log.topics()
        assert {shown[f"{name}.{tap}"] for tap in ("layer3", "manifest")} == {1}
        assert shown[topic] == 3
        assert not {"else", "else.thing"} & set(shown)
        source = log.source()
        with pytest.raises(Exception, match='there is no stream "else"'):
            source.bounds("else.thing", 0)
        with pytest.raises(Exception, match='no topic "else" with a lane 0'):
            source.bounds("else", 0)
        source.close()


@pytest.mark.broker
class TestSourceOverHttpOnKafka(OnKafka, LanesOfAStream):
    pass


class TestStreamOverHttpOnMemory(OnMemory, StreamContract):
    def test_a_range_that_retention_took_is_an_error_that_says_what_is_left(self, log, name, delete_before):
        publish(log, make_manifest(name))
        delete_before(tap_topic(name, "layer3"), 0, 1)
        with pytest.raises(GoneError, match=r"batch 0 is gone.*begins at batch:1") as error:
            FeatureStream(name, "layer3", log=log, start="batch:0")
        assert error.value.first_left == 1
        assert indices(self.read(log, name, "layer3", start="earliest"))[:2] == [4, 5]


@pytest.mark.broker
class TestStreamOverHttpOnKafka(OnKafka, StreamContract):
    pass

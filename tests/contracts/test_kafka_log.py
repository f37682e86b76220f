"""The log on a real broker keeps the contract of the ports."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from featurestream.kafka import KafkaLog
from tests.contracts.log_contract import SETTINGS, LogContract
from tests.contracts.sink_contract import SinkContract
from tests.contracts.source_contract import SourceContract

pytestmark = pytest.mark.broker


class OnKafka:
    @pytest.fixture
    def log(self, broker):
        with KafkaLog(broker) as log:
            yield log

    @pytest.fixture
    def topic(self, log, unique):
        log.create_topic(unique, 3, SETTINGS)
        return unique

    @pytest.fixture
    def delete_before(self, broker):
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})

        def delete_before(topic, lane, offset):
            for done in admin.delete_records([TopicPartition(topic, lane, offset)]).values():
                done.result(timeout=10)

        return delete_before


class TestKafkaSink(OnKafka, SinkContract):
    pass


class TestKafkaSource(OnKafka, SourceContract):
    pass


class TestKafkaLog(OnKafka, LogContract):
    @pytest.fixture
    def name(self, unique):
        return unique

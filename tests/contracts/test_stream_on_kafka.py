"""FeatureStream's contract on a real broker."""

from __future__ import annotations

import pytest

from featurestream.kafka import KafkaLog
from featurestream.stream import FeatureStream
from tests.contracts.stream_contract import WHOLE, StreamContract, indices
from tests.support import make_manifest, publish

pytestmark = pytest.mark.broker


class TestStreamOnKafka(StreamContract):
    @pytest.fixture
    def log(self, broker):
        with KafkaLog(broker) as log:
            yield log

    @pytest.fixture
    def name(self, unique):
        return unique

    def test_the_address_is_all_that_a_reader_needs(self, log, name, broker):
        publish(log, make_manifest(name))
        assert indices(list(FeatureStream(name, "layer3", bootstrap_servers=broker.bootstrap_servers))) == WHOLE

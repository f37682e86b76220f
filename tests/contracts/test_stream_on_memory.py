"""FeatureStream's contract on the in-process log."""

from __future__ import annotations

import pytest

from featurestream.errors import GoneError
from featurestream.memory import MemoryLog
from featurestream.names import tap_topic
from featurestream.stream import FeatureStream
from tests.contracts.stream_contract import StreamContract, indices
from tests.support import make_manifest, publish


class TestStreamOnMemory(StreamContract):
    @pytest.fixture
    def log(self):
        return MemoryLog()

    @pytest.fixture
    def name(self):
        return "toy"

    def test_a_range_that_retention_took_is_an_error_that_says_what_is_left(self, log, name):
        publish(log, make_manifest(name))
        log.delete_before(tap_topic(name, "layer3"), 0, 1)
        with pytest.raises(GoneError, match=r"batch 0 is gone.*begins at batch:1") as error:
            FeatureStream(name, "layer3", log=log, start="batch:0")
        assert error.value.first_left == 1
        assert indices(self.read(log, name, "layer3", start="earliest"))[:2] == [4, 5]

    def test_a_reader_that_retention_overtakes_stops_with_what_is_left(self, log, name):
        publish(log, make_manifest(name, lanes=1))
        stream = iter(FeatureStream(name, "layer3", log=log))
        next(stream)
        log.delete_before(tap_topic(name, "layer3"), 0, 4)
        with pytest.raises(GoneError, match=r"batch 1 .* before it was read.*begins at batch:4"):
            list(stream)

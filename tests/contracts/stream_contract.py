"""What a FeatureStream promises on any log: one suite, run on the in-process log and on a real broker."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
import pytest

from featurestream.batch import FeatureBatch
from featurestream.errors import (
    FingerprintError,
    HoleError,
    RecordError,
    StreamNotFoundError,
    UnknownNameError,
    UsageError,
)
from featurestream.names import record_key, tap_topic
from featurestream.ports import Log
from featurestream.position import Position
from featurestream.stream import FeatureStream
from featurestream.wire import encode, headers_of
from tests.support import append, create, make_batch_record, make_manifest, publish


def indices(batches: Sequence[FeatureBatch]) -> list[int]:
    return [int(index) for batch in batches for index in batch.indices]


WHOLE = [*range(10), 9, *range(9)]  # the toy stream: two passes of ten samples, the second rotated by one


class StreamContract:
    """Subclasses give a log and a stream name that nobody used before."""

    @pytest.fixture
    def log(self) -> Log:
        raise NotImplementedError

    @pytest.fixture
    def name(self) -> str:
        raise NotImplementedError

    def read(self, log, name, taps=None, **options) -> list[FeatureBatch]:
        with FeatureStream(name, taps, log=log, **options) as stream:
            return list(stream)

    def test_every_row_comes_once_in_batch_order_whatever_the_lanes(self, log, name):
        for lanes in (1, 3):
            publish(log, make_manifest(f"{name}-{lanes}", lanes=lanes))
            assert indices(self.read(log, f"{name}-{lanes}")) == WHOLE

    def test_several_taps_are_joined_by_batch(self, log, name):
        publish(log, make_manifest(name))
        for batch in self.read(log, name, ["avgpool", "layer3"]):
            assert list(batch.taps) == ["avgpool", "layer3"]
            assert np.array_equal(batch.numpy("avgpool")[:, :2], batch.numpy("layer3"))

    def test_two_readers_of_one_range_get_the_same_bytes(self, log, name):
        publish(log, make_manifest(name, lanes=3))
        one, other = (self.read(log, name, start="batch:1", stop="batch:5") for _ in range(2))
        assert [batch.tap("layer3").payload.tobytes() for batch in one] == [
            batch.tap("layer3").payload.tobytes() for batch in other
        ]
        assert [batch.position.batch for batch in one] == [1, 2, 3, 4]

    def test_start_and_stop_points_choose_the_range(self, log, name):
        publish(log, make_manifest(name))
        assert indices(self.read(log, name, "layer3", start="pass:1")) == WHOLE[10:]
        assert indices(self.read(log, name, "layer3", stop="pass:1")) == WHOLE[:10]
        assert indices(self.read(log, name, "layer3", start="offset:1", stop="offset:2")) == [8, 9, 9, 0, 1, 2]
        assert indices(self.read(log, name, "layer3", start=Position(1, 2), stop="batch:2")) == [6, 7]

    def test_a_time_splits_a_stream_with_nothing_lost_and_nothing_twice(self, log, name):
        manifest = make_manifest(name, lanes=3)
        create(log, manifest)
        append(log, manifest, [0, 1, 2, 3])
        source = log.source()
        ends = [(tap_topic(name, tap), lane) for tap in ("layer3", "avgpool") for lane in range(3)]
        last = max(source.record_at(*end, source.bounds(*end).high - 1).timestamp_ms for end in ends)
        while time.time() * 1000 <= last + 1:  # the log's clock must have moved on before the next record
            pass
        middle = (last + 1) / 1000
        append(log, manifest, [4, 5])
        assert indices(self.read(log, name, "layer3", stop=middle)) == WHOLE[:14]
        assert indices(self.read(log, name, "layer3", start=middle)) == WHOLE[14:]
        source.close()

    def test_regrouped_batches_resume_at_the_row(self, log, name):
        publish(log, make_manifest(name, lanes=3))
        whole = self.read(log, name, batch_size=3)  # begins inside a record, and ends with a short one
        assert indices(whole) == WHOLE
        for stopped_after in range(len(whole)):
            with FeatureStream(name, log=log, batch_size=3) as stream:
                for _, _batch in zip(range(stopped_after), stream, strict=False):
                    pass
                state = json.loads(json.dumps(stream.state_dict()))
            with FeatureStream(name, log=log, batch_size=3) as resumed:
                resumed.load_state_dict(state)
                rest = list(resumed)
            assert indices(whole[:stopped_after]) + indices(rest) == WHOLE
            assert [len(batch) for batch in rest] == [len(batch) for batch in whole[stopped_after:]]

    def test_iterating_again_goes_on_and_rewind_goes_back(self, log, name):
        publish(log, make_manifest(name))
        with FeatureStream(name, "layer3", log=log) as stream:
            first = next(iter(stream))
            assert indices([first]) + indices(list(stream)) == WHOLE
            assert list(stream) == []
            stream.rewind()
            assert indices(list(stream)) == WHOLE

    def test_shards_taken_in_turn_are_the_whole(self, log, name):
        publish(log, make_manifest(name, lanes=4))
        for count in (2, 3):
            shards = [self.read(log, name, start="batch:1", shard=(index, count)) for index in range(count)]
            taken = [shards[n % count][n // count] for n in range(5)]
            assert [batch.position.batch for batch in taken] == [1, 2, 3, 4, 5]

    def test_duplicates_are_dropped_and_counted(self, log, name):
        manifest = make_manifest(name)
        create(log, manifest)
        append(log, manifest, [0, 1, 2, 0, 2, 3, 4, 5, 3])
        with FeatureStream(name, "layer3", log=log) as stream:
            assert indices(list(stream)) == WHOLE
            assert stream.duplicates == 2, "the last record of lane 1 lies beyond the stop and is never read"

    def test_a_hole_is_an_error_that_names_the_batch(self, log, name):
        manifest = make_manifest(name)
        create(log, manifest)
        append(log, manifest, [0, 1, 3, 4, 5])
        stream = FeatureStream(name, "layer3", log=log)
        with pytest.raises(HoleError, match="batch 2 is missing") as error:
            list(stream)
        assert error.value.batch == 2
        assert error.value.exit_code == 4

    def test_a_record_of_another_fingerprint_is_refused(self, log, name):
        manifest = make_manifest(name)
        create(log, manifest)
        append(log, make_manifest(name, seed=1), [0])
        with FeatureStream(name, "layer3", log=log) as stream, pytest.raises(FingerprintError, match="offset 0"):
            list(stream)

    def test_a_damaged_record_is_an_error_with_its_place(self, log, name):
        manifest = make_manifest(name, lanes=1)
        create(log, manifest)
        append(log, manifest, [0])
        record = make_batch_record(manifest, 1, "layer3")
        value = bytearray(encode(record))
        value[-1] ^= 1
        sink = log.sink()
        topic = tap_topic(name, "layer3")
        sink.append(topic, 0, key=record_key(0, 1), value=bytes(value), headers=headers_of(record))
        sink.flush()
        sink.close()
        stream = iter(FeatureStream(name, "layer3", log=log))
        assert len(next(stream)) == 4
        with pytest.raises(RecordError, match=rf"{name}\.layer3, lane 0, offset 1.*checksum") as error:
            next(stream)
        assert (error.value.topic, error.value.lane, error.value.offset) == (topic, 0, 1)

    def test_a_reader_waits_for_what_is_not_there_yet_and_says_so(self, log, name):
        manifest = make_manifest(name)
        create(log, manifest)
        append(log, manifest, [0])
        waits = []

        def appended_while_waiting(waited: float) -> None:
            if not waits:
                append(log, manifest, range(1, 6))
            waits.append(waited)

        assert indices(self.read(log, name, "layer3", on_wait=appended_while_waiting)) == WHOLE
        assert waits

    def test_an_endless_stream_is_followed_until_the_stop(self, log, name):
        manifest = make_manifest(name, passes=None)
        create(log, manifest)
        append(log, manifest, range(7))
        assert indices(self.read(log, name, "layer3", stop="latest"))[-4:] == [8, 9, 0, 1]
        with FeatureStream(name, "layer3", log=log) as stream:
            assert stream.stop is None
            with pytest.raises(UsageError, match="endless"):
                stream.read_all()

    def test_a_stream_that_is_not_there_is_named_with_the_nearest(self, log, name):
        publish(log, make_manifest(f"{name}-train"))
        with pytest.raises(StreamNotFoundError, match=f'did you mean "{name}-train"'):
            FeatureStream(f"{name}-tain", log=log)
        with pytest.raises(UnknownNameError, match='did you mean "avgpool"'):
            FeatureStream(f"{name}-train", "avgpol", log=log)

    def test_an_empty_range_is_refused(self, log, name):
        publish(log, make_manifest(name))
        with pytest.raises(UsageError, match="nothing to read"):
            FeatureStream(name, log=log, start="batch:3", stop="batch:3")
        with pytest.raises(UsageError, match="nothing to read"):
            FeatureStream(name, log=log, start="batch:6")

    def test_a_position_of_another_stream_is_refused(self, log, name):
        publish(log, make_manifest(f"{name}-a"))
        publish(log, make_manifest(f"{name}-b", seed=1))
        state = FeatureStream(f"{name}-a", log=log).state_dict()
        with pytest.raises(FingerprintError, match=f"{name}-a"):
            FeatureStream(f"{name}-b", log=log).load_state_dict(state)

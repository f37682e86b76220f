"""What a reader counts of its reading, on a stream of 6 batches in two passes: 20 rows, two taps."""

from __future__ import annotations

import pytest

from featurestream.errors import RecordError
from featurestream.memory import MemoryLog
from featurestream.read_counts import ReadCounts
from featurestream.stream import FeatureStream
from featurestream.wire import encode, headers_of
from tests.support import append, create, make_batch_record, make_manifest, publish

MANIFEST = make_manifest()


def test_batches_rows_and_the_bytes_of_all_taps_records_are_counted_and_duplicates_apart() -> None:
    log = MemoryLog()
    create(log, MANIFEST)
    append(log, MANIFEST, [0, 1, 0, 2, 3, 4, 5], ["avgpool"])
    append(log, MANIFEST, range(6), ["layer3"])
    stream = FeatureStream("toy", log=log)
    assert len(stream.read_all()) == 20
    size = sum(len(encode(make_batch_record(MANIFEST, batch, tap))) for batch in range(6) for tap in stream.taps)
    counts = stream.counts
    assert (counts.batches, counts.rows, counts.bytes, counts.duplicates, counts.refused) == (6, 20, size, 1, 0)


def test_several_readers_may_count_together() -> None:
    log, counts = MemoryLog(), ReadCounts()
    publish(log, MANIFEST)
    for _ in range(2):
        stream = FeatureStream("toy", "avgpool", log=log)
        stream.counts = counts
        stream.read_all()
    assert (counts.batches, counts.rows) == (12, 40)


def test_a_record_that_is_none_of_ours_is_counted_as_refused() -> None:
    log = MemoryLog()
    publish(log, MANIFEST, [0])
    record = make_batch_record(MANIFEST, 1, "avgpool")
    log.sink().append("toy.avgpool", 1, key=b"0/1", value=b"garbage", headers=headers_of(record))
    stream = FeatureStream("toy", "avgpool", log=log)
    with pytest.raises(RecordError):
        stream.read_all()
    assert (stream.counts.batches, stream.counts.refused) == (1, 1)


def test_seconds_of_waiting_are_those_that_the_log_took_to_give_a_record() -> None:
    log = MemoryLog()
    publish(log, MANIFEST, range(5))
    heard: list[float] = []

    def publish_the_rest(waited_s: float) -> None:
        heard.append(waited_s)
        if len(heard) == 1:
            append(log, MANIFEST, [5])

    stream = FeatureStream("toy", "avgpool", log=log, on_wait=publish_the_rest)
    assert len(stream.read_all()) == 20
    assert stream.counts.waited_s >= heard[0] > 0

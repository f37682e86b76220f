"""Where a stream stands on the log, worked out on logs written by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from featurestream.errors import FingerprintError
from featurestream.manifest import Manifest
from featurestream.memory import MemoryLog
from featurestream.names import record_key, tap_topic
from featurestream.record import MissingSample
from featurestream.wire import encode, headers_of
from featurestream_producer.resume import PassSoFar, Tail, find_tail, fresh_tail, passes_so_far
from tests.support import append, create, make_batch_record, make_manifest

# 10 samples in batches of 4: 3 batches a pass; two lanes; taps layer3 (2 numbers) and avgpool (3 numbers).
MANIFEST = make_manifest()


def tail_of(log: MemoryLog, manifest: Manifest = MANIFEST, finished_passes: int = 0) -> Tail:
    return find_tail(log.source(), manifest, finished_passes)


def written(batches: Iterable[int], only: str | None = None) -> MemoryLog:
    log = MemoryLog()
    create(log, MANIFEST)
    append(log, MANIFEST, batches, None if only is None else [only])
    return log


def test_an_empty_stream_lacks_everything() -> None:
    tail = tail_of(written([]))
    assert tail == fresh_tail(MANIFEST)
    assert (tail.first_lacking, tail.untouched) == (0, 0)
    assert list(tail.to_publish([0, 1], 6)) == [0, 1, 2, 3, 4, 5]
    assert tail.lacking(3) == ("layer3", "avgpool")


def test_every_lane_of_every_tap_goes_on_for_itself() -> None:
    """Batches 0, 1, 2 are whole; 3 and 4 are there in layer3 alone; lane 1 of avgpool stands at 1."""
    log = written([0, 1, 2])
    append(log, MANIFEST, [3, 4], ["layer3"])
    tail = tail_of(log)
    assert tail.next_batch == {("layer3", 0): 6, ("layer3", 1): 5, ("avgpool", 0): 4, ("avgpool", 1): 3}
    assert tail.first_lacking == 3
    assert tail.untouched == 5
    assert [tail.lacking(batch) for batch in range(2, 6)] == [(), ("avgpool",), ("avgpool",), ("layer3", "avgpool")]
    assert list(tail.to_publish([0, 1], 6)) == [3, 4, 5]
    assert list(tail.to_publish([0], 6)) == [4]
    assert list(tail.to_publish([1], 6)) == [3, 5]


def test_lanes_that_ran_ahead_leave_gaps_that_are_published_alone() -> None:
    """Two workers, one faster: lane 0 has batches up to 8, lane 1 only batch 1."""
    tail = tail_of(written([0, 2, 4, 6, 8, 1]))
    assert list(tail.to_publish([0, 1], 12)) == [3, 5, 7, 9, 10, 11]
    assert tail.untouched == 9


def test_an_endless_stream_has_always_more_to_publish() -> None:
    batches = tail_of(written([0, 1])).to_publish([1], None)
    assert [next(batches) for _ in range(3)] == [3, 5, 7]


def test_duplicates_at_the_end_do_not_hide_the_greatest_batch() -> None:
    """A zombie appended 2 and 4 again after 6."""
    assert tail_of(written([0, 2, 4, 6, 2, 4])).next_batch["layer3", 0] == 8


def test_a_lane_that_retention_emptied_goes_on_at_the_first_pass_that_is_not_finished() -> None:
    """Pass 0 (batches 0, 1, 2) is finished; lane 0 held 0, 2, 4 and is empty now: it goes on with 4."""
    log = written(range(5))
    for tap in ("layer3", "avgpool"):
        log.delete_before(tap_topic("toy", tap), 0, 3)
    tail = tail_of(log, finished_passes=1)
    assert tail.next_batch["layer3", 0] == 4
    assert tail.next_batch["layer3", 1] == 5
    # Nobody can tell that batch 4 was whole: it is published again, and is no duplicate to any reader.
    assert list(tail.to_publish([0, 1], 6)) == [4, 5]


def test_a_record_of_another_stream_is_refused_by_name() -> None:
    log = written([])
    append(log, make_manifest(seed=1), [0])
    with pytest.raises(FingerprintError, match=r"toy\.layer3, lane 0 has fingerprint"):
        tail_of(log)


def append_with_missing(log: MemoryLog, batch: int, missing: tuple[MissingSample, ...]) -> None:
    """Append a batch of MANIFEST from which the first samples are missing."""
    whole = make_batch_record(MANIFEST, batch, "layer3")
    gone = len(missing)
    for tap in ("layer3", "avgpool"):
        whole = make_batch_record(MANIFEST, batch, tap)
        record = replace(
            whole,
            payload=whole.payload[gone * whole.row_bytes :],
            indices=whole.indices[gone:],
            ids=whole.ids[gone:],
            labels=None if whole.labels is None else whole.labels[gone:],
            missing=missing,
        )
        sink = log.sink()
        sink.append(
            tap_topic("toy", tap),
            MANIFEST.layout.lane_of(batch),
            key=record_key(record.pass_number, batch),
            value=encode(record),
            headers=headers_of(record),
        )


def test_missing_samples_of_what_is_there_are_counted_pass_by_pass() -> None:
    log = written([0])
    append_with_missing(log, 1, (MissingSample(4, "img/4.png", "cut"), MissingSample(5, "img/5.png", "cut")))
    append(log, MANIFEST, [2, 3])
    append_with_missing(log, 4, (MissingSample(3, "img/3.png", "cut"),))
    append(log, MANIFEST, [5], ["layer3"])  # lacking in avgpool: whoever publishes it counts it
    source = log.source()
    so_far = passes_so_far(source, MANIFEST, tail_of(log), 0)
    stamps = {
        batch: source.record_at(tap_topic("toy", "layer3"), batch % 2, batch // 2).timestamp_ms for batch in (0, 3)
    }
    assert so_far == {0: PassSoFar(2, 0, stamps[0]), 1: PassSoFar(1, 0, stamps[3])}
    assert passes_so_far(source, MANIFEST, tail_of(log), 1) == {1: PassSoFar(1, 0, stamps[3])}


def test_batches_that_are_gone_are_counted_as_such() -> None:
    log = written(range(6))
    log.delete_before(tap_topic("toy", "layer3"), 0, 2)  # batches 0 and 2, both of pass 0
    so_far = passes_so_far(log.source(), MANIFEST, tail_of(log), 0)
    assert {number: (one.missing, one.gone) for number, one in so_far.items()} == {0: (0, 2), 1: (0, 0)}

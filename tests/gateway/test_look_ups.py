"""A single batch is looked up: no lane is opened for it, and it is the batch that a reader of the lanes would have."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from featurestream import MemoryLog
from featurestream.errors import UsageError
from featurestream.names import manifest_topic, tap_topic
from featurestream.ports import LaneReader, LogRecord, RecordSource
from featurestream_gateway.catalogue import Catalogue
from featurestream_gateway.look_ups import SOURCES, LookUps
from tests.gateway.serving import npy_rows, serving
from tests.support import append, create, make_manifest, publish

RECORDS = "/v1/streams/toy/records"


class Watched:
    """A log whose open sources are counted, and whose lanes nobody may open where ``lanes`` is false."""

    def __init__(self, log: MemoryLog, *, lanes: bool = True) -> None:
        self.log = log
        self.lanes = lanes
        self.open = 0
        self.most = 0
        self.lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    def source(self) -> RecordSource:
        with self.lock:
            self.open += 1
            self.most = max(self.most, self.open)
        return WatchedSource(self, self.log.source())


class WatchedSource:
    """A source of such a log."""

    def __init__(self, watched: Watched, source: RecordSource) -> None:
        self._watched = watched
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, topic: str, lane: int, offset: int) -> LaneReader:
        if topic.endswith(".avgpool") and not self._watched.lanes:
            raise AssertionError("a lane was opened")
        return self._source.read(topic, lane, offset)

    def close(self) -> None:
        with self._watched.lock:
            self._watched.open -= 1
        self._source.close()


@pytest.mark.parametrize(
    "parameters", [{"begin": "batch:3", "until": "batch:4"}, {"begin": "batch:3", "n": 3}, {"begin": "pass:1", "n": 1}]
)
def test_a_single_batch_opens_no_lane(parameters: dict[str, Any]) -> None:
    log = MemoryLog()
    publish(log, make_manifest("toy", taps=("avgpool",)))
    with serving(Watched(log, lanes=False)) as served:
        found = served.json(RECORDS, **parameters)
    assert [row["index"] for row in found["rows"]] == [9, 0, 1, 2][: parameters.get("n", 4)]


def test_a_batch_that_duplicates_have_pushed_on_is_found() -> None:
    """Lane 0 holds batches 0, 0, 2, 2, 4: batch 2 is not at offset 1 but at 2, and batch 4 not at 2 but at 4."""
    log, manifest = MemoryLog(), make_manifest("toy", taps=("avgpool",))
    create(log, manifest)
    append(log, manifest, [0, 1, 0, 2, 3, 2, 4, 5])
    with serving(log) as served:
        for batch in range(6):
            rows = npy_rows(served.get(RECORDS, begin=f"batch:{batch}", until=f"batch:{batch + 1}", format="npy"))
            assert set(rows["batch"].tolist()) == {batch}
            assert rows["row"].tolist() == list(range((4, 4, 2)[batch % 3]))


def test_a_hole_and_a_batch_that_is_gone_are_what_they_are_for_any_reader() -> None:
    log, manifest = MemoryLog(), make_manifest("toy", taps=("avgpool",), lanes=1)
    create(log, manifest)
    append(log, manifest, [0, 1, 3, 4, 5])
    log.delete_before(tap_topic("toy", "avgpool"), 0, 1)
    with serving(log) as served:
        hole = served.problem(RECORDS, begin="batch:2", until="batch:3")
        assert (hole["status"], hole["batch"]) == (502, 2)
        assert served.problem(RECORDS, begin="batch:0", until="batch:1")["status"] == 410
        assert len(served.json(RECORDS, begin="batch:3", until="batch:4")["rows"]) == 4


def test_a_batch_of_a_stream_that_was_made_anew_is_the_new_ones() -> None:
    log, manifest = MemoryLog(), make_manifest("toy", taps=("avgpool",))
    publish(log, manifest)
    with serving(log) as served:
        assert served.json(RECORDS, begin="batch:1", until="batch:2")["fingerprint"] == manifest.fingerprint
        log.delete_topics([manifest_topic("toy"), tap_topic("toy", "avgpool")])
        anew = publish(log, make_manifest("toy", taps=("avgpool",), seed=1))
        answer = served.get(RECORDS, begin="batch:1", until="batch:2")
        while answer.status_code == 502:  # for a second, its old manifest is still believed
            answer = served.get(RECORDS, begin="batch:1", until="batch:2")
        assert answer.json()["fingerprint"] == anew.fingerprint


def test_connections_for_look_ups_are_few_and_are_closed_with_the_gateway() -> None:
    log = MemoryLog()
    manifest = publish(log, make_manifest("toy", taps=("avgpool",)))
    catalogue, watched = Catalogue(log), Watched(log)
    look_ups = LookUps(watched)
    lanes = catalogue.lanes(manifest, ("avgpool",))
    found: list[tuple[LogRecord, ...]] = []
    threads = [
        threading.Thread(target=lambda: found.append(look_ups.batch(manifest, lanes, ("avgpool",), 2)))
        for _ in range(4 * SOURCES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 * SOURCES
    assert 1 <= watched.most <= SOURCES
    look_ups.close()
    assert watched.open == 0
    catalogue.close()


def test_a_connection_whose_look_up_failed_is_not_used_again() -> None:
    """What the cluster refused once it would refuse again, although somebody may have changed his rights since."""

    class Refusing(Watched):
        def source(self) -> RecordSource:
            source = super().source()
            if self.most == 1 and self.open == 1 and not hasattr(self, "refused"):
                self.refused = True
                source.record_at = self.refuse  # type: ignore[method-assign]
            return source

        def refuse(self, *_: Any) -> LogRecord:
            raise UsageError("no")

    log = MemoryLog()
    manifest = publish(log, make_manifest("toy", taps=("avgpool",)))
    catalogue, watched = Catalogue(log), Refusing(log)
    look_ups = LookUps(watched)
    lanes = catalogue.lanes(manifest, ("avgpool",))
    with pytest.raises(UsageError):
        look_ups.batch(manifest, lanes, ("avgpool",), 0)
    assert watched.open == 0
    assert look_ups.batch(manifest, lanes, ("avgpool",), 0)[0].offset == 0
    look_ups.close()
    catalogue.close()

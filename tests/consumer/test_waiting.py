"""While a reader waits, its user sees that it does, and is told once why."""

from __future__ import annotations

import pytest

from featurestream.manifest import Lease
from featurestream.manifest_topic import ManifestTopic
from featurestream.memory import MemoryLog
from featurestream_consumer.waiting import Waiting
from tests.support import create, make_manifest

AT = "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("lease", "producer"),
    [
        (None, "no producer is running"),
        ({"released": True}, "no producer is running"),
        ({"released": False}, "producer on gpu-7"),
    ],
)
def test_a_wait_stands_on_the_bar_after_a_second_and_is_explained_once_after_ten(lease, producer):
    log = MemoryLog()
    create(log, make_manifest())
    if lease is not None:
        facts = {"producer": "p", "host": "gpu-7", "pid": 1, "process_started": 0.0, "since": AT, "heartbeat": AT}
        with ManifestTopic(log, "toy") as topic:
            topic.write_lease(Lease(**facts, **lease))
    said: list[str] = []
    noted: list[str] = []
    show = Waiting(log, said.append, noted.append).on("toy")
    for seconds in (0.25, 1.0, 9.9, 10.1, 200.4):
        show(seconds)
    line = f"waiting for stream toy to go on ({producer}); Ctrl-C stops and keeps what was learnt"
    assert noted == [f"waiting for the producer, {seconds} s" for seconds in (1, 10, 10, 200)]
    assert said == [line]
    for seconds in (0.25, 11):  # another batch came, and then none again
        show(seconds)
    assert said == [line, line]

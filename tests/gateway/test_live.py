"""Live connections send every batch once, in order, however slow the client and wherever it goes on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from featurestream import MemoryLog
from featurestream.manifest import Manifest
from featurestream.names import tap_topic
from tests.gateway.serving import Served, serving
from tests.support import append, create, make_manifest

LIVE = "/v1/streams/toy/live"


@pytest.fixture
def manifest() -> Manifest:
    """An endless stream: 10 samples, 4 a batch, 2 lanes."""
    return make_manifest("toy", passes=None, taps=("avgpool",))


@pytest.fixture
def log(manifest: Manifest) -> MemoryLog:
    """It has two batches."""
    found = MemoryLog()
    create(found, manifest)
    append(found, manifest, range(2))
    return found


def test_a_batch_is_told_as_soon_as_it_is_complete(log: MemoryLog, manifest: Manifest) -> None:
    with serving(log) as served, served.events(LIVE, begin="batch:1") as events:
        assert facts(next(events)) == ("batch", 1, 0, 4)
        append(log, manifest, [2])
        assert facts(next(events)) == ("batch", 2, 0, 2)
        append(log, manifest, [3, 4])
        assert [facts(one) for one in itertools.islice(events, 2)] == [("batch", 3, 1, 4), ("batch", 4, 1, 4)]


def facts(event: tuple[str, str | None, Any]) -> tuple[str, int, int, int]:
    """Return kind, batch, pass and rows of an event, whose id must be its cursor."""
    kind, cursor, data = event
    assert cursor == data["next"]
    assert data["stream"] == "toy"
    return kind, data["batch"], data["pass"], data["rows"]


def test_it_begins_with_what_comes_next(log: MemoryLog, manifest: Manifest) -> None:
    with serving(log) as served, served.events(LIVE) as events:
        append(log, manifest, [2])
        assert next(events)[2]["batch"] == 2


@pytest.mark.parametrize("how", ["header", "parameter"])
def test_a_client_that_comes_back_misses_nothing(log: MemoryLog, manifest: Manifest, how: str) -> None:
    with serving(log) as served:
        with served.events(LIVE, begin="earliest") as events:
            _, cursor, _ = next(events)
        append(log, manifest, [2, 3])
        assert cursor is not None
        headers = {"last-event-id": cursor} if how == "header" else None
        parameters = {} if how == "header" else {"cursor": cursor}
        with served.events(LIVE, headers=headers, **parameters) as events:
            assert [one[2]["batch"] for one in itertools.islice(events, 3)] == [1, 2, 3]


def test_a_cursor_of_an_event_goes_on_as_an_answer_and_the_other_way_round(served: Served) -> None:
    with served.events("/v1/streams/toy/live", begin="batch:2") as events:
        _, cursor, _ = next(events)
    answer = served.json("/v1/streams/toy/records", cursor=cursor, n=4)
    assert answer["from"] == {"batch": 3, "row": 0}
    with served.events("/v1/streams/toy/live", cursor=answer["next"]) as events:
        assert next(events)[2]["batch"] == 4


@pytest.fixture
def served() -> Any:
    """A gateway on a finite stream of six batches, complete."""
    log, manifest = MemoryLog(), make_manifest("toy")
    create(log, manifest)
    append(log, manifest, range(6))
    with serving(log) as found:
        yield found


def test_the_end_of_a_finite_stream_is_told_and_ends_the_connection(served: Served) -> None:
    with served.events("/v1/streams/toy/live", begin="batch:4") as events:
        assert [(kind, data.get("batch"), data.get("batches")) for kind, _, data in events] == [
            ("batch", 4, None), ("batch", 5, None), ("end", None, 6),
        ]  # fmt: skip


def test_with_features_an_event_is_what_an_answer_with_that_batch_says(served: Served) -> None:
    with served.events("/v1/streams/toy/live", begin="position:3:1", features="true", taps="avgpool") as events:
        kind, _, data = next(events)
    answer = served.json("/v1/streams/toy/records", begin="position:3:1", until="batch:4", taps="avgpool")
    assert kind == "rows"
    assert data | {"more": "never", "next": None} == answer
    assert [row["row"] for row in data["rows"]] == [1, 2, 3]


def test_what_is_deleted_before_a_slow_client_has_it_is_told(log: MemoryLog, manifest: Manifest) -> None:
    with serving(log) as served, served.events(LIVE, begin="batch:2") as events:
        append(log, manifest, [2])
        assert next(events)[2]["batch"] == 2
        append(log, manifest, [3, 4, 5])
        log.delete_before(tap_topic("toy", "avgpool"), 0, 3)
        log.delete_before(tap_topic("toy", "avgpool"), 1, 3)
        *_, (kind, _, data) = events
        assert (kind, data["type"]) == ("problem", "urn:featurestream:problem:gone")


def test_what_is_wrong_is_a_problem_and_no_event(served: Served) -> None:
    assert served.problem("/v1/streams/toy/live", begin="sometime")["status"] == 422
    assert served.problem("/v1/streams/tyo/live")["status"] == 404
    assert served.problem("/v1/streams/toy/live", headers={"last-event-id": "x"})["status"] == 422


def test_the_overview_has_all_streams_with_their_rates(log: MemoryLog, manifest: Manifest) -> None:
    with serving(log) as served, served.events("/v1/live", every=1) as events:
        kind, _, first = next(events)
        assert kind == "overview"
        (stream,) = first["streams"]
        (listed,) = served.json("/v1/streams")["streams"]
        assert stream == listed | {"rows_per_s": None, "bytes_per_s": None}
        append(log, manifest, [2, 3])
        seen = next(data for _, _, data in events if data["streams"][0]["next_batch"] == 4)
        assert seen["streams"][0]["rows_per_s"] > 0
        assert seen["streams"][0]["bytes_per_s"] > 0


def test_when_the_gateway_ends_live_connections_are_told(log: MemoryLog) -> None:
    with serving(log) as served, served.events(LIVE) as events, served.events("/v1/live") as overviews:
        assert next(overviews)[0] == "overview"
        served.end()
        kind, _, data = next(events)
        assert (kind, data["type"]) == ("problem", "urn:featurestream:problem:ending")
        assert [kind for kind, _, _ in overviews][-1] == "problem"

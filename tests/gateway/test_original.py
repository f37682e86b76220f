"""The original's two paths: right, and, where it is asked for, as the original had them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from featurestream import MemoryLog
from featurestream.names import tap_topic
from tests.gateway.serving import Served, npy_rows, serving
from tests.support import append, create, make_manifest

MANIFEST = make_manifest("toy", samples=2, batch_samples=2, lanes=1, passes=None, taps=("avgpool",))


def features(pass_number: int) -> list[list[float]]:
    """Return the rows of one batch, a pass of two samples: feature k of sample i is 1000 p + 10 i + k."""
    order = [0, 1] if pass_number % 2 == 0 else [1, 0]
    return [[1000.0 * pass_number + 10 * index + k for k in range(2)] for index in order]


@pytest.fixture(scope="module")
def arrivals() -> MemoryLog:
    """Four entries, which arrived at 1, 2, 3 and 4 seconds since the epoch."""
    now = [0.0]
    log = MemoryLog(lambda: now[0])
    create(log, MANIFEST)
    for batch in range(4):
        now[0] = batch + 1.0
        append(log, MANIFEST, [batch])
    return log


@pytest.fixture(scope="module")
def served(arrivals: MemoryLog) -> Iterator[Served]:
    with serving(arrivals) as found:
        yield found


def batches_after(served: Served, timestamp: float) -> list[int]:
    rows = served.json("/after", timestamp=timestamp)["rows"]
    return sorted({row["batch"] for row in rows})


@pytest.mark.parametrize(
    ("timestamp", "batches"),
    [(0.5, [0, 1, 2, 3]), (1, [1, 2, 3]), (2.0, [2, 3]), (3.999, [3]), (3.9995, [3]), (4, []), (5, [])],
)
def test_after_is_strictly_after(served: Served, timestamp: float, batches: list[int]) -> None:
    assert batches_after(served, timestamp) == batches


@pytest.mark.parametrize(("timestamp", "batches"), [(0.5, [1, 2, 3]), (2.0, [3]), (3, []), (4, [])])
def test_after_as_the_original_had_it_leaves_the_first_one_out(
    served: Served, timestamp: float, batches: list[int]
) -> None:
    """Arrivals 1, 2, 3, 4: after 0.5 it gave the second to the fourth, after 2.0 the fourth, after 4 none."""
    found = served.json("/after", timestamp=timestamp, compat=1)
    assert found == {"len": 4, "z": [{"avgpool": features(batch)} for batch in batches]}


def test_data_is_the_oldest_batch_and_stays_there(served: Served) -> None:
    first, second = served.json("/data"), served.json("/data")
    assert first == second
    assert [row["features"]["avgpool"] for row in first["rows"]] == features(0)
    assert [(row["label"], row["id"]) for row in first["rows"]] == [(0, "img/0.png"), (1, "img/1.png")]


def test_data_as_the_original_had_it_is_the_length_and_the_first_entry(served: Served) -> None:
    assert served.json("/data", compat=1) == {"len": 4, "z": {"avgpool": features(0)}}


def test_an_empty_queue_is_the_originals_word() -> None:
    log = MemoryLog()
    create(log, MANIFEST)
    with serving(log) as served:
        assert served.json("/data", compat=1) == {"len": 0, "z": "EMPTY"}
        assert served.json("/data")["rows"] == []
        assert served.json("/after", timestamp=0, compat=1) == {"len": 0, "z": []}


def test_what_the_ring_had_forgotten_is_retention_here() -> None:
    """The original answered with what was left; the path that is exact says that something is gone."""
    now = [1.0]
    log = MemoryLog(lambda: now[0])
    create(log, MANIFEST)
    append(log, MANIFEST, range(4))
    log.delete_before(tap_topic("toy", "avgpool"), 0, 2)
    with serving(log) as served:
        assert served.json("/data", compat=1) == {"len": 2, "z": {"avgpool": features(2)}}
        assert served.json("/after", timestamp=0.5, compat=1) == {"len": 2, "z": [{"avgpool": features(3)}]}
        assert served.problem("/after", timestamp=0.5)["first_left"] == 2


def test_both_go_on_by_their_cursor(served: Served) -> None:
    first = served.json("/after", timestamp=1, n=3)
    rest = served.json("/after", cursor=first["next"])
    assert [row["batch"] for row in first["rows"] + rest["rows"]] == [1, 1, 2, 2, 3, 3]
    half = served.get("/data", n=1)
    assert [row["row"] for row in served.client.get(half.links["next"]["url"]).json()["rows"]] == [1]


def test_after_comes_as_numpy_too(served: Served) -> None:
    rows = npy_rows(served.get("/after", timestamp=2, format="npy"))
    assert rows["features"]["avgpool"].tolist() == features(2) + features(3)
    assert rows["appended_ms"].tolist() == [3000, 3000, 4000, 4000]


@pytest.mark.parametrize(
    "parameters",
    [{"compat": 1, "n": 1}, {"compat": 1, "format": "npy"}, {"compat": "maybe"}, {"stream": "toy", "form": "x"}],
)
def test_what_does_not_go_together_is_refused(served: Served, parameters: dict[str, Any]) -> None:
    assert served.problem("/data", **parameters)["status"] == 422


def test_a_cursor_beside_a_timestamp_or_compat_is_refused(served: Served) -> None:
    cursor = served.json("/data", n=1)["next"]
    assert served.problem("/after", cursor=cursor, timestamp=1)["status"] == 422
    assert served.problem("/data", cursor=cursor, compat=1)["status"] == 422


def test_the_originals_form_is_refused_where_it_does_not_fit_in_one_answer(arrivals: MemoryLog) -> None:
    with serving(arrivals, max_rows=3) as served:
        assert served.problem("/after", timestamp=0.5, compat=1)["status"] == 413
        assert len(served.json("/after", timestamp=2, compat=1)["z"]) == 1


def test_without_a_stream_it_is_the_gateways_or_the_only_one(arrivals: MemoryLog, served: Served) -> None:
    assert served.json("/data")["stream"] == "toy"
    other = make_manifest("zoo", lanes=1)
    create(arrivals, other)
    with serving(arrivals) as undecided, serving(arrivals, stream="toy") as decided:
        found = undecided.problem("/data")
        assert (found["status"], "toy, zoo" in found["hint"]) == (422, True)
        assert undecided.json("/data", stream="toy")["stream"] == "toy"
        assert decided.json("/data")["stream"] == "toy"
        assert decided.json("/data", stream="zoo")["rows"] == []

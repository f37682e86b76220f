"""Nothing that clients do makes the gateway hold more than its limits, or wait longer than its times."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from featurestream import MemoryLog
from featurestream.errors import UsageError
from featurestream_gateway.settings import BODY_BYTES, GatewaySettings
from tests.gateway.serving import Served, npy_rows, problem_in, serving
from tests.support import make_manifest, publish

RECORDS = "/v1/streams/toy/records"


def answer_to(connection: Any) -> bytes:
    """Return everything that comes on a connection until it is closed."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


@pytest.fixture
def log() -> MemoryLog:
    """A log with a stream of 20 rows in batches of 4, 4, 2, 4, 4, 2."""
    found = MemoryLog()
    publish(found, make_manifest("toy", taps=("avgpool",)))
    return found


@pytest.fixture(scope="module")
def big() -> MemoryLog:
    """A log with a stream of 20 batches of 4,000 rows: nearly ten megabytes as .npy, more than sockets hold."""
    found = MemoryLog()
    publish(found, make_manifest("toy", samples=16_000, batch_samples=4_000, taps=("layer3",), passes=5))
    return found


@pytest.mark.parametrize("form", ["json", "msgpack", "npy"])
def test_an_answer_ends_where_the_next_row_might_exceed_the_bytes(big: MemoryLog, form: str) -> None:
    """All 12,000 rows of three batches come, in answers of at most a megabyte."""
    with serving(big, max_bytes=2**20) as served:
        found, rows = served.get(RECORDS, format=form, until="batch:3"), 0
        while True:
            assert len(found.content) <= 2**20
            assert int(found.headers["featurestream-rows"]) > 0
            rows += int(found.headers["featurestream-rows"])
            if "next" not in found.links:
                break
            found = served.client.get(found.links["next"]["url"])
    assert rows == 12_000


def test_rows_that_were_asked_for_by_number_are_refused_where_they_do_not_fit(big: MemoryLog) -> None:
    with serving(big, max_bytes=2**20) as served:
        found = served.problem(RECORDS, n=16_000, format="npy")
        assert found["status"] == 413
        rows = found["max_rows"]
        assert len(npy_rows(served.get(RECORDS, n=rows, format="npy"))) == rows
        assert served.problem(RECORDS, n=rows + 1, format="npy")["status"] == 413


def test_a_batch_that_does_not_fit_as_a_whole_is_refused(big: MemoryLog) -> None:
    with serving(big, max_bytes=1000) as served:
        assert served.problem(RECORDS, format="msgpack")["max_rows"] == 0


def test_rows_an_answer_are_bounded(log: MemoryLog) -> None:
    with serving(log, max_rows=7) as served:
        assert len(served.json(RECORDS)["rows"]) == 7
        assert served.problem(RECORDS, n=8)["max_rows"] == 7


def test_who_finds_no_reader_free_is_sent_away_for_a_while(big: MemoryLog) -> None:
    """One connection takes nothing of its answer: the one reader of this gateway is taken."""
    with serving(big, readers=1, turn_s=0.1) as served, served.socket() as greedy:
        greedy.sendall(b"GET /v1/streams/toy/records?format=npy HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_for_gauge(served, "featurestream_gateway_readers", 1)
        answer = served.get(RECORDS, n=1)
        assert problem_in(answer)["status"] == 429
        assert answer.headers["retry-after"] == "5"
        assert served.json("/healthz") == {"status": "ok"}
        greedy.recv(100)


def test_answers_that_do_not_fit_into_the_memory_for_all_wait_and_small_ones_do_not(big: MemoryLog) -> None:
    """One connection takes nothing of its ten megabytes; making another such answer takes all 32 that there are."""
    with serving(big, memory_bytes=32 * 2**20, turn_s=0.2) as served, served.socket() as greedy:
        greedy.sendall(b"GET /v1/streams/toy/records?format=npy HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_for_gauge(served, "featurestream_gateway_readers", 1)
        answer = served.get(RECORDS, format="npy")
        assert problem_in(answer)["status"] == 429
        assert answer.headers["retry-after"] == "5"
        assert "MiB" in problem_in(answer)["detail"]
        assert len(served.json(RECORDS, n=1)["rows"]) == 1
        greedy.close()
        wait_for_gauge(served, "featurestream_gateway_held_bytes", 0)
        assert len(npy_rows(served.get(RECORDS, format="npy"))) == 80_000


def test_a_live_connection_with_features_holds_memory_while_it_lives(big: MemoryLog) -> None:
    """A batch of 4,000 rows may take two megabytes as JSON, and as much again while it is made."""
    path = "/v1/streams/toy/live"
    limits: dict[str, Any] = {"max_bytes": 2 * 2**20, "memory_bytes": 4 * 2**20, "turn_s": 0.2}
    with serving(big, **limits) as served, served.events(path, begin="earliest", features=True) as events:
        assert len(next(events)[2]["rows"]) == 4000
        with served.client.stream("GET", path, params={"from": "earliest", "features": True}) as second:
            assert second.status_code == 429


def test_less_memory_than_making_one_answer_takes_is_refused() -> None:
    with pytest.raises(UsageError, match="may hold 24 MiB, but one of 16 MiB takes twice that"):
        GatewaySettings(memory_bytes=24 * 2**20)
    assert GatewaySettings(max_bytes=2**20).memory == 8 * 2**20


def wait_for_gauge(served: Served, name: str, value: float) -> None:
    """Return when a metric of the gateway has a value."""
    for _ in range(200):
        text = served.get("/metrics").text
        if f"\n{name} {value:.1f}\n" in text:
            return
        threading.Event().wait(0.02)
    raise AssertionError(f"{name} never was {value}")


def test_live_connections_are_bounded(log: MemoryLog) -> None:
    with serving(log, listeners=1) as served, served.events("/v1/live", every=60) as events:
        next(events)
        assert served.problem("/v1/live")["status"] == 429
        assert served.problem("/v1/streams/toy/live")["status"] == 429


def test_a_turn_comes_back_when_its_client_goes(log: MemoryLog) -> None:
    with serving(log, listeners=1, readers=1) as served:
        for _ in range(3):
            with served.events("/v1/live", every=1) as events:
                next(events)
            wait_for_gauge(served, "featurestream_gateway_listeners", 0)
        for _ in range(3):
            served.problem(RECORDS, begin="batch:99")
            served.problem(RECORDS, taps="none")
        wait_for_gauge(served, "featurestream_gateway_readers", 0)


def test_a_client_that_takes_nothing_of_its_answer_is_cut(big: MemoryLog) -> None:
    with serving(big, readers=1, idle_s=0.3) as served, served.socket() as greedy:
        greedy.sendall(b"GET /v1/streams/toy/records?format=npy HTTP/1.1\r\nhost: localhost\r\n\r\n")
        wait_for_gauge(served, "featurestream_gateway_readers", 1)
        wait_for_gauge(served, "featurestream_gateway_readers", 0)
        head, _, body = answer_to(greedy).partition(b"\r\n\r\n")
        length = int(next(line for line in head.split(b"\r\n") if b"content-length" in line).split(b":")[1])
        assert len(body) < length
        wait_for_gauge(served, "featurestream_gateway_connections", 1)
        assert 'status="200"' in served.get("/metrics").text


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nhost: loc",
        b"POST /v1/streams/toy/requests HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /heal",
    ],
    ids=["nothing", "half a head", "half a body", "half a second request"],
)
def test_a_client_that_does_not_finish_its_request_is_cut(log: MemoryLog, half: bytes) -> None:
    with serving(log, idle_s=0.3) as served, served.socket() as slow:
        slow.sendall(half)
        answer = answer_to(slow)
        assert answer.count(b"HTTP/1.1 200 OK") == half.count(b"\r\n\r\nGET")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(log: MemoryLog, chunked: bool) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(BODY_BYTES // 65536 + 1):
            yield b" " * 65536

    with serving(log) as served:
        body: Any = parts() if chunked else b" " * (BODY_BYTES + 1)
        try:
            answer = served.client.post("/v1/streams/toy/requests", content=body)
        except (httpx.WriteError, httpx.ReadError):  # it was answered, and cut, before the body was whole
            return
        assert problem_in(answer)["status"] == 413


def test_clients_that_go_away_in_the_middle_leave_nothing_behind(big: MemoryLog) -> None:
    with serving(big) as served:
        for _ in range(8):
            with served.client.stream("GET", RECORDS, params={"format": "npy"}) as answer:
                next(answer.iter_raw())
        wait_for_gauge(served, "featurestream_gateway_readers", 0)
        assert len(served.json(RECORDS, n=1)["rows"]) == 1


def test_lanes_stay_open_for_the_next_answer_but_not_too_many(log: MemoryLog) -> None:
    for number in range(40):
        publish(log, make_manifest(f"s{number}", taps=("avgpool",), samples=12))
    with serving(log) as served:
        for number in range(40):
            served.json(f"/v1/streams/s{number}/records")
        idle = next(
            float(line.split()[1])
            for line in served.get("/metrics").text.splitlines()
            if line.startswith("featurestream_gateway_idle_lanes ")
        )
    assert 0 < idle <= 32

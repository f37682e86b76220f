"""The log behind a gateway: what is refused, what is asked again, and what never fills memory."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import msgpack
import pytest

from featurestream.errors import (
    BrokerError,
    DataError,
    FeatureStreamError,
    GoneError,
    OutsideError,
    RecordError,
    StreamNotFoundError,
    UsageError,
)
from featurestream.http import HttpLog
from featurestream.http.problems import error_of
from featurestream.http.records import pack_records, unpack_records
from featurestream.memory import MemoryLog
from featurestream.ports import Bounds, LaneReader, LogRecord
from featurestream.stream import FeatureStream
from featurestream_gateway.problems import KINDS, problem
from featurestream_gateway.settings import Token
from tests.contracts.stream_contract import WHOLE, indices
from tests.gateway.serving import serving
from tests.support import make_manifest, publish

RECORD = LogRecord("toy.layer3", 1, 7, 1_700_000_000_000, b"0/7", (("batch", b"7"),), b"value")
LARGE = 100_000


@contextmanager
def answering(answers: Sequence[tuple[int, str, bytes] | None]) -> Iterator[tuple[str, list[str]]]:
    """Answer requests with what is given, in turn and the last for ever; None closes the connection instead."""
    left, asked = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            answer = left.pop(0) if len(left) > 1 else left[0]
            if answer is None:
                self.close_connection = True
                return
            status, media_type, body = answer
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def cutting(address: str, sizes: Iterator[int]) -> Iterator[tuple[str, list[int]]]:
    """Stand between a gateway and its clients, and cut each connection after as many bytes of answers as come next.

    Yields the address to talk to, and where connections were cut so far.
    """
    upstream = urlsplit(address)
    listening = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    cuts: list[int] = []

    def copy(source: socket.socket, target: socket.socket, most: int) -> None:
        left = most
        with suppress(OSError):
            while left > 0 and (data := source.recv(min(left, 4096))):
                target.sendall(data)
                left -= len(data)
        if not left:
            cuts.append(most)
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def pair(client: socket.socket, most: int) -> None:
        with client, socket.create_connection((upstream.hostname or "", upstream.port or 0)) as server:
            asking = threading.Thread(target=copy, args=(client, server, 2**40))
            asking.start()
            copy(server, client, most)
            asking.join()

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=pair, args=(client, next(sizes))))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", cuts
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join()
        for thread in threads:
            thread.join()


def json_answer(value: object, status: int = 200, media_type: str = "application/json") -> tuple[int, str, bytes]:
    return status, media_type, json.dumps(value).encode()


def problem_answer(kind: str, detail: str, **facts: object) -> tuple[int, str, bytes]:
    found = problem(kind, detail, hint="do this", **facts)
    return json_answer(found, found["status"], "application/problem+json")


BOUNDS = json_answer(
    {"stream": "toy", "lanes": [{"tap": "layer3", "lane": lane, "low": 0, "high": 3} for lane in (0, 1)]}
)


def poll_until_it_fails(reader: LaneReader) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        reader.poll(0.1)


# ---- exactness


def test_records_travel_as_they_are() -> None:
    records = [
        RECORD,
        LogRecord("toy.layer3", 1, 8, 0, None, (), None),
        LogRecord("toy.layer3", 1, 9, 5, b"", (("a", b""), ("a", b"\xff")), bytes(70_000)),
    ]
    assert unpack_records("toy.layer3", 1, b"".join(pack_records(records))) == records
    assert msgpack.unpackb(b"".join(pack_records([RECORD]))) == [
        [7, 1_700_000_000_000, b"0/7", [["batch", b"7"]], b"value"]
    ]


def test_connections_that_are_cut_anywhere_cost_no_row_and_double_none() -> None:
    log = MemoryLog()
    publish(log, make_manifest("toy", lanes=3))
    numbers = random.Random(5)
    sizes = (numbers.randrange(1_000, 2_000) for _ in itertools.count())  # in the first answer, or in a later one
    with serving(log) as served, cutting(served.url, sizes) as (url, cuts):
        stream = FeatureStream("toy", log=HttpLog(url, queue_kbytes=1))
        direct = FeatureStream("toy", log=log)
        for got, expected in zip(stream, direct, strict=True):
            assert got.tap("layer3").payload.tobytes() == expected.tap("layer3").payload.tobytes()
            assert got.tap("avgpool").payload.tobytes() == expected.tap("avgpool").payload.tobytes()
        assert stream.duplicates == 0
        stream.close()
        assert len(cuts) >= 3, "so many were cut before they had told all"


def test_a_gateway_that_is_started_again_is_read_on_where_it_stopped() -> None:
    log = MemoryLog()
    publish(log, make_manifest("toy", lanes=1))
    with serving(log) as served:
        url = served.url
        port = urlsplit(url).port
        stream = FeatureStream("toy", "layer3", log=HttpLog(url, queue_kbytes=0))
        rows = iter(stream)
        first = next(rows)
    with serving(log, port=port):
        assert indices([first, *rows]) == WHOLE
        assert stream.duplicates == 0
        stream.close()


def test_an_answer_that_somebody_kept_is_found_out() -> None:
    body = b"".join(pack_records([RECORD]))
    with answering([BOUNDS, (200, "application/msgpack", body)]) as (url, _):
        source = HttpLog(url).source()
        reader = source.read("toy.layer3", 1, 7)
        assert reader.poll(5.0) == RECORD
        with pytest.raises(RecordError, match=r"offset 7 after 7, of toy\.layer3, lane 1"):
            reader.poll(5.0)
        reader.close()
        source.close()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x01", b"\x91\x90", msgpack.packb([["7", 0, None, [], None]])])
def test_bytes_that_are_no_records_are_refused(body: bytes) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        unpack_records("toy.layer3", 0, body)


# ---- memory


def test_a_reader_holds_no_more_than_its_bound_and_loses_nothing() -> None:
    log = MemoryLog()
    publish(log, make_manifest("toy", lanes=1))
    log.create_topic("toy.large", 1, {})
    sink = log.sink()
    for number in range(60):
        sink.append("toy.large", 0, key=b"%d" % number, value=bytes(LARGE))
    with serving(log) as served:
        url = served.url
        source = HttpLog(url, queue_kbytes=500).source()
        reader = source.read("toy.large", 0, 0)
        for number in range(60):
            record = reader.poll(10.0)
            assert record is not None
            assert record.key == b"%d" % number
            assert reader._held <= 500 * 1024 + LARGE
        reader.close()
        source.close()


# ---- what is asked again, and for how long


def test_a_gateway_that_is_busy_or_away_for_a_moment_is_asked_again() -> None:
    refusals = [problem_answer("busy", "all readers are taken"), None, (502, "text/html", b"<html>bad gateway"), BOUNDS]
    with answering(refusals) as (url, asked):
        source = HttpLog(url).source()
        assert source.bounds("toy.layer3", 0) == Bounds(0, 3)
        assert asked == 4 * ["/v1/streams/toy/lanes?taps=layer3"]
        source.close()


def test_where_nobody_answers_it_says_so_after_a_while() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    source = HttpLog(f"http://127.0.0.1:{port}", stall_s=0.2).source()
    with pytest.raises(BrokerError, match=rf"no answer from the gateway at http://127.0.0.1:{port} .*refused") as error:
        source.bounds("toy.layer3", 0)
    assert error.value.exit_code == 3
    assert error.value.hint == "is it running? start one with: featurectl gateway"
    source.close()


def test_a_reader_gives_up_after_its_time_of_waiting_with_the_gateways_own_words() -> None:
    gone = problem_answer("kafka-unavailable", "no answer from Kafka at 127.0.0.1:9092")
    with answering([BOUNDS, gone]) as (url, _):
        source = HttpLog(url, stall_s=0.3).source()
        reader = source.read("toy.layer3", 0, 0)
        with pytest.raises(BrokerError, match=r"no answer from Kafka at 127\.0\.0\.1:9092, for \d s; do this"):
            poll_until_it_fails(reader)
        with pytest.raises(BrokerError, match="no answer from Kafka"):
            reader.poll(0.0)
        reader.close()
        source.close()


# ---- errors


@pytest.mark.parametrize("kind", KINDS)
def test_each_problem_of_the_gateway_is_the_error_that_it_met(kind: str) -> None:
    outside = {
        "gone": GoneError, "stream-not-found": StreamNotFoundError, "data-not-here": DataError,
        "bad-record": OutsideError, "busy": BrokerError, "internal": BrokerError, "kafka-unavailable": BrokerError,
        "ending": BrokerError,
    }  # fmt: skip
    status, media_type, body = problem_answer(kind, "what was wrong", first_left=6, known=["toy"])
    error = error_of("http://gw", status, media_type, body)
    assert type(error) is outside.get(kind, UsageError)
    assert error.message == "what was wrong"
    assert (error.first_left, error.known) == (6, ["toy"])


def test_a_damaged_record_has_its_place_and_an_offset_that_is_gone_its_bounds() -> None:
    place = {"topic": "toy.layer3", "lane": 1, "offset": 7}
    found = error_of("http://gw", *problem_answer("bad-record", "nothing came", **place))
    assert isinstance(found, RecordError)
    assert (found.topic, found.lane, found.offset) == ("toy.layer3", 1, 7)
    gone = error_of("http://gw", *problem_answer("gone", "no record", bounds=[2, 9], **place))
    assert isinstance(gone, GoneError)
    assert gone.bounds == Bounds(2, 9)


@pytest.mark.parametrize(
    ("answer", "family", "message"),
    [
        ((404, "text/html", b"<html>"), UsageError, "answered 404, and is no gateway"),
        ((500, "text/html", b"<html>"), BrokerError, "answered 500, and is no gateway, or what stands before it"),
        ((418, "application/problem+json", b'{"type": "about:blank"}'), UsageError, "answered 418"),
        ((418, "application/problem+json", b"{"), UsageError, "answered 418"),
        ((200, "text/html", b"<html>"), UsageError, "did not answer with JSON"),
    ],
)
def test_a_server_that_is_no_gateway_is_found_out(
    answer: tuple[int, str, bytes], family: type[FeatureStreamError], message: str
) -> None:
    with answering([answer]) as (url, asked), pytest.raises(family, match=message):
        HttpLog(url, stall_s=0.1).topics()
    assert asked == ["/v1/lanes"]


def test_the_token_is_sent_and_a_wrong_one_named_without_showing_it() -> None:
    log = MemoryLog()
    publish(log, make_manifest("toy"))
    with serving(log, token=Token("a-secret-of-the-test")) as served:
        url = served.url
        right = HttpLog(url, token="a-secret-of-the-test")
        assert indices(list(FeatureStream("toy", log=right))) == WHOLE
        assert "secret" not in repr(right)
        for token in (None, "another-secret"):
            with pytest.raises(UsageError, match=r"token") as error:
                FeatureStream("toy", log=HttpLog(url, token=token))
            assert f"HttpLog('{url}', token=...)" in str(error.value)
            assert "another-secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:9999", "ftp://x", "http://", "http://x:port", "http://x:0", "http://x:99999", "http://x/?a=1",
     "http://me:secret@x"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="address"):
        HttpLog(url)


def test_a_token_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(UsageError, match="token"):
        HttpLog("http://x", token="a\r\nX-Other: b")


def test_nothing_is_written_through_a_gateway() -> None:
    log = HttpLog("http://127.0.0.1:1")
    writes = [
        log.sink,
        lambda: log.create_topic("t", 1, {}),
        lambda: log.delete_topics(["t"]),
        lambda: log.settings("t"),
        lambda: log.commit_positions("g", {("t", 0): 1}),
        log.committed_positions,
        lambda: log.committed_notes("g"),
    ]
    for write in writes:
        with pytest.raises(UsageError, match="only reads streams"):
            write()


def test_a_reader_cannot_make_itself_known_and_is_told_what_to_leave_out() -> None:
    log = MemoryLog()
    publish(log, make_manifest("toy"))
    with serving(log) as served:
        url = served.url
        stream = FeatureStream("toy", log=HttpLog(url), reader="E1")
        with pytest.raises(UsageError, match="leave reader= out"):
            next(iter(stream))


def test_a_stream_can_go_to_another_process() -> None:
    log = MemoryLog()
    publish(log, make_manifest("toy"))
    with serving(log) as served:
        url = served.url
        stream = FeatureStream("toy", log=HttpLog(url))
        rows = iter(stream)
        first = next(rows)
        rest = pickle.loads(pickle.dumps(stream))
        assert indices([first, *rest]) == WHOLE
        stream.close()

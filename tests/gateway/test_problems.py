"""What is wrong with a request, a stream or the gateway is a problem with the right status and the next step."""

from __future__ import annotations

from typing import Any

import pytest

from featurestream import MemoryLog, Position
from featurestream.errors import (
    BrokerError,
    DataError,
    FeatureStreamError,
    FingerprintError,
    GoneError,
    HoleError,
    InternalError,
    MissingExtraError,
    RecordError,
    StreamNotFoundError,
    UnknownNameError,
    UsageError,
)
from featurestream.names import manifest_topic, tap_topic
from featurestream_gateway.cursor import Cursor
from featurestream_gateway.problems import problem_of
from featurestream_gateway.programs import Programs
from tests.gateway.serving import Served, problem_in, serving
from tests.support import append, create, make_manifest, publish

RECORDS = "/v1/streams/toy/records"


def kind(found: dict[str, Any]) -> tuple[int, str]:
    return found["status"], found["type"].removeprefix("urn:featurestream:problem:")


def test_an_unknown_stream_is_not_found_and_the_nearest_is_suggested(served: Served) -> None:
    found = served.problem("/v1/streams/tyo/records")
    assert kind(found) == (404, "stream-not-found")
    assert 'did you mean "toy"?' in found["hint"]
    assert found["known"] == ["toy"]


@pytest.mark.parametrize("path", ["", "/manifest", "/passes", "/taps", "/health", "/records", "/live"])
@pytest.mark.parametrize("name", ["nothing", "no%20name", "%00", "x" * 200, "..%2F..", "%F0%9F%92%A9"])
def test_every_path_of_a_stream_that_is_none_is_not_found(served: Served, path: str, name: str) -> None:
    answer = served.get(f"/v1/streams/{name}{path}")
    assert answer.status_code == 404
    problem_in(answer)


@pytest.mark.parametrize("parameter", ["begin", "until"])
@pytest.mark.parametrize(
    "place",
    ["", "yesterday", "batch:", "batch:-1", "batch:1.5", "pass:x", "position:1", "position:1:-1", "position::", "nan",
     "1e400", "9" * 400, "-1y", "2026-13-01", "\u0663"],
)  # fmt: skip
def test_a_place_that_is_none_is_refused_with_the_forms_that_there_are(
    served: Served, parameter: str, place: str
) -> None:
    found = served.problem(RECORDS, **{parameter: place})
    assert kind(found) == (422, "bad-request")
    assert "expected" in found["hint"] or "such as" in found["hint"]


@pytest.mark.parametrize(
    ("begin", "until"), [("batch:2", "batch:2"), ("batch:3", "pass:0"), ("position:1:2", "position:1:1")]
)
def test_a_range_that_ends_before_it_begins_is_refused(served: Served, begin: str, until: str) -> None:
    found = served.problem(RECORDS, begin=begin, until=until)
    assert kind(found) == (422, "bad-request")
    assert "nothing to read" in found["detail"]


def test_a_batch_beyond_the_end_of_a_finite_stream_is_refused(served: Served) -> None:
    assert kind(served.problem(RECORDS, begin="batch:6")) == (422, "bad-request")


@pytest.mark.parametrize(
    "parameters",
    [{"n": 0}, {"n": -1}, {"n": "two"}, {"n": 10**30}, {"wait": 31}, {"wait": "nan"}, {"format": "xml"},
     {"form": "npy"}, {"taps": "avgpol"}, {"taps": "avgpool,avgpool"}, {"taps": "manifest"}],
)  # fmt: skip
def test_a_parameter_that_is_not_what_it_should_be_is_refused(served: Served, parameters: dict[str, Any]) -> None:
    assert kind(served.problem(RECORDS, **parameters)) == (422, "bad-request")


def test_more_rows_than_an_answer_may_have_are_refused_with_how_many_it_may(served: Served) -> None:
    found = served.problem(RECORDS, n=100_001)
    assert kind(found) == (422, "bad-request")
    assert found["max_rows"] == 100_000


@pytest.mark.parametrize("text", ["", "x", "AAAA", "é", "0" * 5000, "=", "k6Fz+/"])
def test_a_text_that_is_no_cursor_is_refused(served: Served, text: str) -> None:
    assert kind(served.problem(RECORDS, cursor=text)) == (422, "bad-request")


def test_a_cursor_that_lost_a_character_is_refused(served: Served) -> None:
    cursor = served.json(RECORDS, n=1)["next"]
    assert kind(served.problem(RECORDS, cursor=cursor[:-1])) == (422, "bad-request")
    assert kind(served.problem(RECORDS, cursor=cursor[1:])) == (422, "bad-request")


def test_a_cursor_beside_a_place_is_refused(served: Served) -> None:
    cursor = served.json(RECORDS, n=1)["next"]
    assert kind(served.problem(RECORDS, cursor=cursor, begin="earliest")) == (422, "bad-request")


def test_a_cursor_of_another_stream_of_other_taps_or_of_one_that_was_made_anew_is_a_conflict(log: MemoryLog) -> None:
    publish(log, make_manifest("second"))
    with serving(log) as served:
        cursor = served.json(RECORDS, n=1)["next"]
        assert kind(served.problem("/v1/streams/second/records", cursor=cursor)) == (409, "other-stream")
        found = served.problem(RECORDS, cursor=cursor, taps="avgpool")
        assert kind(found) == (409, "other-stream")
        assert found["taps"] == ["layer3", "avgpool"]
        old = Cursor("toy", "0" * 32, ("avgpool",), Position(1), None).text()
        assert kind(served.problem(RECORDS, cursor=old)) == (409, "other-stream")


def test_what_retention_has_deleted_is_gone_and_what_is_left_is_named() -> None:
    """Offsets 0 of both lanes, batches 0 and 1, are deleted: what is left begins at batch 2."""
    log, manifest = MemoryLog(), make_manifest("toy", taps=("avgpool",))
    publish(log, manifest)
    for lane in range(2):
        log.delete_before(tap_topic("toy", "avgpool"), lane, 1)
    with serving(log) as served:
        for parameters in ({"begin": "batch:1"}, {"begin": "pass:0"}, {"begin": "2020-01-01"}):
            found = served.problem(RECORDS, **parameters)
            assert kind(found) == (410, "gone")
            assert found["first_left"] == 2
        assert served.json(RECORDS)["from"] == {"batch": 2, "row": 0}


def test_a_hole_and_a_damaged_record_are_a_bad_stream() -> None:
    log, manifest = MemoryLog(), make_manifest("toy", taps=("avgpool",), lanes=1)
    create(log, manifest)
    append(log, manifest, [0, 2, 3])
    with serving(log) as served:
        found = served.problem(RECORDS)
        assert kind(found) == (502, "bad-record")
        assert found["batch"] == 1


def test_a_stream_that_is_made_anew_is_read_anew() -> None:
    log, manifest = MemoryLog(), make_manifest("toy", taps=("avgpool",))
    publish(log, manifest)
    with serving(log) as served:
        assert len(served.json(RECORDS)["rows"]) == 20
        log.delete_topics([manifest_topic("toy"), tap_topic("toy", "avgpool")])
        publish(log, make_manifest("toy", taps=("avgpool",), samples=3, seed=1))
        answer = served.get(RECORDS)
        while answer.status_code == 502:  # for a second, its old manifest is still believed
            assert kind(problem_in(answer)) == (502, "bad-record")
            answer = served.get(RECORDS)
        assert len(answer.json()["rows"]) == 6


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v0", (404, "not-found")),
        ("GET", "/v1", (404, "not-found")),
        ("GET", "/v2/streams", (404, "not-found")),
        ("POST", "/v1/streams", (405, "method-not-allowed")),
        ("DELETE", "/v1/streams/toy", (405, "method-not-allowed")),
        ("GET", "/v1/streams/toy/requests", (405, "method-not-allowed")),
        ("GET", "/v1/experiments/nobody", (404, "experiment-not-found")),
        ("GET", "/v1/streams?x=1", (422, "bad-request")),
        ("GET", "/after", (422, "bad-request")),
        ("GET", "/after?timestamp=now", (422, "bad-request")),
        ("GET", "/after?timestamp=nan", (422, "bad-request")),
        ("GET", "/after?timestamp=-1", (422, "bad-request")),
        ("GET", "/v1/live?every=0", (422, "bad-request")),
        ("GET", "/v1/streams/toy/picture", (422, "bad-request")),
        ("GET", "/v1/streams/toy/picture?batch=-1&row=0", (422, "bad-request")),
    ],
)  # fmt: skip
def test_a_path_a_method_or_a_query_that_there_is_not_is_a_problem(
    served: Served, method: str, path: str, expected: tuple[int, str]
) -> None:
    answer = served.client.request(method, path)
    assert kind(problem_in(answer)) == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"samples": []}', b'{"samples": [-1]}', b'{"samples": [1.5]}', b'{"samples": [true]}',
     b'{"samples": ["x", ""]}', b'{"samples": [1], "more": 1}', b'{"samples": [99]}', b'{"samples": ["img/99.png"]}',
     b"\xff\xfe", b"[" * 20_000],
)  # fmt: skip
def test_a_request_for_samples_that_there_are_not_is_refused(served: Served, body: bytes) -> None:
    answer = served.client.post("/v1/streams/toy/requests", content=body, headers={"content-type": "application/json"})
    assert kind(problem_in(answer)) == (422, "bad-request")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UsageError("x"), (422, "bad-request")),
        (UnknownNameError("tap", "x", ["y"]), (422, "bad-request")),
        (StreamNotFoundError("x"), (404, "stream-not-found")),
        (MissingExtraError("x", "producer"), (501, "not-installed")),
        (BrokerError("x"), (503, "kafka-unavailable")),
        (RecordError("x"), (502, "bad-record")),
        (DataError("x"), (424, "data-not-here")),
        (GoneError("x"), (410, "gone")),
        (HoleError("x"), (502, "bad-record")),
        (FingerprintError("x"), (502, "bad-record")),
        (FeatureStreamError("a secret"), (500, "internal")),
        (InternalError("a secret"), (500, "internal")),
        (ZeroDivisionError("a secret"), (500, "internal")),
    ],
)
def test_every_family_of_errors_has_a_status(error: Exception, expected: tuple[int, str]) -> None:
    found = problem_of(error)
    assert kind(found) == expected
    assert "secret" not in str(found)


def test_a_fact_never_takes_the_place_of_a_problems_own_key() -> None:
    found = problem_of(UsageError("x", hint="y", status=200, title="fine"))
    assert (found["status"], found["title"]) == (422, "The request is not what it should be")


def test_a_bug_is_answered_without_its_words_and_logged(log: MemoryLog, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("a planted bug")

    def refuse(*_: Any) -> Any:
        raise MissingExtraError("a picture", "producer")

    with serving(log, Programs(report=fail, picture=refuse, compare=fail)) as served:
        assert kind(served.problem("/v1/streams/toy/taps")) == (500, "internal")
        assert kind(served.problem("/v1/streams/toy/picture", batch=0, row=0)) == (501, "not-installed")
        assert kind(served.problem("/v1/compare")) == (422, "bad-request")
    assert "a planted bug" in caplog.text


def test_a_kafka_that_does_not_answer_is_unavailable_for_a_while() -> None:
    class Away(MemoryLog):
        def topics(self) -> dict[str, int]:
            raise BrokerError("no answer from Kafka", hint="is it running?")

        def committed_positions(self) -> dict[str, dict[tuple[str, int], int]]:
            raise BrokerError("no answer from Kafka", hint="is it running?")

    with serving(Away()) as served:
        assert served.json("/healthz") == {"status": "ok"}
        for path in ("/readyz", "/v1/streams", "/v1/experiments", RECORDS):
            answer = served.get(path)
            assert kind(problem_in(answer)) == (503, "kafka-unavailable")
            assert answer.headers["retry-after"] == "5"

"""Rows over HTTP are the stream's rows: all of them, once, in order, whatever the format and the size of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from featurestream import FeatureStream, MemoryLog
from featurestream.manifest import Manifest
from featurestream.names import tap_topic
from featurestream.position import Position
from featurestream.wire import decode
from featurestream_gateway.cursor import Cursor, parse_cursor
from featurestream_gateway.formats import Format
from tests.gateway.serving import Served, msgpack_entries, npy_rows, serving
from tests.support import append, create, make_manifest, publish

RECORDS = "/v1/streams/toy/records"

Row = tuple[int, int, int, int, str, int, tuple[float, ...]]  # batch, row, pass, index, id, label, features


def rows_of(answer: httpx.Response, form: Format, tap: str) -> list[Row]:
    """Return the rows of an answer in any format, by what each alone says."""
    if form == "json":
        return [
            (one["batch"], one["row"], one["pass"], one["index"], one["id"], one["label"], tuple(one["features"][tap]))
            for one in answer.json()["rows"]
        ]
    if form == "npy":
        return [
            (*(int(one[name]) for name in ("batch", "row", "pass", "index")), str(one["id"]), int(one["label"]),
             tuple(one["features"][tap].tolist()))
            for one in npy_rows(answer)
        ]  # fmt: skip
    return list(rows_of_records(answer, tap))


def rows_of_records(answer: httpx.Response, tap: str) -> Iterator[Row]:
    """Yield the rows of whole records, without those before the first place and from the second one on."""
    first, until = (tuple(map(int, answer.headers[f"featurestream-{name}"].split(":"))) for name in ("from", "until"))
    for _, value in msgpack_entries(answer):
        record = decode(value)
        if record.tap != tap:
            continue
        for row in range(record.rows):
            if first <= (record.batch, row) < until:
                yield (record.batch, row, record.pass_number, int(record.indices[row]), record.ids[row],
                       int(record.labels[row]), tuple(record.numpy()[row].tolist()))  # fmt: skip


def expected_rows(log: MemoryLog, tap: str) -> list[Row]:
    """Return all rows of the stream as its own reader has them."""
    return [
        (batch.position.batch, row, batch.pass_number, int(batch.indices[row]), batch.ids[row],
         int(batch.labels[row]), tuple(batch.numpy()[row].tolist()))
        for batch in FeatureStream("toy", tap, log=log)
        for row in range(len(batch))
    ]  # fmt: skip


def walk(served: Served, **parameters: Any) -> Iterator[httpx.Response]:
    """Yield answer after answer, each by the cursor of the one before it."""
    kept = {name: parameters[name] for name in ("n", "format") if name in parameters}
    while True:
        answer = served.get(RECORDS, **parameters)
        assert answer.status_code == 200, answer.text
        yield answer
        if answer.headers["featurestream-more"] == "never":
            assert "featurestream-next" not in answer.headers
            return
        parameters = kept | {"cursor": answer.headers["featurestream-next"]}


def test_a_row_has_its_place_its_sample_its_label_its_times_and_its_features(served: Served) -> None:
    """Feature k of sample i in pass p is 1000 p + 10 i + k; pass 1 begins with sample 9, whose label is 9 modulo 3."""
    found = served.json(RECORDS, begin="pass:1", n=1)
    (row,) = found["rows"]
    appended = row.pop("appended_at")
    assert row == {
        "batch": 3, "row": 0, "pass": 1, "index": 9, "id": "img/9.png", "label": 0,
        "extracted_at": "2023-11-14T22:13:20.000+00:00",
        "features": {"layer3": [1090.0, 1091.0], "avgpool": [1090.0, 1091.0, 1092.0]},
    }  # fmt: skip
    assert appended.endswith("+00:00")
    del found["rows"], found["next"]
    assert found == {
        "stream": "toy", "fingerprint": make_manifest("toy").fingerprint, "taps": ["layer3", "avgpool"],
        "from": {"batch": 3, "row": 0}, "until": {"batch": 3, "row": 1}, "missing": [], "more": "now",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["json", "msgpack", "npy"])
@pytest.mark.parametrize("n", [1, 3, 4, 7, None])
def test_the_cursor_continues_exactly(served: Served, log: MemoryLog, form: Format, n: int | None) -> None:
    """20 rows in batches of 4, 4, 2, 4, 4, 2: answers of n rows cut them in every way."""
    chosen: dict[str, Any] = {"format": form} if n is None else {"format": form, "n": n}
    answers = list(walk(served, **chosen, taps="avgpool"))
    assert [row for answer in answers for row in rows_of(answer, form, "avgpool")] == expected_rows(log, "avgpool")
    assert [int(answer.headers["featurestream-rows"]) for answer in answers] == (
        [20] if n is None else [n] * (20 // n) + [20 % n] * (20 % n > 0)
    )


def test_the_formats_may_change_from_one_answer_to_the_next(served: Served, log: MemoryLog) -> None:
    first = served.get(RECORDS, n=3, taps="avgpool", format="npy")
    second = served.get(RECORDS, cursor=first.headers["featurestream-next"], n=3, format="msgpack")
    third = served.get(RECORDS, cursor=second.headers["featurestream-next"])
    found = rows_of(first, "npy", "avgpool") + rows_of(second, "msgpack", "avgpool") + rows_of(third, "json", "avgpool")
    assert found == expected_rows(log, "avgpool")


def test_another_gateway_goes_on_where_one_has_ended(served: Served, log: MemoryLog) -> None:
    first = served.get(RECORDS, n=7, taps="avgpool")
    with serving(log) as other:
        rest = other.get(RECORDS, cursor=first.headers["featurestream-next"])
    assert rows_of(first, "json", "avgpool") + rows_of(rest, "json", "avgpool") == expected_rows(log, "avgpool")


def test_the_link_header_is_the_same_request_for_what_comes_next(served: Served, log: MemoryLog) -> None:
    first = served.get(RECORDS, n=15, taps="avgpool", format="npy")
    rest = served.client.get(first.links["next"]["url"])
    assert rows_of(first, "npy", "avgpool") + rows_of(rest, "npy", "avgpool") == expected_rows(log, "avgpool")
    assert "next" not in rest.links


def test_msgpack_holds_the_records_byte_for_byte_with_their_times(served: Served, log: MemoryLog) -> None:
    source = log.source()
    on_the_log = [
        (record.timestamp_ms, record.value)
        for batch in range(3, 6)
        for tap in ("avgpool", "layer3")
        for record in [source.record_at(tap_topic("toy", tap), batch % 2, batch // 2)]
    ]
    answer = served.get(RECORDS, begin="pass:1", taps="avgpool,layer3", format="msgpack")
    assert msgpack_entries(answer) == on_the_log


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/x-npy", "application/x-npy"),
        ("application/vnd.msgpack;q=0.9, application/json", "application/msgpack"),
        ("text/html, application/json", "application/json"),
        ("*/*", "application/json"),
    ],
)
def test_without_a_format_the_accept_header_chooses(served: Served, accept: str, content_type: str) -> None:
    assert served.get(RECORDS, headers={"accept": accept}).headers["content-type"] == content_type


def test_a_range_by_position_is_those_rows(served: Served) -> None:
    found = served.json(RECORDS, begin="position:0:3", until="position:2:1", taps="avgpool")
    assert [(row["batch"], row["row"]) for row in found["rows"]] == [(0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    assert (found["more"], found["next"]) == ("never", None)


def test_a_row_beyond_its_batch_is_the_next_batchs_first(served: Served) -> None:
    found = served.json(RECORDS, begin="position:2:9", n=1, taps="avgpool")
    assert [(row["batch"], row["row"]) for row in found["rows"]] == [(3, 0)]


def test_taps_come_in_the_order_in_which_they_are_named(served: Served) -> None:
    one = served.get(RECORDS, taps="avgpool,layer3", n=1)
    other = served.client.get(RECORDS, params=[("taps", "avgpool"), ("taps", "layer3"), ("n", "1")])
    assert one.headers["featurestream-taps"] == other.headers["featurestream-taps"] == "avgpool,layer3"
    assert list(one.json()["rows"][0]["features"]) == ["avgpool", "layer3"]


def test_a_time_in_which_nothing_was_published_is_an_empty_range(served: Served) -> None:
    found = served.json(RECORDS, begin="2020-01-01", until="2020-01-02")
    assert (found["rows"], found["more"], found["next"]) == ([], "never", None)


def test_what_is_not_published_yet_comes_later_by_the_cursor() -> None:
    log, manifest = MemoryLog(), make_manifest("toy", passes=None)
    create(log, manifest)
    append(log, manifest, range(2))
    with serving(log) as served:
        first = served.json(RECORDS, taps="avgpool")
        assert (len(first["rows"]), first["more"], first["until"]) == (8, "later", {"batch": 2, "row": 0})
        nothing = served.json(RECORDS, cursor=first["next"])
        assert (nothing["rows"], nothing["more"], nothing["next"]) == ([], "later", first["next"])
        append(log, manifest, [2])
        then = served.json(RECORDS, cursor=nothing["next"], wait=20)
        assert [row["index"] for row in then["rows"]] == [8, 9]


def test_a_batch_that_one_tap_lacks_is_not_complete() -> None:
    log, manifest = MemoryLog(), make_manifest("toy")
    create(log, manifest)
    append(log, manifest, range(3), ["avgpool"])
    append(log, manifest, range(1), ["layer3"])
    with serving(log) as served:
        assert len(served.json(RECORDS)["rows"]) == 4
        assert len(served.json(RECORDS, taps="avgpool")["rows"]) == 10


def test_a_cursor_holds_the_stream_its_fingerprint_the_taps_the_place_and_the_end(
    served: Served, manifest: Manifest
) -> None:
    found = served.json(RECORDS, until="batch:4", n=5, taps="avgpool")
    assert parse_cursor(found["next"]) == Cursor("toy", manifest.fingerprint, ("avgpool",), Position(1, 1), Position(4))


def test_npy_is_one_structured_array_without_pickle(served: Served) -> None:
    rows = npy_rows(served.get(RECORDS, format="npy"))
    assert rows.dtype == np.dtype(
        [
            ("batch", "<i8"), ("row", "<i8"), ("pass", "<i8"), ("index", "<i8"), ("id", "<U9"), ("label", "<i8"),
            ("appended_ms", "<i8"), ("extracted_ms", "<i8"),
            ("features", [("layer3", "<f4", (2,)), ("avgpool", "<f4", (3,))]),
        ]
    )  # fmt: skip
    assert rows["features"]["avgpool"].shape == (20, 3)


def test_streams_whose_batches_are_read_by_turns_do_not_get_into_each_others_way(log: MemoryLog) -> None:
    other = make_manifest("other", samples=7, batch_samples=3, lanes=3)
    publish(log, other)
    with serving(log) as served:
        cursors: dict[str, str | None] = {"toy": None, "other": None}
        found: dict[str, list[int]] = {"toy": [], "other": []}
        for _ in range(7):
            for name, cursor in cursors.items():
                more = {"begin": "earliest"} if cursor is None else {"cursor": cursor}
                answer = served.json(f"/v1/streams/{name}/records", n=2, **more)
                found[name] += [row["index"] for row in answer["rows"]]
                cursors[name] = answer["next"]
    assert found["toy"] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 0, 1, 2]
    assert found["other"] == [0, 1, 2, 3, 4, 5, 6, 6, 0, 1, 2, 3, 4, 5]

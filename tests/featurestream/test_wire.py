"""The wire format: what a record's bytes are, and that nothing is lost or added between two of its readers."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from featurestream.errors import RecordError, UsageError
from featurestream.names import record_key
from featurestream.record import ITEM_BYTES, REASON_BYTES, MissingSample, Record
from featurestream.testing import EXTRACTED_NS, FINGERPRINT, make_record, open_value, same_record, seal
from featurestream.wire import (
    CONTENT_TYPE,
    HEADER_KEYS,
    RECORD_LIMIT,
    Encoder,
    RecordHeaders,
    decode,
    encode,
    headers_of,
    parse_headers,
    record_bytes_bound,
    rows_that_fit,
)

QUICK = settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Draw any record that can be."""
    views = draw(st.integers(1, 3))
    samples = draw(st.integers(0, 4))
    rows = samples * views
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = draw(st.lists(st.integers(1, 3), max_size=3).map(tuple))
    row_bytes = int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[dtype]
    number = st.integers(0, 2**53 - 1)
    text = st.text(max_size=20)
    int64 = st.integers(-(2**63), 2**63 - 1)
    float32 = st.floats(width=32, allow_infinity=False)
    kind = draw(st.sampled_from(["none", "class", "value", "target"]))
    labels: np.ndarray | None = None
    if kind == "class":
        labels = np.array(draw(st.lists(int64, min_size=rows, max_size=rows)), np.int64)
    elif kind == "value" and rows:
        labels = np.array(draw(st.lists(float32, min_size=rows, max_size=rows)), np.float32)
    elif kind == "target" and rows:
        width = draw(st.integers(1, 3))
        flat = draw(st.lists(float32, min_size=rows * width, max_size=rows * width))
        labels = np.array(flat, np.float32).reshape(rows, width)
    later = st.dictionaries(
        st.text(max_size=8).filter(lambda key: key not in (*HEADER_KEYS, "pad", "must_understand")),
        st.none() | st.booleans() | int64 | st.floats(allow_nan=False) | text | st.lists(text, max_size=2),
        max_size=3,
    )
    return Record(
        stream=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}", fullmatch=True)),
        fingerprint=draw(st.from_regex(r"[!-~]{1,64}", fullmatch=True)),
        tap=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True).filter(lambda t: t != "manifest")),
        batch=draw(number),
        pass_number=draw(number),
        views=views,
        dtype=dtype,
        shape=shape,
        payload=np.frombuffer(draw(st.binary(min_size=rows * row_bytes, max_size=rows * row_bytes)), np.uint8),
        indices=np.array(draw(st.lists(number, min_size=rows, max_size=rows)), np.int64),
        ids=tuple(draw(st.lists(text, min_size=rows, max_size=rows))),
        labels=labels,
        missing=tuple(draw(st.lists(st.builds(MissingSample, index=number, id=text, reason=text), max_size=2))),
        extracted_ns=draw(st.integers(0, 2**63 - 1)),
        extra=draw(later),
    )


# ---- the value, written ---------------------------------------------------------------------------------------


def test_a_value_is_laid_out_as_the_module_says() -> None:
    record = make_record(17, pass_number=1)
    value = encode(record)

    array, number, kind, checksum, header_kind, header_bytes = struct.unpack_from(">BBBQBI", value)
    header = value[16 : 16 + header_bytes]
    payload_kind, payload_bytes = struct.unpack_from(">BI", value, 16 + header_bytes)
    payload = value[21 + header_bytes :]
    assert (array, number, kind, header_kind, payload_kind) == (0x94, 1, 0xCF, 0xC6, 0xC6)
    assert payload_bytes == len(payload) == 4 * 8 * 2
    assert payload == record.payload.tobytes()
    assert checksum == xxh3_64_intdigest(header + payload)
    assert list(msgpack.unpackb(header).items())[:-1] == [
        ("stream", "digits-train"),
        ("fingerprint", FINGERPRINT),
        ("tap", "avgpool"),
        ("pass", 1),
        ("batch", 17),
        ("views", 1),
        ("rows", 4),
        ("dtype", "float16"),
        ("shape", [8]),
        ("indices", [68, 69, 70, 71]),
        ("ids", ["class8/00068.png", "class9/00069.png", "class0/00070.png", "class1/00071.png"]),
        ("labels", [8, 9, 0, 1]),
        ("missing", []),
        ("extracted_at", EXTRACTED_NS + 17),
    ]


@pytest.mark.parametrize("length", range(1, 34))
def test_the_payload_starts_at_a_multiple_of_16_whatever_the_header_holds(length: int) -> None:
    value = encode(make_record(tap="t" * length))
    _, pad = list(open_value(value)[0].items())[-1]

    assert (len(value) - 4 * 8 * 2) % 16 == 0
    assert set(pad) <= {" "}
    assert len(pad) < 16


@QUICK
@given(record=records())
def test_a_record_survives_the_wire_whole_and_gives_the_same_bytes_again(record: Record) -> None:
    value = encode(record)
    back = decode(value)

    assert same_record(back, record)
    assert encode(back) == value


def test_a_float32_label_survives_to_the_last_bit() -> None:
    patterns = [0x00000001, 0x807FFFFF, 0x3DCCCCCD, 0x7F7FFFFF, 0x7FC00000, 0x80000000, 0x3F800001, 0x00800000]
    labels = np.array(patterns, np.uint32).view(np.float32)

    back = decode(encode(replace(make_record(rows=8), labels=labels))).labels

    assert back is not None
    assert back.dtype == np.float32
    assert back.view(np.uint32).tolist() == patterns


def test_a_double_of_a_later_writer_keeps_all_its_digits_beside_float32_labels() -> None:
    record = make_record(labels="value", extra={"temperature": 0.1})

    assert decode(encode(record)).extra == {"temperature": 0.1}


def test_an_encoder_writes_every_record_into_one_buffer() -> None:
    encoder = Encoder()
    large = encoder.encode(make_record(0, rows=64)).copy()
    first = encoder.encode(make_record(1))
    first_bytes = first.tobytes()
    second = encoder.encode(make_record(2))

    assert np.shares_memory(first, second)
    assert first_bytes == encode(make_record(1))
    assert second.tobytes() == encode(make_record(2))
    assert large.tobytes() == encode(make_record(0, rows=64))


def test_an_encoder_goes_on_after_a_record_that_it_refused() -> None:
    encoder = Encoder()
    with pytest.raises(UsageError):
        encoder.encode(make_record(0, ids=["a", "b", "c", "\udcff"]))

    assert encoder.encode(make_record(1)).tobytes() == encode(make_record(1))


def test_keys_of_a_later_writer_are_written_in_one_order() -> None:
    assert encode(make_record(extra={"b": 1, "a": 2})) == encode(make_record(extra={"a": 2, "b": 1}))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (make_record(ids=["a", "b", "c", "caf\udce9.png"]), "must be valid Unicode"),
        (make_record(missing=[MissingSample(9, "x.png", "é" * 121)]), "missing sample 9 is longer than 240 bytes"),
        (make_record(extra={"batch": 4}), "'batch' cannot be a key"),
        (make_record(extra={"pad": ""}), "'pad' cannot be a key"),
        (make_record(extra={7: "seven"}), "7 cannot be a key"),  # type: ignore[dict-item]
        (make_record(extra={"when": object()}), "cannot be written"),
        (make_record(extra={"large": 2**64}), "cannot be written"),
        (replace(make_record(), batch=np.int64(3)), "numbers plain int"),
    ],
)
def test_what_a_reader_would_refuse_is_not_written(record: Record, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        encode(record)


def test_the_longest_reason_of_a_missing_sample_is_written() -> None:
    missing = (MissingSample(9, "x.png", "é" * (REASON_BYTES // 2)),)

    assert decode(encode(make_record(missing=missing))).missing == missing


# ---- the value, read ------------------------------------------------------------------------------------------


def test_the_payload_is_a_view_of_the_value() -> None:
    value = encode(make_record())

    payload = decode(value).payload

    assert np.shares_memory(payload, np.frombuffer(value, np.uint8))
    assert payload.__array_interface__["data"][0] % 16 == 0
    assert not payload.flags.writeable


def test_bytes_views_and_arrays_are_read_alike_and_never_become_writable() -> None:
    record = make_record()
    value = encode(record)

    for given_as in (value, memoryview(value), bytearray(value), np.frombuffer(bytearray(value), np.uint8)):
        back = decode(given_as)
        assert same_record(back, record)
        assert not back.payload.flags.writeable


def test_other_buffers_than_bytes_are_a_mistake_of_the_caller() -> None:
    for wrong in (np.zeros(4, np.float32), np.zeros((2, 2), np.uint8), np.zeros(8, np.uint8)[::2]):
        with pytest.raises(UsageError, match="a record's value is bytes"):
            decode(wrong)


def test_a_tombstone_is_no_record() -> None:
    with pytest.raises(RecordError, match="has no value"):
        decode(None)


def _integers(number: int) -> list[bytes]:
    """Return every msgpack form of a number."""
    forms = {b"\xcc": ">B", b"\xcd": ">H", b"\xce": ">I", b"\xcf": ">Q"}
    forms |= {b"\xd0": ">b", b"\xd1": ">h", b"\xd2": ">i", b"\xd3": ">q"}
    found = [bytes([number])] if number < 128 else []
    for tag, form in forms.items():
        try:
            found.append(tag + struct.pack(form, number))
        except struct.error:
            continue
    return found


def _bins(content: bytes) -> list[bytes]:
    """Return every msgpack form of a bin."""
    forms = [(b"\xc4", ">B", 2**8), (b"\xc5", ">H", 2**16), (b"\xc6", ">I", 2**32)]
    return [tag + struct.pack(form, len(content)) + content for tag, form, end in forms if len(content) < end]


def test_every_msgpack_form_of_the_array_and_its_parts_is_read() -> None:
    record = make_record(tap="t")
    _, checksum, header, payload = msgpack.unpackb(encode(record))
    arrays = (b"\x94", b"\xdc\x00\x04", b"\xdd\x00\x00\x00\x04")

    forms = [
        array + number + check + head + body
        for array in arrays
        for number in _integers(1)
        for check in _integers(checksum)
        for head in _bins(header)
        for body in _bins(payload)
    ]

    assert len(forms) >= 3 * 9 * 1 * 2 * 3
    assert all(same_record(decode(form), record) for form in forms)
    assert same_record(decode(msgpack.packb([1, checksum, header, payload])), record)


def test_a_small_checksum_is_read_in_a_short_form() -> None:
    """Other writers pack 64-bit numbers as short as they go."""
    header, payload = open_value(encode(make_record()))
    record = make_record()
    for attempt in range(3000):  # one in 256 checksums has a leading zero byte
        packed = msgpack.packb(header | {"pad": str(attempt)})
        checksum = xxh3_64_intdigest(packed + payload)
        if checksum < 2**56:
            assert same_record(decode(msgpack.packb([1, checksum, packed, payload])), record)
            return
    pytest.fail("no checksum below 2^56 in 3000 attempts")


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_the_payload_of_a_writer_that_does_not_pad_is_copied_into_alignment(dtype: str) -> None:
    record = make_record(dtype=dtype)
    header, payload = open_value(encode(record))
    for pad in range(16):
        back = decode(seal(header | {"pad": "x" * pad}, payload))
        assert same_record(back, record)
        assert back.numpy().flags.aligned
        assert not back.payload.flags.writeable


def test_a_header_without_pad_or_in_another_order_is_read() -> None:
    record = make_record()
    header, payload = open_value(encode(record))
    turned = dict(reversed(header.items()))
    del turned["pad"]

    assert same_record(decode(seal(turned, payload)), record)


def test_doubles_of_another_writer_become_the_nearest_float32() -> None:
    header, payload = open_value(encode(make_record()))

    values = decode(seal(header | {"labels": [0.1, 1.0, -2.5, float("nan")]}, payload)).labels
    targets = decode(seal(header | {"labels": [[0.1], [1.0], [-2.5], [1 / 3]]}, payload)).labels

    assert values is not None
    assert targets is not None
    assert values[:3].tolist() == [np.float32(0.1), 1.0, -2.5]
    assert np.isnan(values[3])
    assert targets.dtype == np.float32
    assert targets.tolist() == [[np.float32(0.1)], [1.0], [-2.5], [np.float32(1 / 3)]]


def test_the_labels_of_a_batch_without_rows_are_no_integers() -> None:
    for kind in ("class", "value", "target"):
        labels = decode(encode(make_record(rows=0, labels=kind))).labels
        assert labels is not None
        assert (labels.dtype, labels.shape) == (np.int64, (0,))
    assert decode(encode(make_record(rows=0, labels="none"))).labels is None


def test_labels_can_be_written_into() -> None:
    for kind in ("class", "value", "target"):
        record = decode(encode(make_record(labels=kind)))
        assert record.labels is not None
        assert record.labels.flags.writeable
        assert record.indices.flags.writeable


def test_unknown_keys_are_kept_and_known_ones_may_be_musts() -> None:
    extra = {"codec": {"name": "none", "level": 3}, "must_understand": ["batch", "labels"]}
    record = make_record(extra=extra)

    assert decode(encode(record)).extra == extra


def test_the_checksum_is_looked_at_before_the_header_and_the_format_before_both() -> None:
    value = bytearray(encode(make_record()))
    value[20] ^= 0xFF  # in the header's first key
    with pytest.raises(RecordError, match="the checksum is"):
        decode(bytes(value))
    value[1] = 2
    with pytest.raises(RecordError, match="has format 2, this featurestream reads format 1; upgrade featurestream"):
        decode(bytes(value))


def test_an_error_takes_the_place_that_the_reader_knows() -> None:
    with pytest.raises(RecordError) as caught:
        decode(b"\x93")

    placed = caught.value.at("digits-train.avgpool", 2, 17)
    assert str(placed).startswith("record at digits-train.avgpool, lane 2, offset 17: the bytes end after 1")
    assert (placed.topic, placed.lane, placed.offset) == ("digits-train.avgpool", 2, 17)


# ---- the record's headers -------------------------------------------------------------------------------------


def test_headers_are_small_texts() -> None:
    assert headers_of(make_record(17, pass_number=2)) == [
        ("content-type", b"application/vnd.featurestream.features+msgpack"),
        ("format", b"1"),
        ("fingerprint", FINGERPRINT.encode()),
        ("pass", b"2"),
        ("batch", b"17"),
        ("rows", b"4"),
    ]


@QUICK
@given(record=records())
def test_headers_say_what_the_value_says(record: Record) -> None:
    found = parse_headers(headers_of(record))

    assert found == RecordHeaders(1, record.fingerprint, record.pass_number, record.batch, record.rows)


def test_headers_that_others_add_are_passed_over() -> None:
    ours = headers_of(make_record(17))
    traced = [("traceparent", b"00-0af7"), *reversed(ours), ("traceparent", b"00-0af8"), ("empty", None)]

    assert parse_headers(traced) == parse_headers(ours)  # type: ignore[arg-type]


def test_no_headers_at_all_are_a_record_error() -> None:
    with pytest.raises(RecordError, match="lacks the headers content-type"):
        parse_headers(None)


# ---- how large a record can get -------------------------------------------------------------------------------


def kafka_bytes(record: Record) -> int:
    """Return what the client (+ 36) or the broker (+ 72), whichever is more, compares with its limit."""
    headers = sum(len(name) + len(text) + 2 for name, text in headers_of(record))
    return len(encode(record)) + len(record_key(record.pass_number, record.batch)) + headers + 72


@QUICK
@given(record=records(), data=st.data())
def test_no_record_exceeds_its_bound(record: Record, data: st.DataObject) -> None:
    """Samples may be missing, ids may need more bytes than they have characters."""
    lost = data.draw(st.integers(0, 3))
    name = data.draw(st.text(max_size=300))
    reason = data.draw(st.text(max_size=REASON_BYTES // 4))
    missing = tuple(MissingSample(2**53 - 1, name, reason) for _ in range(lost))
    record = replace(record, missing=missing, extra={})
    longest = max((len(id_.encode()) for id_ in [*record.ids, name]), default=0)
    label_values = 0 if record.labels is None else (1 if record.labels.ndim == 1 else record.labels.shape[1])
    rows = record.rows + lost * record.views

    bound = record_bytes_bound(record.row_bytes, rows, longest, label_values, views=record.views)

    assert kafka_bytes(record) <= bound


def extreme(rows: int, id_: str, *, labels: str = "class", shape: tuple[int, ...] = (2048,), views: int = 1) -> Record:
    """Return a record whose names, numbers and labels all take the most bytes that they can."""
    record = make_record(
        2**53 // max(rows, 1) - 1, rows=rows, shape=shape, stream="s" * 100, tap="t" * 100, fingerprint="f" * 64,
        pass_number=2**53 - 1, views=views, ids=[id_] * rows, labels=labels,  # type: ignore[arg-type]
    )  # fmt: skip
    worst = np.full(rows, -(2**63), np.int64) if labels == "class" else record.labels
    return replace(record, labels=worst, extracted_ns=2**63 - 1)


@pytest.mark.parametrize(
    ("id_", "labels", "values", "views"),
    [
        ("train/class7/00017.png", "class", 1, 1),
        ("データ/クラス/画像.png" * 20, "class", 1, 1),
        ("x" * 3000, "none", 0, 2),
        ("é.png", "value", 1, 1),
        ("a", "target", 3, 4),
    ],
)
def test_the_most_rows_that_fit_fit_and_waste_little(id_: str, labels: str, values: int, views: int) -> None:
    row_bytes, id_bytes = 2048 * 2, len(id_.encode())

    rows = rows_that_fit(row_bytes, id_bytes, values, views=views)

    assert rows % views == 0
    assert record_bytes_bound(row_bytes, rows, id_bytes, values, views=views) <= RECORD_LIMIT
    assert record_bytes_bound(row_bytes, rows + views, id_bytes, values, views=views) > RECORD_LIMIT
    taken = kafka_bytes(extreme(rows, id_, labels=labels, views=views))
    assert 0.97 * RECORD_LIMIT - views * (row_bytes + id_bytes) < taken <= RECORD_LIMIT < 1_000_000


def test_samples_smaller_than_the_reason_why_they_are_missing_are_allowed_for() -> None:
    """Ten bytes of features against 240 of reason: a batch of which every sample is missing is the larger one."""
    rows = rows_that_fit(10, 5, 1)
    reason = "é" * (REASON_BYTES // 2)
    missing = tuple(MissingSample(2**53 - 1, "a.png", reason) for _ in range(rows))

    assert kafka_bytes(replace(extreme(0, "", shape=(5,)), missing=missing)) <= RECORD_LIMIT


def test_a_sample_that_is_too_large_gives_no_rows() -> None:
    assert rows_that_fit(1_000_000, 20, 1) == 0
    assert rows_that_fit(500_000, 20, 1, views=2) == 0
    assert rows_that_fit(500_000, 20, 1, views=1) == 1
    assert rows_that_fit(500_000, 20, 1, views=2, limit=1_100_000) == 2
    assert rows_that_fit(8, 20, 1, limit=100) == 0


def test_a_resnet_batch_of_pooled_features_is_some_hundred_rows() -> None:
    """2048 float16 numbers are 4096 bytes; id, index and label at most 43 more: 999,000 / 4139 = 241.3."""
    assert rows_that_fit(4096, 20, 1) == 241


# ---- what the module needs ------------------------------------------------------------------------------------


def test_the_wire_format_needs_neither_torch_nor_kafka() -> None:
    code = (
        "import sys, featurestream.wire, featurestream.testing; "
        "print([name for name in ('torch', 'confluent_kafka') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_content_type_is_what_other_languages_were_told() -> None:
    assert CONTENT_TYPE == "application/vnd.featurestream.features+msgpack"

"""Which samples rows are is decoded when it is asked for, and says the same as if it had been decoded at once."""

from __future__ import annotations

import gc
import pickle
import weakref

import msgpack
import numpy as np
import pytest

from featurestream.batch import concatenate
from featurestream.errors import FingerprintError, RecordError
from featurestream.identity import Identity, JoinedIdentity
from featurestream.memory import MemoryLog
from featurestream.names import record_key, tap_topic
from featurestream.stream import FeatureStream
from featurestream.testing import make_record, same_record, seal
from featurestream.wire import decode, encode, headers_of, open_record
from tests.support import create, joined, make_batch_record, make_manifest

MANIFEST = make_manifest(samples=10, batch_samples=4, passes=1)


def opened(batch: int, tap: str = "layer3"):
    return open_record(encode(make_batch_record(MANIFEST, batch, tap)))


def repacked(value: bytes, **changed) -> bytes:
    """Return a record's value with other header fields, under a right checksum."""
    _, _, header, payload = msgpack.unpackb(value)
    return seal({**msgpack.unpackb(header), **changed}, payload)


@pytest.mark.parametrize("labels", ["class", "value", "target", "none"])
def test_an_opened_record_holds_what_a_decoded_one_holds(labels):
    value = encode(make_record(labels=labels))
    assert same_record(open_record(value), decode(value))


@pytest.mark.parametrize(
    ("field", "wrong", "says"),
    [
        ("ids", ["a", "b", 3, "d"], "ids are not all texts"),
        ("indices", [0, 1, True, 3], "indices are not all integers"),
        ("indices", [0, 1, -2, 3], "expected 0 to 2^53 - 1"),
        ("labels", [0, 1.5, 2, 3], "labels are not all integers"),
        ("labels", [0.0, float("inf"), 0.0, 0.0], "infinite"),
    ],
)
def test_a_list_with_a_wrong_item_is_refused_at_once_by_decode_and_with_its_place_when_it_is_asked_for(
    field, wrong, says
):
    value = repacked(encode(make_record()), **{field: wrong})
    with pytest.raises(RecordError, match=says.replace("^", r"\^")):
        decode(value)
    record = open_record(value, ("s.avgpool", 2, 17))
    with pytest.raises(RecordError, match=says.replace("^", r"\^")) as caught:
        getattr(record, field)
    assert (caught.value.topic, caught.value.lane, caught.value.offset) == ("s.avgpool", 2, 17)


@pytest.mark.parametrize("field", ["ids", "indices", "labels"])
def test_a_list_of_another_length_is_refused_before_anything_is_asked_for(field):
    with pytest.raises(RecordError, match=r"3 ids|3 sample indices|3 labels"):
        open_record(repacked(encode(make_record()), **{field: {"ids": ["a"] * 3}.get(field, [1, 2, 3])}))


def test_a_reader_names_the_place_of_a_list_that_holds_what_it_should_not():
    log = MemoryLog()
    create(log, MANIFEST)
    record = make_batch_record(MANIFEST, 0, "layer3")
    sink = log.sink()
    sink.append(
        tap_topic(MANIFEST.stream, "layer3"),
        0,
        key=record_key(0, 0),
        value=repacked(encode(record), labels=["cat", "dog", "cat", "dog"]),
        headers=headers_of(record),
    )
    sink.flush()
    [batch] = FeatureStream(MANIFEST.stream, "layer3", stop="batch:1", log=log)
    assert batch.numpy().shape == (4, 2)
    with pytest.raises(RecordError, match="labels are not all") as caught:
        _ = batch.labels
    assert (caught.value.topic, caught.value.lane, caught.value.offset) == (f"{MANIFEST.stream}.layer3", 0, 0)


def test_rows_cut_out_of_several_batches_are_the_same_samples():
    whole = concatenate([joined(opened(0)), joined(opened(1))])
    some = concatenate([joined(opened(0)).rows(2, 4), joined(opened(1)).rows(0, 3)])
    assert whole.ids[2:7] == some.ids
    assert some.indices.tolist() == [2, 3, 4, 5, 6]
    assert some.labels.tolist() == [2, 0, 1, 2, 0]
    assert len(some) == 5


def test_taps_that_hold_the_same_rows_in_other_bytes_are_joined_and_other_rows_are_refused():
    value = encode(make_batch_record(MANIFEST, 1, "avgpool"))
    _, _, header, payload = msgpack.unpackb(value)
    fields = msgpack.unpackb(header)
    packed = msgpack.Packer()
    wide = b"".join(b"\xd3" + label.to_bytes(8, "big") for label in fields["labels"])  # int64, where one byte would do
    plain = packed.pack({key: item for key, item in fields.items() if key != "labels"})
    other = bytes([plain[0] + 1]) + plain[1:] + packed.pack("labels") + bytes([0x90 + len(fields["labels"])]) + wide
    batch = joined(opened(1), open_record(seal(other, payload)))
    assert batch.labels.tolist() == [1, 2, 0, 1]
    with pytest.raises(FingerprintError, match="batch 1 has other rows at tap avgpool"):
        joined(opened(1), open_record(repacked(value, labels=[1, 2, 0, 0])))


def test_who_the_rows_are_outlives_their_features_without_keeping_them():
    record = opened(0)
    identity, features = record.identity, weakref.ref(record.payload)
    batch = concatenate([joined(record), joined(opened(1))])
    del record
    gc.collect()
    assert features() is None
    assert identity.ids == batch.ids[:4]


def test_an_unopened_batch_can_go_to_another_process():
    batch = joined(opened(1))
    other = pickle.loads(pickle.dumps(batch))
    assert other.ids == batch.ids
    assert other.labels.tolist() == [1, 2, 0, 1]
    assert other.numpy().tolist() == batch.numpy().tolist()


def test_the_labels_of_a_batch_without_rows_have_no_kind_that_others_must_share():
    empty = Identity(np.empty(0, np.int64), (), np.empty(0, np.int64))
    values = Identity(np.array([3]), ("a",), np.array([0.5], np.float32))
    joined = JoinedIdentity([(empty, 0, 0), (values, 0, 1)])
    assert joined.rows == 1
    assert joined.labels.dtype == np.float32
    assert joined.labels.tolist() == [0.5]

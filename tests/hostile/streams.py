"""Streams that are not what they should be: records, manifests and other values that somebody else has written.

The wire's corpus (:mod:`featurestream.testing`) is bytes that are no record. Here are records and values that are well
formed, each with what must become of it: an error of one of these kinds, or a reading that ends well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from featurestream.manifest import Manifest, to_json
from featurestream.memory import MemoryLog
from featurestream.names import manifest_topic, tap_topic
from featurestream.ports import Headers, Log
from featurestream.record import Record
from featurestream.wire import encode, headers_of
from tests.support import append, create, make_batch_record, make_manifest

STREAM: Final = "toy"
TAP: Final = "avgpool"
MANIFEST: Final = make_manifest(STREAM, lanes=1, taps=(TAP,), passes=1, samples=12)


@dataclass(frozen=True)
class HostileRecord:
    """A record in place of a stream's batch 1.

    ``reads``: part of the message of what reading it must raise; None where only training can tell. ``trains``: part of
    what training on it must raise; None where it is as for reading.
    """

    name: str
    value: bytes
    headers: Headers
    reads: str | None
    trains: str | None = None


def good_record() -> Record:
    """Return the batch that belongs there: four rows of two float32 numbers."""
    return make_batch_record(MANIFEST, 1, TAP)


def changed(**fields: Any) -> Record:
    """Return it with other fields."""
    good = good_record()
    names = ("stream", "fingerprint", "tap", "batch", "pass_number", "views", "dtype", "shape", "payload", "indices",
             "ids", "labels", "missing", "extracted_ns")  # fmt: skip
    return Record(**{name: getattr(good, name) for name in names} | fields)


def hostile_records() -> list[HostileRecord]:
    """Return well-formed records that do not fit their stream."""
    headers = headers_of(good_record())

    def numbers(values: Any, dtype: str = "<f4") -> np.ndarray:
        return np.frombuffer(np.asarray(values, dtype).tobytes(), np.uint8)

    def but(name: str, reads: str | None, trains: str | None = None, **fields: Any) -> HostileRecord:
        return HostileRecord(name, encode(changed(**fields)), headers, reads, trains)

    good = good_record()
    nan, inf = float("nan"), float("inf")
    two = {"payload": good.payload[:16], "indices": good.indices[:2], "ids": good.ids[:2], "labels": good.labels[:2]}
    none = {"payload": good.payload[:0], "indices": good.indices[:0], "ids": (), "labels": good.labels[:0]}
    many = {
        "payload": np.tile(good.payload, 3), "indices": np.tile(good.indices, 3), "ids": good.ids * 3,
        "labels": np.tile(good.labels, 3),
    }  # fmt: skip
    later = {"fingerprint": "0" * 32}
    return [
        but("a class beyond the classes", None, "the class number 99", labels=np.array([0, 1, 99, 2])),
        but("a negative class", None, "the class number -7", labels=np.array([0, 1, -7, 2])),
        but("a class of 62 bits", None, f"the class number {2**62}", labels=np.array([0, 1, 2**62, 2])),
        but("no labels", None, "has no labels", labels=None),
        but("values as labels", None, "one class number a row", labels=np.array([0, 1, 0.5, 2], np.float32)),
        but("NaN labels", None, "one class number a row", labels=np.array([0, 1, nan, 2], np.float32)),
        but("targets as labels", None, "one class number a row", labels=np.zeros((4, 3), np.float32)),
        but("NaN features", None, "diverged", payload=numbers(np.full((4, 2), nan))),
        but("infinite features", None, "diverged", payload=numbers(np.full((4, 2), inf))),
        but("another shape", "says shape (3,)", shape=(3,), payload=numbers(np.zeros((4, 3)))),
        but("another shape of as many numbers", "says shape (2, 1)", shape=(2, 1)),
        but("another dtype", "says dtype float16", dtype="float16", payload=numbers(np.zeros((4, 2)), "<f2")),
        but("integers", "says dtype int64", dtype="int64", payload=numbers(np.zeros((4, 2)), "<i8")),
        but("another tap", "its value says batch 1 of tap layer3", tap="layer3"),
        but("another batch", "its value says batch 2", batch=2),
        but("another pass", "says pass 5", pass_number=5),
        but("other views", "says views 2", views=2),
        but("fewer rows", "says samples 2", **two),
        but("no rows", "says samples 0", **none),
        but("more rows", "says samples 12", **many),
        but("another fingerprint in the value", "says fingerprint 000", **later),
        HostileRecord(
            "another fingerprint", encode(changed(**later)), headers_of(changed(**later)), "belongs to fingerprint 000"
        ),
        HostileRecord("a hole", encode(changed(batch=2)), headers_of(changed(batch=2)), "batch 1 is missing"),
        HostileRecord("the last batch there is", encode(good), headers_of(changed(batch=2**53 - 1)), "1 is missing"),
        HostileRecord("JSON of another application", b'{"id": 1}', (("ce_type", b"x"),), "lacks the headers"),
        HostileRecord("headers of ours and a text", b"hello", headers, "expected an array"),
    ]


def stream_with(record: HostileRecord, log: Log | None = None) -> Log:
    """Return a log with the stream whose batch 1 is the hostile record; batches 0 and 2 are good."""
    log = log or MemoryLog()
    create(log, MANIFEST)
    append(log, MANIFEST, [0])
    put(log, tap_topic(STREAM, TAP), b"0/1", record.value, record.headers)
    append(log, MANIFEST, [2])
    return log


def put(log: Log, topic: str, key: bytes, value: bytes | None, headers: Headers = ()) -> None:
    """Append one record to the first lane of a topic."""
    sink = log.sink()
    sink.append(topic, 0, key=key, value=value, headers=headers)
    sink.flush()
    sink.close()


@dataclass(frozen=True)
class HostileValue:
    """A value in a manifest's topic, and part of the message that refuses it; None where it may pass for a manifest."""

    name: str
    key: bytes
    value: bytes
    says: str | None


def hostile_facts() -> list[HostileValue]:
    """Return values of the manifest's topic that are none, or claim what cannot be."""
    text = to_json(MANIFEST).decode()
    good = json.loads(text)

    def but(name: str, says: str | None, change: Callable[[dict[str, Any]], object]) -> HostileValue:
        fields = json.loads(text)
        change(fields)
        return HostileValue(name, b"manifest", json.dumps(fields).encode(), says)

    def raw(name: str, value: bytes, says: str = "not a manifest", key: bytes = b"manifest") -> HostileValue:
        return HostileValue(name, key, value, says)

    def data(fields: dict[str, Any], **changes: Any) -> None:
        fields["data"].update(changes)

    def tap(fields: dict[str, Any], **changes: Any) -> None:
        fields["taps"][0].update(changes)

    no_number = text.replace('"seed":0', '"seed":')
    assert no_number != text
    return [
        raw("no JSON", b"\xff\xfe{}"),
        raw("nothing", b""),
        raw("null", b"null"),
        raw("a list", b"[]"),
        raw("a number beyond all", b"1e999"),
        raw("100,000 lists in lists", b"[" * 100_000),
        raw("50,000 objects in objects", b'{"a":' * 50_000),
        raw("JSON of another application", b'{"id": 1, "user": "ada"}'),
        raw("a number of 5,000 digits", no_number.replace('"seed":', '"seed":' + "9" * 5000).encode()),
        raw("NaN for a number", no_number.replace('"seed":', '"seed":NaN').encode()),
        raw("half a surrogate pair", text.replace("toy", "\\ud800", 1).encode()),
        raw("bytes after the end", text.encode() + b"{}"),
        raw("a cut manifest", text.encode()[:-40]),
        raw("a lease that is none", b"[1]", "not a lease", b"producer"),
        raw("a lease's times as texts", b'{"pid": "x"}', "not a lease", b"producer/7"),
        raw("a pass of 2^80", b'{"number": 1208925819614629174706176}', "not a passrecord", b"pass/0"),
        raw("an end that is none", b"{}", "not a end", b"end"),
        raw("a share that is none", b"{}", "not a share", b"share/0/1"),
        raw("health that is none", b"{}", "not a health", b"health/0"),
        raw("a canary that is none", b"7", "not a canary", b"canary"),
        raw("a retention warning that is none", b"{}", "not a retentionwarning", b"retention/x"),
        raw("a request for nothing", b'{"samples": []}', "not a request", b"request/x"),
        but("a future format", "format", lambda m: m.update(format=2)),
        but("2^40 lanes", "lanes", lambda m: m.update(lanes=2**40)),
        but("2^80 lanes", "lanes", lambda m: m.update(lanes=2**80)),
        but("more lanes than there are", 'no topic "toy.avgpool" with a lane', lambda m: m.update(lanes=5)),
        but("2^62 samples", "samples", lambda m: data(m, samples=2**62)),
        but("2^53 - 1 samples", None, lambda m: data(m, samples=2**53 - 1)),
        but("samples of another number", None, lambda m: data(m, samples=3)),
        but("2^62 samples a batch", "batch_samples", lambda m: m.update(batch_samples=2**62)),
        but("2^62 passes", "passes", lambda m: m.update(passes=2**62)),
        but("2^53 - 1 passes", None, lambda m: m.update(passes=2**53 - 1)),
        but("2^62 views", "views", lambda m: m.update(views=2**62)),
        but("2^53 - 1 views", None, lambda m: m.update(views=2**53 - 1)),
        but("2^40 classes", "class_count", lambda m: data(m, class_count=2**40)),
        but("2^31 - 1 classes", None, lambda m: data(m, class_count=2**31 - 1)),
        but("2^40 numbers in a label", "label_values", lambda m: data(m, label_kind="target", label_values=2**40)),
        but("more names than classes", None, lambda m: data(m, classes=["x"] * 5)),
        but("a row of 2^40 numbers", None, lambda m: tap(m, shape=[2**40])),
        but("a row of -2 numbers", "shape", lambda m: tap(m, shape=[-2])),
        but("a row of no numbers", "shape", lambda m: tap(m, shape=[0])),
        but("a row of 1,000 axes", "shape", lambda m: tap(m, shape=[2] * 1000)),
        but("a tap that is a path", "taps.0.name", lambda m: tap(m, name="../../../tmp/evil")),
        but("a tap that is an absolute path", "taps.0.name", lambda m: tap(m, name="/tmp/evil")),
        but("a tap without a name", "taps.0.name", lambda m: tap(m, name="")),
        but("a tap with a null byte", "taps.0.name", lambda m: tap(m, name="a\x00b")),
        but("a tap of 100,000 characters", "taps.0.name", lambda m: tap(m, name="a" * 100_000)),
        but("the manifest as a tap", "manifest", lambda m: tap(m, name="manifest")),
        but("a tap twice", None, lambda m: m.update(taps=good["taps"] * 2)),
        but(
            "20,000 taps", "taps", lambda m: m.update(taps=[good["taps"][0] | {"name": f"t{n}"} for n in range(20000)])
        ),
        but("no taps", "taps", lambda m: m.update(taps=[])),
        but("a stream that is a path", "stream", lambda m: m.update(stream="../../evil")),
        but("another stream", 'the manifest of a stream "other"', lambda m: m.update(stream="other")),
        but("objects as features", "dtype", lambda m: m.update(dtype="object")),
        but("features of another byte order", "dtype", lambda m: m.update(dtype=">f2")),
        but("labels of another kind", None, lambda m: data(m, label_kind="target")),
        but("a fingerprint of another stream", None, lambda m: m.update(fingerprint="f" * 32)),
        but("a fingerprint that is a path", None, lambda m: m.update(fingerprint="../../evil")),
        but("names that steer a terminal", None, lambda m: m["backbone"].update(name="\x1b[2J\x1b]0;evil\x07\x9b")),
        but("a transform that is code", None, lambda m: m.update(transform={"name": "os:system", "image_size": 8})),
        but("a data set that is code", None, lambda m: data(m, location="os:system")),
        but("a data set without an end", None, lambda m: data(m, location="/dev/zero")),
        but("a huge text", None, lambda m: m.update(made_with={"torch": "2" * 1_000_000})),
    ]


def stream_with_fact(fact: HostileValue, log: Log | None = None, manifest: Manifest = MANIFEST) -> Log:
    """Return a log with a good stream in whose manifest's topic the value stands last."""
    log = log or MemoryLog()
    create(log, manifest)
    append(log, manifest, range(3))
    put(log, manifest_topic(manifest.stream), fact.key, fact.value)
    return log

"""Small streams for tests: their manifest, their records, and a way to put them on any log."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from featurestream.batch import FeatureBatch, join, part_of
from featurestream.identity import Identity
from featurestream.manifest import BackboneFacts, DataFacts, Manifest, TapFacts, sealed
from featurestream.manifest_topic import ManifestTopic
from featurestream.names import record_key, tap_topic
from featurestream.ports import Log
from featurestream.record import Record
from featurestream.topics import tap_topic_settings
from featurestream.wire import ExpectedPass, ExpectedTap, encode, headers_of


def make_manifest(
    stream: str = "toy",
    *,
    samples: int = 10,
    batch_samples: int = 4,
    lanes: int = 2,
    passes: int | None = 2,
    taps: tuple[str, ...] = ("layer3", "avgpool"),
    seed: int = 0,
    classes: int = 3,
) -> Manifest:
    """Return a manifest whose taps have rows of 2, 3, ... float32 numbers."""
    return sealed(
        Manifest(
            stream=stream,
            data=DataFacts(
                source="toy", samples=samples, label_kind="class", label_values=1, class_count=classes, sha256="0" * 64
            ),
            transform={"name": "eval"},
            backbone=BackboneFacts(name="toy", weights="random", weights_sha256="0" * 64),
            taps=[TapFacts(name=tap, spec=tap, layer=tap, shape=[2 + n]) for n, tap in enumerate(taps)],
            dtype="float32",
            seed=seed,
            batch_samples=batch_samples,
            lanes=lanes,
            passes=passes,
            created_at="2026-01-01T00:00:00+00:00",
        )
    )


def order_of(manifest: Manifest, pass_number: int) -> np.ndarray:
    """Return the toy permutation of a pass: rotated by the pass's number."""
    return np.roll(np.arange(manifest.data.samples, dtype=np.int64), pass_number)


def make_batch_record(manifest: Manifest, batch: int, tap: str) -> Record:
    """Return one record: feature k of sample i in pass p is 1000 p + 10 i + k; the label is i modulo the classes."""
    layout = manifest.layout
    pass_number = layout.pass_of(batch)
    places = layout.sample_range(batch)
    indices = order_of(manifest, pass_number)[places.start : places.stop]
    shape = tuple(manifest.tap(tap).shape)
    features = (1000 * pass_number + 10 * indices[:, None] + np.arange(shape[0])).astype("<f4")
    return Record(
        stream=manifest.stream,
        fingerprint=manifest.fingerprint,
        tap=tap,
        batch=batch,
        pass_number=pass_number,
        views=1,
        dtype="float32",
        shape=shape,
        payload=np.frombuffer(features.tobytes(), np.uint8),
        indices=indices,
        ids=tuple(f"img/{i}.png" for i in indices),
        labels=indices % (manifest.data.class_count or 1),
        extracted_ns=1_700_000_000_000_000_000,
    )


def joined(*records: Record) -> FeatureBatch:
    """Return the batch of some records, one of each tap."""
    first = records[0]
    parts = {record.tap: part_of(record) for record in records}
    return join(first.batch, first.pass_number, parts, first.missing)


def open_expected(value: bytes, record: Record) -> tuple[Identity, np.ndarray] | None:
    """Open a value as a reader does that expects the rows of ``record``, with none missing."""
    batch = ExpectedPass(record.fingerprint, record.views, record.dtype, record.pass_number, record.rows)
    tap = ExpectedTap(record.stream, record.fingerprint, record.tap, record.dtype, record.shape)
    return tap.open(value, batch.batch(record.batch), ("a topic", 0, 0))


def create(log: Log, manifest: Manifest, **settings: str) -> None:
    """Create a stream's topics and publish its manifest."""
    with ManifestTopic(log, manifest.stream) as topic:
        topic.create()
        topic.write_manifest(manifest)
    chosen = tap_topic_settings(retention_ms=3_600_000, retention_bytes=2**30, lanes=manifest.lanes) | settings
    for tap in manifest.taps:
        log.create_topic(tap_topic(manifest.stream, tap.name), manifest.lanes, chosen)


def append(log: Log, manifest: Manifest, batches: Iterable[int], taps: Iterable[str] | None = None) -> None:
    """Append batches, in the order given, to the lanes where they belong; returns when they are durable."""
    sink = log.sink()
    for batch in batches:
        for tap in taps or [tap.name for tap in manifest.taps]:
            record = make_batch_record(manifest, batch, tap)
            sink.append(
                tap_topic(manifest.stream, tap),
                manifest.layout.lane_of(batch),
                key=record_key(record.pass_number, batch),
                value=encode(record),
                headers=headers_of(record),
            )
    sink.flush()
    sink.close()


def publish(log: Log, manifest: Manifest, batches: Iterable[int] | None = None) -> Manifest:
    """Create a stream and append batches (default: all of a finite stream)."""
    create(log, manifest)
    append(log, manifest, range(manifest.total_batches or 0) if batches is None else batches)
    return manifest


def poll_for(reader, seconds: float):
    """Return the next record of a lane, None where none comes in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        record = reader.poll(0.2)
        if record is not None:
            return record
    return None

"""Streams and records of the size that real ones have, without a backbone: the numbers are random."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from featurestream.manifest import BackboneFacts, DataFacts, Manifest, TapFacts, sealed
from featurestream.manifest_topic import ManifestTopic
from featurestream.names import record_key, tap_topic
from featurestream.ports import Log
from featurestream.record import Record
from featurestream.wire import Encoder, headers_of
from featurestream_producer.inputs import sampled_rows, to_extra

CLASSES = 1000
POOL = 8  # different payloads; together larger than a core's own caches


def make_manifest(
    stream: str, *, rows: int, width: int, batches: int, taps: tuple[str, ...] = ("avgpool",), lanes: int = 4
) -> Manifest:
    """Return the manifest of one pass: ``batches`` batches of ``rows`` rows, ``width`` float16 numbers in each."""
    return sealed(
        Manifest(
            stream=stream,
            data=DataFacts(
                source="random", samples=rows * batches, label_kind="class", class_count=CLASSES, sha256="0" * 64
            ),
            transform={"name": "eval"},
            backbone=BackboneFacts(name="random", weights="random", weights_sha256="0" * 64),
            taps=[TapFacts(name=tap, spec=tap, layer=tap, shape=[width]) for tap in taps],
            dtype="float16",
            seed=0,
            batch_samples=rows,
            lanes=lanes,
            passes=1,
            created_at="2026-01-01T00:00:00+00:00",
        )
    )


def make_record(manifest: Manifest, batch: int, tap: str) -> Record:
    """Return one record, as a producer makes it: ids as ImageNet has them (30 characters), class numbers."""
    places = manifest.layout.sample_range(batch)
    indices = np.arange(places.start, places.stop, dtype=np.int64)
    labels = indices % CLASSES
    shape = tuple(manifest.tap(tap).shape)
    return Record(
        stream=manifest.stream,
        fingerprint=manifest.fingerprint,
        tap=tap,
        batch=batch,
        pass_number=manifest.layout.pass_of(batch),
        views=1,
        dtype=manifest.dtype,
        shape=shape,
        payload=_payloads(len(indices), shape[0])[batch % POOL],
        indices=indices,
        ids=tuple(f"n{label:08d}/n{label:08d}_{index:05d}.JPEG" for index, label in zip(indices, labels, strict=True)),
        labels=labels,
        extracted_ns=1_700_000_000_000_000_000,
        extra=to_extra([(row, f"{batch:016x}") for row in sampled_rows(batch, len(indices))]),
    )


def publish(log: Log, manifest: Manifest, *, parts: int = 1) -> list[int]:
    """Publish the whole stream, its topics being there; return the bytes of each batch's record of one tap.

    Each of the ``parts`` is acknowledged before the next one is sent: records of one request have one time.
    """
    with ManifestTopic(log, manifest.stream) as topic:
        topic.write_manifest(manifest)
    encoder = Encoder()
    sizes: list[int] = []
    batches = manifest.total_batches or 0
    ends = {part * batches // parts for part in range(1, parts + 1)}
    with log.sink() as sink:
        for batch in range(batches):
            size = 0
            for tap in manifest.taps:
                record = make_record(manifest, batch, tap.name)
                value = encoder.encode(record)
                sink.append(
                    tap_topic(manifest.stream, tap.name),
                    manifest.layout.lane_of(batch),
                    key=record_key(record.pass_number, batch),
                    value=value,
                    headers=headers_of(record),
                )
                size = value.nbytes
            sizes.append(size)
            if batch + 1 in ends:
                sink.flush()
    return sizes


@cache
def _payloads(rows: int, width: int) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal((POOL, rows * width), dtype=np.float32).astype("<f2")
    return [each.view(np.uint8) for each in numbers]

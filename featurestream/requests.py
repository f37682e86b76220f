"""Samples that are wanted next: the requests of a stream, and the stream that they are published on.

A pass has the batches that arithmetic gives it, so what is extracted out of turn cannot stand among them. It stands on
a stream beside it, ``<stream>-requests``, of the same data, transform, backbone, taps and views: with a manifest of its
own, of kind ``request``, one lane, and passes of one batch, each marked as a request. Whoever reads the stream itself
never meets them; whoever wants them reads the other by its name, as any stream. Requests are records of its manifest's
topic, in the order in which they came; which batch holds which request is therefore arithmetic again, and a producer
that died goes on with the first batch that is not there.
"""

from __future__ import annotations

import socket
import struct
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from featurestream.errors import StreamNotFoundError, UnknownNameError, UsageError
from featurestream.layout import Layout
from featurestream.manifest import Manifest, Request, check_same, sealed
from featurestream.manifest_topic import ManifestTopic, StreamFacts, read_facts
from featurestream.names import requests_stream, tap_topic
from featurestream.ports import Log, RecordSource
from featurestream.position import Position
from featurestream.record import ITEM_BYTES
from featurestream.seek import Lanes
from featurestream.stream import FeatureStream
from featurestream.topics import tap_topic_settings

#: Samples in one request at most: 400 kB of JSON, well below what a record may have. A longer list becomes several.
REQUEST_SAMPLES: Final = 50_000
_LIKELY: Final = 20_000  # ids among which the nearest is looked for: the search takes 10 us an id


def requests_manifest(manifest: Manifest) -> Manifest:
    """Return the manifest of the stream that holds what is requested of the stream of ``manifest``.

    Its seed is another one (the upper 63 bits of the xxh3-64 of the stream's seed, little-endian, and ``request``), so
    that the views that are drawn are not those that an ordinary pass has already.
    """
    seed = xxhash.xxh3_64_intdigest(struct.pack("<Q", manifest.seed) + b"request") >> 1
    return sealed(
        manifest.model_copy(
            update={
                "stream": requests_stream(manifest.stream),
                "kind": "request",
                "lanes": 1,
                "passes": None,
                "seed": seed,
            }
        )
    )


def open_requests(log: Log, manifest: Manifest) -> Manifest:
    """Return the manifest of a stream's requests; its topics are created where they are not there yet.

    They keep what the stream's own keep. Raises StreamMismatchError where a stream of that name is something else, or
    belongs to an earlier stream of this one's name.
    """
    wanted = requests_manifest(manifest)
    with ManifestTopic(log, wanted.stream) as topic:
        topic.create()
        existing = topic.read().manifest
        if existing is None:
            topic.write_manifest(wanted)
        else:
            check_same(existing, wanted)
    for tap in manifest.taps:
        kept = log.settings(tap_topic(manifest.stream, tap.name))
        lane_bytes = int(kept["retention.bytes"])
        settings = tap_topic_settings(
            retention_ms=int(kept["retention.ms"]), retention_bytes=lane_bytes * manifest.lanes, lanes=1
        )
        log.create_topic(tap_topic(wanted.stream, tap.name), 1, settings)
    return wanted


def requests_of(source: RecordSource, stream: str) -> StreamFacts | None:
    """Return what the manifest's topic of a stream's requests says; None where nothing was ever requested."""
    try:
        facts = read_facts(source, requests_stream(stream))
    except (StreamNotFoundError, UsageError):  # no such topic; or the stream's name leaves no room for the suffix
        return None
    return facts if facts.manifest is not None else None


def batches_of(requests: Iterable[Request], layout: Layout) -> list[NDArray[np.int64]]:
    """Return the sample indices of each batch of requests, in order: int64 (samples,), at most R each.

    A batch never spans two requests.
    """
    found = []
    for request in requests:
        for first in range(0, len(request.samples), layout.batch_samples):
            found.append(np.array(request.samples[first : first + layout.batch_samples], np.int64))
    return found


def request_samples(log: Log, requests: Manifest, samples: Sequence[int]) -> tuple[int, int]:
    """Publish requests for samples, by their indices; return the first and the last batch that will hold them.

    ``requests`` is the manifest that :func:`open_requests` has returned.
    """
    mine: list[str] = []
    with ManifestTopic(log, requests.stream) as topic:
        for start in range(0, len(samples), REQUEST_SAMPLES):
            mine.append(uuid.uuid4().hex[:12])
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            part = list(samples[start : start + REQUEST_SAMPLES])
            topic.write_request(mine[-1], Request(samples=part, host=socket.gethostname(), at=at))
        published = topic.read().requests
    # Whoever asked at the same time may stand before, or between.
    places, end = {}, 0
    for name, one in published.items():
        begin, end = end, end + -(-len(one.samples) // requests.layout.batch_samples)
        places[name] = (begin, end - 1)
    return places[mine[0]][0], places[mine[-1]][1]


def find_samples(log: Log, manifest: Manifest, names: Sequence[str]) -> list[int]:
    """Return the index of each named sample: a whole number is an index, anything else an id.

    Ids are looked up in the records of a pass, in the narrowest tap, so the images need not be at hand. Raises
    UsageError for an index that there is not, UnknownNameError with the nearest for an id that the pass does not have,
    and UsageError where the log no longer, or not yet, holds a whole pass and the id is not in what it holds.
    """
    count = manifest.data.samples
    by_index = [name for name in names if name.isascii() and name.isdigit()]
    for name in by_index:
        if int(name) >= count:
            raise UsageError(
                f'stream "{manifest.stream}" has no sample {name}: it has {count:,}', hint=f"expected 0 to {count - 1}"
            )
    known = {name: int(name) for name in by_index}
    wanted = [name for name in names if name not in known]
    if wanted:
        known |= _look_up(log, manifest, wanted)
    return [known[name] for name in names]


def _look_up(log: Log, manifest: Manifest, wanted: Sequence[str]) -> dict[str, int]:
    narrowest = min(manifest.taps, key=lambda tap: tap.numbers * ITEM_BYTES[manifest.dtype]).name
    start, stop = _a_pass(log, manifest, narrowest)
    whole = stop - start == manifest.layout.pass_batches
    left, seen = set(wanted), dict[str, int]()
    if start < stop:
        with FeatureStream(
            manifest.stream, narrowest, start=Position(start), stop=Position(stop), log=log
        ) as stream:  # fmt: skip
            for batch in stream:
                seen |= dict(zip(batch.ids, batch.indices.tolist(), strict=True))
                seen |= {sample.id: sample.index for sample in batch.missing}
                left.difference_update(seen)
                if not left:
                    return seen
    first = next(name for name in wanted if name in left)
    if whole:
        raise UnknownNameError(f"sample of stream {manifest.stream}", first, _likely(first, list(seen)))
    raise UsageError(
        f'"{first}" is not among the {len(seen):,} of {manifest.data.samples:,} samples whose records are on the log',
        hint="give its index, or wait until a pass is whole",
    )


def _a_pass(log: Log, manifest: Manifest, tap: str) -> tuple[int, int]:
    """Return the batches (first, and one more than the last) of a pass that is whole on the log, else of all there."""
    layout = manifest.layout
    source = log.source()
    try:
        lanes = Lanes(source, layout, (tap_topic(manifest.stream, tap),))
        first, end = lanes.earliest(), lanes.next_missing()
    finally:
        source.close()
    start = layout.pass_start(-(-first // layout.pass_batches))
    return (start, start + layout.pass_batches) if start + layout.pass_batches <= end else (first, max(first, end))


def _likely(name: str, ids: list[str]) -> list[str]:
    """Return the ids among which the nearest is looked for: of the same folder, or of the same file name."""
    folder, _, file = name.rpartition("/")
    near = [one for one in ids if one.rpartition("/")[0] == folder or one.rpartition("/")[2] == file]
    return (near or ids)[:_LIKELY]

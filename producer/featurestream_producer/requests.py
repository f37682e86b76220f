"""Serves what is requested of a stream between the batches of the stream itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import FeatureStreamError, RecordError, StreamNotFoundError
from featurestream.manifest import Manifest, PassRecord, manifest_differences
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream.names import STREAM_NAME, manifest_topic, requests_stream
from featurestream.ports import Log, RecordSink, RecordSource
from featurestream.requests import batches_of, requests_manifest, requests_of
from featurestream_producer.loader import BatchPlan
from featurestream_producer.resume import find_tail
from featurestream_producer.sampling import order_checksum
from featurestream_producer.taps import TapReader
from featurestream_producer.worker import Job, publish_batch

LOOK_S: Final = 1.0  # how soon a request is seen


@dataclass(frozen=True, slots=True)
class Served:
    """Requested samples were published: ``batch`` of ``stream``, with so many rows."""

    stream: str
    batch: int
    rows: int
    missing: int


@dataclass(frozen=True, slots=True)
class Unserved:
    """Requests cannot be served, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is requested: the job of the requests' stream, and the samples of each of its batches so far."""

    job: Job
    batches: list[NDArray[np.int64]]


class RequestServer:
    """Looks, in a thread of its own, what is requested of a job's stream; a context manager.

    :meth:`serve` publishes it, in the thread that owns the device. One worker of a stream serves, the one that holds
    lane 0: the stream's lease is the lease of its requests too.
    """

    def __init__(self, job: Job, log: Log, report: Callable[[Served | Unserved], None]) -> None:
        self._job = job
        self._log = log
        self._report = report
        self._stream = requests_stream(job.manifest.stream)
        self._wanted: _Wanted | None = None
        self._next = 0
        self._high = -1
        self._refused = not STREAM_NAME.fullmatch(self._stream)
        self._sink: RecordSink | None = None
        self._topic: ManifestTopic | None = None
        self._source: RecordSource | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def __enter__(self) -> Self:
        self._source = self._log.source()
        try:
            self._look()
        except BaseException:
            self._source.close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        for one in (self._sink, self._topic, self._source):
            if one is not None:
                one.close()

    def serve(self, reader: TapReader, stop: threading.Event) -> None:
        """Publish what is requested and not yet there, until ``stop`` is set. Raises what publishing raises."""
        wanted = self._wanted
        while wanted is not None and self._next < len(wanted.batches) and not stop.is_set():
            self._publish(wanted, reader)
            wanted = self._wanted

    def finish(self, reader: TapReader, stop: threading.Event) -> None:
        """Publish what was requested up to this moment."""
        self._done.set()
        self._thread.join()
        self._look()
        self.serve(reader, stop)

    def _publish(self, wanted: _Wanted, reader: TapReader) -> None:
        number, samples = self._next, wanted.batches[self._next]
        if self._sink is None or self._topic is None:
            self._sink, self._topic = self._log.sink(), ManifestTopic(self._log, self._stream)
        began = datetime.now(UTC)
        sent = publish_batch(wanted.job, reader, self._sink, BatchPlan(number, number, samples))
        self._topic.write_pass(
            PassRecord(
                number=number,
                kind="request",
                samples=len(samples) - len(sent.missing),
                missing=len(sent.missing),
                first_batch=number,
                last_batch=number,
                started_at=began.isoformat(timespec="milliseconds"),
                finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                order_checksum=order_checksum(samples),
            )
        )
        self._next = number + 1
        self._report(Served(self._stream, number, sent.rows, len(sent.missing)))

    def _run(self) -> None:
        while not self._done.wait(LOOK_S):
            try:
                self._look()
            except FeatureStreamError:
                continue  # a broker that is away ends the run by its sink

    def _look(self) -> None:
        """Find what is requested, where anything came to the topic since the last look."""
        source = self._source
        if source is None or self._refused:
            return
        try:
            high = source.bounds(manifest_topic(self._stream), 0).high
        except StreamNotFoundError:
            return  # nothing was ever requested
        if high <= self._high:
            return
        try:
            facts = requests_of(source, self._job.manifest.stream)
        except RecordError as error:  # of whoever wrote it: the stream itself goes on
            self._refuse(str(error))
            return
        if facts is None or facts.manifest is None:
            return
        manifest = requests_manifest(self._job.manifest)
        if facts.manifest.fingerprint != manifest.fingerprint:
            self._refuse(_why(facts.manifest, manifest))
            return
        count = manifest.data.samples
        if (greatest := max((max(one.samples) for one in facts.requests.values()), default=0)) >= count:
            self._refuse(f"sample {greatest} was requested, and there are {count:,}")
            return
        batches = batches_of(facts.requests.values(), manifest.layout)
        if self._wanted is None:
            finished = first_unfinished(facts)
            tail = find_tail(source, manifest, finished)
            self._next = min(finished, tail.first_lacking)
            job = replace(self._job, manifest=manifest, tail=tail, index=0, workers=1, paced=False)
            self._wanted = _Wanted(job, batches)
        else:
            self._wanted = replace(self._wanted, batches=batches)
        self._high = high

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self._report(Unserved(reason))


def requests_wait(log: Log, manifest: Manifest) -> bool:
    """Tell whether something is requested of a stream that was not published yet."""
    source = log.source()
    try:
        facts = requests_of(source, manifest.stream)
    except RecordError:  # said by whoever serves
        return False
    finally:
        source.close()
    wanted = requests_manifest(manifest)
    return (
        facts is not None
        and facts.manifest is not None
        and facts.manifest.fingerprint == wanted.fingerprint
        and first_unfinished(facts) < len(batches_of(facts.requests.values(), wanted.layout))
    )


def first_unfinished(facts: StreamFacts) -> int:
    """Return the first pass that has no record."""
    return next(number for number in range(len(facts.passes) + 1) if number not in facts.passes)


def _why(existing: Manifest, wanted: Manifest) -> str:
    fields = ", ".join(field for field, _, _ in manifest_differences(existing, wanted))
    return (
        f'stream "{existing.stream}" is not that of the requests of "{wanted.stream.removesuffix("-requests")}" '
        f"({fields} differ): delete its topics, and request again"
    )

"""What streams there are and how far they go, looked up again whenever it may have changed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from featurestream.errors import StreamNotFoundError, UsageError
from featurestream.layout import Layout
from featurestream.manifest import Manifest
from featurestream.manifest_topic import require_manifest
from featurestream.names import check_stream_name, manifest_topic, tap_topic
from featurestream.ports import Bounds, LaneReader, Log, LogRecord, Place, RecordSource
from featurestream.seek import Lanes

T = TypeVar("T")

EDGE_S: Final = 0.25  # for so long the ends of a stream are taken to stand still
MANIFEST_S: Final = 1.0
HEADERS: Final = 8192  # records whose headers are kept: some megabytes
STREAMS: Final = 256  # of which manifest and ends are kept


@dataclass(frozen=True, slots=True)
class Edges:
    """How far a stream goes: the first batch that is left, and the first one that is not complete."""

    earliest: int
    next_missing: int


class Recent(Generic[T]):
    """Answers to questions, each kept for ``seconds``; of many who ask the same at once, one goes and looks."""

    def __init__(self, seconds: float, size: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._size = size
        self._clock = clock
        self._lock = threading.Lock()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._kept: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()

    def get(self, key: Hashable, look: Callable[[], T]) -> T:
        """Return the answer that is kept for ``key``, or else that of ``look``; its errors are not kept."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            with self._lock:
                kept = self._kept.get(key)
            if kept is not None and self._clock() - kept[0] < self._seconds:
                return kept[1]
            try:
                found = look()
            finally:
                with self._lock:
                    self._locks.pop(key, None)
            with self._lock:
                self._kept[key] = (self._clock(), found)
                self._kept.move_to_end(key)
                while len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            return found

    def forget(self, key: Hashable) -> None:
        """Look again next time."""
        with self._lock:
            self._kept.pop(key, None)


class HeaderSource:
    """A source that remembers the headers of the records that were looked at, without their values.

    What stands at an offset never changes, so seeking asks the log only for what is new. A topic that was deleted and
    made anew begins at offset 0 again: :meth:`forget` it when its manifest changes.
    """

    def __init__(self, source: RecordSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._records: OrderedDict[tuple[str, int, int], LogRecord] = OrderedDict()

    def bounds(self, topic: str, lane: int) -> Bounds:
        """Return the offsets that a lane holds now."""
        return self._source.bounds(topic, lane)

    def all_bounds(self, places: Sequence[Place]) -> dict[Place, Bounds]:
        """Return the bounds of many lanes."""
        return self._source.all_bounds(places)

    def offsets_at_time(self, places: Sequence[Place], time_ms: int) -> dict[Place, int]:
        """Return, for each lane, the first offset whose record was appended at or after a time."""
        return self._source.offsets_at_time(places, time_ms)

    def record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        """Return the record at an offset, or the first one after it, without its value."""
        place = (topic, lane, offset)
        with self._lock:
            known = self._records.get(place)
            if known is not None:
                self._records.move_to_end(place)
                return known
        found = self._source.record_at(topic, lane, offset)._replace(value=None)
        if found.offset == offset:  # else retention has moved on, and the next answer is another one
            with self._lock:
                self._records[place] = found
                while len(self._records) > HEADERS:
                    self._records.popitem(last=False)
        return found

    def read(self, topic: str, lane: int, offset: int) -> LaneReader:
        """Return a reader of whole records."""
        return self._source.read(topic, lane, offset)

    def close(self) -> None:
        """Release the connection."""
        self._source.close()

    def forget(self, topics: tuple[str, ...]) -> None:
        """Look at these topics' records again."""
        with self._lock:
            for place in [place for place in self._records if place[0] in topics]:
                del self._records[place]


class Catalogue:
    """The streams of a log: their manifests and how far they go. May be asked by many threads."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._lock = threading.Lock()
        self._source: HeaderSource | None = None
        self._known: dict[str, tuple[Bounds, Manifest]] = {}
        self._manifests: Recent[Manifest] = Recent(MANIFEST_S, STREAMS)
        self._edges: Recent[Edges] = Recent(EDGE_S, STREAMS)

    @property
    def source(self) -> HeaderSource:
        """The source that all look-ups share; connected when it is first needed."""
        with self._lock:
            if self._source is None:
                self._source = HeaderSource(self.log.source())
            return self._source

    def close(self) -> None:
        """Release the connection."""
        with self._lock:
            source, self._source = self._source, None
        if source is not None:
            source.close()

    def manifest(self, stream: str) -> Manifest:
        """Return a stream's manifest; raise StreamNotFoundError with the streams that there are."""
        try:
            check_stream_name(stream)
        except UsageError as error:
            raise StreamNotFoundError(error.message, hint=error.hint) from error
        return self._manifests.get(stream, lambda: self._look_for(stream))

    def lanes(self, manifest: Manifest, taps: tuple[str, ...]) -> Lanes:
        """Return the lanes of some taps."""
        return Lanes(self.source, manifest.layout, tuple(tap_topic(manifest.stream, tap) for tap in taps))

    def edges(self, manifest: Manifest, taps: tuple[str, ...]) -> Edges:
        """Return how far some taps go, together."""

        def look() -> Edges:
            lanes = self.lanes(manifest, taps)
            return Edges(lanes.earliest(), lanes.next_missing())

        return self._edges.get((manifest.stream, manifest.fingerprint, taps), look)

    def forget(self, manifest: Manifest) -> None:
        """Look again at a stream that is no longer what it was."""
        with self._lock:
            self._known.pop(manifest.stream, None)
        self._manifests.forget(manifest.stream)
        self.source.forget(tuple(tap_topic(manifest.stream, tap.name) for tap in manifest.taps))

    def _look_for(self, stream: str) -> Manifest:
        try:
            bounds = self.source.bounds(manifest_topic(stream), 0)
        except StreamNotFoundError:
            bounds = None
        known = self._known.get(stream)
        if bounds is not None and known is not None and known[0] == bounds:
            return known[1]
        manifest = require_manifest(self.log, stream)
        if known is not None and known[1].created_at != manifest.created_at:
            self.forget(known[1])
        if bounds is not None:
            with self._lock:
                self._known[stream] = (bounds, manifest)
        return manifest


def rows_before(layout: Layout, batch: int) -> int:
    """Return the rows of all batches before one, from which no sample is missing."""
    passes, rest = divmod(batch, layout.pass_batches)
    return (passes * layout.samples + min(rest * layout.batch_samples, layout.samples)) * layout.views

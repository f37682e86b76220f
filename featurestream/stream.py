"""FeatureStream: the rows of a stream, from the place you choose, in one order for every reader."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from featurestream.batch import FeatureBatch, concatenate, regroup
from featurestream.closing import Closing
from featurestream.cluster import Cluster, resolve_cluster
from featurestream.errors import FingerprintError, UsageError
from featurestream.logs import WARNING, Line
from featurestream.manifest import Manifest
from featurestream.manifest_topic import require_manifest
from featurestream.merge import LaneMerge
from featurestream.names import tap_topic
from featurestream.ports import Log
from featurestream.position import Position, StartPoint, parse_start
from featurestream.read_counts import ReadCounts
from featurestream.reader_lease import ReaderLease, ReaderPlace
from featurestream.retention_watch import RetentionWatch
from featurestream.seek import Lanes, find_start, resolve_stop

Start = str | int | float | datetime | Position | StartPoint

QUEUE_KBYTES = 8192  # prefetched by each lane's reader: a reader's memory is taps x lanes x this

_log = logging.getLogger(__name__)


class FeatureStream(Closing):
    """The rows of a stream as an iterable of :class:`FeatureBatch`.

    ::

        for batch in FeatureStream("digits-train", "avgpool", start="-1h", stop="latest"):
            features, labels = batch.numpy(), batch.labels

    Lanes are merged in batch order and taps are joined by batch, so two readers of one range get the same rows in the
    same order. Start and stop are found when the object is made and are then fixed numbers (:attr:`start`,
    :attr:`stop`); a reader of a finite stream ends at its end and waits for what is not there yet, a reader of an
    endless one follows it. Iterating again goes on at :attr:`position`; :meth:`rewind` goes back to the start.

    Args:
        stream: the stream's name.
        taps: the taps to read, by name or spec; None reads all.
        start: ``earliest``, ``latest``, ``offset:N``, ``batch:N``, ``pass:N``, a time (ISO 8601, seconds since the
            epoch, ``-1h``, datetime) or a saved Position.
        stop: where to end, exclusive, in the same words; ``latest`` is what is complete now; None the stream's end.
        batch_size: rows a batch; None takes the batches as they were published. A batch never spans two passes.
        shard: (index, count): every count-th batch, beginning at the index-th. The shards of all indices, taken in
            turn, are the whole.
        log: the log to read; None connects to the cluster that the other arguments, the environment or the embedded
            broker name, as the commands do.
        bootstrap_servers: the cluster's address.
        kafka_config: a file of client properties for it.
        queue_kbytes: bound of what is read ahead, for each lane and tap.
        reader: a name of its own makes the reader known while it iterates: a producer that paces itself goes on for it,
            and Kafka's tools show its lag. The producer, and the reader itself in Python's log, warn before retention
            deletes what it has not read.
        on_wait: called with the seconds waited so far, about four times a second, while the next batch is not there.

    Attributes:
        counts: what it has read, waited for and dropped; a whole that several readers count for may take its place.

    Raises:
        StreamNotFoundError, UnknownNameError: no such stream or tap.
        GoneError: retention has deleted part of the range.
        UsageError: a start or stop that is none, or an empty range.
    """

    def __init__(
        self,
        stream: str,
        taps: str | Sequence[str] | None = None,
        *,
        start: Start = "earliest",
        stop: Start | None = None,
        batch_size: int | None = None,
        shard: tuple[int, int] = (0, 1),
        log: Log | None = None,
        bootstrap_servers: str | None = None,
        kafka_config: Path | None = None,
        queue_kbytes: int = QUEUE_KBYTES,
        reader: str | None = None,
        on_wait: Callable[[float], None] | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= shard[0] < shard[1]:
            raise UsageError(f"shard {shard} is not (index, count) with 0 <= index < count")
        now = time.time()
        start_point = parse_start(start, now=now)
        stop_point = None if stop is None else parse_start(stop, now=now)
        self.stream = stream
        self.batch_size = batch_size
        self.shard = shard
        self.counts = ReadCounts()
        self.offsets: dict[tuple[str, int], int] = {}  # (topic, lane) -> the offset to be read next
        self._log = log
        self._cluster: Cluster | None = None if log else resolve_cluster(bootstrap_servers, kafka_config)
        self._queue_kbytes = queue_kbytes
        self._on_wait = on_wait
        self._reader = reader
        self._lease: ReaderLease | None = None
        self._open: ExitStack | None = None

        with ExitStack() as stack:
            # Look-ups use a connection of their own that is closed again: this object can then go to another process.
            lookup = self._connect(stack)
            source = lookup.source()
            stack.callback(source.close)
            self.manifest: Manifest = require_manifest(lookup, stream, source=source)
            names = (
                [tap.name for tap in self.manifest.taps] if taps is None else [taps] if isinstance(taps, str) else taps
            )
            self.taps = tuple(self.manifest.tap(name).name for name in names)
            if not self.taps or len(set(self.taps)) < len(self.taps):
                raise UsageError(f"taps {list(names)}: name at least one tap, and each one once")
            self._topics = tuple(tap_topic(stream, tap) for tap in self.taps)
            lanes = Lanes(source, self.manifest.layout, self._topics)
            self.start, known = find_start(start_point, lanes)
            total = self.manifest.total_batches
            stopped = total if stop_point is None else resolve_stop(stop_point, lanes)
            self.stop: int | None = stopped if total is None or stopped is None else min(stopped, total)
            if self.stop is not None and self.start.batch >= self.stop:
                raise UsageError(
                    f"nothing to read: the range starts at batch {self.start.batch} ({start_point}) and stops before "
                    f"batch {self.stop} ({stop_point or 'the end of the stream'})",
                    hint=f"see what is there with: featurectl streams {stream}",
                )
            # A range that is partly gone is refused now, not when a lane is met.
            first = {place: lanes.layout.next_in_lane(place[1], self.start.batch) for place in lanes.places()}
            self.offsets |= known or lanes.offsets_of(first)
            self._found = {(*place, batch): self.offsets[place] for place, batch in first.items()}
        self.position: Position = self.start

    # ---- reading ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[FeatureBatch]:
        """Yield batches from :attr:`position` on; the position moves on with each one."""
        batches = self._batches()
        for batch in batches if self.batch_size is None else regroup(batches, self.batch_size):
            self.position = batch.next_position
            yield batch

    @property
    def duplicates(self) -> int:
        """Records that were dropped, because their batch had been read."""
        return self.counts.duplicates

    def read_all(self) -> FeatureBatch:
        """Return every row of the range as one batch, of which ``pass_number`` is the first row's. Needs a stop."""
        if self.stop is None:
            raise UsageError(f'stream "{self.stream}" is endless: give a stop', hint='such as stop="latest"')
        return concatenate(list(self))

    def rewind(self, position: Position | None = None) -> None:
        """Go back (or on) to a position, the start if none is given; the next iteration begins there."""
        self.close()
        self.position = self.start if position is None else position

    def close(self) -> None:
        """Close the connections; iterating again opens new ones."""
        if self._open is not None:
            self._open.close()
            self._open = None

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the reader's place, as torch's stateful loaders have it: plain values that JSON can hold."""
        return {
            "stream": self.stream,
            "fingerprint": self.manifest.fingerprint,
            "taps": list(self.taps),
            "start": [self.start.batch, self.start.row],
            "stop": self.stop,
            "position": [self.position.batch, self.position.row],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the place that ``state`` holds. Raises FingerprintError where it is another stream's."""
        if state["fingerprint"] != self.manifest.fingerprint:
            raise FingerprintError(
                f'the saved position is of stream "{state["stream"]}" with fingerprint {state["fingerprint"]}, '
                f'but stream "{self.stream}" has {self.manifest.fingerprint}',
                hint="a position is only valid on the stream that it was saved on, or on a copy of it",
            )
        self.start = Position(*state["start"])
        self.stop = state["stop"]
        self.rewind(Position(*state["position"]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None, "_lease": None}

    # ---- the merge --------------------------------------------------------------------------------------------------

    def _connect(self, stack: ExitStack) -> Log:
        if self._log is not None:
            return self._log
        from featurestream.kafka import KafkaLog

        if self._cluster is None:  # pragma: no cover
            raise UsageError("neither a log nor a cluster is known")
        return stack.enter_context(KafkaLog(self._cluster, queue_kbytes=self._queue_kbytes, known=self.offsets))

    def _place(self) -> ReaderPlace:
        batch = self.position.batch
        return ReaderPlace(self._reader or "", batch, batch, self.taps, dict(self.offsets))

    def _waited(self, seconds: float) -> None:
        if self._lease is not None:
            self._lease.nudge()
        if self._on_wait is not None:
            self._on_wait(seconds)

    def _batches(self) -> Iterator[FeatureBatch]:
        self.close()
        self._open = stack = ExitStack()
        try:
            log = self._connect(stack)
            if self._reader is not None:
                self._lease = stack.enter_context(ReaderLease(log, self.stream, self._place))
                stack.enter_context(RetentionWatch(log, self.manifest, self._place, _warn))
            source = log.source()
            stack.callback(source.close)
            merge = LaneMerge(
                source,
                self.manifest,
                self.taps,
                offsets=self.offsets,
                found=self._found,
                counts=self.counts,
                on_wait=self._waited,
            )
            stack.callback(merge.close)
            begin = self.position  # the position moves on while this runs
            index, count = self.shard
            first = begin.batch + (index - (begin.batch - self.start.batch)) % count
            end = sys.maxsize if self.stop is None else self.stop
            numbers = range(first, end, count)
            for number in numbers:
                batch = merge.batch(number)
                self.counts.batches += 1
                self.counts.rows += len(batch)
                if begin.row and number == begin.batch:
                    batch = batch.rows(min(begin.row, len(batch)), len(batch))
                yield batch
                if number == first:  # which was not kept waiting by the other lanes
                    merge.open(numbers[1 : self.manifest.layout.lanes])
        finally:
            stack.close()
            if self._open is stack:
                self._open = None


def _warn(line: Line) -> None:
    _log.warning("%s", line.removeprefix(WARNING), extra={"facts": line.facts})

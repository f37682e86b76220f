"""A reader's own look at what it reads next: how near that is to being deleted, and how much there is to read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from featurestream.errors import FeatureStreamError, GoneError
from featurestream.logs import WARNING, Line
from featurestream.manifest import Manifest
from featurestream.names import tap_topic
from featurestream.ports import Log, RecordSource
from featurestream.reader_lease import LiveReader, ReaderPlace
from featurestream.retention import ENDLESS, WARN_SHARE, Retention, Risk, find_batch, risk_of
from featurestream.seek import Lanes

LOOK_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Edge:
    """How far a reader is from the two ends of what the log holds.

    Attributes:
        end: the first batch that is not there yet, in the first of its taps.
        share: how much of its retention what is read next has behind it, of the worst tap; 0 where it is not there yet.
        expires_at: when that reaches its retention by time, seconds since the epoch; None where nothing waits.
        keep_s: the shortest retention of the taps.
    """

    end: int
    share: float
    expires_at: float | None
    keep_s: float

    def expires_in_s(self, now: float) -> float:
        """Return the seconds that are left at ``now``: never less than none, and all where nothing waits."""
        return self.keep_s if self.expires_at is None else max(0.0, self.expires_at - now)


class RetentionWatch:
    """Looks every :data:`LOOK_S`, while the ``with`` block lasts, and warns once when retention comes near.

    Args:
        log: where the stream is; it is read over a connection of the watch's own.
        manifest: the stream's.
        where: asked, in the watch's thread, for the reader's place; None: it reads nothing now.
        warn: takes the warning, in that thread.
        clock: seconds since the epoch.

    Attributes:
        edge: what the last look has found; None before the first one.
        warnings: how often it has warned: again only after the danger was over.
    """

    def __init__(
        self,
        log: Log,
        manifest: Manifest,
        where: Callable[[], ReaderPlace | None],
        warn: Callable[[Line], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.edge: Edge | None = None
        self.warnings = 0
        self._log = log
        self._manifest = manifest
        self._where = where
        self._warn = warn
        self._clock = clock
        self._settings: dict[str, dict[str, str]] = {}
        self._near = False
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._done.clear()
        self._thread = threading.Thread(target=self._run, name="retention watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def look(self, source: RecordSource) -> None:
        """Look now. Raises BrokerError where the log cannot be read."""
        place = self._where()
        if place is None:
            return
        layout, now_ms = self._manifest.layout, round(self._clock() * 1000)
        kept, appended_ms = dict[str, Retention](), dict[str, int]()
        unread = 0  # batches from the next one on, by the lane that it lies in
        lane = layout.lane_of(place.batch)
        for tap in place.taps:
            topic = tap_topic(self._manifest.stream, tap)
            kept[tap] = self._kept(topic, 0.0)
            try:
                record = find_batch(source, layout, topic, place.batch)
            except GoneError:
                appended_ms[tap], unread = now_ms - kept[tap].keep_ms, max(unread, 1)
                continue
            if record is not None:
                kept[tap] = self._kept(topic, float(len(record.value or b"")))
                appended_ms[tap] = record.timestamp_ms
                unread = max(unread, (source.bounds(topic, lane).high - record.offset) * layout.lanes)
        reader = LiveReader(place.reader, place.batch, place.batch, place.taps)
        risk = risk_of(reader, kept, next_batch=place.batch + unread, appended_ms=appended_ms, now_ms=now_ms)
        ends = {tap: at + kept[tap].keep_ms for tap, at in appended_ms.items() if kept[tap].keep_ms < ENDLESS}
        keep_ms = min(one.keep_ms for one in kept.values())
        first = tap_topic(self._manifest.stream, place.taps[0])
        self.edge = Edge(
            end=Lanes(source, layout, (first,)).next_missing(),
            share=0.0 if risk is None else risk.share,
            expires_at=min(ends.values()) / 1000 if ends else None,
            keep_s=float("inf") if keep_ms == ENDLESS else keep_ms / 1000,
        )
        self._judge(risk)

    def _judge(self, risk: Risk | None) -> None:
        near = risk is not None and risk.share >= WARN_SHARE
        if risk is not None and near and not self._near:
            self.warnings += 1
            facts = {"reader": risk.reader, "batch": risk.batch, "tap": risk.tap, "share": risk.share, "by": risk.by}
            self._warn(Line(f"{WARNING}{risk.text()}", **facts))
        self._near = near

    def _kept(self, topic: str, batch_bytes: float) -> Retention:
        if topic not in self._settings:
            self._settings[topic] = self._log.settings(topic)
        return Retention.of(self._settings[topic], self._manifest.lanes, batch_bytes)

    def _run(self) -> None:
        source: RecordSource | None = None
        try:
            while not self._done.is_set():
                try:
                    source = source or self._log.source()
                    self.look(source)
                except FeatureStreamError:
                    pass  # what cannot be seen now is looked at again; a log that is gone ends the reading itself
                self._done.wait(LOOK_S)
        finally:
            if source is not None:
                source.close()

"""Holds a run of the producer to its pace, and warns before retention takes what a reader still needs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from featurestream.errors import FeatureStreamError, GoneError
from featurestream.manifest import Manifest, RetentionWarning
from featurestream.names import reader_group, tap_topic
from featurestream.ports import Log, RecordSource
from featurestream.reader_lease import Attendance, LiveReader
from featurestream.retention import WARN_SHARE, Retention, Risk, find_batch, risk_of
from featurestream_producer.pace import Pace, Verdict, decide

LOOK_S: Final = 1.0  # how soon a producer that waits for readers sees one
#: How often a producer that does not wait for readers looks who they are, and any producer at what retention keeps.
SELDOM_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Seen:
    readers: tuple[LiveReader, ...]
    unread_s: float


class Pacer:
    """Looks, in a thread of its own, who reads a stream; says how far the run may go. A context manager.

    Args:
        batch_bytes: bytes of a batch on the log, by tap.
        next_batch: the first batch that nobody has published yet; :meth:`verdict` is told how it goes on.
        now: seconds since the epoch.

    Raises, on entering: BrokerError where the topics' retention cannot be read, or the readers on which the pace
    depends cannot be seen.
    """

    def __init__(
        self,
        pace: Pace,
        manifest: Manifest,
        log: Log,
        *,
        batch_bytes: dict[str, float],
        next_batch: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.pace = pace
        self.waited_s = 0.0
        self._manifest = manifest
        self._log = log
        self._batch_bytes = batch_bytes
        self.next_batch = next_batch
        self._look_s = SELDOM_S if pace.free else LOOK_S
        self._now = now
        self._attendance = Attendance(manifest.stream)
        self._seen = _Seen((), 0.0)
        self._read_at: float | None = None
        self._retention: dict[str, Retention] = {}
        self._retention_at = float("-inf")
        self._risky: set[str] = set()
        self._shares: dict[str, float] = {}
        self._warnings: queue.SimpleQueue[Risk] = queue.SimpleQueue()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)
        self._source: RecordSource | None = None
        self._told_at: float | None = None

    def __enter__(self) -> Self:
        self._source = self._log.source()
        self._read_at = self._now()
        try:
            self._retention = {tap: self._kept(tap) for tap in self._batch_bytes}
            if not self.pace.free:
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
        if self._source is not None:
            self._source.close()

    def verdict(self, next_batch: int) -> Verdict:
        """Return what to do now that ``next_batch`` is the first batch that was not sent."""
        self.next_batch = next_batch
        seen = self._seen
        layout = self._manifest.layout
        found = decide(self.pace, layout, seen.readers, next_batch=next_batch, unread_s=seen.unread_s)
        now = time.monotonic()
        if found.action == "wait" and self._told_at is not None:
            self.waited_s += now - self._told_at
        self._told_at = now if found.action == "wait" else None
        return found

    @property
    def readers(self) -> tuple[LiveReader, ...]:
        """Who reads, by the last look."""
        return self._seen.readers

    @property
    def shares(self) -> dict[str, float]:
        """How much of its retention what each reader needs has behind it, by the last look at that."""
        return dict(self._shares)

    def warnings(self) -> list[RetentionWarning]:
        """Return what has come near to its deletion since the last call, each reader once."""
        found = []
        while not self._warnings.empty():
            risk = self._warnings.get()
            at = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="seconds")
            found.append(
                RetentionWarning(
                    reader=risk.reader,
                    batch=risk.batch,
                    tap=risk.tap,
                    share=round(risk.share, 3),
                    by=risk.by,
                    text=risk.text(),
                    at=at,
                )
            )
        return found

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except FeatureStreamError:
                # A broker that is away ends the run by its sink, and what was seen last is true meanwhile.
                if self._done.is_set():
                    return
            if self._done.wait(self._look_s):
                return

    def _look(self) -> None:
        notes = self._log.committed_notes(reader_group(self._manifest.stream, ""))
        now = self._now()
        readers = tuple(self._attendance.look(notes, now))
        if readers or self._read_at is None:
            self._read_at = now
        if readers and now - self._retention_at >= SELDOM_S:
            self._retention_at = now
            self._look_at_retention(readers, round(now * 1000))
        self._seen = _Seen(readers, now - self._read_at)  # the warning comes first

    def _look_at_retention(self, readers: tuple[LiveReader, ...], now_ms: int) -> None:
        shares = dict[str, float]()
        for reader in readers:
            risk = risk_of(
                reader,
                self._retention,
                next_batch=self.next_batch,
                appended_ms=self._appended_ms(reader, now_ms),
                now_ms=now_ms,
            )
            shares[reader.name] = 0.0 if risk is None else risk.share
            if risk is None or risk.share < WARN_SHARE:
                self._risky.discard(reader.name)
            elif reader.name not in self._risky:
                self._risky.add(reader.name)
                self._warnings.put(risk)
        self._shares = shares

    def _kept(self, tap: str) -> Retention:
        settings = self._log.settings(tap_topic(self._manifest.stream, tap))
        return Retention.of(settings, self._manifest.lanes, self._batch_bytes[tap])

    def _appended_ms(self, reader: LiveReader, now_ms: int) -> dict[str, int]:
        """Return when the first batch that a reader needs was appended, by tap; of one that is gone the latest time."""
        source, found = self._source, dict[str, int]()
        if source is None or reader.needs >= self.next_batch:
            return found
        for tap in reader.taps:
            if tap not in self._retention:
                continue
            try:
                record = find_batch(source, self._manifest.layout, tap_topic(self._manifest.stream, tap), reader.needs)
                if record is not None:
                    found[tap] = record.timestamp_ms
            except GoneError:
                found[tap] = now_ms - self._retention[tap].keep_ms
        return found

"""That a reader is alive, where it reads and what it still needs: a note beside the positions of its group.

A producer that paces itself, and the warning before retention deletes what is needed, must know who reads. The note is
the text that Kafka keeps with every committed offset, because that needs nothing new: no topic, no membership of a
group, no permission but the one that showing lag takes; Kafka itself forgets the group of a reader that is gone for
good. It names batches and not offsets: a batch is the same on every lane, with duplicates and on a mirror.

A lease is alive while its note changes. It ends with an empty note, or by itself :data:`READER_TTL_S` after the last
beat of a reader that was killed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featurestream.errors import BrokerError, FeatureStreamError, StreamNotFoundError
from featurestream.names import parse_reader_group, reader_group
from featurestream.ports import Log

BEAT_S: Final = 5.0
#: Without a new beat for so long a reader counts as dead: four beats, because a broker that restarts takes two.
READER_TTL_S: Final = 20.0
THREADS: Final = 8  # that commit at once: nearly all of the time is waiting
SOON_S: Final = 0.5  # a reader that waits says so without waiting for its next beat, but not more often than this


Offsets = Mapping[tuple[str, int], int]  # the next offset of each (topic, lane)


class ReaderNote(BaseModel):
    """What a reader's lease says."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    batch: int = Field(ge=0, description="the batch that it reads next")
    needs: int = Field(ge=0, description="the first batch that it may still read: after a crash, or once more")
    taps: tuple[str, ...] = Field(description="the taps that it reads")
    beat_ms: int = Field(ge=0, description="when this was written, milliseconds since the epoch by the reader's clock")


@dataclass(frozen=True, slots=True)
class ReaderPlace:
    """Where a reader is: its name, what its note says, and the next offset of each (topic, lane)."""

    reader: str
    batch: int
    needs: int
    taps: tuple[str, ...]
    offsets: Offsets


@dataclass(frozen=True, slots=True)
class LiveReader:
    """A reader whose lease is alive."""

    name: str
    batch: int
    needs: int
    taps: tuple[str, ...]


class ReaderLease:
    """A reader's lease on a stream, while the ``with`` block lasts; a thread renews it.

    ``where`` is asked, in that thread, where the reader is; None, or a place without offsets, leaves the lease as it
    is. A broker that does not take a beat ends nothing: the next beat tries again. Readers that do not hold the lease
    can have their positions committed beside it (:meth:`commit`).
    """

    def __init__(
        self, log: Log, stream: str, where: Callable[[], ReaderPlace | None], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._log = log
        self._stream = stream
        self._where = where
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._done = threading.Event()
        self._held: ReaderPlace | None = None
        self._due: queue.SimpleQueue[Mapping[str, Offsets]] = queue.SimpleQueue()
        self._failure: FeatureStreamError | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._done.clear()
        self.beat()
        self._thread = threading.Thread(target=self._run, name="reader lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._commit_due()
        if self._held is not None:
            self._commit(self._held, "")
            self._held = None

    def beat(self) -> None:
        """Renew the lease now."""
        with self._lock:
            place = self._where()
            if place is None or not place.offsets:
                return
            before, self._held = self._held, place
            if before is not None and before.reader != place.reader:
                self._commit(before, "")  # of many experiments on one reading, the one furthest behind holds it
            self._commit(place, self._note_of(place))

    def nudge(self) -> None:
        """Renew the lease soon where the reader has moved on since the last beat: it is about to wait."""
        place = self._where()
        if place is not None and place.offsets and (self._held is None or place.batch != self._held.batch):
            self._wake.set()

    def commit(self, positions: Mapping[str, Offsets]) -> None:
        """Commit where readers, by name, are: soon, and at the latest on leaving, in the thread of the beats.

        So nobody waits for the cluster, however many readers there are. See :meth:`failure`.
        """
        self._due.put(positions)
        self._wake.set()

    def failure(self) -> FeatureStreamError | None:
        """Return why positions were not taken, where some were not since this was asked last."""
        failure, self._failure = self._failure, None
        return failure

    def _run(self) -> None:
        while not self._done.is_set():
            self._wake.wait(BEAT_S)
            self._wake.clear()
            self._commit_due()
            if self._done.is_set():
                return
            self.beat()
            self._done.wait(SOON_S)

    def _commit_due(self) -> None:
        """Commit the newest positions that are due, those of the lease's holder with its note."""
        due: dict[str, Offsets] = {}
        while not self._due.empty():
            due |= self._due.get()
        refused = threading.Event()

        def commit(reader: str, note: str = "") -> None:
            if refused.is_set():
                return  # a cluster that has not taken one is not waited for with each of the others
            try:
                self._log.commit_positions(reader_group(self._stream, reader), due[reader], note)
            except FeatureStreamError as error:
                refused.set()
                self._failure = error

        with self._lock:
            held = self._held
            if held is not None and held.reader in due:
                self._held = replace(held, offsets=due[held.reader])
                commit(held.reader, self._note_of(held))
        others = [reader for reader in due if held is None or reader != held.reader]
        if others:
            with ThreadPoolExecutor(min(THREADS, len(others)), "positions") as pool:
                list(pool.map(commit, others))  # an error that is not the cluster's goes on from here

    def _note_of(self, place: ReaderPlace) -> str:
        beat_ms = round(self._clock() * 1000)
        note = ReaderNote(batch=place.batch, needs=place.needs, taps=place.taps, beat_ms=beat_ms)
        return note.model_dump_json()

    def _commit(self, place: ReaderPlace, note: str) -> None:
        try:
            self._log.commit_positions(reader_group(self._stream, place.reader), place.offsets, note)
        except (BrokerError, StreamNotFoundError):
            return  # a courtesy: what a reader has read is in its own checkpoint, and what is wrong shows in reading


@dataclass(slots=True)
class Attendance:
    """Who reads a stream, from looks at the notes of its groups.

    A note's own time counts only at the first look: from then on a reader is alive while its note changes, so that
    readers' clocks need not agree with this one's.
    """

    stream: str
    _seen: dict[str, tuple[ReaderNote, float]] = field(default_factory=dict)  # the newest note, and when it came

    def look(self, notes: Mapping[str, Iterable[str]], now: float) -> list[LiveReader]:
        """Take what groups have committed (:meth:`~featurestream.ports.Log.committed_notes`); return who is alive.

        ``now``: seconds since the epoch by this machine. A note that is none of ours is no lease.
        """
        for group, texts in notes.items():
            name = parse_reader_group(group)
            if name is None or name[0] != self.stream:
                continue
            known = [note for note in map(_parse, texts) if note is not None]
            if not known:
                self._seen.pop(name[1], None)
                continue
            note = max(known, key=lambda one: one.beat_ms)
            before = self._seen.get(name[1])
            if before is None:
                self._seen[name[1]] = (note, min(now, note.beat_ms / 1000))
            elif before[0] != note:
                self._seen[name[1]] = (note, now)
        return [
            LiveReader(name, note.batch, note.needs, note.taps)
            for name, (note, at) in sorted(self._seen.items())
            if now - at < READER_TTL_S
        ]


def _parse(text: str) -> ReaderNote | None:
    try:
        return ReaderNote.model_validate_json(text) if text else None
    except ValidationError:
        return None

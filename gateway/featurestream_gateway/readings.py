"""Read parts of ranges from the log, each within a limit, with lanes that stay open from one answer to the next."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from featurestream.errors import FingerprintError
from featurestream.merge import LaneMerge
from featurestream.ports import LogRecord
from featurestream.seek import Lanes
from featurestream.wire import parse_headers
from featurestream_gateway.catalogue import Catalogue
from featurestream_gateway.look_ups import LookUps
from featurestream_gateway.problems import RefusedError, TooLargeError
from featurestream_gateway.ranges import BatchPiece, Piece, Range

IDLE_S: Final = 30.0  # how long lanes stay open for a client that may come back
IDLE_LANES: Final = 32  # lanes that are open and idle, over all streams: each holds some megabytes
SHORT: Final = 4  # batches that are looked up: as many lanes would have to be opened, which takes longer
FAR: Final = 4  # records of a lane that are passed over rather than opening it anew


class Size(Protocol):
    """How many bytes of an answer a batch takes, at most."""

    def __call__(self, records: Sequence[LogRecord], rows: int) -> tuple[int, int]:
        """Return (bytes that the batch takes however little is used, bytes that each row takes); ``rows``: of all."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What one answer may hold. ``exact``: the rows were asked for by number, so fewer would be a surprise."""

    rows: int
    bytes: int
    exact: bool
    size: Size


class _Batches(Protocol):
    def get(self, number: int) -> tuple[LogRecord, ...]:
        """Return a batch's records; numbers grow, but the last batch may be asked for again."""


class _LookedUp:
    """The batches of a range, looked up one by one."""

    def __init__(self, look_ups: LookUps, lanes: Lanes, wanted: Range) -> None:
        self._look_ups = look_ups
        self._lanes = lanes
        self._wanted = wanted

    def get(self, number: int) -> tuple[LogRecord, ...]:
        return self._look_ups.batch(self._wanted.manifest, self._lanes, self._wanted.taps, number)


class _Session:
    """Open lanes of one stream and set of taps, and where they stand."""

    def __init__(self, merge: LaneMerge, fingerprint: str) -> None:
        self.key = (fingerprint, merge.taps)
        self.idle_since = 0.0
        self._merge = merge
        self._next = -1
        self._held: tuple[LogRecord, ...] = ()

    @property
    def lanes(self) -> int:
        return self._merge.open_lanes

    def is_near(self, number: int, lanes: int) -> bool:
        """Tell whether reading on from here is the way to a batch."""
        first = self._next - 1 if self._held else self._next
        return first <= number <= self._next + FAR * lanes

    def get(self, number: int) -> tuple[LogRecord, ...]:
        """Return a batch's records; the last batch may be asked for again."""
        if number != self._next - 1 or not self._held:
            self._held = ()
            self._held = tuple(self._merge.raw(tap, number) for tap in self._merge.taps)
            self._next = number + 1
        return self._held

    def let_go(self) -> None:
        """Forget the last batch, which nobody will ask for again."""
        self._held = ()

    def close(self) -> None:
        self._merge.close()


class Readings:
    """Reads parts of ranges. May be used by many threads; :meth:`stop` ends what they wait for."""

    def __init__(self, catalogue: Catalogue, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._catalogue = catalogue
        self._look_ups = LookUps(catalogue.log)
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[_Session] = []
        self._stopping = threading.Event()

    @property
    def idle_lanes(self) -> int:
        """Lanes that are open and idle."""
        with self._lock:
            return sum(session.lanes for session in self._idle)

    def read(self, wanted: Range, limit: Limit) -> Piece:
        """Return what is complete of a range, within a limit. It may have no rows.

        Raises TooLargeError where ``limit.exact`` rows do not fit, or not even the first batch does; GoneError,
        HoleError, FingerprintError, RecordError and BrokerError as every reader does.
        """
        edges = self._catalogue.edges(wanted.manifest, wanted.taps)
        begin = wanted.begin
        if begin.batch >= edges.next_missing or wanted.is_over(begin):
            return Piece(wanted, (), begin, "never" if wanted.is_over(begin) else "later")
        try:
            session = self._take(wanted)
            if session is None and is_short(wanted, limit):
                lanes = self._catalogue.lanes(wanted.manifest, wanted.taps)
                batches = self._batches(_LookedUp(self._look_ups, lanes, wanted), wanted, edges.next_missing, limit)
            else:
                batches = self._read(session or self._open(wanted), wanted, edges.next_missing, limit)
        except FingerprintError:
            self._catalogue.forget(wanted.manifest)  # the stream may have been made anew
            raise
        until = batches[-1].next if batches else begin
        if wanted.is_over(until):
            return Piece(wanted, tuple(batches), until, "never")
        return Piece(wanted, tuple(batches), until, "now" if until.batch < edges.next_missing else "later")

    def stop(self) -> None:
        """End all waiting, and close what is idle."""
        self._stopping.set()
        self.reap(all_of_them=True)
        self._look_ups.close()

    def reap(self, *, all_of_them: bool = False) -> None:
        """Close lanes that nobody has come back for, and those that are too many."""
        now = self._clock()
        with self._lock:
            kept: list[_Session] = []
            lanes = 0
            for session in sorted(self._idle, key=lambda one: one.idle_since, reverse=True):
                lanes += session.lanes
                if not all_of_them and now - session.idle_since < IDLE_S and lanes <= IDLE_LANES:
                    kept.append(session)
            closed = [session for session in self._idle if session not in kept]
            self._idle = kept
        for session in closed:
            session.close()

    def _read(self, session: _Session, wanted: Range, there: int, limit: Limit) -> list[BatchPiece]:
        try:
            batches = self._batches(session, wanted, there, limit)
        except TooLargeError:
            self._give(session)
            raise
        except BaseException:
            session.close()
            raise
        if batches and not batches[-1].next.row:
            session.let_go()
        self._give(session)
        return batches

    def _batches(self, session: _Batches, wanted: Range, there: int, limit: Limit) -> list[BatchPiece]:
        begin, stop = wanted.begin, wanted.stop
        found: list[BatchPiece] = []
        rows_left, bytes_left = limit.rows, limit.bytes
        for number in itertools.count(begin.batch):
            if number >= there or rows_left == 0 or (stop is not None and (number, 0) >= (stop.batch, stop.row)):
                return found
            records = session.get(number)
            rows = parse_headers(records[0].headers).rows
            first = min(begin.row, rows) if number == begin.batch else 0
            last = min(stop.row, rows) if stop is not None and number == stop.batch else rows
            count = min(max(last - first, 0), rows_left)
            fixed, each = limit.size(records, rows)
            if fixed + each * count > bytes_left:
                taken = limit.rows - rows_left
                count = max(bytes_left - fixed, 0) // each if each and fixed <= bytes_left else 0
                if limit.exact or (not found and not count):
                    raise _too_large(limit, taken + count)
                if count:
                    found.append(BatchPiece(number, first, first + count, rows, records))
                return found
            found.append(BatchPiece(number, first, first + count, rows, records))
            rows_left -= count
            bytes_left -= fixed + each * count
        return found

    def _take(self, wanted: Range) -> _Session | None:
        """Return open lanes from which reading on is the way to a range, where there are any."""
        manifest = wanted.manifest
        key = (manifest.fingerprint, wanted.taps)
        with self._lock:
            for session in self._idle:
                if session.key == key and session.is_near(wanted.begin.batch, manifest.layout.lanes):
                    self._idle.remove(session)
                    return session
        return None

    def _open(self, wanted: Range) -> _Session:
        manifest = wanted.manifest
        merge = LaneMerge(self._catalogue.source, manifest, wanted.taps, on_wait=self._check)
        return _Session(merge, manifest.fingerprint)

    def _give(self, session: _Session) -> None:
        session.idle_since = self._clock()
        with self._lock:
            self._idle.append(session)
        self.reap(all_of_them=self._stopping.is_set())

    def _check(self, _waited_s: float) -> None:
        if self._stopping.is_set():
            raise RefusedError("ending", "the gateway is ending", hint="ask again when it is back")


def is_short(wanted: Range, limit: Limit) -> bool:
    """Tell whether a range, or what is asked for of it, is so short that looking its batches up takes least.

    Rows within one batch count from its first row only: whoever goes on with a cursor reads on.
    """
    layout = wanted.manifest.layout
    if wanted.begin.row == 0 and limit.exact and limit.rows <= layout.batch_samples * layout.views:
        return True
    return wanted.stop is not None and wanted.stop.batch - wanted.begin.batch <= SHORT


def _too_large(limit: Limit, fits: int) -> TooLargeError:
    mega = f"{limit.bytes / 2**20:g} MiB"
    if fits:
        return TooLargeError(
            f"{limit.rows:,} rows may take more than the {mega} that an answer may have",
            hint=f"ask for n={fits} and go on with next, name fewer taps, or leave n out; format=msgpack and npy take "
            "less than json",
            max_rows=fits,
        )
    return TooLargeError(
        f"not even the first batch fits into the {mega} that an answer may have",
        hint="name fewer taps, use format=npy, or have the gateway started with a greater --max-mb",
        max_rows=0,
    )

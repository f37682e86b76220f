"""One live producer a stream: who holds it, and how a second one finds out.

Several ranks of one run hold a stream together, each with a lease of its own; to all others they are one producer.

The lease is a key of the manifest's topic. It is advice among producers of good will, not a lock: what a stream's
readers rely on is the dense numbering of batches, and records of a producer that went on unaware (a zombie) are
duplicates, which every reader drops.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, Self

import psutil

from featurestream.errors import BrokerError, FeatureStreamError, StreamBusyError
from featurestream.manifest import LEASE_KEY, Lease, from_json
from featurestream.manifest_topic import ManifestTopic
from featurestream.ports import Log, LogRecord
from featurestream_producer.ranks import ALONE, Rank

HEARTBEAT_S: Final = 5.0
#: Without a new heartbeat for this long, a producer on another host counts as dead: three beats.
LEASE_TTL_S: Final = 15.0
LOOK_EVERY_S: Final = 1.0
#: How long the end of a run waits for a heartbeat that the broker does not answer.
LEAVE_S: Final = 2.0
READ_TIMEOUT_S: Final = 10.0
# Two readings of the moment a process began differ by the adjustments that the clock got in between.
STARTED_TOLERANCE_S: Final = 2.0
INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"  # Linux: PROC_PID_INIT_INO

#: The leases of this process: one that names this process and is not here belongs to an earlier call that failed.
_held: set[str] = set()


def this_host() -> str:
    """Return what tells this host's processes apart from others': its name, and its process namespace in a container.

    Two containers may share a host's name and not its processes: a process number then means nothing to the other.
    """
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        namespace = INITIAL_PID_NAMESPACE
    if namespace == INITIAL_PID_NAMESPACE:
        return socket.gethostname()
    return f"{socket.gethostname()}/{namespace.removeprefix('pid:[').removesuffix(']')}"


def lives(lease: Lease) -> bool:
    """Tell whether the process that took the lease still runs on this host."""
    if lease.pid == os.getpid() and lease.producer not in _held:
        return False
    try:
        process = psutil.Process(lease.pid)
        started, status = process.create_time(), process.status()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    same: bool = abs(started - lease.process_started) <= STARTED_TOLERANCE_S
    return same and status != psutil.STATUS_ZOMBIE


def judge(
    lease: Lease | None, first: Lease | None, watched_s: float, *, host: str, lives: Callable[[Lease], bool]
) -> Literal["free", "held", "watch"]:
    """Decide from a stream's lease whether another producer may start.

    ``first`` is the lease as it stood ``watched_s`` ago. On the same host the process list answers at once, so that
    after a crash the next producer goes on without a pause. A lease of another host is watched: held when it beats,
    free when it has not for :data:`LEASE_TTL_S`.
    """
    if lease is None or lease.released:
        return "free"
    if lease.host == host:
        return "held" if lives(lease) else "free"
    if first is None or (lease.producer, lease.heartbeat) != (first.producer, first.heartbeat):
        return "held"
    return "free" if watched_s >= LEASE_TTL_S else "watch"


def excludes(one: Lease, other: Lease) -> bool:
    """Tell whether two producers cannot publish a stream at the same time: all but different ranks of one run."""
    return one.claim != other.claim or one.rank == other.rank


class HeldLease:
    """This producer's lease on a stream, from :meth:`take` until the end of the ``with`` block.

    A thread writes a heartbeat every :data:`HEARTBEAT_S` and looks whether another producer took over: claims are
    ordered by the place in the topic where a producer first appears, so a heartbeat of the one that was replaced
    changes nothing. :meth:`check` raises what the thread has found. A broker that does not answer a look is asked
    again: how long it may be away, the sinks decide.
    """

    def __init__(self, log: Log, stream: str, *, rank: Rank = ALONE, now: Callable[[], datetime] | None = None) -> None:
        self._topic = ManifestTopic(log, stream)
        self._source = log.source()
        self._now = now or _now
        moment = self._now().isoformat(timespec="seconds")
        self._lease = Lease(
            producer=uuid.uuid4().hex[:12],
            host=this_host(),
            pid=os.getpid(),
            process_started=psutil.Process().create_time(),
            since=moment,
            heartbeat=moment,
            run=rank.run,
            rank=rank.number,
            ranks=rank.size,
        )
        self._scan = ClaimScan(self._lease)
        self._error: FeatureStreamError | None = None
        self._beaten_at = time.monotonic()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        silent = isinstance(error, BrokerError)
        try:
            if self._thread is not None:
                self._thread.join(LEAVE_S if silent else None)
                if not silent and self._error is None:
                    self._release()
        except FeatureStreamError:
            if error is None:
                raise
            # What ended the run says more; without the release the next producer looks whether this one lives.
        finally:
            _held.discard(self._lease.producer)
            if self._thread is None or not self._thread.is_alive():  # or it closes them itself
                self._close()

    def take(self, *, take_over: bool, say: Callable[[str], None]) -> None:
        """Take the lease, or raise StreamBusyError with who holds it. The manifest's topic must exist.

        ``say`` gets the line that tells that a lease of another host is being watched.
        """
        after = self._source.bounds(self._topic.topic, 0).high
        if not take_over:
            self._wait_until_free(say)
        before = self._topic.read().leases
        self._scan.start_at(after, before.values())
        _held.add(self._lease.producer)
        self._topic.write_lease(self._lease)
        self._look()
        if self._error is not None:
            _held.discard(self._lease.producer)
            raise self._error
        if self._lease.rank == 0:
            for rank, lease in before.items():
                if rank >= self._lease.ranks:  # of an earlier run of more ranks: nobody writes there any more
                    self._topic.forget_lease(lease)
        self._beaten_at = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise StreamBusyError when another producer has taken over, BrokerError when heartbeats cannot be written."""
        if self._error is not None:
            raise self._error

    @property
    def silent_s(self) -> float:
        """Seconds for which the broker is overdue: none while heartbeats come through, every :data:`HEARTBEAT_S`."""
        return max(0.0, time.monotonic() - self._beaten_at - HEARTBEAT_S)

    def _wait_until_free(self, say: Callable[[str], None]) -> None:
        began = time.monotonic()
        first = leases = self._topic.read().leases
        said = False
        while True:
            watched_s = time.monotonic() - began
            watching = None
            for rank, lease in leases.items():
                if not excludes(lease, self._lease):
                    continue
                verdict = judge(lease, first.get(rank), watched_s, host=self._lease.host, lives=lives)
                if verdict == "held":
                    raise busy(self._topic.stream, lease)
                watching = lease if verdict == "watch" else watching
            if watching is None:
                return
            if not said:
                say(
                    f"the last producer ({who(watching)}) did not end cleanly: "
                    f"waiting {LEASE_TTL_S:.0f} s for a sign of life"
                )
                said = True
            time.sleep(LOOK_EVERY_S)
            leases = self._topic.read().leases

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT_S):
            try:
                self._look()
            except BrokerError:
                continue
            except FeatureStreamError as error:
                self._error = error
            if self._error is not None:
                break
            try:
                beat = self._now().isoformat(timespec="seconds")
                self._topic.write_lease(self._lease.model_copy(update={"heartbeat": beat}))
            except FeatureStreamError as error:  # the sink has waited for as long as one may wait
                self._error = error
                break
            self._beaten_at = time.monotonic()
        if self._lease.producer not in _held:  # the run did not wait
            self._close()

    def _look(self) -> None:
        """Read what came to the topic since the last look; note who has taken over."""
        topic = self._topic.topic
        high = self._source.bounds(topic, 0).high
        if self._scan.next_offset >= high:
            return
        reader = self._source.read(topic, 0, self._scan.next_offset)
        try:
            while self._scan.next_offset < high:
                record = reader.poll(READ_TIMEOUT_S)
                if record is None:
                    return  # a slow broker; the next beat looks again
                winner = self._scan.apply(record)
                if winner is not None:
                    self._error = StreamBusyError(
                        f'stream "{self._topic.stream}" was taken over by another producer: {who(winner)}',
                        hint="it goes on where this one stops",
                    )
                    return
        finally:
            reader.close()

    def _release(self) -> None:
        self._look()
        if self._error is None:
            beat = self._now().isoformat(timespec="seconds")
            self._topic.write_lease(self._lease.model_copy(update={"heartbeat": beat, "released": True}))

    def _close(self) -> None:
        self._topic.close()
        self._source.close()


class ClaimScan:
    """Finds in the records of a manifest's topic, read in order, the producer that took over from ``mine``.

    That is the first one that excludes it, appears after it and did not appear before it.
    """

    def __init__(self, mine: Lease) -> None:
        self.next_offset = 0
        self._mine = mine
        self._older: set[str] = set()
        self._claimed = False

    def start_at(self, offset: int, before: Iterable[Lease]) -> None:
        """Begin at ``offset``, where ``before`` are the leases that stand already."""
        self.next_offset = offset
        self._older.update(lease.producer for lease in before)

    def apply(self, record: LogRecord) -> Lease | None:
        """Take over one record; return the lease that ends ours, if it is one."""
        self.next_offset = record.offset + 1
        key = (record.key or b"").decode("utf-8", "replace")
        if key.partition("/")[0] != LEASE_KEY or record.value is None:
            return None
        lease = from_json(Lease, record.value)
        if not excludes(lease, self._mine):
            return None
        if lease.producer == self._mine.producer:
            self._claimed = True
        elif not self._claimed:
            self._older.add(lease.producer)
        elif lease.producer not in self._older:
            return lease
        return None


def busy(stream: str, lease: Lease) -> StreamBusyError:
    """Return the error of a second producer on a live stream."""
    return StreamBusyError(
        f'stream "{stream}" has a live producer: {who(lease)}, since {lease.since}, last heartbeat {lease.heartbeat}',
        hint="stop it first, or replace it with --take-over",
        host=lease.host,
        pid=lease.pid,
        since=lease.since,
        heartbeat=lease.heartbeat,
    )


def who(lease: Lease) -> str:
    """Return the producer's process, host and rank."""
    rank = "" if lease.ranks == 1 else f" (rank {lease.rank} of {lease.ranks})"
    return f"process {lease.pid} on {lease.host}{rank}"


def _now() -> datetime:
    return datetime.now(UTC)

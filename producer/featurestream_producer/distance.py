"""How far fast devices may be in front of slow ones.

Readers merge the lanes in batch order, so what a fast device publishes early only lies on the log, where retention may
reach it before the slowest lane does. So every worker stops :data:`ROUNDS` batches a lane in front of the slowest one.
Between the workers of one process that is counted; over hosts the ends of the other ranks' lanes tell.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Final, Self

from featurestream.errors import BrokerError
from featurestream.layout import Layout
from featurestream.ports import RecordSource
from featurestream.seek import Lanes

#: Batches a lane, at about a megabyte each: far enough that a device at full speed never waits for the next look at
#: the other hosts, near enough that what waits is still in the brokers' memory.
ROUNDS: Final = 128
LOOK_EVERY_S: Final = 1.0
LEAVE_S: Final = 2.0
OVERDUE_S: Final = 15.0  # a lane that has not moved for so long belongs to a rank that is gone, or has not begun
STEPS: Final = 8  # workers are told of a bound that has risen by this part of the whole


class Distance:
    """The bound of one run, kept by whoever hears from all its workers.

    ``left``: for each worker the batches that it will publish, in order; the stream ends before ``stop``. ``others``
    tells, for each lane of other ranks, the first batch that it does not hold.
    """

    def __init__(
        self,
        layout: Layout,
        stop: int | None,
        left: Mapping[int, Iterable[int]],
        others: Callable[[], Mapping[int, int]] = dict,
    ) -> None:
        self._layout = layout
        self._stop = stop
        self._left = {worker: iter(batches) for worker, batches in left.items()}
        self._next: dict[int, int] = {}
        self._others = others
        self._rounds = ROUNDS
        self._awaited: tuple[int, int] | None = None  # lane and batch for which all workers here wait,
        self._since_s = 0.0  # since then
        self._told = False
        for worker in left:
            self.sent(worker)

    def sent(self, worker: int) -> None:
        """Note that a worker has published the next of its batches."""
        batch = next(self._left[worker], None)
        if batch is None:
            self._next.pop(worker, None)
        else:
            self._next[worker] = batch

    @property
    def limit(self) -> int:
        """The first batch that nobody may compute yet. It rises in steps, and is always beyond the slowest's next."""
        whole = self._rounds * self._layout.lanes
        step = max(1, whole // STEPS)
        slowest = min([*self._next.values(), *self._others_left().values()], default=self._stop or 0)
        return slowest // step * step + whole

    def overdue(self, now_s: float) -> int | None:
        """Return a lane of another rank that has kept all workers here waiting for :data:`OVERDUE_S`; once, then None.

        ``now_s`` are seconds of a clock that never goes back.
        """
        others = self._others_left()
        waiting = others and self._next and min(self._next.values()) >= self.limit
        awaited = min(others.items(), key=lambda item: item[1]) if waiting else None
        if awaited != self._awaited:
            self._awaited, self._since_s, self._told = awaited, now_s, False
        if awaited is None or self._told or now_s - self._since_s < OVERDUE_S:
            return None
        self._told = True
        return awaited[0]

    def _others_left(self) -> dict[int, int]:
        return {lane: batch for lane, batch in self._others().items() if self._stop is None or batch < self._stop}


class LaneEnds:
    """Looks every :data:`LOOK_EVERY_S` how far other ranks are. A context manager; it closes the source.

    ``topic`` is that of one tap, ``lanes`` those of other ranks. Where they stand at first is read; from there on the
    ends are counted, so that a later duplicate makes a lane look one batch further than it is. A lane that retention
    has emptied goes on where its rank does: at the first pass that is not finished. A broker that does not answer is
    asked again: how long it may be away, the sinks decide.

    Attributes:
        next_batch: for each lane the first batch that it does not hold.
    """

    def __init__(
        self, source: RecordSource, layout: Layout, topic: str, lanes: Iterable[int], finished_passes: int
    ) -> None:
        self._source = source
        self._topic = topic
        self._layout = layout
        self._high = {lane: source.bounds(topic, lane).high for lane in lanes}
        finder = Lanes(source, layout, (topic,))
        self._first: dict[int, int] = {}
        for lane, high in self._high.items():
            greatest = finder.greatest(topic, lane, high)
            emptied = layout.next_in_lane(lane, layout.pass_start(finished_passes)) if high else lane
            self._first[lane] = emptied if greatest is None else greatest + layout.lanes
        self.next_batch = dict(self._first)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lane ends", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(LEAVE_S)  # a look waits for as long as the broker is silent; then the thread closes by itself

    def _run(self) -> None:
        while not self._done.wait(LOOK_EVERY_S):
            try:
                self.look()
            except BrokerError:
                continue
        self._source.close()

    def look(self) -> None:
        """Look now."""
        self.next_batch = {
            lane: self._first[lane] + (self._source.bounds(self._topic, lane).high - high) * self._layout.lanes
            for lane, high in self._high.items()
        }


class Gate:
    """Lets a worker compute the batches below a limit, which rises; None is no limit."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._changed = threading.Condition()

    def open_to(self, limit: int | None) -> None:
        """Let batches below ``limit`` pass, and those that could pass before."""
        with self._changed:
            if limit is None or self._limit is None:
                self._limit = None
            else:
                self._limit = max(limit, self._limit)
            self._changed.notify_all()

    def wait(self, batch: int, stopped: Callable[[], bool], look_s: float) -> bool:
        """Return True as soon as a batch may be computed, False when ``stopped`` says so first."""
        with self._changed:
            while self._limit is not None and batch >= self._limit:
                if stopped():
                    return False
                self._changed.wait(look_s)
        return True

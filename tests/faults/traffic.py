"""Somebody publishes a stream, batch after batch, and two readers follow it, while a test does harm."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from featurestream.cluster import Cluster
from featurestream.errors import BrokerError, FeatureStreamError
from featurestream.kafka import KafkaLog
from featurestream.manifest import Manifest
from featurestream.memory import MemoryLog
from featurestream.names import record_key, tap_topic
from featurestream.stream import FeatureStream
from featurestream.wire import encode, headers_of
from tests.faults.oracle import Verdict, examine
from tests.faults.witness import Lines, WitnessedLog, contents, write_lines
from tests.support import create, make_batch_record, make_manifest, publish

END_S = 200.0
KEPT_BACK = 20  # batches that are published when all harm is done: there is progress to be made after it
LIFE = 40  # batches after which the second reader is closed, and goes on as another object


class Traffic:
    """A publisher and two readers, each in a thread of its own; a context manager that ends with the oracle's verdict.

    The publisher makes every batch durable before the next one, with a pause between two, and writes down what it has
    sent and what was acknowledged. One reader reads on; the other is closed again and again, and goes on where it was.

    Attributes:
        acks: when each batch was acknowledged.
        said: the errors that were raised to the publisher and readers, in words.
    """

    def __init__(
        self, cluster: Cluster, stream: str, folder: Path, *, batches: int = 300, pause_s: float = 0.005,
        delivery_s: float = 120.0,
    ) -> None:  # fmt: skip
        self.cluster, self.stream, self.folder = cluster, stream, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.manifest: Manifest = make_manifest(stream, samples=10 * batches, batch_samples=10, lanes=3, passes=1)
        self.acks: list[float] = []
        self.said: list[str] = []
        self._got: list[float] = []
        self._held_at = 0
        self._news = threading.Condition()
        self._hurry = threading.Event()
        self._pause_s = pause_s
        self._healed: list[tuple[float, str]] = []
        self.log = WitnessedLog(KafkaLog(cluster, delivery_s=delivery_s, stall_s=120.0), folder)
        create(self.log, self.manifest)
        works = (self._publish, self._read_on, self._read_in_pieces)
        self._threads = [threading.Thread(target=self._guard, args=(work,), daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    # ---- what the three do --------------------------------------------------------------------------------------

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except FeatureStreamError as error:
            with self._news:
                self.said.append(str(error))
                self._news.notify_all()

    def _publish(self) -> None:
        sink = self.log.sink()
        try:
            for batch in range(total := self.manifest.total_batches or 0):
                if batch == total - KEPT_BACK and not self._hurry.is_set():
                    self._hurry.wait()
                    self._held_at = len(self.acks)
                for tap in self.manifest.taps:
                    record = make_batch_record(self.manifest, batch, tap.name)
                    sink.append(
                        tap_topic(self.stream, tap.name), self.manifest.layout.lane_of(batch),
                        key=record_key(record.pass_number, batch), value=encode(record), headers=headers_of(record),
                    )  # fmt: skip
                sink.flush()
                with self._news:
                    self.acks.append(time.monotonic())
                    self._news.notify_all()
                self._hurry.wait(self._pause_s)
        finally:
            sink.close()

    def _stream(self) -> FeatureStream:
        return FeatureStream(self.stream, log=self.log)

    def _read_on(self) -> None:
        lines = Lines(self.folder / "one.txt")
        with self._stream() as stream:
            for batch in stream:
                self._got.append(time.monotonic())
                for words in contents(batch):
                    lines.write(*words)
        lines.close()

    def _read_in_pieces(self) -> None:
        lines, state = Lines(self.folder / "pieces.txt"), None
        while state is None or state["position"][0] < (self.manifest.total_batches or 0):
            # Who opens a stream while nobody answers is told so after ten seconds, and asks again.
            with suppress(BrokerError), self._stream() as stream:
                if state is not None:
                    stream.load_state_dict(state)
                for batch in itertools.islice(stream, LIFE):
                    for words in contents(batch):
                        lines.write(*words)
                    state = stream.state_dict()
        lines.close()

    # ---- what a test does ---------------------------------------------------------------------------------------

    def wait_for(self, acks: int) -> None:
        """Return when so many batches were acknowledged."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.acks) >= acks or self.said, END_S), f"{len(self.acks)} acks"
            assert self.said == [], self.said

    @contextmanager
    def harmed(self, what: str) -> Iterator[None]:
        """Note when the fault of the block has ended: from then on there must be progress."""
        yield
        self._healed.append((time.monotonic(), what))

    @property
    def stall_s(self) -> float:
        """The longest time between two acknowledgements."""
        gaps = [after - before for before, after in itertools.pairwise(self.acks)]
        if self._held_at:
            gaps[self._held_at - 1] = 0.0
        return max(gaps, default=0.0)

    def verdict(self) -> Verdict:
        """Let everybody come to the end as fast as they can; return what the oracle says."""
        self._hurry.set()
        for thread in self._threads:
            thread.join(END_S)
        left = [f"thread {thread.name}" for thread in self._threads if thread.is_alive()]
        self.log.inner.close()  # type: ignore[attr-defined]
        files = replace(
            self.log.files,
            reference=self._reference(),
            yielded=[self.folder / "one.txt", self.folder / "pieces.txt"],
            resumed=self.folder / "pieces.txt",
            uninterrupted=self.folder / "one.txt",
            healed=write_lines(self.folder / "healed.txt", self._recoveries()),
            left=write_lines(self.folder / "left.txt", ([name] for name in left)),
        )
        verdict = examine(self.stream, self.cluster.bootstrap_servers, files)
        (self.folder / "verdict.txt").write_text("\n".join([*verdict.lines(), *self.said]) + "\n")
        return verdict

    def _recoveries(self) -> Iterator[tuple[float, str]]:
        for healed, what in self._healed:
            for who, moments in (("publisher", self.acks), ("reader", self._got)):
                after = min((moment for moment in moments if moment >= healed), default=float("inf"))
                yield round(after - healed, 3), f"{what}, {who}"

    def _reference(self) -> Path:
        log = MemoryLog()
        publish(log, self.manifest)
        with FeatureStream(self.stream, log=log) as stream:
            return write_lines(
                self.folder / "reference.txt",
                ((tap, number, content) for batch in stream for number, tap, content in contents(batch)),
            )

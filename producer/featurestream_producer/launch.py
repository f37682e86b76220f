"""Start one worker a device, and hear from all of them: one in a thread of this process, several in processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Protocol, Self

import torch

from featurestream.errors import FeatureStreamError, InternalError, OutsideError, UsageError
from featurestream.heap import children_keep_memory
from featurestream.ports import Log
from featurestream_producer.bound import PaceBound
from featurestream_producer.distance import Gate
from featurestream_producer.interrupts import interrupt_blocked
from featurestream_producer.requests import RequestServer, Served, Unserved
from featurestream_producer.taps import TapReader
from featurestream_producer.worker import Done, Durable, Job, Ready, Sent, work

END_S = 30.0  # how long a worker that was told to stop may take to send what it has computed


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker has ended with an error."""

    worker: int
    error: BaseException


Event = Ready | Sent | Durable | Served | Unserved | Done | Failed
MakeReader = Callable[[Job], TapReader]


class Crew(Protocol):
    """The running workers. A context manager: leaving it ends what still runs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def next_event(self, timeout_s: float) -> Event | None:
        """Return what a worker reports next, None when nothing came in time. Every worker ends with Done or Failed."""

    def stop(self) -> None:
        """Ask all workers to take no more batches, send what they have and end. Can be called again."""

    def open_to(self, limit: int) -> None:
        """Let all workers compute the batches below ``limit``; what has been allowed once stays so."""

    def allow(self, below: int | None) -> None:
        """Let workers whose job is ``paced`` publish the batches below ``below``, None: all."""


def start(jobs: Sequence[Job], log: Log, make_reader: MakeReader) -> Crew:
    """Return the workers of ``jobs``, to be started by entering the crew.

    ``make_reader`` builds a job's backbone where it is needed: for one job in this process, for several in each
    process (it is pickled, and so is the log).
    """
    return HereCrew(jobs[0], log, make_reader) if len(jobs) == 1 else ProcessCrew(jobs, log, make_reader)


@dataclass(frozen=True, slots=True)
class _Limit:
    """What a worker's process is told: it may compute the batches below."""

    below: int


@dataclass(frozen=True, slots=True)
class _Pace:
    """What a worker's process is told: readers let it go as far as the batches below; None: to the end."""

    below: int | None


class HereCrew:
    """One worker in a thread of this process."""

    def __init__(self, job: Job, log: Log, make_reader: MakeReader) -> None:
        self._job, self._log, self._make_reader = job, log, make_reader
        self._events: queue.Queue[Event] = queue.Queue()
        self._stop = threading.Event()
        self._gate = Gate(job.limit)
        self._pace = job.pace_bound()
        self._thread = threading.Thread(target=self._run, name=f"worker {job.device}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if not isinstance(error, KeyboardInterrupt):  # a second Ctrl-C: whoever gives it wants no more waiting
            self._thread.join()

    def next_event(self, timeout_s: float) -> Event | None:
        """Return what the worker reports next, None when nothing came in time."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def stop(self) -> None:
        """Ask the worker to end."""
        self._stop.set()

    def open_to(self, limit: int) -> None:
        """Let the worker compute the batches below ``limit``."""
        self._gate.open_to(limit)

    def allow(self, below: int | None) -> None:
        """Let the worker publish the batches below ``below``."""
        self._pace.allow(below)

    def _run(self) -> None:
        report = self._events.put
        done = _run_job(self._job, self._log, self._make_reader, report, self._stop, gate=self._gate, pace=self._pace)
        self._events.put(done)


class ProcessCrew:
    """One spawned process a worker; each has a pipe to this one.

    A process ends at once when this one is gone, whatever took it: it would go on publishing as a zombie.
    """

    def __init__(self, jobs: Sequence[Job], log: Log, make_reader: MakeReader) -> None:
        self._jobs = {job.index: job for job in jobs}
        self._log = log
        self._make_reader = make_reader
        self._pipes: dict[int, Connection] = {}
        self._processes: dict[int, SpawnProcess] = {}
        self._open: set[int] = set()  # workers that have not reported their end
        self._limit = -1

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        threads = max(1, torch.get_num_threads() // len(self._jobs))
        jobs = list(self._jobs.values())
        payloads = [_pickled((job, self._log, self._make_reader)) for job in jobs]
        for job, payload in zip(jobs, payloads, strict=True):
            here, there = context.Pipe()
            process = context.Process(target=_process_main, args=(payload, there, threads), name=f"worker {job.device}")
            with interrupt_blocked(), children_keep_memory():
                process.start()
            there.close()
            self._pipes[job.index], self._processes[job.index] = here, process
            self._open.add(job.index)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        deadline = time.monotonic() + (0 if self._open else END_S)
        for process in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes.values():
            pipe.close()

    def next_event(self, timeout_s: float) -> Event | None:
        """Return what a worker reports next, None when nothing came in time."""
        pipes = {self._pipes[index]: index for index in self._open}
        for ready in wait(list(pipes), timeout_s):
            index = next(found for pipe, found in pipes.items() if pipe is ready)
            try:
                event: Event = self._pipes[index].recv()
            except (EOFError, OSError):
                event = Failed(index, self._death(index))
            if isinstance(event, (Done, Failed)):
                self._open.discard(index)
            return event
        return None

    def stop(self) -> None:
        """Ask all workers to end."""
        self._tell("stop")

    def open_to(self, limit: int) -> None:
        """Let all workers compute the batches below ``limit``."""
        if limit > self._limit:
            self._limit = limit
            self._tell(_Limit(limit))

    def allow(self, below: int | None) -> None:
        """Let the workers publish the batches below ``below``."""
        self._tell(_Pace(below))

    def _tell(self, message: str | _Limit | _Pace) -> None:
        for index in self._open:
            try:
                self._pipes[index].send(message)
            except OSError:
                continue  # it is gone; next_event tells

    def _death(self, index: int) -> OutsideError:
        process = self._processes[index]
        process.join(END_S)
        code = process.exitcode
        how = f"ended with code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        return OutsideError(
            f"the worker of {self._jobs[index].device} (process {process.pid}) {how}",
            hint="a worker is mostly killed for memory: a smaller --batch-size or fewer --workers; "
            "the same command goes on where the stream ends",
        )


def _pickled(work: object) -> bytes:
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"the work cannot be sent to a process of its own: {error}",
            hint="several devices need data, transform and log that can be pickled; or use one device",
        ) from error


def _process_main(payload: bytes, pipe: Connection, threads: int) -> None:
    """Run one job in a process of its own; ``pipe`` brings "stop" and limits, and takes what happens."""
    torch.set_num_threads(threads)
    # Ctrl-C is blocked from the start. SIGTERM may come to all of a service's processes: the first one tells the rest.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    stop, pace = threading.Event(), PaceBound(below=0)
    lock = threading.Lock()  # the sender's thread and this one report
    gate = Gate(0)

    def listen() -> None:
        try:
            while True:
                match pipe.recv():
                    case _Limit(below):
                        gate.open_to(below)
                    case _Pace(below):
                        pace.allow(below)
                    case "stop":
                        stop.set()
        except (EOFError, OSError):
            os._exit(1)  # the process that started this one is gone, and with it the stream's lease

    def report(event: Event) -> None:
        try:
            with lock:
                pipe.send(event)
        except OSError:
            os._exit(1)  # as above, noticed here first

    threading.Thread(target=listen, name="listener", daemon=True).start()
    job, log, make_reader = pickle.loads(payload)  # noqa: S301 - from our own process, through our own pipe
    gate.open_to(job.limit)
    pace = pace if job.paced else job.pace_bound()
    report(_run_job(job, log, make_reader, report, stop, gate=gate, pace=pace))


def _run_job(
    job: Job,
    log: Log,
    make_reader: MakeReader,
    report: Callable[[Event], None],
    stop: threading.Event,
    *,
    gate: Gate,
    pace: PaceBound,
) -> Done | Failed:
    """Do a job from its connection on; return how it ended."""
    try:
        reader = make_reader(job)
        with ExitStack() as stack:
            sink = log.sink()
            stack.callback(sink.close)
            if job.index:
                return Done(job.index, work(job, reader, sink, report, stop, gate=gate, pace=pace))
            server = stack.enter_context(RequestServer(job, log, report))
            stages = work(
                job, reader, sink, report, stop, gate=gate, pace=pace, between=lambda: server.serve(reader, stop)
            )
            server.finish(reader, stop)
            return Done(job.index, stages)
    except FeatureStreamError as error:
        return Failed(job.index, error)
    except BaseException as error:  # noqa: BLE001 - whatever it is must reach the process that reports it
        # As text: a traceback does not travel between processes.
        trace = "".join(traceback.format_exception(error))
        return Failed(job.index, InternalError(f"the worker of {job.device} failed:\n{trace}"))

"""Load batches of images ahead of the device: decode, transform, stack; in order, the same whoever does it."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import queue
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestream.closing import Closing
from featurestream.errors import DataError, OutsideError, UsageError
from featurestream_producer.datasets import ImageDataset
from featurestream_producer.interrupts import interrupt_blocked
from featurestream_producer.randomness import kept_globals
from featurestream_producer.sampling import sample_seed
from featurestream_producer.transforms import Transform

_AHEAD = 2  # batches that are ready beside those being loaded: 150 MB each for 256 images of 224 pixels


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """What one batch will hold: its number, its pass, and its samples' indices in row order, int64 (samples,)."""

    batch: int
    pass_number: int
    samples: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """One batch of images.

    ``images``: float32 (rows, 3, H, W); the views of a sample are adjacent rows, view 0 first. ``present``: int64
    (rows,), the sample index of each row. ``missing``: (index, id, reason) of each planned sample that could not be
    decoded, in plan order; they have no rows.
    """

    plan: BatchPlan
    images: Tensor
    present: NDArray[np.int64]
    missing: tuple[tuple[int, str, str], ...]


def load_batch(
    dataset: ImageDataset,
    transform: Transform,
    plan: BatchPlan,
    *,
    seed: int,
    views: int,
    room: Callable[[tuple[int, ...]], Tensor] = torch.empty,
) -> LoadedBatch:
    """Return the batch that ``plan`` describes. A pure function of its arguments and of the image files.

    ``room`` makes the uninitialised tensor that the images are written into. Raises UsageError when the transform is
    wrong; an image that cannot be decoded is listed, never raised.
    """
    size = transform.image_size
    images = room((len(plan.samples) * views, 3, size, size))
    # Written through NumPy: torch would start threads for a copy of this size.
    rows_NCHW = images.numpy()
    present: list[int] = []
    missing: list[tuple[int, str, str]] = []
    row = 0
    with kept_globals():
        for index in plan.samples.tolist():
            try:
                image = dataset.load(index)
                for view in range(views):
                    rows_NCHW[row + view] = transform(image, sample_seed(seed, plan.pass_number, index, view)).numpy()
            except DataError as error:
                missing.append((index, dataset.ids[index], str(error.facts.get("reason", error.message))))
                continue
            present += [index] * views
            row += views
    return LoadedBatch(plan, images[:row], np.array(present, dtype=np.int64), tuple(missing))


class BatchLoader(Closing):
    """An iterator over the batches that ``batches`` plans, in that order, a few of them loaded ahead.

    ``workers`` is the number of loader processes (spawned: they import, and never inherit a live Kafka client or CUDA
    context). 0 loads in one thread of this process: the transforms' global random state allows one only. The result
    does not depend on ``workers``. ``batches`` may be endless; it is read ``workers`` + 2 batches ahead (3 without).

    Use it as a context manager; leaving it ends the thread or the processes, whatever happened. One iteration only.

    Raises, while iterating: UsageError when the transform is wrong or, with workers, data set or transform cannot be
    pickled; OutsideError when a loader process was killed.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Transform,
        *,
        seed: int,
        views: int,
        batches: Iterable[BatchPlan],
        workers: int,
    ) -> None:
        if views < 1:
            raise UsageError(f"{views} views are not possible", hint="expected 1 or more")
        if workers < 0:
            raise UsageError(f"{workers} loader processes are not possible", hint="expected 0 or more")
        self._task = _Task(dataset, transform, seed, views)
        self._batches = batches
        self._source: _ThreadSource | _ProcessSource | None = None
        self._workers = workers

    def __iter__(self) -> Iterator[LoadedBatch]:
        if self._source is not None:
            raise UsageError("a BatchLoader can be iterated once", hint="make another one from new plans")
        if self._workers:
            self._source = _ProcessSource(self._task, self._batches, self._workers)
        else:
            self._source = _ThreadSource(self._task, self._batches)
        yield from self._source

    @property
    def ready(self) -> int:
        """How many batches are loaded and wait to be taken."""
        return 0 if self._source is None else self._source.ready

    def close(self) -> None:
        """End the thread or the processes; batches that were loaded ahead are dropped. Can be called twice."""
        if self._source is not None:
            self._source.close()


@dataclass(frozen=True)
class _Task:
    """What a loader is given once: from a plan to a batch."""

    dataset: ImageDataset
    transform: Transform
    seed: int
    views: int

    def load(self, plan: BatchPlan, room: Callable[[tuple[int, ...]], Tensor] = torch.empty) -> LoadedBatch:
        return load_batch(self.dataset, self.transform, plan, seed=self.seed, views=self.views, room=room)


class _ProcessSource:
    """Batches from spawned processes.

    An executor and not torch's DataLoader: that one notices a killed process after seconds and then raises from a
    signal handler, wherever this program happens to be; it sends the data set to one process after the other, each
    time waiting until torch is imported there; and it can only be ended by a private method.
    """

    def __init__(self, task: _Task, batches: Iterable[BatchPlan], workers: int) -> None:
        self._batches = batches
        self._ahead = workers + _AHEAD
        self._pending: deque[Future[LoadedBatch]] = deque()
        # Every process reads the task from one file, so that all of them start at once.
        self._file = _write_task(task)
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_prepare_process,
            initargs=(self._file,),
        )

    def __iter__(self) -> Iterator[LoadedBatch]:
        pending = self._pending
        try:
            for plan in self._batches:
                with interrupt_blocked():  # the first calls start the processes
                    pending.append(self._pool.submit(_load_in_process, self._file, plan))
                if len(pending) > self._ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise OutsideError(
                "a loader process ended unexpectedly",
                hint="if it printed nothing it was killed, usually for memory: use fewer --workers, or give a "
                "container more shared memory (shm_size)",
            ) from error

    @property
    def ready(self) -> int:
        return sum(one.done() for one in tuple(self._pending))

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        Path(self._file).unlink(missing_ok=True)


def _write_task(task: _Task) -> str:
    try:
        content = pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"data set or transform cannot be sent to loader processes: {error}",
            hint="define its classes and functions at the top level of a module, or use --workers 0",
        ) from error
    with tempfile.NamedTemporaryFile(prefix="featurestream-loader-", delete=False) as file:
        file.write(content)
    return file.name


@lru_cache(maxsize=1)
def _read_task(file: str) -> _Task:
    with open(file, "rb") as content:
        task: _Task = pickle.load(content)  # noqa: S301 - written by the parent process, readable by its user alone
    return task


def _load_in_process(file: str, plan: BatchPlan) -> LoadedBatch:
    return _read_task(file).load(plan, _shared_room)


def _prepare_process(file: str) -> None:
    """Set this process up: one thread, as there are many processes; and an end together with its parent."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, args=(file,), name="parent watch", daemon=True).start()


def _end_with_parent(file: str) -> None:
    """Wait for a parent that is killed, which closes nothing, and leave neither the file nor this process behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        Path(file).unlink(missing_ok=True)
        os._exit(1)


class _ThreadSource:
    """Batches from one thread of this process: Pillow and torch leave the interpreter free while they work."""

    def __init__(self, task: _Task, batches: Iterable[BatchPlan]) -> None:
        self._ready: queue.Queue[LoadedBatch | BaseException | None] = queue.Queue(maxsize=_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(task, batches), name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[LoadedBatch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    @property
    def ready(self) -> int:
        return self._ready.qsize()

    def close(self) -> None:
        self._closed.set()
        while self._thread.is_alive():
            # The thread may be waiting for room in the queue.
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def _run(self, task: _Task, batches: Iterable[BatchPlan]) -> None:
        try:
            for plan in batches:
                if self._closed.is_set():
                    return
                self._ready.put(task.load(plan))
            self._ready.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that reads
            self._ready.put(error)


def _shared_room(shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised float32 tensor in shared memory, so that handing it to the parent copies nothing."""
    size = 4 * math.prod(shape)
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0).set_(storage).view(shape)

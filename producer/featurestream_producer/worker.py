"""One device's work: images in, records out, with loading, computing and sending at the same time.

Three threads (or more: the loader may use processes) pass batches on through bounded queues::

    loader --images--> forward (the calling thread) --features--> sender --records--> the log's own queue

A full queue blocks whoever fills it; nothing is ever dropped. A device that computes by itself is given the next batch
before it has finished the last one (:mod:`.transfer`): it is the sender who waits for a batch's features.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestream.errors import DataError, FeatureStreamError, OutsideError, UsageError
from featurestream.health import Canary
from featurestream.manifest import Manifest
from featurestream.names import record_key, tap_topic
from featurestream.ports import RecordSink
from featurestream.record import MissingSample, Record, short_reason
from featurestream.wire import Encoder, headers_of
from featurestream_producer.bound import PaceBound
from featurestream_producer.canary import make_canary
from featurestream_producer.datasets import ImageDataset
from featurestream_producer.distance import Gate
from featurestream_producer.health import Glance, InputGlance, is_early, is_looked_at, look_at, look_at_inputs
from featurestream_producer.inputs import input_checksums, to_extra
from featurestream_producer.loader import BatchLoader, BatchPlan, LoadedBatch, load_batch
from featurestream_producer.preset import Preset
from featurestream_producer.resume import Tail
from featurestream_producer.sampling import permutation
from featurestream_producer.stages import Stages
from featurestream_producer.taps import TapReader
from featurestream_producer.transfer import Coming, Transfer, open_transfer
from featurestream_producer.transforms import Transform

QUEUED_BATCHES = 8  # features that wait for the sender: about 1 MB a tap each
#: After so many samples in a row without an image, in an order that is random, it is not the images that are broken.
LOST_AFTER = 64
LOOK_S = 0.1  # how soon a thread that waits for room notices that the other one has failed


@dataclass(frozen=True, slots=True)
class Job:
    """What one worker has to do: its share of the lanes, from the stream's tail on.

    Attributes:
        index, workers: worker ``index`` of ``workers`` owns the lanes l with l mod ``workers`` = ``index``.
        device: a torch device.
        loader_workers: processes that load images for it; 0 is a thread of its own.
        expected: the normalisation that the weights want, where somebody has said it.
        limit: the first batch that it may not compute until it is told that it may; None: there is no limit.
        paced: whether it waits until it is told how far it may go.
    """

    manifest: Manifest
    tail: Tail
    dataset: ImageDataset
    transform: Transform
    index: int
    workers: int
    device: str
    loader_workers: int
    expected: Preset | None = None
    limit: int | None = None
    paced: bool = False

    def pace_bound(self) -> PaceBound:
        """Return how far the worker may go at first: nowhere where it is paced, else to the end."""
        return PaceBound(below=0 if self.paced else None)

    @property
    def lanes(self) -> tuple[int, ...]:
        """The worker's lanes."""
        return tuple(range(self.index, self.manifest.lanes, self.workers))

    @property
    def durable_below(self) -> int:
        """Every batch of the worker's lanes below this one is on the log already."""
        return min(self.tail.next_batch[tap, lane] for tap in self.tail.taps for lane in self.lanes)

    def plans(self) -> Iterator[BatchPlan]:
        """Yield what is left to publish in the worker's lanes, in order."""
        layout = self.manifest.layout
        for batch in self.tail.to_publish(self.lanes, self.manifest.total_batches):
            number = layout.pass_of(batch)
            places = layout.sample_range(batch)
            order = _order(self.manifest.seed, number, layout.samples)
            yield BatchPlan(batch, number, order[places.start : places.stop])


@dataclass(frozen=True, slots=True)
class Queued:
    """What waits in a worker: batches of images, batches of features, and records that are not confirmed yet."""

    images: int = 0
    features: int = 0
    records: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch was handed to the log: all records of it that were lacking. ``size`` is their bytes.

    ``glance`` is what was seen of its images and features, where it was looked at. ``stages`` is where the worker's
    time had gone before the batch was computed, ``queued`` what waits now.
    """

    worker: int
    batch: int
    rows: int
    size: int
    missing: tuple[MissingSample, ...]
    at_ms: int
    glance: Glance | None
    stages: Stages
    queued: Queued = Queued()


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker begins: what its device makes of the fixed input."""

    worker: int
    canary: Canary


@dataclass(frozen=True, slots=True)
class Durable:
    """Every batch of the worker's lanes below ``below`` is durable on the log."""

    worker: int
    below: int


@dataclass(frozen=True, slots=True)
class Done:
    """The worker has ended by itself: nothing was left, or it was asked to stop. All that it sent is durable."""

    worker: int
    stages: Stages


Report = Callable[[Sent | Durable | Ready], None]


@dataclass(frozen=True, eq=False, slots=True)
class _Features:
    loaded: LoadedBatch
    coming: Coming
    inputs: tuple[tuple[int, str], ...]  # checksums of a few rows' images
    seen: InputGlance | None
    extracted_ns: int
    stages: Stages  # before this batch was computed
    images: int = 0  # batches of images that were waiting when it was put


def work(
    job: Job,
    reader: TapReader,
    sink: RecordSink,
    report: Report,
    stop: threading.Event,
    *,
    gate: Gate,
    pace: PaceBound,
    between: Callable[[], None] = lambda: None,
) -> Stages:
    """Publish what the job says until nothing is left or ``stop`` is set; return where the time went.

    A batch is computed when ``gate`` lets it pass, and not before ``pace`` lets it through; while the worker waits for
    that, what it has sent is durable and reported, and no time is counted. ``between`` is called between batches, and
    now and then while the worker waits.

    All that was computed is sent and made durable, also when ``stop`` is set, and when the forward or the loader
    fails. Raises what failed first: BrokerError, FeatureRangeError (nothing of that batch was published), UsageError
    or OutsideError of the loader, DataError where suddenly no image can be decoded any more.
    """
    sender = _Sender(job, sink, report)
    transfer = open_transfer(job.device)
    data_s = forward_s = send_s = ahead_s = 0.0
    in_a_row = 0
    report(Ready(job.index, make_canary(reader, job.transform, job.device)))
    with sender, BatchLoader(
        job.dataset, job.transform, seed=job.manifest.seed, views=job.manifest.views, batches=job.plans(),
        workers=job.loader_workers,
    ) as loader:  # fmt: skip
        batches = iter(loader)
        while not stop.is_set():
            began = time.perf_counter()
            loaded = next(batches, None)
            got = time.perf_counter()
            data_s += got - began
            if loaded is None:
                break
            if not pace.is_open(loaded.plan.batch):
                sender.settle(loaded.plan.batch)
                while not stop.is_set() and not pace.wait(loaded.plan.batch, LOOK_S):
                    between()
                if stop.is_set():
                    break
            between()
            got = time.perf_counter()
            in_a_row = 0 if len(loaded.present) else in_a_row + len(loaded.missing)
            if in_a_row >= LOST_AFTER:
                raise _lost(loaded, in_a_row)
            if not gate.wait(loaded.plan.batch, stop.is_set, LOOK_S):
                break
            begun = time.perf_counter()
            ahead_s += begun - got
            looked = is_looked_at(loaded.plan.batch, job.tail.first_lacking, job.manifest.lanes)
            so_far = Stages(data_s, forward_s, send_s, sender.busy_s, ahead_s)
            made = _features(job, reader, transfer, loaded, looked=looked, stages=so_far)
            computed = time.perf_counter()
            forward_s += computed - begun
            sender.put(replace(made, images=loader.ready))
            send_s += time.perf_counter() - computed
        ended = time.perf_counter()
        sender.finish(stopped=stop.is_set())
        send_s += time.perf_counter() - ended
    return Stages(data_s, forward_s, send_s, sender.busy_s, ahead_s)


def publish_batch(job: Job, reader: TapReader, sink: RecordSink, plan: BatchPlan) -> Sent:
    """Publish one batch of the job's stream in the calling thread; it is durable when this returns."""
    loaded = load_batch(job.dataset, job.transform, plan, seed=job.manifest.seed, views=job.manifest.views)
    made = _features(job, reader, open_transfer(job.device), loaded, looked=False, stages=Stages())
    sent = _Sender(job, sink, lambda _: None).send(made)
    sink.flush()
    return sent


def _features(
    job: Job, reader: TapReader, transfer: Transfer, loaded: LoadedBatch, *, looked: bool, stages: Stages
) -> _Features:
    """Return what is sent of a batch; ``looked`` says whether its images and features are looked at."""
    # Before a layer can overwrite the images.
    inputs = input_checksums(loaded.plan.batch, loaded.images)
    seen = look_at_inputs(loaded.images, job.manifest.views, job.expected) if looked else None
    with _failures_told(loaded, job.device):
        coming = transfer.fetch(reader.capture(transfer.bring(loaded.images)))
    return _Features(loaded, coming, inputs, seen, time.time_ns(), stages)


@contextmanager
def _failures_told(loaded: LoadedBatch, device: str) -> Iterator[None]:
    """Turn what a model or a device fails with into an error of ours that names the batch."""
    try:
        yield
    except FeatureStreamError:
        raise
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{device} has no memory left for batches of {len(loaded.images)} images: {str(error).splitlines()[0]}",
            hint="a smaller --batch-size (it is part of the fingerprint), or --image-size",
        ) from error
    except Exception as error:  # whatever the model's own code, or the device's driver, raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        lines = str(error).splitlines() or [""]
        raise OutsideError(
            f"the model failed on batch {loaded.plan.batch} on {device}: {type(error).__name__}: {lines[0]} "
            f"({place.filename}, line {place.lineno})",
            hint="what was computed before is safe; the same command goes on with this batch",
        ) from error


def _lost(loaded: LoadedBatch, in_a_row: int) -> DataError:
    _, name, reason = loaded.missing[-1]
    return DataError(
        f"{in_a_row} samples in a row could not be decoded, up to batch {loaded.plan.batch}; "
        f"the last: {name}: {reason}",
        hint="is the disk still there? what was published before is safe; the same command goes on",
    )


@dataclass(frozen=True, slots=True)
class _Settle:
    below: int  # all of the worker's batches below this one have been put before


class _Sender:
    """The thread that encodes features and appends them, batch after batch.

    It makes a pass durable, and reports it, before it goes on to the next one: only what is durable may be recorded
    as finished.
    """

    def __init__(self, job: Job, sink: RecordSink, report: Report) -> None:
        self.busy_s = 0.0
        self._job = job
        self._sink = sink
        self._report = report
        self._queue: queue.Queue[_Features | _Settle | None] = queue.Queue(QUEUED_BATCHES)
        self._encoder = Encoder()
        self._error: BaseException | None = None
        self._next = job.durable_below  # the worker's batches below this one have been appended
        self._thread = threading.Thread(target=self._run, name=f"sender {job.index}", daemon=True)

    def __enter__(self) -> _Sender:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # What was computed before something failed is good: it is sent. The first error counts.
        if self._thread.is_alive():
            self._end()
        if error is None and self._error is not None:
            raise self._error

    def put(self, features: _Features) -> None:
        """Hand a batch over; blocks while the queue is full. Raises what the sender has failed with."""
        self._put(features)

    def settle(self, below: int) -> None:
        """Have everything made durable and reported, now that all of the worker's batches below ``below`` are here."""
        self._put(_Settle(below))

    def _put(self, item: _Features | _Settle) -> None:
        while True:
            if self._error is not None:
                raise self._error
            try:
                return self._queue.put(item, timeout=LOOK_S)
            except queue.Full:
                continue

    def finish(self, *, stopped: bool) -> None:
        """Return when everything is durable. Raises what the sender has failed with."""
        self._end()
        if self._error is not None:
            raise self._error
        total = self._job.manifest.total_batches
        self._report(Durable(self._job.index, self._next if stopped or total is None else total))

    def _end(self) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=LOOK_S)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _run(self) -> None:
        try:
            number: int | None = None
            while (item := self._queue.get()) is not None:
                if isinstance(item, _Settle):
                    self._sink.flush()
                    self._report(Durable(self._job.index, item.below))
                    continue
                plan = item.loaded.plan
                if number is not None and plan.pass_number > number:
                    self._sink.flush()
                    self._report(Durable(self._job.index, plan.batch))
                number = plan.pass_number
                self._report(self.send(item))
                self._next = plan.batch + 1
            self._sink.flush()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that computes
            self._error = error

    def send(self, item: _Features) -> Sent:
        """Append the records of a batch that are lacking, in the calling thread, as soon as its features are there.

        Raises FeatureRangeError where they do not fit the dtype, and what the device failed with; then nothing of the
        batch was appended, and all that was before is durable.
        """
        features = self._arrived(item)
        began = time.perf_counter()
        manifest, plan = self._job.manifest, item.loaded.plan
        dataset = self._job.dataset
        indices = item.loaded.present
        ids = tuple(dataset.ids[index] for index in indices.tolist())
        labels = None if dataset.labels is None else dataset.labels[indices]
        missing = tuple(MissingSample(index, name, short_reason(why)) for index, name, why in item.loaded.missing)
        lane = manifest.layout.lane_of(plan.batch)
        key = record_key(plan.pass_number, plan.batch)
        size = 0
        for tap in self._job.tail.lacking(plan.batch):
            feature = features[tap]
            record = Record(
                stream=manifest.stream, fingerprint=manifest.fingerprint, tap=tap, batch=plan.batch,
                pass_number=plan.pass_number, views=manifest.views, dtype=manifest.dtype,
                shape=tuple(feature.shape[1:]), payload=raw_bytes(feature), indices=indices, ids=ids, labels=labels,
                missing=missing, extracted_ns=item.extracted_ns, extra=to_extra(item.inputs),
            )  # fmt: skip
            value = self._encoder.encode(record)
            size += value.nbytes
            self._sink.append(tap_topic(manifest.stream, tap), lane, key=key, value=value, headers=headers_of(record))
        glance = None
        if item.seen is not None:
            early = is_early(plan.batch, self._job.tail.first_lacking)
            glance = look_at(features, item.seen, labels, manifest.views, probe=early)
        self.busy_s += time.perf_counter() - began
        return Sent(
            self._job.index,
            plan.batch,
            len(ids),
            size,
            missing,
            item.extracted_ns // 1_000_000,
            glance,
            item.stages,
            Queued(item.images, self._queue.qsize(), self._sink.queued),
        )

    def _arrived(self, item: _Features) -> dict[str, Tensor]:
        try:
            with _failures_told(item.loaded, self._job.device):
                return item.coming.wait().check()
        except FeatureStreamError:
            self._sink.flush()
            raise


def raw_bytes(feature: Tensor) -> NDArray[np.uint8]:
    """Return the numbers of a CPU tensor as they lie in memory, row after row: uint8, without a copy where possible."""
    if feature.numel() == 0:
        return np.empty(0, np.uint8)
    flat = feature.contiguous().reshape(-1).view(torch.uint8)
    return np.asarray(flat.numpy())


@lru_cache(maxsize=2)  # batches come in order: a pass's permutation is needed while that pass lasts
def _order(seed: int, number: int, samples: int) -> NDArray[np.int64]:
    return permutation(seed, number, samples)

"""A producer that runs a few batches at a time: so that the bare forward can be measured in turn with it.

What else the machine does comes and goes within seconds. Two ways that take turns every second meet the same of it.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from PIL import Image
from torch import nn

from benchmarks.measure import Clock, Run
from featurestream.kafka import KafkaLog
from featurestream.names import manifest_topic, tap_topic
from featurestream.ports import RecordSink
from featurestream_producer.prepare import Prepared
from featurestream_producer.run import publish

LOADED_AHEAD = 3  # batches: two that wait for the device's thread, and one that waits for room
LOOK_S = 0.0005
LONGEST_S = 300.0


class Steps:
    """One run of the producer in threads of this process, halted before the first batch of every step.

    A step lasts until its batches are computed, every record of them is acknowledged, and as many images are loaded
    ahead as were when it began: what the producer does for a batch is in the step of some batch, and in no other time.
    The device's thread is halted by a hook of the model, inside its forward: meanwhile that model is not for others.

    A context manager: leaving it publishes what is left, and deletes the stream.
    """

    def __init__(self, prepared: Prepared, log: KafkaLog) -> None:
        self._layout = prepared.manifest.layout
        self._total = self._layout.pass_batches * (prepared.manifest.passes or 1)
        self._taps = len(prepared.manifest.taps)
        self._log = _Watched(log)
        self._loaded = 0
        self._load = prepared.dataset.load
        self._prepared = replace(prepared, dataset=replace(prepared.dataset, load=self._counted))
        self._changed = threading.Condition()
        self._at = -2  # the batch before which the device's thread stands; the fixed input comes before the first one
        self._allowed = 0
        self._hook = prepared.backbone.model.register_forward_pre_hook(self._halt)
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._done = self._pool.submit(publish, self._prepared, self._log, say=lambda _line: None)
        self._settle()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._allowed = self._total
            self._changed.notify_all()
        manifest = self._prepared.manifest
        try:
            result = self._done.result()
        finally:
            self._hook.remove()
            self._pool.shutdown()
            names = [tap_topic(manifest.stream, tap.name) for tap in manifest.taps]
            self._log.delete_topics([*names, manifest_topic(manifest.stream)])
        if not result.finished or result.rows != self._rows(self._total):
            raise RuntimeError(f"the producer did not publish all rows: {result}")

    def step(self, batches: int) -> Run:
        """Have the next batches published; return the images a second, and the CPU of one image."""
        first = self._allowed
        clock = Clock()
        with self._changed:
            self._allowed = first + batches
            self._changed.notify_all()
        self._await_forwards()
        rows = self._rows(self._allowed) - self._rows(first)
        computed, clock = clock.stop(rows), Clock()
        self._settle()
        left = clock.stop(rows)
        seconds = 1 / computed.rate + left.cpu_s / torch.get_num_threads()
        return Run(1 / seconds, computed.cpu_s + left.cpu_s)

    def _await_forwards(self) -> None:
        until = time.monotonic() + LONGEST_S
        with self._changed:
            while not self._changed.wait_for(lambda: self._at >= self._allowed, timeout=1):
                self._check(until)

    def _settle(self) -> None:
        """Return when nothing is left to do before the device's thread may go on."""
        self._await_forwards()
        until = time.monotonic() + LONGEST_S
        ahead = self._rows(min(self._allowed + 1 + LOADED_AHEAD, self._total))
        while self._loaded < ahead or self._log.appended < self._taps * self._allowed:
            self._check(until)
            time.sleep(LOOK_S)
        self._log.flush()

    def _check(self, until: float) -> None:
        if self._done.done() or time.monotonic() > until:
            raise RuntimeError(f"the producer ended, or hangs, before batch {self._allowed}: {self._done}")

    def _rows(self, below: int) -> int:
        """Return the images of all batches below one."""
        passes, batches = divmod(below, self._layout.pass_batches)
        return passes * self._layout.samples + min(batches * self._layout.batch_samples, self._layout.samples)

    def _counted(self, index: int) -> Image.Image:
        image = self._load(index)
        self._loaded += 1  # one thread loads
        return image

    def _halt(self, _model: nn.Module, _images: object) -> None:
        with self._changed:
            self._at += 1
            if self._at < 0:
                self._loaded = 0  # so far a sample was tried
                return
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._at < self._allowed)


class _Watched:
    """A log whose last sink can be looked at: it is the one that the features go into."""

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._sink: _WatchedSink | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    @property
    def appended(self) -> int:
        """Records that the sink was given."""
        return 0 if self._sink is None else self._sink.appended

    def flush(self) -> None:
        """Return when all of them are acknowledged."""
        if self._sink is not None:
            self._sink.flush()

    def sink(self) -> RecordSink:
        """Return a new sink."""
        self._sink = _WatchedSink(self._log.sink())
        return self._sink


class _WatchedSink:
    def __init__(self, sink: RecordSink) -> None:
        self._sink = sink
        self.appended = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)

    def append(self, *place: Any, **record: Any) -> None:
        self._sink.append(*place, **record)
        self.appended += 1

"""Builds of featurestream with one fault in each: what the oracle must catch, and by which assertion.

A mutant is a sink, a reader or a trainer with something wrapped round it, here in the tests. Nothing in the product can
be switched to do any of this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from featurestream.batch import FeatureBatch
from featurestream.ports import Headers, Log, RecordSink
from featurestream.record import Record
from featurestream.stream import FeatureStream
from featurestream.wire import decode, encode, headers_of
from featurestream_consumer import experiment as experiment_module
from featurestream_consumer.experiment import Experiment
from tests.faults.witness import AroundLog

TAP, BATCH = "avgpool", 5  # what is tampered with


class Call(NamedTuple):
    """One call of a sink's append."""

    topic: str
    lane: int
    key: bytes
    value: bytes
    headers: Headers

    @property
    def record(self) -> Record:
        """What is appended."""
        return decode(self.value)

    def with_record(self, **changes: Any) -> Call:
        """Return the call with a changed record, sealed again: its checksum and headers fit."""
        record = replace(self.record, **changes)
        return self._replace(value=encode(record), headers=headers_of(record))


class MutantSink:
    """A sink that hands on what ``tamper`` makes of each call; it acknowledges everything."""

    def __init__(self, sink: RecordSink, tamper: Callable[[Call], Sequence[Call]]) -> None:
        self._sink = sink
        self._tamper = tamper

    def append(self, topic: str, lane: int, *, key: bytes, value: Any, headers: Headers = ()) -> None:
        for call in self._tamper(Call(topic, lane, key, bytes(value), headers)):
            self._sink.append(call.topic, call.lane, key=call.key, value=call.value, headers=call.headers)

    @property
    def queued(self) -> int:
        return self._sink.queued

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        self._sink.close()


class MutantLog(AroundLog):
    """A log whose sinks are mutants."""

    def __init__(self, log: Log, tamper: Callable[[Call], Sequence[Call]]) -> None:
        super().__init__(log)
        self._tamper = tamper

    def sink(self) -> RecordSink:
        return MutantSink(self.inner.sink(), self._tamper)


def at_target(change: Callable[[Call], Sequence[Call]]) -> Callable[[Call], Sequence[Call]]:
    """Return a tamperer that changes one batch of one tap, and hands on all others."""

    def tamper(call: Call) -> Sequence[Call]:
        if not call.topic.endswith(f".{TAP}") or not call.key.endswith(b"/%d" % BATCH):
            return [call]
        return change(call)

    return tamper


def swapping(lanes: int) -> Callable[[Call], Sequence[Call]]:
    """Return a tamperer that puts the target behind the batch that follows it in its lane."""
    held: list[Call] = []

    def tamper(call: Call) -> Sequence[Call]:
        if call.topic.endswith(f".{TAP}") and call.key.endswith(b"/%d" % BATCH):
            held.append(call)
            return []
        if held and call.topic == held[0].topic and call.key.endswith(b"/%d" % (BATCH + lanes)):
            return [call, held.pop()]
        return [call]

    return tamper


def flip_last_byte(value: bytes) -> bytes:
    """Return the bytes with one bit of the last one turned."""
    return value[:-1] + bytes([value[-1] ^ 1])


def other_numbers(call: Call) -> Sequence[Call]:
    """Change a feature, and seal the record again: only a reference extraction can tell."""
    payload = call.record.payload.copy()
    payload[-1] ^= 1
    return [call.with_record(payload=payload)]


def other_label(call: Call) -> Sequence[Call]:
    """Change one row's label in one tap."""
    labels = np.array(call.record.labels)
    labels[0] += 1
    return [call.with_record(labels=labels)]


@dataclass(frozen=True)
class Mutant:
    """A fault, and the assertion that must catch it."""

    name: str
    assertion: str


SINKS: dict[Mutant, Callable[[int], Callable[[Call], Sequence[Call]]]] = {
    Mutant("a batch is dropped", "A1"): lambda _: at_target(lambda _: []),
    Mutant("a batch is published twice", "A2"): lambda _: at_target(lambda call: [call, call]),
    Mutant("a record has a stale fingerprint", "A2"): lambda _: at_target(
        lambda call: [call.with_record(fingerprint="0" * 32)]
    ),
    Mutant("two batches are swapped", "A3"): swapping,
    Mutant("a payload byte is flipped", "A4"): lambda _: at_target(
        lambda call: [call._replace(value=flip_last_byte(call.value))]
    ),
    Mutant("a label is wrong in one tap", "A5"): lambda _: at_target(other_label),
    Mutant("a feature is changed and sealed", "A6"): lambda _: at_target(other_numbers),
}


# ---- readers ------------------------------------------------------------------------------------------------------


def twice(batches: Iterator[FeatureBatch]) -> Iterator[FeatureBatch]:
    """Yield one batch twice."""
    for batch in batches:
        yield batch
        if batch.position.batch == BATCH:
            yield batch


def out_of_order(batches: Iterator[FeatureBatch]) -> Iterator[FeatureBatch]:
    """Yield each two batches in the wrong order."""
    for batch in batches:
        following = next(batches, None)
        if following is not None:
            yield following
        yield batch


READERS: dict[Mutant, Callable[[Iterator[FeatureBatch]], Iterator[FeatureBatch]]] = {
    Mutant("a reader yields a batch twice", "A7"): twice,
    Mutant("a reader merges lanes out of order", "A7"): out_of_order,
}


def seek_one_too_far(patch: pytest.MonkeyPatch) -> None:
    """Make a reader go on one batch behind the place that it has saved."""
    load = FeatureStream.load_state_dict

    def off_by_one(self: FeatureStream, state: dict[str, Any]) -> None:
        batch, row = state["position"]
        load(self, state | {"position": [batch + 1, row]})

    patch.setattr(FeatureStream, "load_state_dict", off_by_one)


# ---- trainers -----------------------------------------------------------------------------------------------------


def checkpoint_before_weights(patch: pytest.MonkeyPatch) -> None:
    """Make each checkpoint hold the place of now and the weights of the one before."""
    save, before = experiment_module.save_checkpoint, []

    def stale(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
        before.append(copy.deepcopy(state["trainer"]))
        old = before[-2] if len(before) > 1 else before[-1]
        return save(folder, step, state | {"trainer": old}, keep=keep)

    patch.setattr(experiment_module, "save_checkpoint", stale)


def position_before_step(patch: pytest.MonkeyPatch) -> None:
    """Make each checkpoint hold the place behind a batch that has not been trained on."""
    save = Experiment.save

    def early(self: Experiment) -> bool:
        place = self.position
        self.position = replace(place, batch=place.batch + 1)
        try:
            return save(self)
        finally:
            self.position = place

    patch.setattr(Experiment, "save", early)


TRAINERS: dict[Mutant, Callable[[pytest.MonkeyPatch], None]] = {
    Mutant("a checkpoint is saved before its weights", "A8"): checkpoint_before_weights,
    Mutant("a position is committed before its step", "A8"): position_before_step,
}

"""Each fault that is built in on purpose is caught by the assertion that is named for it; none is without one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.manifest import Manifest
from featurestream.memory import MemoryLog
from featurestream.stream import FeatureStream
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from featurestream_consumer.trainer import Trainer
from tests.faults import mutants
from tests.faults.mutants import BATCH, READERS, SINKS, TAP, TRAINERS, Mutant, MutantLog
from tests.faults.oracle import ASSERTIONS, Files, Verdict, examine
from tests.faults.witness import WitnessedLog, contents, write_lines, write_yielded
from tests.support import append, create, make_manifest, publish

pytestmark = pytest.mark.broker

LANES = 3
SEEK = Mutant("a reader resumes one batch too far", "A8")
STALL = Mutant("a stall is longer than the bound", "A9")
STRAY = Mutant("a topic is left behind", "A10")
Caught = Callable[[Mutant, Verdict], None]


def toy(name: str) -> Manifest:
    """16 batches in three lanes, two taps."""
    return make_manifest(name, samples=30, lanes=LANES)


@pytest.fixture
def log(broker: Cluster) -> Any:
    with KafkaLog(broker) as log:
        yield log


@pytest.fixture
def caught(record_property: Callable[[str, object], None]) -> Caught:
    """Check that a mutant is caught by its assertion, in a line that names the place; note it for the table."""

    def check(mutant: Mutant, verdict: Verdict) -> None:
        assert mutant.assertion in verdict.broken, "\n".join(verdict.lines())
        text = verdict.violations[mutant.assertion][0]
        record_property("mutant", [mutant.name, mutant.assertion, " ".join(verdict.broken), text])

    return check


@pytest.fixture
def reference(unique: str, tmp_path: Path) -> Path:
    """What an undisturbed extraction gives."""
    log = MemoryLog()
    publish(log, toy(unique))
    with FeatureStream(unique, log=log) as stream:
        return write_lines(
            tmp_path / "reference.txt", ((tap, b, what) for batch in stream for b, tap, what in contents(batch))
        )


def judged(stream: str, broker: Cluster, files: Files) -> Verdict:
    return examine(stream, broker.bootstrap_servers, files)


def test_a_stream_that_nobody_tampers_with_holds_every_assertion(log, broker, unique, tmp_path, reference):
    witnessed = WitnessedLog(log, tmp_path)
    publish(witnessed, toy(unique))
    yielded = [write_yielded(tmp_path / f"{n}.txt", FeatureStream(unique, log=log)) for n in range(2)]
    verdict = judged(unique, broker, replace(
        witnessed.files, reference=reference, yielded=yielded, resumed=yielded[0], uninterrupted=yielded[1],
        healed=write_lines(tmp_path / "healed.txt", [(1.5, "after a fault")]),
        left=write_lines(tmp_path / "left.txt", []),
    ))  # fmt: skip
    assert verdict.broken == []
    assert verdict.asked == set(ASSERTIONS)
    assert (verdict.records, verdict.duplicates) == (32, 0)
    assert verdict.checked["A1"] == verdict.checked["A2"] == verdict.checked["A6"] == 32
    assert verdict.checked["A7"] == 64


@pytest.mark.parametrize("mutant", SINKS, ids=lambda mutant: mutant.name)
def test_a_sink_that_tampers_is_caught(log, broker, unique, *, tmp_path, reference, caught, mutant):
    manifest = toy(unique)
    create(log, manifest)
    witnessed = WitnessedLog(MutantLog(log, SINKS[mutant](LANES)), tmp_path)
    append(witnessed, manifest, range(16))
    verdict = judged(unique, broker, replace(witnessed.files, reference=reference))
    caught(mutant, verdict)
    (line, *_) = verdict.violations[mutant.assertion]
    assert line.startswith(f"{unique}.{TAP}, partition {BATCH % LANES}, offset ")
    assert f"batch {BATCH}" in line or mutant.assertion == "A4"


@pytest.mark.parametrize("mutant", READERS, ids=lambda mutant: mutant.name)
def test_a_reader_that_tampers_is_caught(log, broker, unique, tmp_path, caught, *, mutant):
    publish(log, toy(unique))
    batches = READERS[mutant](iter(FeatureStream(unique, log=log)))
    yielded = write_yielded(tmp_path / "yielded.txt", batches)
    caught(mutant, judged(unique, broker, Files(yielded=[yielded])))


def read_in_two(name: str, log: KafkaLog, file: Path) -> Path:
    """Write down what a reader gets that is closed after four batches and goes on in another object."""
    with FeatureStream(name, log=log) as stream:
        begun = list(itertools.islice(stream, 4))
        state = stream.state_dict()
    with FeatureStream(name, log=log) as stream:
        stream.load_state_dict(state)
        return write_yielded(file, [*begun, *stream])


def test_a_reader_that_seeks_one_too_far_is_caught(log, broker, unique, *, tmp_path, caught, monkeypatch):
    publish(log, toy(unique))
    whole = write_yielded(tmp_path / "whole.txt", FeatureStream(unique, log=log))
    right = read_in_two(unique, log, tmp_path / "right.txt")
    assert judged(unique, broker, Files(resumed=right, uninterrupted=whole)).broken == []
    mutants.seek_one_too_far(monkeypatch)
    wrong = read_in_two(unique, log, tmp_path / "wrong.txt")
    verdict = judged(unique, broker, Files(resumed=wrong, uninterrupted=whole))
    caught(SEEK, verdict)
    assert "line 9: 5 layer3" in verdict.violations["A8"][0]


class Killed(BaseException):
    """What no handler catches."""


def trained(name: str, log: KafkaLog, runs: Path, file: Path, *, dies_at: int | None) -> Path:
    """Write down what each step of an experiment was trained on, and its head; it may die before a step."""
    step, seen = Trainer.step, {}

    def noted(self: Trainer, features: Any, labels: Any, **more: Any) -> float:
        if self.step_count + 1 == dies_at and not seen.get("died"):
            seen["died"] = True
            raise Killed
        seen[self.step_count] = xxhash.xxh3_64_hexdigest(bytes(memoryview(features.numpy()).cast("B")))
        return step(self, features, labels, **more)

    config = TrainConfig(
        name="E1", stream=name, taps="layer3", head_args={"hidden": 8}, epochs=2, batch_size=8, runs=runs,
        device="cpu", reporters=("jsonl",), checkpoint_seconds=1e-9,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", noted)
        if dies_at is not None:
            with pytest.raises(Killed):
                train(config, log)
        train(config, log)
    seen.pop("died", None)
    head = xxhash.xxh3_64_hexdigest((runs / "E1" / "head.safetensors").read_bytes())
    return write_lines(file, [*(("step", n, what) for n, what in sorted(seen.items())), ("head", "E1", head)])


@pytest.mark.parametrize("mutant", TRAINERS, ids=lambda mutant: mutant.name)
def test_a_trainer_that_saves_at_the_wrong_moment_is_caught(
    log, broker, unique, *, tmp_path, caught, monkeypatch, mutant
):
    publish(log, toy(unique))
    whole = trained(unique, log, tmp_path / "whole", tmp_path / "whole.txt", dies_at=None)
    right = trained(unique, log, tmp_path / "right", tmp_path / "right.txt", dies_at=4)
    assert judged(unique, broker, Files(resumed=right, uninterrupted=whole)).broken == []
    TRAINERS[mutant](monkeypatch)
    wrong = trained(unique, log, tmp_path / "wrong", tmp_path / "wrong.txt", dies_at=4)
    verdict = judged(unique, broker, Files(resumed=wrong, uninterrupted=whole))
    caught(mutant, verdict)
    assert "head E1" in verdict.violations["A8"][-1] or "lines" in verdict.violations["A8"][-1]


def test_a_stall_and_what_is_left_behind_are_caught(log, broker, unique, tmp_path, caught):
    publish(log, toy(unique))
    healed = write_lines(tmp_path / "healed.txt", [(3, "a SIGKILL"), (61.5, "a SIGSTOP")])
    caught(STALL, judged(unique, broker, Files(healed=healed)))
    log.create_topic(f"{unique}.forgotten", 1, {})
    caught(STRAY, judged(unique, broker, Files()))
    left = write_lines(tmp_path / "left.txt", [("process", 17)])
    verdict = judged(unique, broker, Files(left=left))
    assert verdict.violations["A10"] == [f"the topic {unique}.forgotten is none of the stream's", "process 17"]


def test_every_assertion_has_a_mutant_that_it_catches():
    assert {mutant.assertion for mutant in [*SINKS, *READERS, *TRAINERS, SEEK, STALL, STRAY]} == set(ASSERTIONS)

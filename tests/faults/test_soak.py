"""A soak ends with an oracle that finds nothing, heads that are those of undisturbed runs, and nothing that grows."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from featurestream.broker import EmbeddedBroker
from featurestream.memory import MemoryLog
from tests.faults.oracle import Verdict
from tests.faults.slopes import Slope
from tests.faults.soak import Outcome, Watch, soak


def test_what_grows_for_certain_is_named_and_a_broker_may_fill_its_heap() -> None:
    """In a life of two minutes 32 MiB are allowed: 15 a minute at the least is less than that, 17 is more."""
    slopes = {
        ("broker", "memory"): Slope(90, 80, 100),
        ("producer", "memory"): Slope(16, 15, 17),
        ("trainer", "memory"): Slope(18, 17, 19),
        ("trainer", "threads"): Slope(3, -1, 7),
        ("trainer", "descriptors"): None,
    }
    outcome = Outcome(
        1, 2.0, Counter({"broker SIGKILL": 3}), {"producer": 2}, 10, 20, 1.5, Verdict(), slopes,
        {"broker": 2.0, "producer": 2.0, "trainer": 2.0},
    )  # fmt: skip
    assert outcome.growing == ["memory of the trainer"]
    assert outcome.lines()[0] == "soak of 2 min, seed 1: 3 faults (3 x broker SIGKILL)"
    assert "trainer   memory        +18.000 MiB/min   95 %: +17.000 to +19.000" in outcome.lines()
    assert outcome.lines()[-1] == "growing: memory of the trainer"


def test_lives_that_were_short_are_not_added_up() -> None:
    """Five minutes of lives of a minute, in each of which 10 MiB are filled."""
    slopes = {("producer", "memory"): Slope(10, 9, 11)}
    outcome = Outcome(1, 5.0, Counter(), {"producer": 5}, 10, 20, 1.5, Verdict(), slopes, {"producer": 1.0})
    assert outcome.growing == []


def test_a_life_is_at_work_from_the_first_progress_after_its_beginning() -> None:
    """Nobody comes further between 2 s and 7 s: the broker is away."""
    watch = Watch(EmbeddedBroker(Path("nowhere")), [], MemoryLog(), Path("nowhere"))
    watch.progress = [(1.0, 10), (2.0, 11), (3.0, 11), (7.0, 12), (8.0, 12)]
    assert watch._at_work_since(1.5) == 2.0
    assert watch._at_work_since(2.5) == 7.0
    assert watch._at_work_since(7.5) == float("inf")


@pytest.mark.broker
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("minutes", "seed"), [(1, 17), pytest.param(5, 18, marks=pytest.mark.slow)])
def test_random_faults_leave_nothing_behind(tmp_path: Path, record_property, *, minutes: float, seed: int) -> None:
    outcome = soak(minutes, seed, tmp_path / "soak")
    record_property("soak", "\n".join(outcome.lines()))
    print("\n".join(outcome.lines()))
    assert outcome.faults.total() > 0
    assert outcome.verdict.broken == [], "\n".join(outcome.verdict.lines())
    assert outcome.growing == []
    shutil.rmtree(tmp_path / "soak")

"""A soak ends with an oracle that finds nothing, heads that are those of undisturbed runs, and nothing that grows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.soak import soak

pytestmark = pytest.mark.broker


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

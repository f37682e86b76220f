"""The fuzzer runs, counts, and fails where something other than a RecordError comes out."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("atheris", reason="there is no atheris for this Python")

from featurestream.testing import hostile_headers
from tests.hostile import fuzz


def test_a_short_run_finds_no_crash_and_reports_its_count() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzz", "--runs", "2000"], capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fuzz: 2,000 inputs in ")
    counts = [int(line.rsplit(" ", 2)[1].replace(",", "")) for line in done.stdout.splitlines()[1:]]
    assert sum(counts) == 2000


def test_an_error_of_another_kind_gets_through_the_fuzzer(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(value: bytes) -> None:
        raise IndexError("a planted bug")

    monkeypatch.setattr(fuzz, "decode", planted)
    with pytest.raises(IndexError, match="planted"):
        fuzz.Fuzzer(10)(bytes([fuzz.VALUE]) + b"anything")


def test_the_seeds_reach_both_outcomes_of_every_kind() -> None:
    fuzzer = fuzz.Fuzzer(0)
    for seed in fuzz.seeds():
        fuzzer(seed)
    good = tuple((name, b"1") for name in ("content-type", "format"))
    assert fuzz.unpacked_headers(fuzz.packed_headers(good)) == list(good)
    assert len(fuzz.seeds()) > len(hostile_headers()) + 250
    seen = {(kind, outcome) for kind, outcome in fuzzer.outcomes}
    assert {(kind, "a true value") for kind in (fuzz.VALUE, fuzz.HEADER, fuzz.JSON)} <= seen
    assert {(kind, "refused") for kind in (fuzz.VALUE, fuzz.HEADER, fuzz.HEADERS)} <= seen

"""``make faults``: do every fault, and print what came of it, one line a fault; then mutants, soaks and the fuzzer.

The faults of this folder account for themselves. Others were proven elsewhere among the tests, where what is lost or
doubled makes a stream or a head differ from an undisturbed one; those tests are run too, with how many faults each
injects.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Tests that inject faults and keep no account: fault -> {test: faults injected}.
ELSEWHERE = {
    "producer SIGKILL at random moments, 1 to 3 devices": {
        "tests/e2e/test_produce_kills.py::test_a_stream_of_five_killed_runs_is_bit_for_bit_the_undisturbed_one": 5,
    },
    "one of two producers of a stream SIGKILL": {
        "tests/e2e/test_produce_kills.py::test_a_rank_that_is_killed_is_started_again_while_the_other_goes_on": 1,
    },
    "broker SIGKILL under a producer": {
        "tests/e2e/test_produce_outage.py::"
        "test_a_broker_that_goes_away_is_waited_for_and_nothing_is_lost_or_doubled": 1,
        "tests/e2e/test_produce_outage.py::"
        "test_a_broker_that_stays_away_ends_the_run_with_what_is_safe_and_how_to_go_on": 1,
    },
    "trainer SIGKILL at random moments": {
        "tests/e2e/test_kills.py::test_a_trainer_killed_twenty_times_ends_with_the_weights_of_an_undisturbed_one": 20,
        "tests/e2e/test_kills.py::"
        "test_a_trainer_killed_while_it_follows_a_stream_in_the_making_ends_as_on_the_whole_stream": 6,
    },
    "sweep SIGKILL at random moments": {
        "tests/e2e/test_kills.py::test_a_sweep_killed_twenty_times_ends_with_the_weights_of_an_undisturbed_one": 20,
    },
    "SIGKILL between checkpoint write and rename": {
        "tests/consumer/test_checkpoint.py::test_a_process_killed_between_write_and_rename_leaves_the_former_checkpoint":
            1,
        "tests/e2e/test_kills.py::"
        "test_a_fork_killed_while_its_folder_is_made_and_while_it_trains_ends_as_an_undisturbed_one": 5,
    },
    "record lengths damaged on disk": {
        "tests/featurestream/test_kafka_faults.py::"
        "test_a_batch_that_is_damaged_on_disk_is_an_error_that_names_its_place": 1,
    },
}  # fmt: skip


@dataclass
class Row:
    """One line of the table."""

    times: int = 0
    numbers: Counter[str] = field(default_factory=Counter)
    stall_s: float | None = None
    failed: bool = False

    def line(self, fault: str) -> str:
        """Return it as text."""
        stall = "-" if self.stall_s is None else f"{self.stall_s:.1f} s"
        counts = "  ".join(f"{name} {self.numbers[name]}" for name in ("lost", "doubled", "silent"))
        end = "  FAILED" if self.failed else ""
        return f"{fault:51}  run {self.times:2}  injected {self.numbers['injected']:3}  {counts}  stall {stall:>7}{end}"


class Table:
    """A pytest plugin that gathers what the tests account for."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.mutants: list[list[str]] = []
        self.soaks: list[str] = []
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take over one phase of a test; what it has noted is whole in the last one."""
        if report.failed:
            self._failed.add(report.nodeid)
        if report.when != "teardown":
            return
        failed = report.nodeid in self._failed
        for name, value in report.user_properties:
            if name == "fault":
                self._take(json.loads(str(value)), failed=failed)
            elif name == "mutant":
                self.mutants.append([*value] if isinstance(value, (list, tuple)) else [str(value)])
            elif name == "soak":
                self.soaks.append(str(value))
        for fault, tests in ELSEWHERE.items():
            for test, injected in tests.items():
                if report.nodeid.split("[")[0] == test:
                    self._take({"fault": fault, "injected": injected}, failed=failed)

    def _take(self, account: dict[str, object], *, failed: bool) -> None:
        row = self.rows.setdefault(str(account["fault"]), Row())
        row.times += 1
        row.failed |= failed
        for name in ("injected", "lost", "doubled", "silent"):
            row.numbers[name] += int(str(account.get(name, 0)))
        if account.get("stall_s") is not None:
            row.stall_s = max(row.stall_s or 0.0, float(str(account["stall_s"])))

    def lines(self) -> list[str]:
        """Return everything that is printed."""
        return [
            *(row.line(fault) for fault, row in sorted(self.rows.items())),
            "",
            f"{'mutant':45}  caught by  and by",
            *(
                f"{name:45}  {named:9}  {' '.join(other for other in broken.split() if other != named)}".rstrip()
                for name, named, broken, _ in sorted(self.mutants, key=lambda mutant: (len(mutant[1]), mutant[1]))
            ),
            "",
            *self.soaks,
        ]


def main() -> int:
    """Run them all; return pytest's exit code."""
    table = Table()
    tests = ["tests/faults", *(test for tests in ELSEWHERE.values() for test in tests)]
    code = pytest.main(
        ["-q", "-m", "slow or not slow", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *tests], plugins=[table]
    )
    print("\n".join(["", *table.lines(), ""]), flush=True)
    return int(code) or fuzz()


def fuzz() -> int:
    """Run the fuzzer, which prints its count; return its exit code. There is no atheris for every Python."""
    if find_spec("atheris") is None:
        print("fuzz: none, as there is no atheris for this Python")
        return 0
    return subprocess.run([sys.executable, "-m", "tests.hostile.fuzz"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

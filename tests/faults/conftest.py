"""What the tests of faults share: a broker that may be broken, and the account of what was done and found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import pytest

from featurestream.broker import EmbeddedBroker
from tests.conftest import guarded
from tests.faults.oracle import Verdict


@dataclass
class Account:
    """What is known of one fault: how often it was injected, and what came of it.

    ``lost`` counts batches that were acknowledged and are not there, ``doubled`` what is there and was never sent,
    ``silent`` whatever else the oracle found and nobody was told.
    """

    fault: str
    injected: int = 0
    lost: int = 0
    doubled: int = 0
    silent: int = 0
    stall_s: float | None = None

    def judge(self, verdict: Verdict, stall_s: float | None = None) -> None:
        """Take over a verdict, which must be clean."""
        found = {name: len(lines) for name, lines in verdict.violations.items()}
        self.lost += found["A1"]
        self.doubled += found["A2"]
        self.silent += sum(count for name, count in found.items() if name not in ("A1", "A2"))
        if stall_s is not None:
            self.stall_s = max(self.stall_s or 0.0, stall_s)
        assert verdict.broken == [], "\n".join(verdict.lines())


@pytest.fixture
def account(record_property: Callable[[str, object], None]) -> Iterator[Callable[[str], Account]]:
    """Open the account of a fault; `make faults` prints one line for all tests of one fault."""
    opened: list[Account] = []

    def make(fault: str) -> Account:
        opened.append(Account(fault))
        return opened[-1]

    yield make
    for one in opened:
        record_property("fault", json.dumps(asdict(one)))


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A broker of the module's own, which its tests may break; each starts it again. Its logs lie in its home."""
    home = tmp_path_factory.mktemp("doomed")
    with guarded(home):
        yield EmbeddedBroker(home)

"""What may become of somebody who meets a hostile stream: a typed error in one line, or a true reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from featurestream.errors import FeatureStreamError, InternalError
from featurestream.ports import Log
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from tests.featurectl.conftest import Outcome

CODES: Final = (2, 3, 4)  # what a hostile stream may end a command with


def refusal(use: Callable[[], object]) -> FeatureStreamError:
    """Return the typed error that something ends with; it is short, of one line, and no bug of ours."""
    with pytest.raises(FeatureStreamError) as caught:
        use()
    error = caught.value
    assert not isinstance(error, InternalError)
    assert error.exit_code in CODES
    assert "\n" not in str(error)
    assert len(str(error)) < 1500
    return error


def check_outcome(outcome: Outcome, what: str) -> None:
    """Check how a command has ended: done, or with one line of error and the code of its kind."""
    assert outcome.code in (0, *CODES), f"{what}: {outcome.err}"
    assert "Traceback" not in outcome.err, what
    assert "\x1b[2J" not in outcome.out + outcome.err, f"{what}: a terminal would obey"
    if outcome.code:
        last = outcome.err.splitlines()[-1]
        assert last.startswith(("error: ", "stream ")), f"{what}: {outcome.err}"
        assert len([line for line in outcome.err.splitlines() if line.startswith("error: ")]) <= 1, what


def train_on(log: Log, stream: str, tap: str, runs: Path) -> None:
    """Train a linear head for one epoch."""
    config = TrainConfig(
        name="E1", stream=stream, taps=[tap], head="linear", optimizer="SGD", optimizer_args={"lr": 0.1}, epochs=1,
        batch_size=4, runs=runs, device="cpu", reporters=("jsonl",),
    )  # fmt: skip
    train(config, log)

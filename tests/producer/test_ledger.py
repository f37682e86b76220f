"""Which passes are finished, and when."""

from __future__ import annotations

from featurestream.layout import Layout
from featurestream.record import MissingSample
from featurestream_producer.ledger import FinishedPass, Ledger
from featurestream_producer.resume import PassSoFar

LAYOUT = Layout(samples=10, batch_samples=4, lanes=2)  # 3 batches a pass


def send(ledger: Ledger, batch: int, *missing: int, at_ms: int = 1000) -> None:
    samples = [MissingSample(index, f"{index}.png", "cut") for index in missing]
    ledger.sent(batch, rows=LAYOUT.rows_of(batch) - len(missing), size=100, missing=samples, at_ms=at_ms)


def test_a_pass_is_finished_when_every_worker_has_made_its_batches_durable() -> None:
    ledger = Ledger.open(LAYOUT, 0, {0: 0, 1: 1}, {})
    for batch in range(6):
        send(ledger, batch, at_ms=1000 + batch)
    assert ledger.is_durable(0, 4) == []
    assert ledger.is_durable(1, 3) == [FinishedPass(0, 0, 0, 1000)]
    assert ledger.safe_below == 3
    assert ledger.is_durable(0, 6) == []
    assert ledger.is_durable(1, 6) == [FinishedPass(1, 0, 0, 1003)]


def test_passes_are_finished_in_order_also_when_several_are_at_once() -> None:
    ledger = Ledger.open(LAYOUT, 0, {0: 0, 1: 1}, {})
    for batch in range(9):
        send(ledger, batch)
    ledger.is_durable(1, 9)
    assert [done.number for done in ledger.is_durable(0, 9)] == [0, 1, 2]


def test_what_was_there_before_counts() -> None:
    """Pass 2 had one missing sample in batches that an earlier run published; this one adds another."""
    ledger = Ledger.open(LAYOUT, 2, {0: 7, 1: 8}, {2: PassSoFar(missing=1, gone=0, started_ms=500)})
    send(ledger, 7, 3)
    send(ledger, 8)
    ledger.is_durable(0, 9)
    assert ledger.is_durable(1, 9) == [FinishedPass(2, 2, 0, 500)]


def test_a_pass_that_was_complete_before_is_finished_at_once() -> None:
    ledger = Ledger.open(LAYOUT, 1, {0: 6, 1: 7}, {1: PassSoFar(started_ms=500)})
    assert ledger.finished() == [FinishedPass(1, 0, 0, 500)]
    assert ledger.finished() == []


def test_a_sample_that_every_pass_misses_is_one_missing_sample() -> None:
    ledger = Ledger.open(LAYOUT, 0, {0: 0}, {})
    send(ledger, 0, 3)
    send(ledger, 4, 3, 5)
    assert sorted(ledger.missing) == [3, 5]
    assert (ledger.batches, ledger.rows, ledger.bytes) == (2, 5, 200)


def test_a_mark_never_goes_back() -> None:
    ledger = Ledger.open(LAYOUT, 0, {0: 5}, {0: PassSoFar()})
    ledger.is_durable(0, 2)
    assert ledger.safe_below == 5

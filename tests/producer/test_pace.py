"""How far a producer may go, worked out by hand."""

from __future__ import annotations

import threading

import pytest

from featurestream.layout import Layout
from featurestream.reader_lease import LiveReader
from featurestream_producer.bound import PaceBound
from featurestream_producer.pace import STOP_AFTER_S, Pace, Verdict, decide

LAYOUT = Layout(samples=40, batch_samples=7, lanes=3)  # 6 batches a pass
PAUSE = Pace(ahead=2, idle="pause")


def reader(name: str, batch: int, needs: int | None = None) -> LiveReader:
    return LiveReader(name, batch, batch if needs is None else needs, ("avgpool",))


def judged(pace: Pace, *readers: LiveReader, at: int, unread_s: float = 0.0) -> Verdict:
    return decide(pace, LAYOUT, readers, next_batch=at, unread_s=unread_s)


def test_a_producer_is_at_most_so_many_passes_in_front_of_the_slowest_reader() -> None:
    """E1 reads batch 20 next, in pass 3; two passes on is batch 32."""
    two = (reader("E2", 25), reader("E1", 20))
    assert judged(PAUSE, *two, at=31) == Verdict("go", 32)
    assert judged(PAUSE, *two, at=32) == Verdict("wait", 32, "waiting for readers (slowest: E1 at pass 3)")


def test_a_reader_that_moves_on_lets_the_producer_go_on_batch_by_batch() -> None:
    assert judged(PAUSE, reader("E1", 21), at=32) == Verdict("go", 33)


def test_without_a_bound_any_reader_lets_the_producer_run() -> None:
    assert judged(Pace(None, "pause"), reader("E1", 0), at=1000) == Verdict("go", None)


def test_where_nobody_reads_the_pass_that_was_begun_is_finished_and_there_is_at_least_one() -> None:
    assert judged(PAUSE, at=0) == Verdict("go", 6)
    assert judged(PAUSE, at=5) == Verdict("go", 6)
    assert judged(PAUSE, at=6) == Verdict("wait", 6, "waiting for readers (nobody reads)")
    assert judged(PAUSE, at=7) == Verdict("go", 12)
    assert judged(PAUSE, at=12).action == "wait"


def test_a_run_that_is_to_stop_does_so_once_nobody_has_read_for_a_while() -> None:
    stop = Pace(None, "stop")
    assert judged(stop, at=3, unread_s=1e6) == Verdict("go", 6)
    assert judged(stop, at=6, unread_s=STOP_AFTER_S - 1).action == "wait"
    assert judged(stop, at=6, unread_s=STOP_AFTER_S).action == "stop"
    assert judged(stop, reader("E1", 0), at=600, unread_s=0).action == "go"


def test_a_run_that_does_not_care_goes_on_where_nobody_reads_and_keeps_its_bound_where_somebody_does() -> None:
    run = Pace(1, "run")
    assert judged(run, at=10**6) == Verdict("go", None)
    assert judged(run, reader("E1", 0), at=6).action == "wait"
    assert [Pace(None, "run").free, run.free, Pace(None, "pause").free] == [True, False, False]


def test_a_bound_lets_through_what_lies_below_its_bound() -> None:
    bound = PaceBound(below=3)
    assert (bound.is_open(2), bound.is_open(3)) == (True, False)
    assert not bound.wait(3, 0.0)
    bound.allow(None)
    assert bound.wait(10**9, 0.0)


def test_a_worker_that_waits_at_a_bound_goes_on_when_it_is_moved() -> None:
    bound, through = PaceBound(below=0), threading.Event()
    waiting = threading.Thread(target=lambda: bound.wait(4, 30.0) and through.set())
    waiting.start()
    bound.allow(4)
    assert not through.is_set()
    bound.allow(5)
    waiting.join(30.0)
    assert through.is_set()


@pytest.mark.parametrize("idle", ["run", "pause", "stop"])
def test_no_verdict_ever_lets_a_producer_further_than_its_bound(idle: str) -> None:
    for slowest in range(0, 30):
        for at in range(slowest + 12, slowest + 20):
            assert judged(Pace(2, idle), reader("E1", slowest), reader("E2", slowest + 9), at=at).action == "wait"

"""Who may produce, decided without waiting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from featurestream.errors import BrokerError, StreamBusyError
from featurestream.manifest import Lease, to_json
from featurestream.manifest_topic import ManifestTopic
from featurestream.memory import MemoryLog, MemorySource
from featurestream.ports import Bounds, LogRecord
from featurestream_producer import lease as lease_module
from featurestream_producer.lease import LEASE_TTL_S, ClaimScan, HeldLease, judge, lives, this_host

NOON = "2026-01-31T12:00:00+00:00"
LATER = "2026-01-31T12:00:05+00:00"


def make_lease(producer: str = "one", *, host: str = "gpu1", heartbeat: str = NOON, released: bool = False) -> Lease:
    return Lease(
        producer=producer, host=host, pid=77, process_started=1000.0, since=NOON, heartbeat=heartbeat, released=released
    )


def verdict(lease: Lease | None, first: Lease | None = None, watched_s: float = 0.0, *, alive: bool = True) -> str:
    return judge(lease, first, watched_s, host="here", lives=lambda _: alive)


def test_no_lease_and_a_released_one_are_free() -> None:
    assert verdict(None) == "free"
    assert verdict(make_lease(released=True), make_lease()) == "free"


def test_on_the_same_host_the_process_list_decides_at_once() -> None:
    here = make_lease(host="here")
    assert verdict(here, here, alive=True) == "held"
    assert verdict(here, here, alive=False) == "free"


def test_a_lease_of_another_host_is_watched_until_it_beats_or_time_is_up() -> None:
    first = make_lease()
    assert verdict(first, first, 0.0) == "watch"
    assert verdict(first, first, LEASE_TTL_S - 0.01) == "watch"
    assert verdict(first, first, LEASE_TTL_S) == "free"
    assert verdict(make_lease(heartbeat=LATER), first, 3.0) == "held"
    assert verdict(make_lease("two"), first, 3.0) == "held"


def my_lease(**changes: object) -> Lease:
    me = psutil.Process()
    fields = make_lease(host=this_host()).model_dump() | {"pid": me.pid, "process_started": me.create_time()}
    return Lease(**fields | changes)


def test_a_process_lives_only_under_its_number_and_its_start() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = psutil.Process(child.pid).create_time()
        assert lives(my_lease(pid=child.pid, process_started=started))
        assert not lives(my_lease(pid=child.pid, process_started=started - 60))  # the number was given out again
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet taken away: a zombie
        assert not lives(my_lease(pid=child.pid, process_started=started))
    finally:
        child.communicate()
    assert not lives(my_lease(pid=child.pid, process_started=started))


def test_a_lease_of_this_process_that_no_run_holds_is_dead() -> None:
    assert not lives(my_lease())


# ---- on a log -------------------------------------------------------------------------------------------------------


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    with ManifestTopic(log, "toy") as topic:
        topic.create()
    return log


@pytest.fixture
def topic(log: MemoryLog) -> Iterator[ManifestTopic]:
    with ManifestTopic(log, "toy") as topic:
        yield topic


def say_nothing(_: str) -> None:
    return


def test_the_second_of_two_is_refused_with_who_holds_the_stream(log: MemoryLog, topic: ManifestTopic) -> None:
    with HeldLease(log, "toy") as first:
        first.take(take_over=False, say=say_nothing)
        held = topic.read().lease
        assert held is not None
        with HeldLease(log, "toy") as second, pytest.raises(StreamBusyError) as refused:
            second.take(take_over=False, say=say_nothing)
        error = refused.value
        assert (error.host, error.pid, error.since) == (this_host(), os.getpid(), held.since)
        for fact in (f"process {os.getpid()} on {this_host()}", held.since, held.heartbeat, "--take-over"):
            assert fact in str(error)
        assert topic.read().lease == held  # the one that was refused has left no trace
        first.check()


def test_a_clean_end_releases_and_the_next_one_starts_at_once(log: MemoryLog, topic: ManifestTopic) -> None:
    with HeldLease(log, "toy") as first:
        first.take(take_over=False, say=say_nothing)
    released = topic.read().lease
    assert released is not None
    assert released.released
    with HeldLease(log, "toy") as second:
        second.take(take_over=False, say=say_nothing)
        second.check()


def test_a_run_that_fails_releases_its_lease_too(log: MemoryLog, topic: ManifestTopic) -> None:
    def fail() -> None:
        with HeldLease(log, "toy") as held:
            held.take(take_over=False, say=say_nothing)
            raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        fail()
    lease = topic.read().lease
    assert lease is not None
    assert lease.released


def test_who_is_taken_over_hears_of_it_with_the_next_heartbeat_and_leaves_the_lease_alone(
    log: MemoryLog, topic: ManifestTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.01)
    with HeldLease(log, "toy") as first:
        first.take(take_over=False, say=say_nothing)
        with HeldLease(log, "toy") as second:
            second.take(take_over=True, say=say_nothing)
            assert first._thread is not None
            first._thread.join(10)
            with pytest.raises(StreamBusyError, match="taken over by another producer"):
                first.check()
            second.check()
            newest = topic.read().lease
            assert newest is not None
            assert not newest.released
            assert second._thread is not None
            assert second._thread.is_alive()
    newest = topic.read().lease
    assert newest is not None
    assert newest.released


class Unsteady(MemoryLog):
    """Does not answer while ``away`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    def source(self) -> MemorySource:
        return UnsteadySource(self)


class UnsteadySource(MemorySource):
    def bounds(self, topic: str, lane: int) -> Bounds:
        if self._log.away:  # type: ignore[attr-defined]
            raise BrokerError("no answer")
        return super().bounds(topic, lane)


def test_a_broker_that_does_not_answer_ends_no_lease_and_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.05)
    log = Unsteady()
    with ManifestTopic(log, "toy") as topic:
        topic.create()
    with HeldLease(log, "toy") as held:
        held.take(take_over=False, say=say_nothing)
        log.away = True
        until = time.monotonic() + 10
        while held.silent_s < 0.3:
            assert time.monotonic() < until
            held.check()
        log.away = False
        while held.silent_s > 0.0:
            assert time.monotonic() < until
        held.check()


def test_a_lost_producer_of_another_host_is_announced_while_it_is_watched(
    log: MemoryLog, topic: ManifestTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "LEASE_TTL_S", 0.02)
    monkeypatch.setattr(lease_module, "LOOK_EVERY_S", 0.005)
    topic.write_lease(make_lease(host="gpu9"))
    said: list[str] = []
    with HeldLease(log, "toy") as held:
        held.take(take_over=False, say=said.append)
    assert len(said) == 1
    assert "process 77 on gpu9" in said[0]


# ---- the order of claims --------------------------------------------------------------------------------------------


def winners(*producers: str, before: str | None = None) -> list[str | None]:
    scan = ClaimScan(make_lease("me"))
    scan.start_at(10, [] if before is None else [make_lease(before)])
    found = []
    for number, producer in enumerate(producers):
        record = LogRecord("toy.manifest", 0, 10 + number, 0, b"producer", (), to_json(make_lease(producer)))
        winner = scan.apply(record)
        found.append(None if winner is None else winner.producer)
    return found


def test_whoever_first_appears_after_me_has_taken_over() -> None:
    assert winners("me", "other") == [None, "other"]


def test_heartbeats_of_the_one_that_i_replaced_change_nothing() -> None:
    assert winners("me", "old", "me", "old", before="old") == [None, None, None, None]


def test_of_two_that_start_together_the_later_one_holds_the_lease() -> None:
    assert winners("other", "me", "other") == [None, None, None]  # they heard of me; I go on
    assert winners("me", "other", "me") == [None, "other", None]


def test_other_keys_of_the_topic_are_no_claims() -> None:
    scan = ClaimScan(make_lease("me"))
    scan.start_at(0, [])
    assert scan.apply(LogRecord("toy.manifest", 0, 0, 0, b"pass/0", (), b"{}")) is None
    assert scan.apply(LogRecord("toy.manifest", 0, 1, 0, b"producer", (), None)) is None
    assert scan.next_offset == 2

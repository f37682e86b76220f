"""A reader's lease: what it says, when it is alive, and when it ends."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from featurestream.errors import BrokerError
from featurestream.memory import MemoryLog
from featurestream.names import reader_group
from featurestream.reader_lease import (
    READER_TTL_S,
    THREADS,
    Attendance,
    LiveReader,
    ReaderLease,
    ReaderNote,
    ReaderPlace,
)
from featurestream.stream import FeatureStream
from tests.support import make_manifest, publish

E1, E2 = reader_group("toy", "E1"), reader_group("toy", "E2")


def note(batch: int, beat_s: float) -> str:
    return ReaderNote(batch=batch, needs=batch, taps=("avgpool",), beat_ms=round(beat_s * 1000)).model_dump_json()


def live(batch: int, needs: int | None = None) -> LiveReader:
    return LiveReader("E1", batch, batch if needs is None else needs, ("avgpool",))


def test_a_reader_is_alive_until_its_note_has_stood_still_for_the_leases_time() -> None:
    seen = Attendance("toy")
    assert seen.look({E1: [note(4, 1000)]}, 1001) == [live(4)]
    assert seen.look({E1: [note(4, 1000)]}, 1000 + READER_TTL_S - 1) == [live(4)]
    assert seen.look({E1: [note(4, 1000)]}, 1000 + READER_TTL_S) == []
    assert seen.look({E1: [note(5, 1030)]}, 1031) == [live(5)]


def test_an_old_note_is_a_dead_readers_at_the_first_look_already() -> None:
    assert Attendance("toy").look({E1: [note(4, 1000)]}, 1000 + READER_TTL_S) == []


def test_a_readers_clock_may_be_wrong_in_either_direction() -> None:
    """An hour behind counts from the first change that is seen; an hour ahead dies as any other."""
    behind, ahead = Attendance("toy"), Attendance("toy")
    behind.look({E1: [note(4, 1000)]}, 4600)
    assert behind.look({E1: [note(5, 1005)]}, 4605) == [live(5)]
    assert ahead.look({E1: [note(4, 8200)]}, 4600) == [live(4)]
    assert ahead.look({E1: [note(4, 8200)]}, 4600 + READER_TTL_S) == []


def test_an_empty_note_ends_a_lease_at_once_and_other_peoples_notes_are_none() -> None:
    seen = Attendance("toy")
    assert seen.look({E1: [note(4, 1000)]}, 1000) == [live(4)]
    assert seen.look({E1: []}, 1001) == []
    strange = {reader_group("toy", "a"): ["not ours"], reader_group("toy", "b"): ['{"batch": -1}'], "other": ["x"]}
    assert seen.look({**strange, reader_group("other", "E1"): [note(1, 1000)]}, 1002) == []


def test_of_several_notes_of_one_group_the_newest_counts() -> None:
    """A tap that an experiment of this name once read keeps the note from then."""
    assert Attendance("toy").look({E1: [note(9, 900), note(4, 1000)]}, 1001) == [live(4)]


class Counted(MemoryLog):
    """Tells when a note came; refuses the first one where it is asked to."""

    def __init__(self, *, refuse: int = 0) -> None:
        super().__init__()
        self.came = threading.Condition()
        self.notes: list[str] = []
        self.refuse = refuse

    def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> None:
        with self.came:
            self.refuse -= 1
            if self.refuse >= 0:
                raise BrokerError("away")
            super().commit_positions(group, offsets, note)
            self.notes.append(note)
            self.came.notify_all()

    def wait_for(self, count: int) -> None:
        with self.came:
            assert self.came.wait_for(lambda: len(self.notes) >= count, 30)


class Slow(MemoryLog):
    """Takes positions when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> None:
        assert self.go.wait(30)
        super().commit_positions(group, offsets, note)


def place(batch: int) -> ReaderPlace:
    return ReaderPlace("E1", batch, 0, ("avgpool",), {("toy.avgpool", 0): batch})


def test_a_lease_is_taken_on_entering_renewed_before_a_wait_and_ended_on_leaving() -> None:
    log = Counted()
    log.create_topic("toy.avgpool", 1, {})
    where: list[ReaderPlace | None] = [place(3)]
    with ReaderLease(log, "toy", lambda: where[0], clock=lambda: 1000.0) as lease:
        assert Attendance("toy").look(log.committed_notes(E1), 1001) == [live(3, needs=0)]
        where[0] = place(7)
        lease.nudge()
        log.wait_for(2)
        assert Attendance("toy").look(log.committed_notes(E1), 1001) == [live(7, needs=0)]
        where[0] = None  # it has read all that it wants: no beat changes anything any more
        lease.commit({"E1": {("toy.avgpool", 0): 9}, "E2": {("toy.avgpool", 0): 1}})
        log.wait_for(4)
        assert log.notes[2:] == [log.notes[1], ""], "the note is the lease's, and only its holder has one"
    assert log.committed_notes(E1) == {E1: set()}
    assert log.committed_positions() == {
        E1: {("toy.avgpool", 0): 9},
        E2: {("toy.avgpool", 0): 1},
    }, "leaving takes no position back"


def test_nobody_waits_for_a_cluster_that_takes_its_time_with_positions_and_the_newest_are_committed() -> None:
    log = Slow()
    log.create_topic("toy.avgpool", 1, {})
    with ReaderLease(log, "toy", lambda: None) as lease:
        for offset in range(1, 4):
            lease.commit({f"E{number}": {("toy.avgpool", 0): offset} for number in range(1, 31)})
        assert log.committed_positions() == {}
        log.go.set()
    assert log.committed_positions() == {
        reader_group("toy", f"E{number}"): {("toy.avgpool", 0): 3} for number in range(1, 31)
    }


def test_positions_that_the_broker_did_not_take_are_told_once_and_the_next_ones_are_tried() -> None:
    log = Counted(refuse=1)
    log.create_topic("toy.avgpool", 1, {})
    lease = ReaderLease(log, "toy", lambda: None)
    with lease:
        lease.commit({"E1": {("toy.avgpool", 0): 1}})
    with lease:
        lease.commit({"E1": {("toy.avgpool", 0): 3}})
    assert log.committed_positions() == {E1: {("toy.avgpool", 0): 3}}
    assert isinstance(lease.failure(), BrokerError)
    assert lease.failure() is None


def test_a_cluster_that_has_not_taken_one_position_is_not_waited_for_with_each_of_the_others() -> None:
    log = Counted(refuse=1_000_000)
    log.create_topic("toy.avgpool", 1, {})
    with ReaderLease(log, "toy", lambda: None) as lease:
        lease.commit({f"E{number}": {("toy.avgpool", 0): 1} for number in range(1000)})
    assert 1_000_000 - log.refuse <= THREADS


def test_an_error_that_is_not_the_clusters_is_not_swallowed() -> None:
    class Wrong(MemoryLog):
        def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> None:
            raise ZeroDivisionError

    lease = ReaderLease(Wrong(), "toy", lambda: None)
    lease.commit({"E1": {("toy.avgpool", 0): 1}})
    with pytest.raises(ZeroDivisionError):
        lease.__exit__(None, None, None)  # without having been entered: no thread takes what is due before


def test_a_broker_that_does_not_take_a_beat_ends_nothing() -> None:
    log = Counted(refuse=1)
    log.create_topic("toy.avgpool", 1, {})
    where = [place(3)]
    with ReaderLease(log, "toy", lambda: where[0]) as lease:
        assert log.notes == []
        where[0] = place(4)
        lease.nudge()
        log.wait_for(1)


def test_a_topic_that_is_deleted_ends_no_beat() -> None:
    log = Counted()
    log.create_topic("toy.avgpool", 1, {})
    where = [place(3)]
    with ReaderLease(log, "toy", lambda: where[0]) as lease:
        log.delete_topics(["toy.avgpool"])
        lease.beat()
        log.create_topic("toy.avgpool", 1, {})
        where[0] = place(4)
        lease.nudge()
        log.wait_for(2)


def test_of_experiments_on_one_reading_only_the_one_that_holds_the_lease_is_alive() -> None:
    log = Counted()
    log.create_topic("toy.avgpool", 1, {})
    where = [place(3)]
    with ReaderLease(log, "toy", lambda: where[0]) as lease:
        where[0] = ReaderPlace("E2", 5, 5, ("avgpool",), {("toy.avgpool", 0): 5})
        lease.nudge()
        log.wait_for(3)
        notes = log.committed_notes(reader_group("toy", ""))
        assert notes[E1] == set()
        assert len(notes[reader_group("toy", "E2")]) == 1


def test_a_stream_that_is_read_under_a_name_holds_a_lease_while_it_iterates() -> None:
    log = MemoryLog()
    publish(log, make_manifest(samples=10, batch_samples=4, lanes=2, passes=2))
    group = reader_group("toy", "mine")
    rows = iter(FeatureStream("toy", "avgpool", start="batch:3", log=log, reader="mine"))
    next(rows)
    [text] = log.committed_notes(group)[group]
    assert ReaderNote.model_validate_json(text).batch == 3
    assert log.committed_positions()[group] == {("toy.avgpool", 0): 2, ("toy.avgpool", 1): 1}
    rows.close()
    assert log.committed_notes(group) == {group: set()}
    FeatureStream("toy", "avgpool", log=log).read_all()
    assert set(log.committed_positions()) == {group}

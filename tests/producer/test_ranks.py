"""Several producers that publish one stream together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurestream.errors import StreamBusyError, StreamMismatchError, UsageError
from featurestream.layout import Layout
from featurestream.manifest import Share
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream.memory import MemoryLog, MemorySink
from featurestream.ports import Headers
from featurestream_producer import distance as distance_module
from featurestream_producer import lease as lease_module
from featurestream_producer import run as run_module
from featurestream_producer.config import ProduceConfig
from featurestream_producer.lease import HeldLease
from featurestream_producer.prepare import prepare
from featurestream_producer.ranks import ALONE, Rank, find_rank
from featurestream_producer.run import Result, produce, publish
from tests import producing
from tests.producing import broken_images, contents, settings, write_images


def config(images: Path, stream: str, **changes: Any) -> ProduceConfig:
    return producing.config(images, stream, transform="eval", **changes)


FIRST, SECOND = Rank(0, 2, 0, 1, "run"), Rank(1, 2, 0, 1, "run")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@dataclass
class Ranks:
    """Producers of one stream in threads of this process; what each said and how it ended.

    They share one global random state: the backbones are built one by one, and the transform must draw nothing.
    """

    log: MemoryLog
    said: dict[int, list[str]] = field(default_factory=dict)
    ended: dict[int, Result | BaseException] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, run: ProduceConfig, rank: Rank) -> None:
        prepared = prepare(run, rank)
        said = self.said.setdefault(rank.number, [])

        def body() -> None:
            try:
                self.ended[rank.number] = publish(prepared, self.log, say=said.append)
            except BaseException as error:  # noqa: BLE001 - told to the test
                self.ended[rank.number] = error

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        self.threads.append(thread)

    def join(self) -> list[Result]:
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        results = [self.ended[number] for number in sorted(self.ended)]
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "CREATE_LOOK_S", 0.01)
    monkeypatch.setattr(distance_module, "LOOK_EVERY_S", 0.01)


def facts_of(log: MemoryLog, stream: str = "toy") -> StreamFacts:
    with ManifestTopic(log, stream) as topic:
        return topic.read()


def all_contents(log: MemoryLog, stream: str = "toy") -> object:
    manifest = facts_of(log, stream).manifest
    assert manifest is not None
    return contents(log, manifest)


# ---- which rank ---------------------------------------------------------------------------------------------------


def test_without_torchrun_a_producer_is_alone() -> None:
    assert find_rank({}) == ALONE
    assert find_rank({"WORLD_SIZE": "1", "RANK": "0", "TORCHELASTIC_RUN_ID": "7"}) == ALONE


def test_torchruns_variables_say_which_rank_this_is() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert find_rank(environment | {"TORCHELASTIC_RUN_ID": "a7"}) == Rank(5, 8, 1, 4, "a7")
    assert find_rank({"RANK": "1", "WORLD_SIZE": "2"}) == Rank(1, 2, 0, 1, "none")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but not which rank this is"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE=0"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2, of 2"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=3, of 2"),
        ({"WORLD_SIZE": "two"}, 'WORLD_SIZE is "two", not a number'),
    ],
)
def test_variables_that_do_not_fit_are_refused(environment: Mapping[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        find_rank(environment)


def test_lanes_are_shared_out_by_rank_and_then_by_device(images: Path) -> None:
    """Seven lanes, two ranks, rank 1 with three devices: each lane has one worker, and every worker a number."""
    shares = {}
    for rank, devices in ((FIRST, ("cpu",)), (SECOND, ("cpu", "cpu", "cpu"))):
        prepared = prepare(config(images, "toy", lanes=7, devices=devices), rank)
        with ManifestTopic(MemoryLog(), "toy") as topic:
            run = run_module._Run(
                prepared,
                MemoryLog(),
                topic,
                None,
                say=lambda _: None,
                telemetry=None,  # type: ignore[arg-type]
            )
            tail = run_module.fresh_tail(prepared.manifest, rank.lanes(7))
            shares |= {job.index: job.lanes for job in run._jobs(prepared.manifest, tail)}
    assert shares == {0: (0, 2, 4, 6), 1: (1,), 3: (3,), 5: (5,)}


def test_fewer_lanes_than_devices_of_all_ranks_is_refused_with_the_lanes_that_are_needed(images: Path) -> None:
    with pytest.raises(UsageError, match=r"2 devices cannot share the 1 of 3 lanes that rank 1 of 2 has.*--lanes 4"):
        prepare(config(images, "toy", devices=("cpu", "cpu")), SECOND)
    fields = settings(images, "toy", devices=("cpu",) * 3)
    del fields["lanes"]
    assert prepare(type(config(images, "toy"))(**fields), SECOND).manifest.lanes == 6


# ---- a stream of two ranks ----------------------------------------------------------------------------------------


def test_two_ranks_publish_bit_for_bit_what_one_producer_does(images: Path) -> None:
    """The second one is there first, and waits until the first one has created the stream."""
    ranks = Ranks(MemoryLog())
    run = config(images, "toy", passes=5)
    ranks.start(run, SECOND)
    ranks.start(run, FIRST)
    first, second = ranks.join()
    assert ranks.said[1][1] == "waiting for rank 0 to create the stream"
    assert (first.batches + second.batches, first.rows + second.rows) == (30, 200)
    assert first.finished or second.finished
    facts = facts_of(ranks.log)
    assert (sorted(facts.passes), facts.shares) == ([0, 1, 2, 3, 4], {})
    assert facts.end is not None
    assert (facts.end.passes, facts.end.batches) == (5, 30)
    assert [(lease.rank, lease.ranks, lease.run, lease.released) for _, lease in sorted(facts.leases.items())] == [
        (0, 2, "run", True), (1, 2, "run", True),
    ]  # fmt: skip

    produce(config(images, "alone", passes=5), ranks.log, say=[].append)
    assert all_contents(ranks.log) == all_contents(ranks.log, "alone")
    alone = facts_of(ranks.log, "alone").passes
    for number, record in facts.passes.items():
        together = record.model_dump(exclude={"started_at", "finished_at"})
        assert together == alone[number].model_dump(exclude={"started_at", "finished_at"})


def test_a_pass_counts_the_missing_samples_of_all_ranks(tmp_path: Path) -> None:
    ranks = Ranks(MemoryLog())
    run = config(broken_images(tmp_path, [3, 8, 17, 30]), "toy", passes=2)
    ranks.start(run, FIRST)
    ranks.start(run, SECOND)
    ranks.join()
    passes = facts_of(ranks.log).passes
    assert [(one.samples, one.missing) for _, one in sorted(passes.items())] == [(36, 4), (36, 4)]


def test_a_rank_that_has_done_its_part_leaves_the_stream_to_the_others(images: Path) -> None:
    """Rank 0 publishes lanes 0 and 2 and ends; then rank 1 publishes lane 1, and the stream is complete."""
    log, said = MemoryLog(), []
    result = produce(config(images, "toy"), log, say=said.append, rank=FIRST)
    assert (result.batches, result.finished, result.interrupted) == (8, False, False)
    assert said[-1] == "rank 0 of 2 has published its lanes; the stream is complete when the other ranks have"
    facts = facts_of(log)
    assert (facts.passes, facts.end, sorted(facts.shares)) == ({}, None, ["share/0/0", "share/1/0"])
    assert produce(config(images, "toy"), log, say=said.append, rank=SECOND).finished
    assert sorted(facts_of(log).passes) == [0, 1]
    assert produce(config(images, "toy"), log, say=said.append, rank=FIRST).finished
    assert said[-1] == 'stream "toy" is finished: 2 passes, 12 batches'


def test_ranks_of_another_number_go_on_with_what_is_there(images: Path) -> None:
    """One of two ranks begins; three, then one alone, go on: no share of two ranks is taken for one of three."""
    log = MemoryLog()
    run = config(images, "toy")
    produce(run, log, say=[].append, rank=FIRST)
    thirds = [Rank(number, 3, 0, 1, "run") for number in range(3)]
    assert not produce(run, log, say=[].append, rank=thirds[1]).finished
    assert facts_of(log).passes == {}
    with ManifestTopic(log, "toy") as topic:
        topic.write_share(Share(number=0, rank=1, ranks=2, missing=0, started_at="2026-01-01T00:00:00+00:00"))
    more = config(images, "toy", passes=3)
    assert produce(more, log, say=[].append).finished
    facts = facts_of(log)
    assert sorted(facts.passes) == [0, 1, 2]
    assert sorted(facts.leases) == [0]
    produce(config(images, "alone", passes=3), log, say=[].append)
    assert all_contents(log) == all_contents(log, "alone")


def test_more_passes_are_written_by_rank_0_and_published_by_all(images: Path) -> None:
    ranks = Ranks(MemoryLog())
    for passes in (1, 3):
        for rank in (FIRST, SECOND):
            ranks.start(config(images, "toy", passes=passes), rank)
        ranks.join()
    facts = facts_of(ranks.log)
    assert facts.end is not None
    assert (facts.end.passes, sorted(facts.passes)) == (3, [0, 1, 2])
    assert facts.manifest is not None
    assert facts.manifest.passes == 3


def test_a_rank_with_another_seed_is_refused(images: Path) -> None:
    log = MemoryLog()
    produce(config(images, "toy"), log, say=[].append, rank=FIRST)
    with pytest.raises(StreamMismatchError, match="seed is 0, asked for 4"):
        produce(config(images, "toy", seed=4), log, say=[].append, rank=SECOND)


# ---- the lease of several ranks -----------------------------------------------------------------------------------


def say_nothing(_: str) -> None:
    return


@pytest.mark.parametrize("other", [ALONE, FIRST, Rank(1, 2, 0, 1, "another run"), Rank(1, 3, 0, 1, "run")], ids=str)
def test_beside_a_rank_nobody_may_publish_but_the_other_ranks_of_its_run(other: Rank) -> None:
    log = MemoryLog()
    with ManifestTopic(log, "toy") as topic:
        topic.create()
    with HeldLease(log, "toy", rank=FIRST) as first, HeldLease(log, "toy", rank=SECOND) as second:
        first.take(take_over=False, say=say_nothing)
        second.take(take_over=False, say=say_nothing)
        with HeldLease(log, "toy", rank=other) as refused, pytest.raises(StreamBusyError, match=r"\(rank . of 2\)"):
            refused.take(take_over=False, say=say_nothing)
        first.check()
        second.check()


@pytest.mark.parametrize("other", [ALONE, FIRST, Rank(1, 2, 0, 1, "another run")], ids=str)
def test_a_take_over_ends_all_ranks_of_another_run_and_only_the_same_rank_of_the_own_run(
    monkeypatch: pytest.MonkeyPatch, other: Rank
) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.01)
    log = MemoryLog()
    with ManifestTopic(log, "toy") as topic:
        topic.create()
    with HeldLease(log, "toy", rank=FIRST) as first, HeldLease(log, "toy", rank=SECOND) as second:
        first.take(take_over=False, say=say_nothing)
        second.take(take_over=False, say=say_nothing)
        with HeldLease(log, "toy", rank=other) as winner:
            winner.take(take_over=True, say=say_nothing)
            for held, goes_on in ((first, False), (second, other == FIRST)):
                assert held._thread is not None
                if goes_on:
                    held.check()
                    assert held._thread.is_alive()
                else:
                    held._thread.join(10)
                    with pytest.raises(StreamBusyError, match="taken over by another producer"):
                        held.check()


def test_a_rank_that_died_is_started_again_beside_the_others(images: Path) -> None:
    """A lease of rank 1 whose process is gone keeps nobody waiting on its host, rank 0 least of all."""
    log = MemoryLog()
    produce(config(images, "toy"), log, say=say_nothing, rank=FIRST)
    with HeldLease(log, "toy", rank=SECOND) as dead:
        dead.take(take_over=False, say=say_nothing)
        lease = facts_of(log).leases[1]
    with ManifestTopic(log, "toy") as topic:
        topic.write_lease(lease)  # not released; and of this process, which does not hold it
    assert produce(config(images, "toy"), log, say=say_nothing, rank=SECOND).finished


# ---- the distance -------------------------------------------------------------------------------------------------

LAYOUT = Layout(samples=8, batch_samples=1, lanes=2)  # 8 batches a pass


def test_the_limit_follows_the_slowest_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rounds of two lanes are 8 batches, told in steps of one."""
    monkeypatch.setattr(distance_module, "ROUNDS", 4)
    distance = distance_module.Distance(LAYOUT, 24, {0: range(0, 24, 2), 1: range(1, 24, 2)})
    assert distance.limit == 8
    for _ in range(4):
        distance.sent(0)  # batches 0, 2, 4, 6
    assert distance.limit == 9  # worker 1 still has to publish batch 1
    distance.sent(1)
    assert distance.limit == 11  # 3
    for _ in range(11):
        distance.sent(1)
    assert distance.limit == 16  # worker 1 is done; worker 0 is at 8


def test_a_limit_that_is_told_in_steps_is_always_beyond_the_slowest_workers_next_batch() -> None:
    distance = distance_module.Distance(LAYOUT, None, {0: range(0, 10**6, 2), 1: [3, 10**5]})
    whole = distance_module.ROUNDS * 2
    for slowest in range(2, 3000, 2):
        distance.sent(0)
        assert min(slowest, 3) < distance.limit <= min(slowest, 3) + whole
    distance.sent(1)  # its next batch is far ahead: the limit is the other one's
    assert 3000 - 2 < distance.limit <= 3000 + whole


def test_lanes_of_other_ranks_count_until_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance_module, "ROUNDS", 4)
    others = {1: 1}
    distance = distance_module.Distance(LAYOUT, 24, {0: range(0, 24, 2)}, lambda: others)
    for _ in range(6):
        distance.sent(0)
    assert distance.limit == 9
    others[1] = 25
    assert distance.limit == 20


def test_a_lane_that_keeps_all_waiting_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance_module, "ROUNDS", 4)
    others = {1: 1}
    distance = distance_module.Distance(LAYOUT, 24, {0: range(0, 24, 2)}, lambda: others)
    assert distance.overdue(0.0) is None
    for _ in range(5):
        distance.sent(0)
    assert [distance.overdue(now) for now in (100.0, 114.9, 115.0, 200.0)] == [None, None, 1, None]
    others[1] = 3
    assert distance.overdue(300.0) is None
    assert distance.overdue(400.0) is None  # it moved: worker 0 can go on, and has not yet


class Measured(MemoryLog):
    """Knows at each append how far the first lane is in front of the last one, in batches."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self.greatest = 0
        self.lock = threading.Lock()
        self.next: dict[int, int] = {}

    def sink(self) -> MemorySink:
        return MeasuringSink(self)


class MeasuringSink(MemorySink):
    def append(
        self, topic: str, lane: int, *, key: bytes, value: NDArray[np.uint8] | bytes | None, headers: Headers = ()
    ) -> None:
        log = self._log
        assert isinstance(log, Measured)
        if topic == "toy.late":
            with log.lock:
                slowest = min(log.next.get(number, number) for number in range(3))
                batch = int(key.partition(b"/")[2])
                log.greatest = max(log.greatest, batch - slowest)
                log.next[lane] = batch + 3 if batch + 3 < log.total else 10**9
        super().append(topic, lane, key=key, value=value, headers=headers)


def test_a_fast_rank_stays_within_the_bound_of_one_that_is_not_there_and_says_so(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds of three lanes are 6 batches: while lane 1 waits for batch 1, batches 0, 2, 3, 5 and 6 come, and no 8.

    Then rank 1 begins, and both end.
    """
    monkeypatch.setattr(distance_module, "ROUNDS", 2)
    monkeypatch.setattr(distance_module, "OVERDUE_S", 0.3)
    ranks = Ranks(log := Measured(120))
    ranks.start(config(images, "toy", passes=20), FIRST)
    wait_until(lambda: any("waiting for rank 1 of 2" in line for line in ranks.said[0]))
    assert log.next == {0: 9, 2: 8}
    ranks.start(config(images, "toy", passes=20), SECOND)
    first, _ = ranks.join()
    assert 4 <= log.greatest <= 6
    assert first.stages.ahead_s > 0
    assert "waiting for slower devices" in "".join(ranks.said[0])
    assert facts_of(log).end is not None


def wait_until(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        threading.Event().wait(0.01)

"""Streams whose producers are killed again and again, against a stream that nobody disturbed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.manifest_topic import ManifestTopic, StreamFacts, require_manifest
from featurestream_producer.ranks import Rank
from featurestream_producer.run import produce
from tests.producer_killing import END_S, kill, producer, records_of, wait_for_records, workers_of
from tests.producing import config, content, read_lanes, settings, write_images

pytestmark = pytest.mark.broker

PASSES = 40  # 240 batches: more than five killed runs publish
DELAY_S = 0.02
RANK_DELAY_S = 0.04
AHEAD = 6  # a run goes on so many batches beyond the one that it is killed at, and then slowly: the kill may come late
SEEDS = [range(0, 5), range(5, 10), range(10, 15), range(15, 20)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def log(broker: Cluster) -> Iterator[KafkaLog]:
    with KafkaLog(broker) as log:
        yield log


@pytest.fixture(scope="module")
def undisturbed(broker: Cluster, images: Path) -> object:
    """What one CPU process publishes that nobody kills."""
    with KafkaLog(broker) as log:
        produce(config(images, "undisturbed", passes=PASSES), log, say=lambda _: None)
        return contents_once(log, "undisturbed")


def contents_once(log: KafkaLog, stream: str) -> object:
    """Return what readers get of every (tap, lane), which drop what they have had, without a hole and in order."""
    found, dropped = {}, 0
    for place, records in read_lanes(log, require_manifest(log, stream)).items():
        numbers = [record.batch for record in records]
        once = {record.batch: content(record) for record in reversed(records)}  # the first of each is what counts
        assert list(dict.fromkeys(numbers)) == list(range(place[1], 6 * PASSES, 3)), f"{stream}, {place}"
        dropped += len(numbers) - len(once)
        found[place] = [once[batch] for batch in sorted(once)]
    print(f"{stream}: {dropped} duplicates")
    return found


def facts_of(log: KafkaLog, stream: str) -> StreamFacts:
    with ManifestTopic(log, stream) as topic:
        return topic.read()


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: f"seeds {seeds.start} to {seeds.stop - 1}")
def test_a_stream_of_five_killed_runs_is_bit_for_bit_the_undisturbed_one(
    log: KafkaLog, images: Path, unique: str, undisturbed: object, *, seeds: range
) -> None:
    """Each seed draws the number of devices, when SIGKILL comes, and whom it hits: the producer or one worker."""
    address = log.cluster.bootstrap_servers
    for seed in seeds:
        chance = random.Random(seed)
        devices, more = chance.choice((1, 1, 2, 3)), chance.randrange(30)
        before = records_of(log, unique, "late")
        fields = settings(images, unique, passes=PASSES, devices=("cpu",) * devices)
        quick = math.ceil((more + AHEAD) / devices)
        with producer(address, fields, delay_s=DELAY_S, quick=quick) as process:
            wait_for_records(log, unique, "late", before + more, process)
            workers = workers_of(process)
            if workers and chance.random() < 0.5:
                victim = "a worker"
                chance.choice(workers).kill()
                process.join(END_S)
                assert process.exitcode == 3, "a run that lost a worker ends by itself, with an error"
            else:
                victim = "the producer"
                kill(process)
        print(f"seed {seed}: {devices} x cpu, {victim} killed {more} batches after {before}")
    result = produce(config(images, unique, passes=PASSES), log, say=lambda _: None)
    assert result.finished
    assert 0 < result.batches < 6 * PASSES
    assert contents_once(log, unique) == undisturbed
    assert sorted(facts_of(log, unique).passes) == list(range(PASSES))


def test_a_rank_that_is_killed_is_started_again_while_the_other_goes_on(
    log: KafkaLog, images: Path, unique: str, undisturbed: object
) -> None:
    """Two ranks as on two hosts, without torchrun, which would end the other one."""
    address = log.cluster.bootstrap_servers
    ranks = [Rank(number, 2, 0, 1, "run") for number in range(2)]
    fields = settings(images, unique, passes=PASSES)
    with ExitStack() as stack:
        zero = stack.enter_context(producer(address, fields, rank=ranks[0], delay_s=RANK_DELAY_S))
        one = stack.enter_context(producer(address, fields, rank=ranks[1], delay_s=RANK_DELAY_S))
        wait_for_records(log, unique, "late", 5, one, lane=1)
        kill(one)
        wait_for_records(log, unique, "late", records_of(log, unique, "late") + 10, zero)
        again = stack.enter_context(producer(address, fields, rank=ranks[1]))
        for process in (zero, again):
            process.join(END_S)
            assert process.exitcode == 0
    assert contents_once(log, unique) == undisturbed
    facts = facts_of(log, unique)
    assert sorted(facts.passes) == list(range(PASSES))
    assert facts.shares == {}
    assert facts.end is not None
    assert all(lease.released for lease in facts.leases.values())

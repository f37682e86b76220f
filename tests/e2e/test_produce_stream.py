"""What the producer publishes, on the real broker."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from featurestream.cluster import Cluster
from featurestream.errors import OutsideError, StreamBusyError
from featurestream.kafka import KafkaLog
from featurestream.manifest_topic import ManifestTopic, StreamFacts, require_manifest
from featurestream.tensors import tensor_of
from featurestream_producer import distance
from featurestream_producer.backbones import build_backbone
from featurestream_producer.datasets import open_dataset
from featurestream_producer.run import produce
from featurestream_producer.sampling import order_checksum, permutation, sample_seed
from featurestream_producer.transforms import build_transform
from tests.producing import (
    SLOW_ONE,
    TAPS,
    command,
    config,
    contents,
    read_lanes,
    seen_numbers,
    wait_for_batches,
    write_images,
)

pytestmark = pytest.mark.broker
NAMES = [tap.partition("=")[2] for tap in TAPS]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def log(broker: Cluster) -> Iterator[KafkaLog]:
    with KafkaLog(broker) as log:
        yield log


def facts_of(log: KafkaLog, stream: str) -> StreamFacts:
    with ManifestTopic(log, stream) as topic:
        return topic.read()


def test_a_stream_holds_what_plain_torch_computes_on_the_same_images(log: KafkaLog, images: Path, unique: str) -> None:
    """resnet18 with random weights, two views, two passes: every number, id and label, in the order of the design."""
    run = config(images, unique, model="resnet18", weights="random", taps=("layer2:gap", "avgpool"), views=2, seed=5,
                 image_size=32, batch_size=12)  # fmt: skip
    result = produce(run, log, say=lambda _: None)
    assert (result.batches, result.rows, result.finished) == (8, 160, True)

    dataset = open_dataset(str(images))
    backbone = build_backbone("resnet18", weights="random", seed=5)
    backbone.model.to(memory_format=torch.channels_last)  # as the producer has it; the last bits depend on it
    transform = build_transform("train", image_size=32, preset=backbone.preset)
    seen: dict[str, torch.Tensor] = {}
    for name in ("layer2", "avgpool"):
        backbone.model.get_submodule(name).register_forward_hook(
            lambda _module, _images, output, name=name: seen.__setitem__(name, output)
        )
    manifest = require_manifest(log, unique)
    lanes = read_lanes(log, manifest)
    for batch in range(8):
        pass_number, place = divmod(batch, 4)
        samples = permutation(5, pass_number, 40)[12 * place : 12 * place + 12]
        rows = [(int(sample), view) for sample in samples for view in range(2)]
        pixels = [transform(dataset.load(sample), sample_seed(5, pass_number, sample, view)) for sample, view in rows]
        with torch.inference_mode():
            backbone.model(torch.stack(pixels).contiguous(memory_format=torch.channels_last))
        for tap, expected in (("layer2", seen["layer2"].mean((2, 3))), ("avgpool", seen["avgpool"])):
            record = lanes[tap, batch % 3][batch // 3]
            assert (record.batch, record.pass_number, record.views) == (batch, pass_number, 2)
            assert record.indices.tolist() == [sample for sample, _ in rows]
            assert record.ids == tuple(dataset.ids[sample] for sample, _ in rows)
            assert record.labels is not None
            assert record.labels.tolist() == [sample // 20 for sample, _ in rows]  # folder a, then folder b
            assert torch.equal(tensor_of(record), expected.half())


def test_pass_records_and_the_end_are_written(log: KafkaLog, images: Path, unique: str) -> None:
    produce(config(images, unique), log, say=lambda _: None)
    facts = facts_of(log, unique)
    assert sorted(facts.passes) == [0, 1]
    second = facts.passes[1]
    assert (second.samples, second.missing, second.first_batch, second.last_batch) == (40, 0, 6, 11)
    assert second.order_checksum == order_checksum(permutation(0, 1, 40))
    assert second.started_at <= second.finished_at
    assert facts.end is not None
    assert (facts.end.passes, facts.end.batches) == (2, 12)
    assert facts.lease is not None
    assert facts.lease.released


def test_two_processes_publish_bit_for_bit_what_one_does(log: KafkaLog, images: Path, unique: str) -> None:
    produce(config(images, unique), log, say=lambda _: None)
    result = produce(config(images, f"{unique}-2", devices=("cpu", "cpu")), log, say=lambda _: None)
    assert (result.batches, result.rows, result.finished) == (12, 80, True)
    one, two = require_manifest(log, unique), require_manifest(log, f"{unique}-2")
    assert contents(log, one) == contents(log, two)
    alone, together = facts_of(log, unique), facts_of(log, f"{unique}-2")
    assert sorted(together.passes) == [0, 1]
    assert together.canary == alone.canary
    assert [(health.lanes, health.batches) for health in together.health.values()] == [([0, 2], 8), ([1], 4)]
    assert seen_numbers(together) == pytest.approx(seen_numbers(alone), rel=1e-9)


def test_workers_that_are_no_more_leave_no_health_behind(log: KafkaLog, images: Path, unique: str) -> None:
    produce(config(images, unique, passes=1, devices=("cpu", "cpu")), log, say=lambda _: None)
    produce(config(images, unique, passes=2), log, say=lambda _: None)
    [health] = facts_of(log, unique).health.values()
    assert (health.worker, health.workers, health.lanes, health.batches) == (0, 1, [0, 1, 2], 6)


def test_after_kill_9_at_any_moment_the_stream_goes_on_as_if_nothing_had_happened(
    log: KafkaLog, broker: Cluster, images: Path, unique: str
) -> None:
    """Twice killed (one process, then one with two workers), then finished: no hole, no duplicate, the same content."""
    chance = random.Random(20260131)
    passes = 40
    for devices, most in ((("cpu",), 60), (("cpu", "cpu"), 180)):
        with command(images, unique, broker.bootstrap_servers, devices=devices, passes=passes) as process:
            wait_for_batches(log, unique, NAMES, most - chance.randrange(50), process)
            workers = psutil.Process(process.pid).children()
            process.kill()
            _, left = psutil.wait_procs(workers, timeout=60)
            assert left == []  # a worker that goes on without its lease would be a zombie
    said: list[str] = []
    result = produce(config(images, unique, passes=passes), log, say=said.append)
    assert result.finished
    assert 0 < result.batches < 6 * passes
    assert any("goes on at batch" in line for line in said)

    manifest = require_manifest(log, unique)
    lanes = read_lanes(log, manifest)
    for (_, lane), records in lanes.items():
        assert [record.batch for record in records] == list(range(lane, 6 * passes, 3))
    produce(config(images, f"{unique}-2", passes=passes), log, say=lambda _: None)
    assert contents(log, manifest) == contents(log, require_manifest(log, f"{unique}-2"))
    assert sorted(facts_of(log, unique).passes) == list(range(passes))


def test_ctrl_c_drains_and_says_how_to_go_on_and_a_second_producer_is_refused_meanwhile(
    log: KafkaLog, broker: Cluster, images: Path, unique: str
) -> None:
    """Two workers in processes of their own; a terminal sends Ctrl-C to all of them."""
    with command(images, unique, broker.bootstrap_servers, devices=("cpu", "cpu"), passes=500) as process:
        wait_for_batches(log, unique, NAMES, 12, process)
        with pytest.raises(StreamBusyError) as refused:
            produce(config(images, unique, passes=500), log, say=lambda _: None)
        assert refused.value.exit_code == 2
        assert f"process {process.pid} on " in str(refused.value)
        assert "--take-over" in str(refused.value)
        assert refused.value.pid == process.pid

        os.killpg(process.pid, signal.SIGINT)
        _, shown = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert "the same command goes on" in shown
    assert "Traceback" not in shown
    facts = facts_of(log, unique)
    assert facts.lease is not None
    assert facts.lease.released
    assert facts.end is None
    lanes = read_lanes(log, require_manifest(log, unique))
    for lane in range(3):  # both taps have the same batches, from the first on, without a hole
        batches = [record.batch for record in lanes["late", lane]]
        assert batches == list(range(lane, 3 * len(batches), 3))
        assert [record.batch for record in lanes["early", lane]] == batches


def test_a_worker_that_is_killed_takes_the_run_down_with_its_reason(
    log: KafkaLog, broker: Cluster, images: Path, unique: str
) -> None:
    with command(images, unique, broker.bootstrap_servers, devices=("cpu", "cpu"), passes=500) as process:
        wait_for_batches(log, unique, NAMES, 6, process)
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
        workers[1].kill()
        _, shown = process.communicate(timeout=120)
    assert process.returncode == 3, shown
    assert f"the worker of cpu (process {workers[1].pid}) was killed by SIGKILL" in shown
    assert not workers[0].is_running()
    lease = facts_of(log, unique).lease
    assert lease is not None
    assert lease.released


def test_a_model_that_fails_in_a_worker_ends_the_run_with_its_words_and_place(
    log: KafkaLog, images: Path, unique: str
) -> None:
    run = config(images, unique, devices=("cpu", "cpu"), passes=50, model="tests.producing:small_that_fails")
    with pytest.raises(OutsideError) as failed:
        produce(run, log, say=lambda _: None)
    assert failed.value.exit_code == 3
    assert re.match(
        r"the model failed on batch \d+ on cpu: RuntimeError: no more of this \(.*producing\.py, line \d+\); "
        r"what was computed before is safe",
        str(failed.value),
    )
    lease = facts_of(log, unique).lease
    assert lease is not None
    assert lease.released
    for (_, lane), records in read_lanes(log, require_manifest(log, unique)).items():
        assert [record.batch for record in records] == list(range(lane, lane + 3 * len(records), 3))


def test_a_fast_worker_stays_within_the_bound_of_a_slow_one(
    log: KafkaLog, images: Path, unique: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four rounds of three lanes are 12 batches; the fast worker alone would be some 70 ahead at its end."""
    monkeypatch.setattr(distance, "ROUNDS", 4)
    monkeypatch.setenv(SLOW_ONE, str(tmp_path / "slow"))
    model = "tests.producing:small_with_one_slow_worker"
    said: list[str] = []
    result = produce(config(images, unique, devices=("cpu", "cpu"), passes=20, model=model), log, say=said.append)
    assert result.finished
    assert result.stages.ahead_s > 0
    assert "waiting for slower devices" in said[-1]
    stamped = []
    source = log.source()
    for lane in range(3):
        for batch in range(lane, 120, 3):
            stamped.append((source.record_at(f"{unique}.late", lane, batch // 3).timestamp_ms, batch))
    source.close()
    following, greatest = {0: 0, 1: 1, 2: 2}, 0
    for _, batch in sorted(stamped):
        greatest = max(greatest, batch - min(following.values()))
        following[batch % 3] = batch + 3 if batch + 3 < 120 else 120
    print(f"greatest distance: {greatest} batches")
    # What the slow one has sent may reach the log a little after what the fast one then computes: two more rounds.
    assert 8 <= greatest <= 18


def test_torchrun_starts_ranks_that_publish_one_stream(
    log: KafkaLog, broker: Cluster, images: Path, unique: str
) -> None:
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with command(images, unique, broker.bootstrap_servers, delay_s=0, launcher=launcher) as process:
        _, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert f"{unique}, rank 0 of 2: " in shown
    assert f"{unique}, rank 1 of 2: " in shown
    facts = facts_of(log, unique)
    assert facts.end is not None
    assert [(lease.rank, lease.ranks, lease.released) for _, lease in sorted(facts.leases.items())] == [
        (0, 2, True), (1, 2, True),
    ]  # fmt: skip
    produce(config(images, f"{unique}-2"), log, say=lambda _: None)
    assert contents(log, require_manifest(log, unique)) == contents(log, require_manifest(log, f"{unique}-2"))


def test_a_producer_that_is_taken_over_stops_and_the_new_one_goes_on(
    log: KafkaLog, broker: Cluster, images: Path, unique: str
) -> None:
    with command(images, unique, broker.bootstrap_servers, passes=500) as process:
        wait_for_batches(log, unique, NAMES, 6, process)
        # Fewer passes than asked for at first, but more than can be there by now: the rest is quickly published.
        result = produce(config(images, unique, passes=150, take_over=True), log, say=lambda _: None)
        assert result.finished
        _, shown = process.communicate(timeout=120)
    assert process.returncode == 2, shown
    assert "was taken over by another producer" in shown
    for (_, lane), records in read_lanes(log, require_manifest(log, unique)).items():
        assert list(np.unique([record.batch for record in records])) == list(range(lane, 900, 3))

"""Producers that a test kills: forked from a server that has imported everything, so that twenty cost little."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from typing import Any

import psutil
import torchvision  # noqa: F401 - imported by the server, once

from featurestream.cluster import Cluster
from featurestream.errors import FeatureStreamError
from featurestream.kafka import KafkaLog
from featurestream.names import tap_topic
from featurestream.ports import Log
from featurestream_producer.config import ProduceConfig
from featurestream_producer.ranks import ALONE, Rank
from featurestream_producer.run import produce
from tests.producing import DELAY, QUICK

LOOK_S = 0.02
END_S = 120.0


@contextmanager
def producer(
    address: str, fields: dict[str, Any], *, rank: Rank = ALONE, delay_s: float = 0.0, quick: float = math.inf
) -> Iterator[ForkServerProcess]:
    """Run ``produce`` in a process that was forked before any client or thread was there; it is killed at the end.

    Every forward waits ``delay_s`` first; after the first ``quick`` ones of each process, a second: a run that is to be
    killed goes no further meanwhile, however busy the machine.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_produce, args=(address, fields, rank, delay_s, quick))
    process.start()
    try:
        yield process
    finally:
        kill(process)


def _produce(address: str, fields: dict[str, Any], rank: Rank, delay_s: float, quick: float) -> None:
    os.environ |= {DELAY: str(delay_s), QUICK: str(quick)}
    with KafkaLog(Cluster(address)) as log:
        try:
            produce(ProduceConfig(**fields), log, say=_say, rank=rank)
        except FeatureStreamError as error:
            _say(f"error: {error}")
            sys.exit(error.exit_code)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def kill(process: ForkServerProcess) -> None:
    """Kill a producer with SIGKILL; return when its workers have noticed."""
    workers = workers_of(process)
    process.kill()
    process.join(END_S)
    _, left = psutil.wait_procs(workers, timeout=END_S)
    assert left == []  # a worker that goes on without its lease would be a zombie


def workers_of(process: ForkServerProcess) -> list[psutil.Process]:
    """Return a producer's worker processes."""
    try:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


def records_of(log: Log, stream: str, tap: str, lane: int | None = None) -> int:
    """Return how many records a tap has, or one lane of it; none where its topic is not there yet."""
    topic = tap_topic(stream, tap)
    lanes = range(log.topics().get(topic, 0))
    source = log.source()
    try:
        return sum(source.bounds(topic, number).high for number in lanes if lane in (None, number))
    finally:
        source.close()


def wait_for_records(
    log: Log, stream: str, tap: str, count: int, process: ForkServerProcess, *, lane: int | None = None
) -> None:
    """Return when a tap, or one lane of it, has ``count`` records; fail where the producer ends before."""
    looks = int(END_S / LOOK_S)
    for _ in range(looks):
        if records_of(log, stream, tap, lane) >= count:
            return
        process.join(LOOK_S)
        assert process.is_alive(), f"ended with {process.exitcode}"
    raise AssertionError(f"{count} records did not come")

"""What is done to processes and files: all of it to the tests' own brokers and programs, by process id."""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster

END_S = 120.0  # a limit for what must end, on a machine that is busy with other things


def cluster_of(broker: EmbeddedBroker) -> Cluster:
    """Return where a broker answers; it is started if it does not run."""
    return Cluster(broker.up().bootstrap_servers or "")


def kill_broker(broker: EmbeddedBroker) -> None:
    """Send SIGKILL to the broker; return when it is gone."""
    process = psutil.Process(broker.status().pid)
    process.kill()
    process.wait(END_S)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process with SIGSTOP while the block runs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def segments(home: Path, topic: str) -> list[Path]:
    """Return the segment of each of a topic's partitions that is written to."""
    folders = sorted(home.glob(f"**/{topic}-[0-9]*"))
    return [sorted(folder.glob("*.log"))[-1] for folder in folders]


def tear(segment: Path, chance: random.Random) -> None:
    """Add what a write leaves that a loss of power has cut: a part of a batch, and noise."""
    content = segment.read_bytes()
    torn = content[-min(len(content), chance.randrange(20, 200)) :][: chance.randrange(10, 20)]
    segment.write_bytes(content + torn + chance.randbytes(chance.randrange(1, 100)))


def last_batch(content: bytes) -> int:
    """Return where the last record batch of a segment begins."""
    place = following = 0
    while following + 12 <= len(content):
        (length,) = struct.unpack_from(">i", content, following + 8)
        if length <= 0 or following + 12 + length > len(content):
            break
        place, following = following, following + 12 + length
    return place


def flip(segment: Path, place: int) -> None:
    """Turn one bit of a byte of a file."""
    content = bytearray(segment.read_bytes())
    content[place] ^= 1
    segment.write_bytes(content)

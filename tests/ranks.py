"""Ranks that are threads of one process, so that several can train on a log in memory."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurestream.errors import OutsideError
from featurestream.ports import Log
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.experiment import Result
from featurestream_consumer.ranks import Ranks
from featurestream_consumer.run import train


@dataclass
class Table:
    """Where the threads meet: all of them, for the same thing, or none."""

    count: int
    told: list[Any] = field(init=False)
    barrier: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.told = [None] * self.count
        self.barrier = threading.Barrier(self.count, timeout=60)

    def meet(self, rank: int, what: str, value: Any) -> list[Any]:
        try:
            self.told[rank] = (what, value)
            self.barrier.wait()
            told = list(self.told)
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise OutsideError("another process of this experiment has ended") from error
        assert {each for each, _ in told} == {what}
        return [value for _, value in told]


class ThreadRanks(Ranks):
    def __init__(self, table: Table, rank: int) -> None:
        self.table, self.rank, self.count, self.device = table, rank, table.count, "cpu"

    def share(self, value):
        return pickle.loads(pickle.dumps(self.table.meet(self.rank, "share", value)[0]))

    def gather(self, value):
        found = self.table.meet(self.rank, "gather", pickle.dumps(value))
        return [pickle.loads(each) for each in found] if self.leads else None

    def largest(self, numbers):
        return np.max(self.table.meet(self.rank, "largest", numbers), axis=0)

    def add(self, tensor):
        total = sum(self.table.meet(self.rank, "add", tensor.clone()))
        tensor.copy_(total)


def train_on_ranks(count: int, config: TrainConfig, log: Log, **more: Any) -> list[Result]:
    """Train on ``count`` ranks and return each one's result; the first that fails decides what is raised."""
    table = Table(count)

    def one(rank: int) -> Result:
        # What a rank above 0 writes would stand in a folder of its own.
        own = config if rank == 0 else config.model_copy(update={"runs": config.runs / f"rank{rank}"})
        try:
            return train(own, log, ranks=ThreadRanks(table, rank), **more)
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(one, rank) for rank in range(count)]
    errors = [future.exception() for future in futures]
    told = [error for error in errors if error is not None and "another process" not in str(error)]
    if told:
        raise told[0]
    return [future.result() for future in futures]

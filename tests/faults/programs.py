"""Programs that a soak kills and starts again, forked from a server that has imported everything."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what torch imports with the first optimiser, in seconds

from featurestream.cluster import Cluster
from featurestream.errors import BrokerError, FeatureStreamError
from featurestream.kafka import KafkaLog
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from featurestream_producer.config import ProduceConfig
from featurestream_producer.run import produce
from tests.faults.harm import END_S
from tests.faults.weights import undisturbed
from tests.producing import DELAY

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
BROKER_AWAY = BrokerError.exit_code


def run_producer(address: str, fields: dict[str, Any], log: str) -> None:
    """Publish until a signal comes."""
    _into(log)
    os.environ[DELAY] = "0.01"
    _run(lambda: produce(ProduceConfig(**fields), KafkaLog(Cluster(address)), say=print))


def run_trainer(address: str, fields: dict[str, Any], log: str) -> None:
    """Train until a signal comes."""
    _into(log)
    _run(lambda: train(TrainConfig(**fields), KafkaLog(Cluster(address)), say=print))


def run_undisturbed(address: str, fields: dict[str, Any], steps: int, result: str, log: str) -> None:
    """Train up to a step, and write the checksum of what was learnt into a file."""
    _into(log)
    _run(lambda: Path(result).write_text(undisturbed(fields, KafkaLog(Cluster(address)), steps), encoding="utf-8"))


def _into(log: str) -> None:
    # The server that it is forked from ends with the soak, in whatever way that ends: then so does this.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _run(work: Callable[[], object]) -> None:
    try:
        work()
    except FeatureStreamError as error:
        print(f"error: {error}", flush=True)
        os._exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", flush=True)


@dataclass
class Program:
    """A program that is started again whenever it has ended because its broker was away."""

    role: str
    work: Callable[..., None]
    arguments: tuple[Any, ...]
    process: ForkServerProcess | None = None
    lives: int = 0

    def start(self) -> None:
        """Start it, and no thread or client is forked with it."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.process = context.Process(target=self.work, args=self.arguments)
        self.process.start()
        self.lives += 1

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self.process is not None
        return self.process.pid or 0

    def keep_alive(self) -> None:
        """Start it again where it has ended; any end but for an absent broker is none that was injected."""
        assert self.process is not None
        if self.process.exitcode is not None:
            if self.process.exitcode != BROKER_AWAY:
                raise AssertionError(f"{self.role} ended with {self.process.exitcode}: see {self.arguments[-1]}")
            self.start()

    def wait(self, limit_s: float) -> int | None:
        """Return its exit code once it has ended; None where it has not in time."""
        assert self.process is not None
        self.process.join(limit_s)
        return self.process.exitcode

    def kill(self) -> None:
        """Kill it by SIGKILL and start it again."""
        assert self.process is not None
        self.process.kill()
        self.process.join(END_S)
        self.start()

    def end(self) -> bool:
        """Interrupt it as Ctrl-C does; return whether it has ended."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGINT)
        self.process.join(END_S)
        return self.process.exitcode is not None

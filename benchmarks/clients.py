"""Many clients that ask an HTTP server one thing after the other, and what that took."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from benchmarks.servers import Server

BUSY_S = 0.05  # before a client that was sent away asks again
LIMIT_S = 120.0


@dataclass
class Load:
    """What clients have measured: seconds from a request to the last byte of its answer, and the bytes."""

    seconds: list[float] = field(default_factory=list)
    bytes: int = 0
    refused: int = 0
    wall_s: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.wall_s

    def milliseconds(self, percent: float) -> float:
        """Return a percentile of the times."""
        return float(np.percentile(self.seconds, percent)) * 1000


def load(server: Server, path: Callable[[int], str], *, clients: int, seconds: float) -> Load:
    """Ask for ``seconds``, and until every client has one answer; ``path`` gives the path of each request's number.

    A request that is refused as one too many (429) is asked again, and its time goes on.
    """
    found = Load()
    lock = threading.Lock()
    begun = threading.Barrier(clients + 1)
    failures: list[BaseException] = []

    def client(number: int) -> None:
        try:
            with closing_connection(server) as connection:
                connection.connect()
                begun.wait()
                until = time.perf_counter() + seconds
                asked = number
                while True:
                    began = time.perf_counter()
                    size, refused = ask(connection, path(asked))
                    took = time.perf_counter() - began
                    with lock:
                        found.seconds.append(took)
                        found.bytes += size
                        found.refused += refused
                    asked += clients
                    if time.perf_counter() >= until:
                        return
        except BaseException as error:  # noqa: BLE001 - the measurement has failed then
            failures.append(error)
            begun.abort()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    begun.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    found.wall_s = time.perf_counter() - began
    if failures:
        raise RuntimeError("a client failed") from failures[0]
    return found


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, int]:
    """Return the bytes of an answer, and how often it was refused before."""
    for refused in range(10_000):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 200:
            return len(body), refused
        if answer.status != 429:
            raise RuntimeError(f"{path}: {answer.status}: {body[:300]!r}")
        time.sleep(BUSY_S)
    raise RuntimeError(f"{path}: refused without end")


@contextmanager
def closing_connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    """Give a connection that is closed at the end."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=LIMIT_S)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def slow_clients(server: Server, path: str, *, clients: int, pause_s: float) -> Iterator[None]:
    """Have clients that ask again and again, and take 64 kB of their answers with a pause after each."""
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                with closing_connection(server) as connection:
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    while answer.read(65_536) and not over.wait(pause_s):
                        pass
                over.wait(pause_s)
            except (OSError, http.client.HTTPException):
                over.wait(pause_s)  # cut off as too slow: it asks again

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()

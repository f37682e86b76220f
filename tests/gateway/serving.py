"""A gateway that answers on a real socket, from any log, in this process."""

from __future__ import annotations

import contextlib
import io
import json
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgpack
import numpy as np
import uvicorn

from featurectl.gateway import programs
from featurestream.ports import Log
from featurestream_gateway.programs import Programs
from featurestream_gateway.serve import serve
from featurestream_gateway.settings import GatewaySettings


@dataclass(frozen=True)
class Served:
    """A gateway's address, and a client that asks it."""

    url: str
    client: httpx.Client
    server: uvicorn.Server

    def end(self) -> None:
        """End the gateway as a signal does."""
        self.server.should_exit = True

    def get(self, path: str, *, headers: dict[str, str] | None = None, **parameters: Any) -> httpx.Response:
        """Return the answer to a GET; ``begin`` stands for ``from``."""
        named = {"from" if name == "begin" else name: value for name, value in parameters.items()}
        return self.client.get(path, params=named, headers=headers)

    def json(self, path: str, **parameters: Any) -> Any:
        """Return the JSON values of an answer that must be a good one."""
        answer = self.get(path, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def problem(self, path: str, **parameters: Any) -> dict[str, Any]:
        """Return the problem that an answer must be."""
        return problem_in(self.get(path, **parameters))

    @contextlib.contextmanager
    def events(self, path: str, *, headers: dict[str, str] | None = None, **parameters: Any) -> Iterator[Any]:
        """Give an iterator of (event, id, data) of a live connection."""
        named = {"from" if name == "begin" else name: value for name, value in parameters.items()}
        with self.client.stream("GET", path, params=named, headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield events_in(answer.iter_lines())

    def socket(self) -> socket.socket:
        """Return a connection of one's own, which must be closed."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return socket.create_connection((host, int(port)), timeout=20)


def problem_in(answer: httpx.Response) -> dict[str, Any]:
    """Return the problem that an answer must be: with its status, and with what to do next."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    found: dict[str, Any] = answer.json()
    assert found["status"] == answer.status_code
    assert found["type"].startswith("urn:featurestream:problem:")
    assert found["title"]
    assert found["detail"]
    assert found["hint"]
    return found


def events_in(lines: Iterator[str]) -> Iterator[tuple[str, str | None, Any]]:
    """Yield (event, id, data) of server-sent events."""
    found: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            found[name] = value.removeprefix(" ")
        elif found.keys() - {""}:
            yield found["event"], found.get("id"), json.loads(found["data"])
            found = {}


def npy_rows(answer: httpx.Response) -> np.ndarray:
    """Return the rows of a .npy answer."""
    assert answer.status_code == 200, answer.text
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def msgpack_entries(answer: httpx.Response) -> list[tuple[int, bytes]]:
    """Return the entries of a msgpack answer."""
    assert answer.status_code == 200, answer.text
    return [tuple(entry) for entry in msgpack.unpackb(answer.content)]


@contextlib.contextmanager
def serving(log: Log, given: Programs | None = None, **settings: Any) -> Iterator[Served]:
    """Serve a log for the length of the block; without ``port`` on a free one of loopback."""
    addresses: queue.Queue[str] = queue.Queue()
    servers: list[uvicorn.Server] = []
    chosen = GatewaySettings(**{"port": 0} | settings)
    thread = threading.Thread(
        target=serve,
        args=(chosen, log, given or programs()),
        kwargs={"on_listening": addresses.put, "on_server": servers.append},
    )
    thread.start()
    try:
        url = addresses.get(timeout=20)
        with httpx.Client(base_url=url, timeout=20) as client:
            yield Served(url, client, servers[0])
    finally:
        servers[0].should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the gateway did not end"

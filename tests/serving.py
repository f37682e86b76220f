"""A gateway that serves a log while a block lasts, for tests that ask it as clients do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue

from featurectl.gateway import programs
from featurestream.ports import Log
from featurestream_gateway.serve import _Server, serve
from featurestream_gateway.settings import GatewaySettings


@contextmanager
def serving(log: Log, **settings: object) -> Iterator[str]:
    """Serve ``log`` in a thread, on a free port unless ``settings`` name one; give the gateway's address."""
    addresses: Queue[str | BaseException] = Queue()
    servers: list[_Server] = []
    loops: list[asyncio.AbstractEventLoop] = []

    def listening(address: str) -> None:
        loops.append(asyncio.get_running_loop())
        addresses.put(address)

    def run() -> None:
        try:
            chosen = GatewaySettings(**({"port": 0} | settings))  # type: ignore[arg-type]
            serve(chosen, log, programs(), on_listening=listening, on_server=servers.append)
        except BaseException as error:  # noqa: BLE001 - it belongs to the test
            addresses.put(error)

    thread = threading.Thread(target=run, name="gateway")
    thread.start()
    try:
        address = addresses.get(timeout=30)
        if isinstance(address, BaseException):
            raise address
        yield address
    finally:
        for server, loop in zip(servers, loops, strict=True):
            server.should_exit = True
            loop.call_soon_threadsafe(server.gateway.end)  # as a signal does
        thread.join(20)
    assert not thread.is_alive(), "the gateway did not end"

"""The connections of the server, so that those which hold something and take nothing can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connections:
    """Every open connection by its client's address."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], asyncio.Transport] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, client: tuple[str, int] | None, transport: asyncio.Transport) -> None:
        """Take note of a connection."""
        if client is not None:
            self._open[client] = transport

    def remove(self, client: tuple[str, int] | None) -> None:
        """Take note that a connection is closed."""
        if client is not None:
            self._open.pop(client, None)

    def of(self, scope: MutableMapping[str, Any]) -> asyncio.Transport | None:
        """Return a request's connection; None where it has none, as in a process without a server."""
        client = scope.get("client")
        return None if client is None else self._open.get((client[0], client[1]))

    def cut(self, scope: MutableMapping[str, Any]) -> None:
        """End a request's connection at once, with what was not sent yet."""
        transport = self.of(scope)
        if transport is not None:
            transport.abort()


def protocol(connections: Connections, idle_s: float) -> type[H11Protocol]:
    """Return the server's protocol for HTTP/1.1, which knows its connections and waits for no request without end.

    uvicorn itself closes a connection between two requests, but waits for a first one, and for the rest of one, without
    end.
    """

    class GatewayProtocol(H11Protocol):
        _begun_at: float | None = None  # when a request began that is not whole yet

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.add(self.client, transport)
            self._begun_at = self.loop.time()
            self._watch = self.loop.call_later(idle_s, self._look)

        def data_received(self, data: bytes) -> None:
            waiting = self._waits()
            super().data_received(data)
            if not self._waits():
                self._begun_at = None
            elif waiting and self._begun_at is None:
                self._begun_at = self.loop.time()

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.cancel()
            connections.remove(self.client)
            super().connection_lost(exc)

        def _waits(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _look(self) -> None:
            if self._begun_at is not None and self.loop.time() - self._begun_at >= idle_s:
                self.transport.abort()
                return
            self._watch = self.loop.call_later(idle_s, self._look)

    return GatewayProtocol

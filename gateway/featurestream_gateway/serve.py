"""Serve a gateway until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from featurestream.errors import OutsideError
from featurestream.ports import Log
from featurestream_gateway.app import make_app
from featurestream_gateway.connections import Connections, protocol
from featurestream_gateway.gateway import Gateway
from featurestream_gateway.heap import return_large_blocks
from featurestream_gateway.programs import Programs
from featurestream_gateway.settings import ENDING_S, GatewaySettings

BACKLOG = 1024
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """uvicorn's server, which tells the gateway that it ends, and remembers a signal instead of raising it again."""

    gateway: Gateway | None = None

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.signals: list[int] = []

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: live connections first, which would go on for ever."""
        if self.gateway is not None:
            self.gateway.end()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server, where Python handles any: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)
            self.handle_exit(number, frame)

        before = {number: signal.signal(number, end) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(settings: GatewaySettings) -> socket.socket:
    """Return a socket that listens where the settings say. Raises OutsideError where that is not possible."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named, because asyncio sends small packets at once only on sockets that say that they are TCP's: else every answer
    # on a connection that is kept would take 40 ms longer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise OutsideError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror or error}",
            hint="is a gateway running already? choose another port with --port",
        ) from error
    return listening


def serve(
    settings: GatewaySettings,
    log: Log,
    programs: Programs,
    *,
    on_listening: Callable[[str], None],
    on_server: Callable[[uvicorn.Server], None] | None = None,
) -> None:
    """Serve until SIGINT, which becomes KeyboardInterrupt, or SIGTERM.

    ``on_listening`` is called with the gateway's address once it can be asked; ``on_server`` with the server before it
    begins, so that another thread may set its ``should_exit``.
    """
    return_large_blocks()
    connections = Connections()
    with listen(settings) as listening:
        port = listening.getsockname()[1]

        def started(gateway: Gateway) -> None:
            server.gateway = gateway
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            on_listening(f"http://{host}:{port}")

        app = make_app(settings, log, programs, connections=connections, on_start=started)
        config = uvicorn.Config(
            app,
            http=protocol(connections, settings.idle_s),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=max(1, round(settings.idle_s)),
            # Without it a live connection would keep the process for ever (uvicorn 0.54).
            timeout_graceful_shutdown=round(ENDING_S),
        )
        server = _Server(config)
        if on_server is not None:
            on_server(server)
        asyncio.run(server.serve(sockets=[listening]))
    if signal.SIGINT in server.signals:
        raise KeyboardInterrupt

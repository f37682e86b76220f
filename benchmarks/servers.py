"""HTTP servers to measure, each in a process of its own: the gateway, a bare one, and the original design."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

START_S = 60.0
ENTRIES = 4  # of the original's queue; every request is answered with the oldest one


@dataclass(frozen=True)
class Server:
    """A server that runs: its host and port, and its process."""

    host: str
    port: int
    process: psutil.Process


@contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[Server]:
    """Run ``target(pipe, *arguments)`` in a new process that sends its port, for as long as the block lasts."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    try:
        there.close()
        if not here.poll(START_S):
            raise RuntimeError("the server did not start")
        yield Server("127.0.0.1", here.recv(), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.join()
        here.close()


def gateway(pipe: Connection, bootstrap_servers: str) -> None:
    """Serve a cluster's streams as ``featurectl gateway`` does, with its limits."""
    from featurectl.gateway import LOG, programs
    from featurestream.cluster import Cluster
    from featurestream.kafka import KafkaLog
    from featurestream_gateway.serve import serve
    from featurestream_gateway.settings import GatewaySettings

    with KafkaLog(Cluster(bootstrap_servers), **LOG) as log:
        serve(
            GatewaySettings(port=0),
            log,
            programs(),
            on_listening=lambda url: pipe.send(int(url.rpartition(":")[2])),
        )


def bare(pipe: Connection, media_type: str, body: bytes) -> None:
    """Answer every request with the same bytes, by the HTTP server on which the gateway stands."""
    import socket

    import uvicorn

    headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001 - ASGI's signature
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1024)
        pipe.send(listening.getsockname()[1])
        config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


def original(pipe: Connection, tap: str, features: NDArray[Any]) -> None:
    """Serve as the design that the gateway takes the place of: Flask over a deque in the process.

    An entry is a dict of nested lists, and ``/data`` answers with the oldest one as JSON; nobody takes it away.
    """
    import flask
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: object) -> None:
            """Say nothing."""

    queue: deque[dict[str, list[Any]]] = deque(
        ({tap: features.astype(np.float32).tolist()} for _ in range(ENTRIES)), maxlen=ENTRIES
    )
    app = flask.Flask("original")

    @app.get("/data")
    def data() -> flask.Response:
        return flask.jsonify(len=len(queue), z=queue[0] if queue else "EMPTY")

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    pipe.send(server.server_port)
    server.serve_forever()

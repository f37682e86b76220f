"""The application: every path, and what answers it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import featurestream
from featurestream.errors import FeatureStreamError
from featurestream.ports import Log
from featurestream.telemetry import GATEWAY_CONNECTIONS
from featurestream_gateway import (
    experiment_paths,
    lane_paths,
    operation_paths,
    original_paths,
    page_paths,
    record_paths,
    stream_paths,
)
from featurestream_gateway.connections import Connections
from featurestream_gateway.gateway import Gateway
from featurestream_gateway.guard import Guard
from featurestream_gateway.meters import Meters
from featurestream_gateway.models import Problem
from featurestream_gateway.problems import MEDIA_TYPE, answer_bad_parameters, answer_error, answer_http_error
from featurestream_gateway.programs import Programs
from featurestream_gateway.settings import GatewaySettings

#: Statuses that any path may answer with.
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {
        "description": "A problem of the request's.",
        "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    },
    "5XX": {
        "description": "A problem of Kafka's, the stream's or the gateway's.",
        "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    },
}


def make_app(
    settings: GatewaySettings,
    log: Log,
    programs: Programs,
    *,
    connections: Connections | None = None,
    on_start: Callable[[Gateway], None] | None = None,
) -> Guard:
    """Return the gateway as an ASGI application. ``log`` stays the caller's.

    ``on_start`` is called inside the event loop with the gateway that serves.
    """
    meters = Meters()
    connections = Connections() if connections is None else connections
    meters.watch(GATEWAY_CONNECTIONS, lambda: len(connections))

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        gateway = Gateway(settings, log, programs, meters)
        app.state.gateway = gateway
        if on_start is not None:
            on_start(gateway)
        housekeeping = asyncio.create_task(gateway.housekeeping())
        try:
            yield
        finally:
            gateway.end()
            housekeeping.cancel()
            await _briefly(gateway)

    app = FastAPI(
        title="featurestream",
        version=featurestream.__version__,
        summary="Frozen vision features on Kafka, over HTTP.",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=life,
        responses=PROBLEMS,
    )
    for paths in (
        stream_paths, record_paths, lane_paths, experiment_paths, original_paths, operation_paths, page_paths
    ):  # fmt: skip
        app.include_router(paths.router)
    app.add_exception_handler(FeatureStreamError, answer_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(RequestValidationError, answer_bad_parameters)
    app.add_exception_handler(Exception, answer_error)
    return Guard(app, settings, connections, meters)


async def _briefly(gateway: Gateway) -> None:
    """Release connections, but do not wait long for a broker that is away: the process ends anyway."""
    try:
        async with asyncio.timeout(0.5):
            await gateway.workers.run(gateway.close)
    except TimeoutError:
        return

"""Paths for rows: a part of a stream, and batches as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from featurestream.errors import UsageError
from featurestream_gateway import models
from featurestream_gateway.formats import MEDIA_TYPES, choose_format, room_of
from featurestream_gateway.gateway import Gateway, split_taps
from featurestream_gateway.live import batches, overviews
from featurestream_gateway.parameters import LiveQuery, OverviewQuery, RecordsQuery, Stream
from featurestream_gateway.ranges import Range, continue_range, find_range
from featurestream_gateway.wanted import current

router = APIRouter(tags=["rows"])

Current = Annotated[Gateway, Depends(current)]
LastEventId = Annotated[str | None, Header(description="The cursor of the last event, as browsers send it again.")]

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
ROWS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Rows, and in the header Featurestream-Next the cursor for what comes after them.",
        "model": models.Rows,
        "content": {MEDIA_TYPES["msgpack"]: BINARY, MEDIA_TYPES["npy"]: BINARY},
    }
}


@router.get("/v1/streams/{stream}/records", response_class=Response, responses=ROWS)
async def records(
    gateway: Current, stream: Stream, asked: Annotated[RecordsQuery, Query()], request: Request
) -> Response:
    """Rows of a stream, with features, labels, ids and times."""
    form = choose_format(asked.format, request.headers.get("accept"))
    check_rows(gateway, asked.n)
    taps = split_taps(asked.taps)
    if asked.cursor is not None and asked.model_fields_set & {"begin", "until"}:
        raise UsageError("both a cursor and from or until were given", hint="a cursor holds both already")

    def find() -> Range:
        if asked.cursor is not None:
            return continue_range(gateway.catalogue, asked.cursor, stream=stream, taps=taps)
        return find_range(gateway.catalogue, stream, taps, asked.begin, asked.until)

    return await gateway.answer(find, form, request, rows=asked.n, wait_s=asked.wait)


async def _live(
    gateway: Current,
    stream: Stream,
    asked: Annotated[LiveQuery, Query()],
    last_event_id: LastEventId = None,
) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
    """Give a stream's events: what is wrong is found before the answer begins."""
    cursor = last_event_id or asked.cursor
    taps = split_taps(asked.taps)

    def find() -> Range:
        if cursor is not None:
            return continue_range(gateway.catalogue, cursor, stream=stream, taps=taps)
        return find_range(gateway.catalogue, stream, taps, asked.begin, None)

    wanted = await gateway.workers.run(find)
    # With features a connection holds as much as an answer does, for as long as it lives.
    with await (gateway.readers if asked.features else gateway.listeners).take() as turn:
        if asked.features:
            layout = wanted.manifest.layout
            await turn.hold(room_of("json", wanted, layout.batch_samples * layout.views, gateway.settings.max_bytes))
        yield batches(gateway, wanted, features=asked.features)


@router.get("/v1/streams/{stream}/live", response_class=EventSourceResponse)
async def live(events: Annotated[AsyncIterator[ServerSentEvent], Depends(_live)]) -> AsyncIterator[ServerSentEvent]:
    """Batches as they come."""
    async for one in events:
        yield one


async def _overview(
    gateway: Current, asked: Annotated[OverviewQuery, Query()]
) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
    with await gateway.listeners.take():
        yield overviews(gateway, asked.every)


@router.get("/v1/live", response_class=EventSourceResponse)
async def overview(
    events: Annotated[AsyncIterator[ServerSentEvent], Depends(_overview)],
) -> AsyncIterator[ServerSentEvent]:
    """All streams and experiments, again and again."""
    async for one in events:
        yield one


def check_rows(gateway: Gateway, rows: int | None) -> None:
    """Raise UsageError for more rows than an answer may have."""
    most = gateway.settings.max_rows
    if rows is not None and rows > most:
        raise UsageError(
            f"n is {rows:,}, but an answer has at most {most:,} rows",
            hint=f"ask for n={most} and go on with next",
            max_rows=most,
        )

"""The two paths of the feature server that this project takes the place of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from featurestream.errors import GoneError, UsageError
from featurestream.position import Position
from featurestream_gateway import models
from featurestream_gateway.answers import PartsAnswer
from featurestream_gateway.formats import MEDIA_TYPES, Bytes, choose_format, entry_json, json_bytes, size_of
from featurestream_gateway.gateway import Gateway, split_taps
from featurestream_gateway.parameters import AfterQuery, DataQuery
from featurestream_gateway.problems import TooLargeError
from featurestream_gateway.ranges import Range, choose_taps, continue_range, find_range
from featurestream_gateway.readings import Limit
from featurestream_gateway.record_paths import ROWS, check_rows
from featurestream_gateway.wanted import current

router = APIRouter(tags=["the original's paths"])

Current = Annotated[Gateway, Depends(current)]
EMPTY = "EMPTY"
BOTH: dict[int | str, dict[str, Any]] = {200: ROWS[200] | {"model": models.Rows | models.OriginalEntry}}


@router.get("/data", response_class=Response, responses=BOTH)
async def data(gateway: Current, asked: Annotated[DataQuery, Query()], request: Request) -> Response:
    """The oldest batch that is left."""
    return await _answer(gateway, asked, request, None)


@router.get("/after", response_class=Response, responses=BOTH)
async def after(gateway: Current, asked: Annotated[AfterQuery, Query()], request: Request) -> Response:
    """What was appended strictly after a time."""
    if asked.timestamp is None and asked.cursor is None:
        raise UsageError(
            "timestamp is missing", hint="seconds since 1970, such as timestamp=$(date -d '1 hour ago' +%s)"
        )
    # The log's clock ticks in milliseconds: strictly later is at the next one, or beyond.
    later_ms = None if asked.timestamp is None else math.floor(asked.timestamp * 1000) + 1
    return await _answer(gateway, asked, request, later_ms)


async def _answer(gateway: Gateway, asked: DataQuery, request: Request, later_ms: int | None) -> Response:
    check_rows(gateway, asked.n)
    taps = split_taps(asked.taps)
    if asked.cursor is not None:
        cursor = asked.cursor
        form = choose_format(asked.format, request.headers.get("accept"))
        _refuse_with(asked, "a cursor", "timestamp", "compat")
        return await gateway.answer(
            lambda: continue_range(gateway.catalogue, cursor, stream=asked.stream, taps=taps),
            form,
            request,
            rows=asked.n,
        )
    stream = await gateway.default_stream(asked.stream)
    begin = "earliest" if later_ms is None else f"{later_ms / 1000:.3f}"

    def find(begin: str = begin) -> Range:
        wanted = find_range(gateway.catalogue, stream, taps, begin, None)
        return wanted if later_ms is not None else _first_batch(wanted)

    if not asked.compat:
        form = choose_format(asked.format, request.headers.get("accept"))
        return await gateway.answer(find, form, request, rows=asked.n)
    _refuse_with(asked, "compat=1", "n", "format")
    turn = await gateway.readers.take()
    try:
        await turn.hold(2 * gateway.settings.max_bytes)
        parts = await gateway.workers.run(lambda: _original(gateway, _left(find), oldest=later_ms is None))
        return PartsAnswer(parts, MEDIA_TYPES["json"], {}, turn)
    except BaseException:
        turn.end()
        raise


def _refuse_with(asked: DataQuery, what: str, *names: str) -> None:
    given = [name for name in names if name in asked.model_fields_set and getattr(asked, name) not in (None, False)]
    if given:
        raise UsageError(f"{what} and {given[0]} do not go together", hint=f"leave {given[0]} out")


def _left(find: Callable[..., Range]) -> Range:
    """Return the range, or what is left of it: the original had forgotten what it no longer held."""
    try:
        return find()
    except GoneError:
        return find("earliest")


def _first_batch(wanted: Range) -> Range:
    following = Position(wanted.begin.batch + 1)
    stop = following if wanted.stop is None else min(following, wanted.stop)
    return Range(wanted.manifest, wanted.taps, wanted.begin, max(stop, wanted.begin))


def _original(gateway: Gateway, wanted: Range, *, oldest: bool) -> list[Bytes]:
    """Return what the original answered, in parts: the number of entries left, and those without labels, ids and times.

    An entry is a batch. Of those after a time the first one is left out, as there.
    """
    manifest = wanted.manifest
    edges = gateway.catalogue.edges(manifest, choose_taps(manifest, []))
    left = max(edges.next_missing - edges.earliest, 0)
    if not oldest:
        wanted = Range(manifest, wanted.taps, Position(wanted.begin.batch + 1), None)
    settings = gateway.settings
    limit = Limit(settings.max_rows, settings.max_bytes, exact=False, size=size_of("json", manifest, wanted.taps))
    piece = gateway.readings.read(wanted, limit)
    if piece.more == "now":
        raise TooLargeError(
            "the original's form has no way to go on, and not everything fits in one answer",
            hint="leave compat out and go on with next, or name one tap",
            max_rows=piece.rows,
        )
    parts: list[Bytes] = [json_bytes({"len": left})[:-1] + b',"z":']
    if oldest:
        parts += entry_json(piece.batches[0], piece.range) if piece.batches else [json_bytes(EMPTY)]
        return [*parts, b"}"]
    between = b"["
    for batch in piece.batches:
        parts += [between, *entry_json(batch, piece.range)]
        between = b","
    return [*parts, b"]}" if piece.batches else b"[]}"]

"""Paths for lanes as they stand on the log: what featurestream.http reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field
from starlette.responses import Response

from featurestream.http.records import MEDIA_TYPE, pack_records
from featurestream.identity import MAX_NUMBER
from featurestream.names import TAP_NAME, tap_topic
from featurestream.ports import LogRecord
from featurestream_gateway.answers import JsonAnswer, PartsAnswer
from featurestream_gateway.gateway import EDGE_S, LANE_BYTES, Gateway, split_taps
from featurestream_gateway.parameters import WAIT_S, NoQuery, Parameters, Stream
from featurestream_gateway.problems import RefusedError
from featurestream_gateway.wanted import current

T = TypeVar("T")

RECORD_BYTES: Final = 2**20  # what a broker's stock limits let through
MOST_LANE: Final = 2**31 - 1  # Kafka's numbers of partitions
MOST_TIME_MS: Final = 253_370_764_799_000  # the year 9999

router = APIRouter(prefix="/v1", tags=["lanes"])

Current = Annotated[Gateway, Depends(current)]
NoParameters = Annotated[NoQuery, Query()]
Tap = Annotated[
    str,
    Path(pattern=f"^{TAP_NAME.pattern}$", description='A tap\'s name, or "manifest".', examples=["layer3", "manifest"]),
]
Lane = Annotated[int, Path(ge=0, le=MOST_LANE, description="The lane: Kafka's partition.")]

RECORDS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A msgpack array, an entry a record: [offset, appended_ms, key, [[name, value], ...], value].",
        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Topics(BaseModel):
    """The topics of all streams."""

    topics: dict[str, int] = Field(description="The number of lanes of each.")


class LaneBounds(BaseModel):
    """What a lane holds."""

    tap: str
    lane: int
    low: int = Field(description="The first offset that is left.")
    high: int = Field(description="The offset of what comes next.")
    offset: int | None = Field(default=None, description="The first offset that was appended at or after the time.")


class StreamLanes(BaseModel):
    """Lanes of a stream."""

    stream: str
    lanes: list[LaneBounds]


class LanesQuery(Parameters):
    """Which lanes, and what of them."""

    taps: list[str] = Field(
        default=[], description='Names of taps, or "manifest", separated by commas or repeated. Without it all.'
    )
    ms: int | None = Field(
        default=None, ge=0, le=MOST_TIME_MS, description="A time, milliseconds since 1970, to be looked for in each."
    )


class RecordQuery(Parameters):
    """Which record."""

    offset: int = Field(ge=0, le=MAX_NUMBER, description="Its offset.")


class LaneRecordsQuery(RecordQuery):
    """Which records."""

    bytes: int | None = Field(
        default=None, ge=1, le=MAX_NUMBER, description="How many bytes to end with, at most as an answer may have."
    )
    wait: float = Field(default=0, ge=0, le=WAIT_S, description="Seconds to wait for a record at the lane's end.")


@router.get("/lanes", response_model=Topics, response_class=JsonAnswer)
async def topics(gateway: Current, _: NoParameters) -> Response:
    """The topics of all streams, with their numbers of lanes."""
    return JsonAnswer({"topics": await gateway.workers.run(gateway.lanes.topics)})


@router.get("/streams/{stream}/lanes", response_model=StreamLanes, response_class=JsonAnswer)
async def lanes(gateway: Current, stream: Stream, asked: Annotated[LanesQuery, Query()]) -> Response:
    """The offsets that the lanes of some taps hold; with ``ms`` where a time lies in each."""

    def look() -> list[dict[str, Any]]:
        places = gateway.lanes.places(stream, split_taps(asked.taps))
        source = gateway.lanes.source
        offsets = {} if asked.ms is None else source.offsets_at_time(places, asked.ms)
        bounds = source.all_bounds(places)
        return [
            {"tap": place[0].partition(".")[2], "lane": place[1], "low": bounds[place].low, "high": bounds[place].high}
            | ({"offset": offsets[place]} if place in offsets else {})
            for place in places
        ]

    return JsonAnswer({"stream": stream, "lanes": await _of(gateway, stream, look)})


@router.get("/streams/{stream}/lanes/{tap}/{lane}/record", response_class=Response, responses=RECORDS)
async def record(
    gateway: Current, stream: Stream, tap: Tap, lane: Lane, asked: Annotated[RecordQuery, Query()]
) -> Response:
    """The record at an offset, or the first one after it."""
    topic = tap_topic(stream, tap)
    turn = await gateway.readers.take()
    try:
        await turn.hold(RECORD_BYTES)
        found = await _of(gateway, stream, lambda: gateway.lanes.source.record_at(topic, lane, asked.offset))
        return PartsAnswer(pack_records([found]), MEDIA_TYPE, {"Cache-Control": "no-store"}, turn)
    except BaseException:
        turn.end()
        raise


@router.get("/streams/{stream}/lanes/{tap}/{lane}/records", response_class=Response, responses=RECORDS)
async def records(
    gateway: Current, stream: Stream, tap: Tap, lane: Lane, asked: Annotated[LaneRecordsQuery, Query()]
) -> Response:
    """The records from an offset on, as many as there are and one answer may hold."""
    topic = tap_topic(stream, tap)
    most = min(asked.bytes or gateway.settings.max_bytes, gateway.settings.max_bytes)

    def read() -> list[LogRecord]:
        return gateway.lanes.read(topic, lane, asked.offset, most)

    turn = await gateway.readers.take()
    try:
        await turn.hold(most + RECORD_BYTES + LANE_BYTES)
        found = await _of(gateway, stream, read)
        if not found and asked.wait:
            turn.end()  # who waits reads nothing
            await _beyond(gateway, topic, lane, asked.offset, asked.wait)
            turn = await gateway.readers.take()
            await turn.hold(most + RECORD_BYTES + LANE_BYTES)
            found = await _of(gateway, stream, read)
        return PartsAnswer(pack_records(found), MEDIA_TYPE, {"Cache-Control": "no-store"}, turn)
    except BaseException:
        turn.end()
        raise


async def _of(gateway: Gateway, stream: str, question: Callable[[], T]) -> T:
    """Return the answer to a question about a stream's topics; raise StreamNotFoundError where there is no such stream.

    Other programs' topics on the cluster are none of a client's business, whatever their names.
    """

    def ask() -> T:
        gateway.catalogue.manifest(stream)
        return question()

    return await gateway.workers.run(ask)


async def _beyond(gateway: Gateway, topic: str, lane: int, offset: int, wait_s: float) -> None:
    """Return when a lane has grown beyond an offset, or holds it no more, or after so many seconds.

    Raises RefusedError (ending) when the gateway ends.
    """
    until = asyncio.get_running_loop().time() + wait_s
    while (left_s := until - asyncio.get_running_loop().time()) > 0:
        low, high = await gateway.looks.get(
            ("lane", topic, lane), lambda: gateway.lanes.source.bounds(topic, lane), max_age_s=EDGE_S
        )
        if not low <= offset == high:
            return
        try:
            async with asyncio.timeout(min(EDGE_S, left_s)):
                await gateway.ending.wait()
        except TimeoutError:
            continue
        raise RefusedError("ending", "the gateway is ending", hint="ask again when it is back")

"""Batches as they come, and everything again and again: the events of live connections."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi.sse import ServerSentEvent

from featurestream.errors import FeatureStreamError, FingerprintError, HoleError
from featurestream.names import tap_topic
from featurestream.ports import LogRecord
from featurestream.position import Position
from featurestream.seek import batch_of
from featurestream.wire import parse_headers
from featurestream_gateway.catalogue import Catalogue
from featurestream_gateway.formats import encode, json_bytes, size_of, time_json
from featurestream_gateway.gateway import Gateway
from featurestream_gateway.problems import RefusedError, TooLargeError, problem_of
from featurestream_gateway.ranges import More, Range
from featurestream_gateway.readings import Limit


def event(kind: str, facts: dict[str, Any], cursor: str | None = None) -> ServerSentEvent:
    """Return an event with JSON values."""
    return ServerSentEvent(event=kind, raw_data=json_bytes(facts).decode(), id=cursor)


async def batches(gateway: Gateway, wanted: Range, *, features: bool) -> AsyncIterator[ServerSentEvent]:
    """Yield an event a batch of a range, as soon as each is complete; one for the end, or for what went wrong.

    Nothing is queued: a client that is slow is given the next batch when it has taken the last one.
    """
    at = wanted.begin
    try:
        while not wanted.is_over(at):
            await gateway.beyond(wanted, at.batch)
            part = Range(wanted.manifest, wanted.taps, at, _one_batch(wanted, at))
            following = Position(at.batch + 1)
            cursor = None if wanted.is_over(following) else wanted.cursor(following).text()
            if features:
                text = await gateway.workers.run(functools.partial(_rows, gateway, part, wanted))
                yield ServerSentEvent(event="rows", raw_data=text, id=cursor)
            else:
                facts = await gateway.workers.run(functools.partial(_facts, gateway.catalogue, part))
                yield event("batch", facts | {"next": cursor}, cursor)
            at = following
        yield event("end", {"batches": at.batch})
    except FeatureStreamError as error:
        yield event("problem", problem_of(error))


async def overviews(gateway: Gateway, every_s: float) -> AsyncIterator[ServerSentEvent]:
    """Yield all streams and experiments every so many seconds, until the gateway ends."""
    while not gateway.ending.is_set():
        try:
            facts = await gateway.overview()
        except FeatureStreamError as error:  # Kafka may come back: whoever watches sees both
            yield event("problem", problem_of(error))
        else:
            yield event("overview", {"at": time_json(round(time.time() * 1000))} | facts)
        try:
            async with asyncio.timeout(every_s):
                await gateway.ending.wait()
        except TimeoutError:
            continue
    yield event(
        "problem", problem_of(RefusedError("ending", "the gateway is ending", hint="connect again when it is back"))
    )


def _one_batch(wanted: Range, at: Position) -> Position:
    following = Position(at.batch + 1)
    return following if wanted.stop is None else min(following, wanted.stop)


def _rows(gateway: Gateway, part: Range, wanted: Range) -> str:
    """Return a batch of a range with its features, as the answer with rows has it."""
    settings = gateway.settings
    size = size_of("json", part.manifest, part.taps)
    limit = Limit(settings.max_rows, settings.max_bytes, exact=False, size=size)
    piece = gateway.readings.read(part, limit)
    if piece.more == "now":
        raise TooLargeError(
            f"batch {part.begin.batch} takes more than an answer may have",
            hint="name fewer taps, or leave features out and read the rows with next",
        )
    more: More = "never" if wanted.is_over(piece.until) else "now"
    whole = Range(wanted.manifest, wanted.taps, part.begin, wanted.stop)
    return b"".join(encode("json", replace(piece, range=whole, more=more))).decode()


def _facts(catalogue: Catalogue, part: Range) -> dict[str, Any]:
    """Return what the headers of a batch's records say."""
    manifest, number = part.manifest, part.begin.batch
    records = [_record(catalogue, part, tap) for tap in part.taps]
    headers = parse_headers(records[0].headers)
    if headers.fingerprint != manifest.fingerprint:
        catalogue.forget(manifest)
        raise FingerprintError(
            f'stream "{manifest.stream}" was made anew, with fingerprint {headers.fingerprint}', hint="begin again"
        )
    return {
        "stream": manifest.stream,
        "batch": number,
        "pass": headers.pass_number,
        "rows": headers.rows,
        "appended_at": time_json(min(record.timestamp_ms for record in records)),
    }


def _record(catalogue: Catalogue, part: Range, tap: str) -> LogRecord:
    number = part.begin.batch
    lanes = catalogue.lanes(part.manifest, (tap,))
    topic, lane = tap_topic(part.manifest.stream, tap), part.manifest.layout.lane_of(number)
    offset = lanes.offset_of(topic, lane, number)
    while batch_of(found := lanes.source.record_at(topic, lane, offset)) < number:
        offset = found.offset + 1  # a duplicate of an earlier batch
    if batch_of(found) > number:
        raise HoleError(f"batch {number} is missing from {topic}, lane {lane}", batch=number)
    return found

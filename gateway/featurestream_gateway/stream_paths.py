"""Paths about streams."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from featurestream_gateway import models
from featurestream_gateway.answers import JsonAnswer
from featurestream_gateway.gateway import Gateway
from featurestream_gateway.parameters import NoQuery, PictureQuery, RequestedSamples, Stream
from featurestream_gateway.wanted import current, send_requests

router = APIRouter(prefix="/v1/streams", tags=["streams"])

Current = Annotated[Gateway, Depends(current)]
NoParameters = Annotated[NoQuery, Query()]

PICTURES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The image behind a row beside the original, or what is told of it.",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}, "application/json": {}},
    }
}


@router.get("", response_model=models.StreamList, response_class=JsonAnswer)
async def streams(gateway: Current, _: NoParameters) -> Response:
    """All streams."""
    found = await gateway.streams()
    return JsonAnswer({"streams": found.summaries(), "problems": found.problems()})


@router.get("/{stream}", response_model=models.StreamReport, response_class=JsonAnswer)
async def stream_report(gateway: Current, stream: Stream, _: NoParameters) -> Response:
    """Everything about one stream."""
    return JsonAnswer((await gateway.stream(stream)).everything())


@router.get("/{stream}/manifest", response_model=dict[str, Any], response_class=JsonAnswer)
async def manifest(gateway: Current, stream: Stream, _: NoParameters) -> Response:
    """The stream's manifest, as schemas/manifest.schema.json describes it."""
    found = await gateway.workers.run(lambda: gateway.catalogue.manifest(stream))
    return JsonAnswer(found.model_dump(mode="json"))


@router.get("/{stream}/passes", response_model=models.StreamPasses, response_class=JsonAnswer)
async def passes(gateway: Current, stream: Stream, _: NoParameters) -> Response:
    """The finished passes."""
    keys = ("stream", "pass_batches", "passes", "complete", "pass_records")
    found = (await gateway.stream(stream)).everything()
    return JsonAnswer({key: found[key] for key in keys})


@router.get("/{stream}/taps", response_model=models.StreamTaps, response_class=JsonAnswer)
async def taps(gateway: Current, stream: Stream, _: NoParameters) -> Response:
    """The taps, and what the log holds of each."""
    found = (await gateway.stream(stream)).everything()
    return JsonAnswer({"stream": stream, "dtype": found["manifest"]["dtype"], "taps": found["taps"]})


@router.get("/{stream}/health", response_model=models.StreamHealth, response_class=JsonAnswer)
async def health(gateway: Current, stream: Stream, _: NoParameters) -> Response:
    """What the producer has seen of inputs and features."""
    keys = ("stream", "health", "canary", "warnings", "retention_warnings")
    found = (await gateway.stream(stream)).everything()
    return JsonAnswer({key: found[key] for key in keys})


@router.get("/{stream}/picture", response_class=Response, responses=PICTURES)
async def picture(
    gateway: Current, stream: Stream, asked: Annotated[PictureQuery, Query()], request: Request
) -> Response:
    """The image behind a row, made again exactly as the backbone got it, beside the original."""
    accept = request.headers.get("accept", "")
    as_json = asked.format == "json" or (asked.format is None and accept.startswith("application/json"))
    with await gateway.readers.take():
        found = await gateway.workers.run(
            lambda: gateway.programs.picture(gateway.log, stream, asked.batch, asked.row, asked.view)
        )
    return JsonAnswer(found.facts) if as_json else Response(found.png, media_type="image/png")


@router.post("/{stream}/requests", status_code=202, response_model=models.Requested, response_class=JsonAnswer)
async def requests(gateway: Current, stream: Stream, wanted: RequestedSamples, _: NoParameters) -> Response:
    """Have samples extracted next, beside the passes, on a stream of their own."""
    with await gateway.readers.take():
        found = await gateway.workers.run(lambda: send_requests(gateway, stream, wanted.samples))
    report = await gateway.stream(stream)
    return JsonAnswer(found | {"producer": report.summary()["producer"]}, status_code=202)

"""Paths for those who watch over the process."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from featurestream_gateway import meters, models
from featurestream_gateway.answers import JsonAnswer
from featurestream_gateway.gateway import Gateway
from featurestream_gateway.parameters import NoQuery
from featurestream_gateway.wanted import current

router = APIRouter(tags=["operation"])

Current = Annotated[Gateway, Depends(current)]
NoParameters = Annotated[NoQuery, Query()]


@router.get("/healthz", response_model=models.Status, response_class=JsonAnswer)
async def healthz(_: NoParameters) -> Response:
    """Whether the process answers."""
    return JsonAnswer({"status": "ok"})


@router.get("/readyz", response_model=models.Status, response_class=JsonAnswer)
async def readyz(gateway: Current, _: NoParameters) -> Response:
    """Whether Kafka answers."""
    await gateway.looks.get("ready", gateway.ready, max_age_s=1.0)
    return JsonAnswer({"status": "ready"})


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
async def metrics(gateway: Current, _: NoParameters) -> Response:
    """What the gateway counts of itself, for Prometheus."""
    return Response(gateway.meters.text(), media_type=meters.CONTENT_TYPE)

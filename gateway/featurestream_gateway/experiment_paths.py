"""Paths about experiments."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from featurestream_gateway import models
from featurestream_gateway.answers import JsonAnswer
from featurestream_gateway.experiments import choose
from featurestream_gateway.gateway import Gateway
from featurestream_gateway.parameters import CompareQuery, ExperimentsQuery, MetricsQuery, Name
from featurestream_gateway.wanted import current

router = APIRouter(prefix="/v1", tags=["experiments"])

Current = Annotated[Gateway, Depends(current)]
OfStream = Annotated[ExperimentsQuery, Query()]


@router.get("/experiments", response_model=models.ExperimentList, response_class=JsonAnswer)
async def experiments(gateway: Current, asked: OfStream) -> Response:
    """All experiments, with position and lag."""
    return JsonAnswer((await gateway.experiments()).facts(asked.stream))


@router.get("/experiments/{name}", response_model=models.ExperimentFacts, response_class=JsonAnswer)
async def experiment(gateway: Current, name: Name, asked: OfStream) -> Response:
    """One experiment."""
    return JsonAnswer(choose((await gateway.experiments()).experiments, name, asked.stream).facts())


@router.get("/experiments/{name}/metrics", response_model=models.ExperimentMetrics, response_class=JsonAnswer)
async def metrics(gateway: Current, name: Name, asked: Annotated[MetricsQuery, Query()]) -> Response:
    """The lines of metrics that an experiment has published."""
    found = choose((await gateway.experiments()).experiments, name, asked.stream)
    rows = [] if found.run is None else [dict(row) for row in found.run.rows]
    return JsonAnswer({"name": found.name, "stream": found.stream, "metrics": rows[asked.after :], "next": len(rows)})


@router.get("/compare", response_model=models.ComparisonTable, response_class=JsonAnswer)
async def compare(gateway: Current, asked: Annotated[CompareQuery, Query()]) -> Response:
    """Experiments against each other on the same samples."""
    stream = await gateway.default_stream(asked.stream)
    found = await gateway.compare(stream, tuple(asked.run), asked.metric)
    return JsonAnswer({"stream": stream, "metric": found.metric, "runs": found.runs, "pairs": found.pairs})

"""The parameters of requests: their names, bounds and meanings. A parameter that there is not is refused."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from featurestream.identity import MAX_NUMBER
from featurestream.requests import REQUEST_SAMPLES
from featurestream_gateway.formats import Format

WAIT_S: Final = 30

Stream = Annotated[str, Path(description="The stream's name.", examples=["demo-train"])]
Name = Annotated[str, Path(description="The experiment's name.", examples=["E1"])]

_CURSOR = Field(default=None, description='Go on where an answer ended: its "next". Takes the place of from and until.')
_TAPS: list[str] = Field(
    default=[],
    description="Names of taps, separated by commas or repeated. Without it all; with a cursor, the cursor's.",
)
_N = Field(default=None, ge=1, description="Rows. Without it as many as one answer may hold.")
_FORMAT = Field(default=None, description="Without it what the header Accept asks for, else json.")
_STREAM = Field(
    default=None, description="The stream; may be left out where there is one, or the gateway has a default."
)


class Parameters(BaseModel):
    """Parameters of a query; none of other names are taken."""

    model_config = ConfigDict(extra="forbid", populate_by_name=False)


class NoQuery(Parameters):
    """No parameters."""


class RecordsQuery(Parameters):
    """Which rows."""

    begin: str = Field(
        default="earliest",
        alias="from",
        description="Where to begin: earliest, latest, offset:N, batch:N, pass:N, a time (ISO 8601, or seconds since "
        "1970), a time ago (-15m, -1h), or position:B:R (batch B, row R).",
    )
    until: str | None = Field(
        default=None, description="Where to end, exclusive, in the words of from. Without it where the stream ends."
    )
    cursor: str | None = _CURSOR
    n: int | None = _N
    taps: list[str] = _TAPS
    format: Format | None = _FORMAT
    wait: float = Field(default=0, ge=0, le=WAIT_S, description="Seconds to wait for a row where none is there yet.")


class LiveQuery(Parameters):
    """Which batches, and how much of them."""

    begin: str = Field(default="latest", alias="from", description="Where to begin, as for records.")
    cursor: str | None = _CURSOR
    taps: list[str] = _TAPS
    features: bool = Field(default=False, description="Whether events hold the rows with their features.")


class OverviewQuery(Parameters):
    """How often."""

    every: float = Field(default=2, ge=1, le=60, description="Seconds between two events.")


class DataQuery(Parameters):
    """The original's path for the oldest entry."""

    stream: str | None = _STREAM
    taps: list[str] = _TAPS
    n: int | None = _N
    format: Format | None = _FORMAT
    cursor: str | None = _CURSOR
    compat: bool = Field(default=False, description="The original's form: len and z, without anything else.")


class AfterQuery(DataQuery):
    """The original's path for what is newer than a time."""

    timestamp: float | None = Field(
        default=None,
        ge=0,
        le=253_370_764_799,
        allow_inf_nan=False,
        description="Seconds since 1970: rows that were appended strictly later. Left out only with a cursor.",
    )


class PictureQuery(Parameters):
    """Which row."""

    batch: int = Field(ge=0, le=MAX_NUMBER, description="The batch.")
    row: int = Field(ge=0, le=MAX_NUMBER, description="The row in it, from 0.")
    view: int | None = Field(default=None, ge=0, le=MAX_NUMBER, description="Another view of the same sample.")
    format: Literal["png", "json"] | None = Field(
        default=None, description="png, or json for what is told of it. Without it what Accept asks for, else png."
    )


class ExperimentsQuery(Parameters):
    """Of which stream."""

    stream: str | None = Field(default=None, description="Only experiments on this stream.")


class MetricsQuery(ExperimentsQuery):
    """Which of an experiment's metrics."""

    after: int = Field(default=0, ge=0, le=MAX_NUMBER, description="Leave out so many lines: those that are known.")


class CompareQuery(Parameters):
    """Which experiments, by what."""

    stream: str | None = _STREAM
    run: list[str] = Field(default=[], description="Names of experiments; repeated. Without it all.")
    metric: str | None = Field(default=None, description="What to compare by; without it the first run's main metric.")


class RequestedSamples(BaseModel):
    """Samples that are wanted next."""

    model_config = ConfigDict(extra="forbid", strict=True)

    samples: list[Annotated[int, Field(ge=0, le=MAX_NUMBER)] | Annotated[str, Field(min_length=1, max_length=4096)]] = (
        Field(
            min_length=1,
            max_length=REQUEST_SAMPLES,
            description="Ids (texts), or indices in the data (numbers).",
            examples=[["images/0001.png", 17]],
        )
    )

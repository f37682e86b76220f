"""What answers hold, for the OpenAPI document. Keys may be added: readers pass over those that they do not know."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Place(BaseModel):
    """A place in a stream: the row that is read next."""

    batch: int
    row: int


class Problem(BaseModel):
    """An error (RFC 9457); its facts are further keys."""

    type: str = Field(examples=["urn:featurestream:problem:stream-not-found"])
    title: str
    status: int
    detail: str
    hint: str | None = Field(default=None, description="What to do next.")


class Row(BaseModel):
    """One row: one view of one sample."""

    batch: int
    row: int
    pass_: int = Field(alias="pass")
    index: int = Field(description="The sample's index in the data set.")
    id: str
    label: int | float | list[float | None] | None
    appended_at: str = Field(description="When the broker took it, ISO 8601 in UTC.")
    extracted_at: str
    features: dict[str, Any] = Field(description="For each tap a nested list of the row's shape.")


class Missing(BaseModel):
    """A sample that has no row, because its image could not be decoded."""

    batch: int
    index: int
    id: str
    reason: str


class Rows(BaseModel):
    """Rows of a stream, and how to go on."""

    stream: str
    fingerprint: str
    taps: list[str]
    from_: Place = Field(alias="from")
    until: Place
    rows: list[Row]
    missing: list[Missing]
    more: Literal["now", "later", "never"]
    next: str | None = Field(description="The cursor for what comes after this answer.")


class StreamReader(BaseModel):
    """Who has committed a position, and how many batches he has not read."""

    experiment: str
    lag_batches: int


class StreamSummary(BaseModel):
    """A stream as the list of all shows it."""

    stream: str
    model: str
    weights: str
    taps: list[Any]
    samples: int
    passes_done: int
    passes: int | None
    complete: bool
    first_batch: int
    next_batch: int
    bytes: int
    first_appended_at: str | None
    last_appended_at: str | None
    producer: Literal["none", "live", "ended", "lost"]
    readers: list[StreamReader]


class StreamList(BaseModel):
    """All streams."""

    streams: list[StreamSummary]
    problems: list[Problem]


class StreamReport(StreamSummary):
    """Everything about one stream."""

    pass_batches: int
    pass_records: list[dict[str, Any]]
    health: list[dict[str, Any]]
    canary: dict[str, Any] | None
    warnings: list[str]
    retention_warnings: list[dict[str, Any]]
    lease: dict[str, Any] | None
    leases: list[dict[str, Any]]
    end: dict[str, Any] | None
    manifest: dict[str, Any]


class StreamPasses(BaseModel):
    """The finished passes of a stream."""

    stream: str
    pass_batches: int
    passes: int | None
    complete: bool
    pass_records: list[dict[str, Any]]


class StreamTap(BaseModel):
    """What the log holds of one tap."""

    name: str
    spec: str
    shape: list[int]
    row_bytes: int
    records: int
    bytes: int


class StreamTaps(BaseModel):
    """The taps of a stream."""

    stream: str
    dtype: str
    taps: list[StreamTap]


class StreamHealth(BaseModel):
    """What a stream's producer has seen of inputs and features."""

    stream: str
    health: list[dict[str, Any]]
    canary: dict[str, Any] | None
    warnings: list[str]
    retention_warnings: list[dict[str, Any]]


class Requested(BaseModel):
    """Where the samples that were requested will stand."""

    stream: str
    samples: int
    first_batch: int
    last_batch: int
    next: str
    producer: Literal["none", "live", "ended", "lost"]


class ExperimentFacts(BaseModel):
    """An experiment: its place, and what it publishes of itself."""

    name: str
    stream: str
    live: bool
    position: Place | None
    lag_batches: int | None
    lag_rows: int | None
    state: str | None
    record: dict[str, Any] | None


class ExperimentList(BaseModel):
    """All experiments."""

    experiments: list[ExperimentFacts]
    problems: list[Problem] = Field(description="Streams whose experiments cannot be shown, and why.")


class ExperimentMetrics(BaseModel):
    """Lines of an experiment's metrics."""

    name: str
    stream: str
    metrics: list[dict[str, Any]]
    next: int


class ComparisonTable(BaseModel):
    """Experiments against each other."""

    stream: str
    metric: str | None
    runs: list[dict[str, Any]]
    pairs: list[dict[str, Any]]


class OriginalEntry(BaseModel):
    """The original's answer."""

    len: int
    z: Any


class Status(BaseModel):
    """A word."""

    status: str

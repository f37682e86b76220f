"""What the producer has seen of its inputs and features: ``canary`` and ``health/<n>`` of the manifest's topic.

They describe and warn; nothing is computed from them. How the numbers come about is in
``featurestream_producer/health.py``.
"""

from __future__ import annotations

from typing import Final

from pydantic import Field

from featurestream.manifest import Value

CANARY_KEY: Final = "canary"
HEALTH_PREFIX: Final = "health/"


class TapCanary(Value):
    """What one tap gives for the fixed input."""

    name: str = Field(description="the tap's name")
    checksum: str = Field(description="xxh3-64 of the features' bytes in the stream's dtype, 16 hexadecimal digits")
    sketch: list[float] = Field(description="some of the features, at fixed places; empty where one is not finite")


class Canary(Value):
    """What a device makes of a fixed input, and the transform of a fixed image: alike on every device, in every run."""

    device: str = Field(description="what computed: cpu, or the GPU's name")
    transform: str | None = Field(
        description="xxh3-64 of what the transform makes of a fixed image; null where it refuses that image"
    )
    taps: list[TapCanary]


class InputHealth(Value):
    """What was fed to the backbone, from a few rows and pixels of each batch: red, green and blue."""

    numbers: int = Field(ge=0, description="numbers looked at in each channel")
    mean: list[float]
    std: list[float]
    least: list[float]
    largest: list[float]
    outside: int = Field(
        ge=0, description="numbers that are no colour in [0, 1] once the expected normalisation is taken back"
    )
    expected_mean: list[float] | None = Field(
        default=None, description="the mean that the weights want taken off; null where nobody says"
    )
    expected_std: list[float] | None = Field(default=None, description="the same of what they want it divided by")


class TapHealth(Value):
    """One tap's features, from a few rows and numbers of each batch."""

    name: str = Field(description="the tap's name")
    rows: int = Field(ge=0, description="rows looked at")
    numbers: int = Field(ge=0, description="numbers looked at")
    mean: float
    variance: float = Field(ge=0, description="of all numbers")
    spread: float | None = Field(
        description="variance of a number from row to row within a batch; null where batches have one row"
    )
    freedom: int = Field(ge=0, description="degrees of freedom of the spread")
    zeros: int = Field(ge=0, description="numbers that are 0")
    largest: float = Field(ge=0, description="greatest absolute value, of all numbers of the batches looked at")
    peak: float = Field(ge=0, description="greatest absolute value of the numbers looked at")
    at_peak: int = Field(ge=0, description="numbers whose absolute value is the peak")
    separability: float | None = Field(
        description="variance between classes over variance within, of the first batches; about 1 where labels mean "
        "nothing; null without classes"
    )
    probe_rows: int = Field(ge=0, description="rows from which the separability comes")


class Health(Value):
    """What one worker of the producer has seen."""

    worker: int = Field(ge=0)
    workers: int = Field(ge=1, description="workers that published together")
    device: str = Field(description="the device as it was asked for: cpu, cuda:0")
    lanes: list[int] = Field(description="the lanes that it owns")
    batches: int = Field(ge=0, description="batches looked at")
    at: str = Field(description="when this was written, ISO 8601 with zone")
    canary: Canary
    inputs: InputHealth
    taps: list[TapHealth]
    warnings: list[str] = Field(description="what is conspicuous, in words")

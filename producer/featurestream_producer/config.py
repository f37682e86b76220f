"""What a producer is asked to do."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from featurestream.errors import UsageError
from featurestream.names import check_stream_name
from featurestream.position import UNITS_S
from featurestream.topics import DAY_MS, DEFAULT_RETENTION_BYTES, DEFAULT_RETENTION_MS

DEFAULT_LANES: Final = 4
DEFAULT_BATCH_SIZE: Final = 256


class ProduceConfig(BaseModel):
    """One run of the producer.

    A choice that was not given (:meth:`given`) is taken from the stream where it exists already: ``passes``,
    ``lanes`` and ``batch_size``, which are the three whose default depends on something else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(description="an image folder, a CSV, torchvision:NAME or package.module:function")
    stream: str = Field(description="the stream's name: letters, digits and -")
    model: str = Field(description="a torchvision model, timm:NAME or package.module:function")
    weights: str | None = Field(
        default=None, description="a weights name, a local file, or random; None: the best that come with the model"
    )
    taps: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="layer[:pool[(args)]][=name], each one")
    root: Path | None = Field(default=None, description="the folder that paths in the data are relative to")
    path_column: str | None = Field(default=None, description="the CSV's column of image paths")
    label_column: str | None = Field(default=None, description="the CSV's column of labels")
    split: str | None = Field(default=None, description="the split, where the data has splits")
    decoder: str | None = Field(
        default=None,
        description="what decodes JPEG files: simplejpeg, torchcodec or pillow; None: the fastest there is",
    )
    transform: str = Field(default="eval", description="eval, train or package.module:function")
    image_size: int | None = Field(default=None, ge=1, description="pixels a side; None: the weights' own")
    passes: int | None = Field(default=1, ge=1, description="passes in all; None: endless")
    views: int = Field(default=1, ge=1, description="augmented views of a sample in a pass")
    devices: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default=("auto",), description="torch devices, one process each; auto: a GPU where there is one, else the CPU"
    )
    lanes: int = Field(default=DEFAULT_LANES, ge=1, le=1024, description="partitions of every tap's topic")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(default="float16", description="what is published")
    autocast: Literal["bfloat16", "float16"] | None = Field(
        default=None, description="what torch's autocast computes in; None: what the weights are, float32 mostly"
    )
    compile: bool = Field(default=False, description="run the backbone compiled by torch.compile")
    seed: int = Field(default=0, ge=0, lt=2**63, description="what permutations and augmentations are drawn from")
    batch_size: int = Field(default=DEFAULT_BATCH_SIZE, ge=1, description="samples in a batch, at most")
    workers: int | None = Field(default=None, ge=0, description="loader processes a device; None: by the CPU cores")
    retention_ms: int = Field(default=DEFAULT_RETENTION_MS, ge=60_000, description="how long records are kept")
    retention_bytes: int = Field(
        default=DEFAULT_RETENTION_BYTES, ge=2**20, description="how much is kept of one tap, over all its lanes"
    )
    ahead: int | None = Field(default=None, ge=1, description="passes at most in front of the slowest reader")
    idle: Literal["run", "pause", "stop"] | None = Field(
        default=None, description="what to do while nobody reads; None: pause where the stream is endless, else run"
    )
    take_over: bool = Field(default=False, description="go ahead although another producer holds the stream")

    @field_validator("stream")
    @classmethod
    def _named(cls, value: str) -> str:
        return check_stream_name(value)

    def __init__(self, **fields: object) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            known = type(self).model_fields.get(str(first["loc"][0])) if first["loc"] else None
            seen = "" if first["type"] == "missing" else f" (got {first['input']!r})"
            raise UsageError(
                f"{place or 'the configuration'}: {first['msg'].lower()}{seen}",
                hint=f"it is {known.description}" if known else None,
            ) from error

    def given(self, name: str) -> bool:
        """Tell whether the field was given, rather than left at its default."""
        return name in self.model_fields_set


def retention_text(retention_ms: int) -> str:
    """Return a retention as people say it: ``7 d``, ``1.5 h``."""
    for unit, size_ms in (("d", DAY_MS), ("h", 3600_000), ("min", 60_000)):
        if retention_ms >= size_ms:
            return f"{retention_ms / size_ms:.4g} {unit}"
    return f"{retention_ms / 1000:.4g} s"


def parse_duration_ms(text: str) -> int:
    """Return the milliseconds that ``text`` names: ``90s``, ``30m``, ``12h``, ``7d``; UsageError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text.strip())
    if match is None:
        raise UsageError(f'"{text}" is not a duration', hint="expected a number and s, m, h or d, such as 12h or 7d")
    return round(float(match[1]) * UNITS_S[match[2]] * 1000)


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` names: ``500MB``, ``64GiB``, ``1e9``; UsageError for anything else."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE)
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or math.isnan(number) or (match[3] and not match[2]):
        raise UsageError(f'"{text}" is not a size', hint="expected a number of bytes, such as 500MB or 64GiB")
    base: int = 1024 if match[3] else 1000
    return round(number * float(base) ** "_kmgt".index(match[2].lower() or "_"))


def parse_passes(text: str) -> int | None:
    """Return the number of passes that ``text`` names, None for ``endless``; UsageError for anything else."""
    if text == "endless":
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise UsageError(f'"{text}" is not a number of passes', hint="expected 1 or more, or endless")
    return int(text)

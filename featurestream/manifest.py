"""What `<stream>.manifest` holds: the manifest, a record a finished pass, the producer's lease and the end.

The topic is compacted; its values are JSON, one object each; its keys are ``manifest``, ``pass/<n>``, ``producer``
(``producer/<rank>`` of further ranks), ``share/<n>/<rank>``, ``end`` and ``retention/<reader>``; on the stream of
another one's requests also ``request/<id>``. The JSON Schemas are in ``schemas/``.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featurestream.errors import RecordError, StreamMismatchError
from featurestream.identity import MAX_NUMBER
from featurestream.layout import Layout
from featurestream.names import STREAM_NAME, TAP_NAME
from featurestream.record import ITEM_BYTES, MAX_AXES

MANIFEST_KEY: Final = "manifest"
LEASE_KEY: Final = "producer"
END_KEY: Final = "end"
PASS_PREFIX: Final = "pass/"
RETENTION_PREFIX: Final = "retention/"
REQUEST_PREFIX: Final = "request/"
SHARE_PREFIX: Final = "share/"

#: What a manifest may claim: whoever reads it loops over lanes and taps, and makes heads of so many outputs.
MAX_LANES: Final = 1024
MAX_TAPS: Final = 1024
MAX_OUTPUTS: Final = 2**31 - 1

M = TypeVar("M", bound=BaseModel)


class Value(BaseModel):
    """A value of the topic: frozen; keys that a later version adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class DataFacts(Value):
    """Which samples the stream was extracted from."""

    source: str = Field(description="where the data was found; not part of the fingerprint, so data may move")
    location: str | None = Field(
        default=None, description="the source as an absolute path on the producer's machine, where it is a path"
    )
    root: str | None = Field(
        default=None, description="the folder that was given for relative paths or the data, as an absolute path"
    )
    path_column: str | None = Field(default=None, description="the table's column of image paths, where one was named")
    label_column: str | None = Field(default=None, description="the table's column of labels, where one was named")
    split: str | None = Field(default=None, description="the split that was asked for, where the source has splits")
    samples: int = Field(ge=1, le=MAX_NUMBER, description="N, samples in the dataset")
    label_kind: Literal["none", "class", "value", "target"] = Field(
        description="none; class: one class number; value: one number; target: several numbers"
    )
    label_values: int = Field(
        default=1, ge=0, le=MAX_OUTPUTS, description="numbers in one label; 0 where there are none"
    )
    class_count: int | None = Field(
        default=None,
        ge=1,
        le=MAX_OUTPUTS,
        description="one more than the greatest class number; null where labels are no classes",
    )
    classes: list[str] | None = Field(default=None, description="names of the classes in order of their numbers")
    sha256: str = Field(description="SHA-256 over ids, labels and classes, in the dataset's order")


class BackboneFacts(Value):
    """The frozen model."""

    name: str = Field(description="resnet18, timm:NAME or package.module:function")
    weights: str = Field(description="where the weights came from: a torchvision name, a file, or random")
    weights_sha256: str = Field(description="SHA-256 over all parameters and buffers")
    autocast: Literal["bfloat16", "float16"] | None = Field(
        default=None,
        description="what torch's autocast computed convolutions and products in; null: the weights' dtype",
    )
    compiled: Literal[True] | None = Field(
        default=None, description="whether torch.compile made the kernels, which may round otherwise; null: no"
    )


class TapFacts(Value):
    """One named output."""

    name: str = Field(pattern=f"^(?:{TAP_NAME.pattern})$", description="the tap's name; its topic is <stream>.<name>")
    spec: str = Field(description="layer[:k][:pool[(args)]], normalised")
    layer: str = Field(description="dotted module path in the backbone")
    pool: str | None = Field(default=None, description="how the layer's map was pooled; null: not at all")
    shape: list[Annotated[int, Field(ge=1, le=MAX_NUMBER)]] = Field(max_length=MAX_AXES, description="shape of one row")

    @property
    def numbers(self) -> int:
        """Numbers in one row."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class Manifest(Value):
    """A stream's full description.

    ``fingerprint`` covers every field except those in :data:`NOT_FINGERPRINTED`.
    """

    format: Literal[1] = 1
    stream: str = Field(pattern=f"^(?:{STREAM_NAME.pattern})$", description="the stream's name")
    fingerprint: str = Field(default="", max_length=64, description="32 hexadecimal digits; see fingerprint_of")
    kind: Literal["request"] | None = Field(
        default=None, description="request: what is requested of the stream whose name comes before -requests"
    )
    data: DataFacts
    decoder: str | None = Field(
        default=None, description="what decodes JPEG files, where it is not Pillow: decoders may differ in the last bit"
    )
    transform: dict[str, Any] = Field(description="the image transform: its name and every number that it uses")
    backbone: BackboneFacts
    taps: list[TapFacts] = Field(min_length=1, max_length=MAX_TAPS)
    dtype: str = Field(pattern=f"^(?:{'|'.join(ITEM_BYTES)})$", description=f"one of {', '.join(ITEM_BYTES)}")
    seed: int = Field(ge=0, lt=2**64, description="what permutations and augmentations are drawn from")
    batch_samples: int = Field(ge=1, le=MAX_NUMBER, description="R, samples in a batch")
    lanes: int = Field(ge=1, le=MAX_LANES, description="L, partitions of every tap's topic")
    views: int = Field(default=1, ge=1, le=MAX_NUMBER, description="V, rows of one sample in a pass")
    passes: int | None = Field(
        default=None, ge=1, le=MAX_NUMBER, description="passes in all; null: endless; may be raised later"
    )
    created_at: str = Field(description="ISO 8601 with zone")
    made_with: dict[str, str] = Field(
        default_factory=dict, description="versions of the libraries that decide a feature's last bits"
    )

    @property
    def layout(self) -> Layout:
        """The stream's arithmetic. Requests are as many as are wanted: each batch of them is a pass of its own."""
        samples = self.data.samples if self.kind is None else self.batch_samples
        return Layout(samples, self.batch_samples, self.lanes, self.views)

    @property
    def total_batches(self) -> int | None:
        """Batches of the whole stream; None where it is endless."""
        return None if self.passes is None else self.passes * self.layout.pass_batches

    def tap(self, name: str) -> TapFacts:
        """Return the tap that ``name`` names: by its name or by its spec (``layer2:gap``).

        Raises UnknownNameError with the taps that there are.
        """
        from featurestream.errors import UnknownNameError

        for tap in self.taps:
            if name in (tap.name, tap.spec):
                return tap
        raise UnknownNameError(f"tap of stream {self.stream}", name, [tap.name for tap in self.taps])


class PassRecord(Value):
    """One finished pass."""

    number: int = Field(ge=0)
    kind: Literal["request"] | None = Field(default=None, description="request: a batch that was asked for")
    samples: int = Field(ge=0, description="samples that have rows")
    missing: int = Field(ge=0, description="samples that have none")
    first_batch: int = Field(ge=0)
    last_batch: int = Field(ge=0)
    started_at: str = Field(description="ISO 8601 with zone")
    finished_at: str = Field(description="ISO 8601 with zone")
    order_checksum: str = Field(description="xxh3-64 of the pass's permutation, as little-endian int64")


class Lease(Value):
    """The running producer."""

    producer: str = Field(description="a random id, drawn at its start")
    host: str
    pid: int
    process_started: float = Field(description="when that process began, seconds since the epoch by its host")
    since: str = Field(description="ISO 8601 with zone")
    heartbeat: str = Field(description="ISO 8601 with zone")
    released: bool = Field(default=False, description="the producer ended by itself")
    run: str | None = Field(default=None, description="the run that its ranks share; null: it is alone")
    rank: int = Field(default=0, ge=0, description="which rank of the run it is")
    ranks: int = Field(default=1, ge=1, description="how many ranks publish the stream together")

    @property
    def key(self) -> str:
        """Where the lease stands in the topic."""
        return LEASE_KEY if self.rank == 0 else f"{LEASE_KEY}/{self.rank}"

    @property
    def claim(self) -> str:
        """Who publishes the stream: the run of several ranks, or the producer that is alone."""
        return self.producer if self.ranks == 1 else f"{self.run}/{self.ranks}"


class Share(Value):
    """One rank's share of a pass: every batch of the pass in the rank's lanes is durable.

    The pass is finished when there is a share of every rank. Rank r of R has the lanes l with l mod R = r.
    """

    number: int = Field(ge=0, description="the pass")
    rank: int = Field(ge=0)
    ranks: int = Field(ge=2)
    missing: int = Field(ge=0, description="samples in these lanes that have no rows")
    started_at: str = Field(description="ISO 8601 with zone")

    @property
    def key(self) -> str:
        """Where the share stands in the topic."""
        return f"{SHARE_PREFIX}{self.number}/{self.rank}"


class Request(Value):
    """Samples that are wanted next."""

    samples: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, description="their indices in the data set, in the order wanted"
    )
    host: str = Field(description="where it was asked")
    at: str = Field(description="ISO 8601 with zone")


class RetentionWarning(Value):
    """Retention comes near to what a live reader has not read: the last warning about it."""

    reader: str = Field(description="the experiment, or the name that a reader gave itself")
    batch: int = Field(ge=0, description="the first batch that it still needs")
    tap: str = Field(description="the tap where that batch will be deleted first")
    share: float = Field(ge=0, description="how much of the tap's retention has passed since that batch; 1: it may go")
    by: Literal["time", "bytes"] = Field(description="which of the two retentions")
    text: str = Field(description="the warning as it was shown")
    at: str = Field(description="ISO 8601 with zone")


class End(Value):
    """A finite stream is complete."""

    passes: int = Field(ge=1)
    batches: int = Field(ge=1)
    at: str = Field(description="ISO 8601 with zone")


#: What does not decide a feature's value or a row's place.
NOT_FINGERPRINTED: Final = {
    "stream": True,
    "fingerprint": True,
    "passes": True,
    "created_at": True,
    "made_with": True,
    "data": {"source", "location", "root", "path_column", "label_column", "split"},
    "backbone": {"weights"},
}


def fingerprint_of(manifest: Manifest) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of the manifest's deciding fields.

    They are taken as JSON with sorted keys, no spaces, no nulls, and non-ASCII characters as they are, in UTF-8. A
    field that a later version adds must default to None, so that the streams of before keep their fingerprint.
    """
    fields = manifest.model_dump(mode="json", exclude=NOT_FINGERPRINTED, exclude_none=True)  # type: ignore[arg-type]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sealed(manifest: Manifest) -> Manifest:
    """Return the manifest with its fingerprint filled in."""
    return manifest.model_copy(update={"fingerprint": fingerprint_of(manifest)})


def check_same(existing: Manifest, wanted: Manifest) -> None:
    """Raise StreamMismatchError listing the differing fields where two manifests describe different streams."""
    if existing.fingerprint == wanted.fingerprint:
        return
    differences = manifest_differences(existing, wanted)
    lines = "; ".join(f"{field} is {old}, asked for {new}" for field, old, new in differences)
    raise StreamMismatchError(
        f'stream "{existing.stream}" exists with another fingerprint: {lines}',
        hint="name the new stream differently, or ask for what the existing one holds",
        differences=differences,
    )


def manifest_differences(one: Manifest, other: Manifest) -> list[tuple[str, str, str]]:
    """Return (dotted field, value in ``one``, value in ``other``) for every deciding field that differs."""
    left = _flatten(one.model_dump(mode="json", exclude=NOT_FINGERPRINTED))  # type: ignore[arg-type]
    right = _flatten(other.model_dump(mode="json", exclude=NOT_FINGERPRINTED))  # type: ignore[arg-type]
    keys = dict.fromkeys([*left, *right])
    return [(key, left.get(key, "absent"), right.get(key, "absent")) for key in keys if left.get(key) != right.get(key)]


def to_json(value: BaseModel) -> bytes:
    """Return a value of the topic as the bytes of one JSON object."""
    return value.model_dump_json().encode()


def from_json(model: type[M], value: bytes) -> M:
    """Return a value of the topic; raise RecordError where the bytes are not one."""
    try:
        return model.model_validate_json(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:100] or "the whole value"  # it may hold others' keys
        raise RecordError(
            f"not a {model.__name__.lower()} as schemas/ describes it: {place}: {first['msg']}",
            hint="another application may have written to this topic, or a newer featurestream",
        ) from error


def _flatten(value: object, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    if isinstance(value, list) and value and isinstance(value[0], dict):
        flat = {}
        for number, inner in enumerate(value):
            flat |= _flatten(inner, f"{prefix}[{number}]")
        return flat
    text = json.dumps(value, ensure_ascii=False)
    return {prefix: text if len(text) <= 60 else text[:57] + "..."}

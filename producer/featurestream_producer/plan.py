"""What a stream will cost, worked out before an image is read: numbers in, numbers and text out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from featurestream.errors import UsageError
from featurestream.layout import Layout
from featurestream.manifest import Manifest, TapFacts
from featurestream.record import ITEM_BYTES
from featurestream.wire import RECORD_LIMIT, record_bytes_bound, rows_that_fit
from featurestream_producer.config import retention_text
from featurestream_producer.inputs import INPUTS_BYTES

#: What a row takes in a record's header beside its id: sample index, label and the id's length, as msgpack has them.
ROW_HEADER_BYTES: Final = 12
#: What a record takes whatever its rows are.
RECORD_HEADER_BYTES: Final = 600
#: What the numbers of a batch and its header may take: the producer's own extra key is not in the wire format's bound.
BATCH_LIMIT: Final = RECORD_LIMIT - INPUTS_BYTES
#: What one reader reads a second where the break-even is worked out. A cautious half of what was measured over
#: loopback with checksum and decoding.
READ_BYTES_S: Final = 1e9
EXAMPLE_EPOCHS: Final = 100


@dataclass(frozen=True, slots=True)
class TapPlan:
    """One tap: its name, its spec, the shape of a row and the bytes of its numbers."""

    name: str
    spec: str
    shape: tuple[int, ...]
    row_bytes: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured before anything is published.

    Attributes:
        images_s: images a second that one device's forward takes, on images that are ready.
        device, devices: which device, and how many of them will work.
        load_images_s: images a second that one core decodes and transforms; None where that was not measured.
        loaders: cores that load: the loader processes of all devices; on the CPU all cores of the machine, which the
            forward takes too.
    """

    images_s: float
    device: str
    devices: int
    load_images_s: float | None = None
    loaders: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """A stream in numbers. ``mean_id_bytes`` is the mean length of a sample's id in UTF-8."""

    stream: str
    layout: Layout
    passes: int | None
    dtype: str
    taps: tuple[TapPlan, ...]
    mean_id_bytes: float
    record_bytes: int
    retention_ms: int
    retention_bytes: int
    speed: Speed | None = None

    @property
    def pass_images(self) -> int:
        """Images that go through the backbone in a pass: samples times views."""
        return self.layout.samples * self.layout.views

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's features: all views, all taps."""
        return self.layout.views * sum(tap.row_bytes for tap in self.taps)

    def tap_pass_bytes(self, tap: TapPlan) -> int:
        """Bytes that a pass of one tap takes on the log, nearly."""
        rows = self.pass_images * (tap.row_bytes + self.mean_id_bytes + ROW_HEADER_BYTES)
        return round(rows) + self.layout.pass_batches * RECORD_HEADER_BYTES

    @property
    def pass_bytes(self) -> int:
        """Bytes that a pass takes on the log, all taps."""
        return sum(map(self.tap_pass_bytes, self.taps))

    @property
    def disk_bytes(self) -> int:
        """Bytes that the stream takes on the log at most, before replication: all of it, or what retention keeps."""
        kept = [self.retention_bytes] * len(self.taps)
        if self.passes is not None:
            kept = [min(self.passes * self.tap_pass_bytes(tap), self.retention_bytes) for tap in self.taps]
        return sum(kept)

    @property
    def images_s(self) -> float | None:
        """Images a second of all devices, loading included as far as it was measured; None where nothing was."""
        return None if self.pass_s is None else self.pass_images / self.pass_s

    @property
    def pass_s(self) -> float | None:
        """Seconds that loading and the forward of a pass take, where sending keeps up.

        On a GPU both go on at the same time, and the slower one counts; on the CPU they take the same cores, and both
        count.
        """
        if self.speed is None:
            return None
        forward_s = self.pass_images / (self.speed.images_s * self.speed.devices)
        if self.speed.load_images_s is None:
            return forward_s
        load_s = self.pass_images / (self.speed.load_images_s * self.speed.loaders)
        return forward_s + load_s if self.speed.device == "cpu" else max(forward_s, load_s)

    @property
    def read_s(self) -> float:
        """Seconds that reading a pass of the widest tap takes at :data:`READ_BYTES_S`."""
        return max(map(self.tap_pass_bytes, self.taps)) / READ_BYTES_S

    def recompute_s(self, epochs: int) -> float | None:
        """Return the seconds of so many epochs, over all experiments, that each load and compute what they train on."""
        return None if self.pass_s is None else epochs * self.pass_s

    def stream_s(self, epochs: int) -> float | None:
        """Return the seconds of the extraction and of so many epochs, over all experiments, that read it.

        Of an endless stream one pass counts: the later ones are made only while they are read.
        """
        return None if self.pass_s is None else (self.passes or 1) * self.pass_s + epochs * self.read_s

    def break_even(self) -> int | None:
        """Return the first number of epochs, over all experiments, for which the stream costs less than recomputing.

        That is the first n with ``recompute_s(n) > stream_s(n)``; None where reading takes as long as computing: then
        it never pays.
        """
        if self.pass_s is None or self.read_s >= self.pass_s:
            return None
        return math.floor((self.passes or 1) * self.pass_s / (self.pass_s - self.read_s)) + 1

    def warnings(self) -> list[str]:
        """Return what will work, but perhaps not as hoped."""
        found = []
        for tap in self.taps:
            one = self.tap_pass_bytes(tap)
            if one > self.retention_bytes:
                found.append(
                    f"a pass of tap {tap.name} takes {size_text(one)}, but only {size_text(self.retention_bytes)} of a "
                    "tap are kept: a reader cannot read a whole pass again; raise --retention-bytes"
                )
            elif self.passes and self.passes * one > self.retention_bytes:
                found.append(
                    f"{self.passes} passes of tap {tap.name} take {size_text(self.passes * one)}, but only "
                    f"{size_text(self.retention_bytes)} of a tap are kept: the first passes will be deleted; "
                    "raise --retention-bytes"
                )
        return found

    def facts(self) -> dict[str, Any]:
        """Return the plan as one JSON object."""
        return {
            "stream": self.stream,
            "samples": self.layout.samples,
            "views": self.layout.views,
            "batch_samples": self.layout.batch_samples,
            "pass_batches": self.layout.pass_batches,
            "lanes": self.layout.lanes,
            "passes": self.passes,
            "dtype": self.dtype,
            "taps": [
                {
                    "name": tap.name,
                    "spec": tap.spec,
                    "shape": list(tap.shape),
                    "row_bytes": tap.row_bytes,
                    "pass_bytes": self.tap_pass_bytes(tap),
                }
                for tap in self.taps
            ],
            "sample_bytes": self.sample_bytes,
            "record_bytes": self.record_bytes,
            "pass_records": self.layout.pass_batches * len(self.taps),
            "pass_bytes": self.pass_bytes,
            "disk_bytes": self.disk_bytes,
            "retention_ms": self.retention_ms,
            "retention_bytes": self.retention_bytes,
            "forward_images_per_s": None if self.speed is None else self.speed.images_s * self.speed.devices,
            "load_images_per_s_a_core": None if self.speed is None else self.speed.load_images_s,
            "load_cores": None if self.speed is None else self.speed.loaders,
            "images_per_s": self.images_s,
            "pass_s": self.pass_s,
            "bytes_per_s": None if self.pass_s is None else self.pass_bytes / self.pass_s,
            "record_bytes_limit": RECORD_LIMIT,
            "read_bytes_per_s_assumed": READ_BYTES_S,
            "read_pass_s": self.read_s,
            "break_even_epochs": self.break_even(),
            "warnings": self.warnings(),
        }

    def text(self) -> str:
        """Return the plan as lines for people."""
        layout = self.layout
        width = max(len(tap.name) for tap in self.taps)
        passes = "endless" if self.passes is None else f"{self.passes} passes" if self.passes > 1 else "1 pass"
        views = f" x {layout.views} views" if layout.views > 1 else ""
        lines = [f"stream {self.stream}: {layout.samples:,} samples{views}, {passes}, {self.dtype}"]
        for tap in self.taps:
            shape = " x ".join(map(str, tap.shape)) or "one number"
            lines.append(
                f"  {tap.name:<{width}}  {shape}, {size_text(tap.row_bytes)} a row, "
                f"{size_text(self.tap_pass_bytes(tap))} a pass"
            )
        lines += [
            f"a batch: {layout.batch_samples} samples, records of at most {size_text(self.record_bytes)} "
            f"(the limit is {size_text(RECORD_LIMIT)})",
            f"a pass:  {layout.pass_batches:,} batches, {layout.pass_batches * len(self.taps):,} records "
            f"in {layout.lanes} lanes, {size_text(self.pass_bytes)}",
            f"on disk: {size_text(self.disk_bytes)} at most, before replication (kept for "
            f"{retention_text(self.retention_ms)}, and {size_text(self.retention_bytes)} a tap)",
        ]
        lines += self._cost_lines()
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings()])

    def _cost_lines(self) -> list[str]:
        """Return how fast a pass is, and from when on the stream costs less than recomputing."""
        speed, pass_s, images_s = self.speed, self.pass_s, self.images_s
        if speed is None or pass_s is None or images_s is None:
            return []
        of = f" x {speed.devices}" if speed.devices > 1 else ""
        lines = [f"speed:   {speed.images_s:,.0f} images/s on {speed.device}{of} (forward only), "]
        if speed.load_images_s is not None:
            cores = "1 core" if speed.loaders == 1 else f"{speed.loaders} cores"
            how = "which the forward takes too" if speed.device == "cpu" else "at the same time"
            lines[0] += (
                f"{speed.load_images_s:,.0f} images/s loading a core (on {cores}, {how}); "
                f"together {images_s:,.0f} images/s, "
            )
        lines[0] += f"{size_text(self.pass_bytes / pass_s)}/s, {duration_text(pass_s)} a pass"
        epochs = self.break_even()
        passes, read = self.passes or 1, duration_text(self.read_s)
        lines += [
            f"cost:    recomputing takes {duration_text(pass_s)} an epoch; the stream takes {passes} x "
            f"{duration_text(pass_s)} once, and {read} an epoch "
            f"(assumed: {size_text(READ_BYTES_S)}/s of the widest tap)"
        ]
        if epochs is None:
            return [*lines, "pays:    never: reading these features takes as long as computing them; pool the maps"]
        lines.append(
            f"pays:    from {epochs} epochs over all experiments on ({epochs} experiments of one epoch, "
            f"or one of {epochs})"
        )
        recompute_s, stream_s = self.recompute_s(EXAMPLE_EPOCHS), self.stream_s(EXAMPLE_EPOCHS)
        if recompute_s is not None and stream_s is not None and epochs <= EXAMPLE_EPOCHS:
            lines.append(
                f"         10 experiments of 10 epochs: {duration_text(recompute_s)} recomputed, "
                f"{duration_text(stream_s)} from the stream"
            )
        return lines


def plan_of(
    manifest: Manifest,
    ids: Sequence[str],
    *,
    retention_ms: int,
    retention_bytes: int,
    speed: Speed | None = None,
) -> Plan:
    """Return the plan of a stream whose manifest is complete."""
    layout = manifest.layout
    id_bytes = [len(text.encode()) for text in ids]
    widest = max(row_bytes(tap, manifest.dtype) for tap in manifest.taps)
    batch_rows = min(layout.batch_samples, layout.samples) * layout.views
    return Plan(
        stream=manifest.stream,
        layout=layout,
        passes=manifest.passes,
        dtype=manifest.dtype,
        taps=tuple(
            TapPlan(tap.name, tap.spec, tuple(tap.shape), row_bytes(tap, manifest.dtype)) for tap in manifest.taps
        ),
        mean_id_bytes=sum(id_bytes) / len(id_bytes),
        record_bytes=record_bytes_bound(
            widest, batch_rows, max(id_bytes), manifest.data.label_values, views=layout.views
        )
        + INPUTS_BYTES,
        retention_ms=retention_ms,
        retention_bytes=retention_bytes,
        speed=speed,
    )


def choose_batch_samples(
    taps: Sequence[TapFacts], *, dtype: str, samples: int, views: int, longest_id_bytes: int, label_values: int,
    batch_size: int,
) -> int:  # fmt: skip
    """Return R: as many samples a batch as fit into a record of the widest tap, at most ``batch_size``.

    Raises UsageError where not even one sample fits, with the tap, its bytes and what helps.
    """
    widest = max(taps, key=lambda tap: row_bytes(tap, dtype))
    size = row_bytes(widest, dtype)
    fit = rows_that_fit(size, longest_id_bytes, label_values, views=views, limit=BATCH_LIMIT) // views
    if fit == 0:
        raise UsageError(
            f"one sample of tap {widest.spec} is too large for a record: {views} x "
            f"{' x '.join(map(str, widest.shape))} {dtype} take {size * views:,} bytes, the limit is {RECORD_LIMIT:,}",
            hint=_what_helps(widest, dtype, views, longest_id_bytes, label_values),
            tap=widest.name,
            bytes=size * views,
        )
    return min(fit, batch_size, samples)


def row_bytes(tap: TapFacts, dtype: str) -> int:
    """Return the bytes of one row's numbers."""
    return tap.numbers * ITEM_BYTES[dtype]


def _what_helps(tap: TapFacts, dtype: str, views: int, longest_id_bytes: int, label_values: int) -> str:
    """Return the largest pooling of the tap's map that fits, and the settings with which it fits as it is."""

    def fits(numbers: int, dtype: str = dtype, views: int = views) -> bool:
        size = numbers * ITEM_BYTES[dtype]
        return rows_that_fit(size, longest_id_bytes, label_values, views=views, limit=BATCH_LIMIT) > 0

    parts = []
    if tap.pool is None and len(tap.shape) == 3:
        channels = tap.shape[0]
        for side in (7, 4, 2, 1):
            numbers = channels * side * side
            if side < min(tap.shape[1:]) and fits(numbers):
                pool = f"avg{side}" if side > 1 else "gap"
                size = numbers * ITEM_BYTES[dtype] * views
                parts.append(f"pool the map: {tap.layer}:{pool} takes {size:,} bytes")
                break
    if views > 1 and fits(tap.numbers, views=1):
        parts.append("--views 1")
    if dtype == "float32" and fits(tap.numbers, dtype="float16"):
        parts.append("--dtype float16")
    parts.append("a smaller --image-size")
    return ", or ".join(parts)


def size_text(count: float) -> str:
    """Return a number of bytes as people read it, in powers of ten: ``912 B``, ``1.84 GB``."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def duration_text(seconds: float) -> str:
    """Return a duration as people read it: ``0.4 s``, ``12 min``, ``3.5 h``."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"

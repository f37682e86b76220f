"""``featurectl peek``: a few records of a stream, as they stand on the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurectl import options

if TYPE_CHECKING:
    from featurestream.manifest import Manifest
    from featurestream.ports import LogRecord, RecordSource
    from featurestream.record import Record
    from featurestream.seek import Lanes

SHOWN_ROWS = 4
POLL_S = 10.0


def peek(
    *,
    stream: Annotated[str, typer.Argument(help="The stream.")],
    tap: Annotated[
        list[str] | None, typer.Option(metavar="TAP", help="Only this tap; may be given again. Default: all.")
    ] = None,
    start: options.From = "earliest",
    until: options.Until = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many batches.")] = 3,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    as_json: options.Json = False,
) -> None:
    """Show a few batches: where they stand, whose rows they hold, and what the features look like."""
    from featurectl.output import print_json, print_table
    from featurestream.manifest_topic import require_manifest

    with options.open_log(bootstrap_servers, kafka_config) as log:
        manifest = require_manifest(log, stream)
        taps = [manifest.tap(name).name for name in dict.fromkeys(tap)] if tap else [tap.name for tap in manifest.taps]
        source = log.source()
        try:
            sights = list(look(source, manifest, taps, start=start, until=until, count=count))
        finally:
            source.close()
    if as_json:
        for sight in sights:
            print_json(sight.facts())
        return
    print_table(
        [">batch", ">pass", "tap", ">lane", ">offset", "appended", ">rows", "dtype", ">shape", ">mean",
         ">std", ">min", ">max", "~first rows"],
        [sight.cells() for sight in sights],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sight:
    """A record that was looked at: where it stands, and what it holds."""

    at: LogRecord
    record: Record

    def statistics(self) -> dict[str, float | None]:
        """Return mean, standard deviation, least and greatest number of all features; None where there are no rows."""
        import numpy as np

        numbers = self.record.numpy()
        if not numbers.size:
            return dict.fromkeys(("mean", "std", "min", "max"))
        # In float64: the sum of a batch of float16 numbers leaves float16 at 65,504.
        wide = numbers.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # of features that are not finite, which others may write
            return {
                "mean": float(wide.mean()), "std": float(wide.std()), "min": float(wide.min()), "max": float(wide.max())
            }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Return the record's facts as JSON values, with the first rows' ids and labels."""
        from featurectl.output import time_json

        record = self.record
        return {
            "batch": record.batch,
            "pass": record.pass_number,
            "tap": record.tap,
            "lane": self.at.lane,
            "offset": self.at.offset,
            "appended_at": time_json(self.at.timestamp_ms),
            "extracted_at": time_json(record.extracted_ns // 1_000_000),
            "rows": record.rows,
            "missing": len(record.missing),
            "dtype": record.dtype,
            "shape": list(record.shape),
            "value_bytes": len(self.at.value or b""),
            **self.statistics(),
            "first_ids": list(record.ids[:SHOWN_ROWS]),
            "first_labels": None if record.labels is None else record.labels[:SHOWN_ROWS].tolist(),
        }

    def cells(self) -> list[str]:
        """Return the record's facts as the cells of the table."""
        from featurectl.output import time_text

        record = self.record
        labels = [""] * record.rows if record.labels is None else [f"={label}" for label in record.labels.tolist()]
        shown = [f"{id_}{label}" for id_, label in zip(record.ids[:SHOWN_ROWS], labels, strict=False)]
        if record.rows > SHOWN_ROWS:
            shown.append("...")
        missing = f" ({len(record.missing)} missing)" if record.missing else ""
        return [
            str(record.batch),
            str(record.pass_number),
            record.tap,
            str(self.at.lane),
            str(self.at.offset),
            time_text(self.at.timestamp_ms),
            f"{record.rows}{missing}",
            record.dtype,
            " x ".join(map(str, record.shape)) or "one number",
            *["-" if value is None else f"{value:.4g}" for value in self.statistics().values()],
            ", ".join(shown),
        ]


def look(
    source: RecordSource, manifest: Manifest, taps: list[str], *, start: str, until: str | None, count: int
) -> Iterator[Sight]:
    """Yield the records of the first ``count`` batches from ``start`` on, each tap's, as far as they are complete.

    Raises UsageError where there is nothing between ``start`` and ``until``, GoneError for batches that retention has
    deleted, RecordError for records that are none of ours.
    """
    import time

    from featurestream.errors import UsageError
    from featurestream.names import tap_topic
    from featurestream.position import parse_start
    from featurestream.seek import Lanes, resolve_start, resolve_stop

    now = time.time()
    lanes = Lanes(source, manifest.layout, [tap_topic(manifest.stream, tap) for tap in taps])
    first = resolve_start(parse_start(start, now=now), lanes).batch
    there = lanes.next_missing()
    stop = there if until is None else min(there, resolve_stop(parse_start(until, now=now), lanes))
    if first >= stop:
        raise UsageError(
            f"nothing to show: {start} is batch {first}, and the range ends before batch {stop}",
            hint=f"see what is there with: featurectl streams {manifest.stream}",
        )
    for batch in range(first, min(stop, first + count)):
        for topic in lanes.topics:
            yield look_at(source, lanes, topic, batch)


def look_at(source: RecordSource, lanes: Lanes, topic: str, batch: int) -> Sight:
    """Return a batch's record in one topic of ``lanes``.

    Raises GoneError for a batch that retention has deleted, HoleError where it is not there, RecordError for a record
    that is none of ours.
    """
    from featurestream.errors import HoleError, RecordError
    from featurestream.seek import batch_of
    from featurestream.wire import decode

    lane = lanes.layout.lane_of(batch)
    reader = source.read(topic, lane, lanes.offset_of(topic, lane, batch))
    try:
        while (found := reader.poll(POLL_S)) is not None and batch_of(found) < batch:
            pass  # a duplicate of an earlier batch
    finally:
        reader.close()
    if found is None or batch_of(found) > batch:
        raise HoleError(f"batch {batch} is missing from {topic}, lane {lane}", batch=batch)
    try:
        return Sight(found, decode(found.value or b""))
    except RecordError as error:
        raise error.at(topic, lane, found.offset) from error

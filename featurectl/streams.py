"""``featurectl streams``: what streams there are, or everything about one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurectl import options

if TYPE_CHECKING:
    from featurestream.errors import FeatureStreamError
    from featurestream.experiments import Experiment
    from featurestream.manifest import Lease, Manifest, TapFacts
    from featurestream.manifest_topic import StreamFacts
    from featurestream.ports import Bounds, LaneReader, Log, LogRecord, Place, RecordSource
    from featurestream.seek import Lanes

Committed = Mapping[str, Mapping[tuple[str, int], int]]  # group -> (topic, lane) -> next offset


def streams(
    stream: Annotated[
        str | None, typer.Argument(metavar="[STREAM]", help="One stream, for everything about it.")
    ] = None,
    forget: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Take an experiment out of STREAM's run registry; its run folder stays."),
    ] = None,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    as_json: options.Json = False,
) -> None:
    """Show all streams, or one: manifest, passes, time range, bytes, readers, experiments and their lag."""
    if forget is not None and stream is None:
        from featurestream.errors import UsageError

        raise UsageError(
            "--forget needs the stream whose experiment it is", hint="featurectl streams STREAM --forget NAME"
        )
    with options.open_log(bootstrap_servers, kafka_config) as log:
        if forget is not None and stream is not None:
            _forget(log, stream, forget)
        elif stream is None:
            _show_all(log, as_json=as_json)
        else:
            _show_one(log, stream, as_json=as_json)


@dataclass(frozen=True, slots=True)
class TapReport:
    """What the log holds of one tap. ``size`` is in bytes: records on the log times their mean size."""

    name: str
    spec: str
    shape: tuple[int, ...]
    row_bytes: int
    records: int
    size: int


@dataclass(frozen=True, slots=True)
class ReaderReport:
    """A reader's place as it last committed it: the batches that are on the log and that it has not read."""

    experiment: str
    lag: int


@dataclass(frozen=True, slots=True)
class StreamReport:
    """A stream as it is now.

    Attributes:
        facts: what its manifest topic says; its manifest is there.
        taps: what the log holds of each tap.
        first_batch: the first batch from which on every tap and lane still holds everything.
        next_batch: the first batch that is not complete yet.
        first_ms: when the oldest record left was appended, milliseconds since the epoch; None where there is none.
        last_ms: when the newest record was appended.
        producer: ``none`` (there never was one), ``live``, ``ended`` (by itself) or ``lost`` (without a word).
        readers: whoever committed a position.
    """

    facts: StreamFacts
    taps: tuple[TapReport, ...]
    first_batch: int
    next_batch: int
    first_ms: int | None
    last_ms: int | None
    producer: str
    readers: tuple[ReaderReport, ...]

    @property
    def manifest(self) -> Manifest:
        """The stream's manifest."""
        from featurestream.errors import InternalError

        if self.facts.manifest is None:
            raise InternalError("a report of a stream without a manifest")
        return self.facts.manifest

    @property
    def size(self) -> int:
        """Bytes of all taps on the log, nearly."""
        return sum(tap.size for tap in self.taps)

    def summary(self) -> dict[str, Any]:
        """Return what the list of all streams shows, as JSON values."""
        from featurectl.output import time_json

        manifest = self.manifest
        return {
            "stream": self.facts.stream,
            "model": manifest.backbone.name,
            "weights": manifest.backbone.weights,
            "taps": [tap.name for tap in manifest.taps],
            "samples": manifest.data.samples,
            "passes_done": len(self.facts.passes),
            "passes": manifest.passes,
            "complete": self.facts.end is not None,
            "first_batch": self.first_batch,
            "next_batch": self.next_batch,
            "bytes": self.size,
            "first_appended_at": time_json(self.first_ms),
            "last_appended_at": time_json(self.last_ms),
            "producer": self.producer,
            "readers": [{"experiment": reader.experiment, "lag_batches": reader.lag} for reader in self.readers],
        }

    def everything(self) -> dict[str, Any]:
        """Return everything, as JSON values: the summary with taps, passes and health in full, and the manifest."""
        from featurectl.stream_health import warnings_of

        facts = self.facts
        return {
            **self.summary(),
            "taps": [
                {
                    "name": tap.name,
                    "spec": tap.spec,
                    "shape": list(tap.shape),
                    "row_bytes": tap.row_bytes,
                    "records": tap.records,
                    "bytes": tap.size,
                }
                for tap in self.taps
            ],
            "pass_batches": self.manifest.layout.pass_batches,
            "pass_records": [done.model_dump(mode="json") for _, done in sorted(facts.passes.items())],
            "health": [seen.model_dump(mode="json") for _, seen in sorted(facts.health.items())],
            "canary": None if facts.canary is None else facts.canary.model_dump(mode="json"),
            "warnings": warnings_of(facts),
            "retention_warnings": [warning.model_dump(mode="json") for warning in facts.retention_warnings.values()],
            "lease": None if facts.lease is None else facts.lease.model_dump(mode="json"),
            "leases": [lease.model_dump(mode="json") for _, lease in sorted(facts.leases.items())],
            "end": None if facts.end is None else facts.end.model_dump(mode="json"),
            "manifest": self.manifest.model_dump(mode="json"),
        }


def report_stream(source: RecordSource, stream: str, committed: Committed, *, now_ms: int) -> StreamReport:
    """Return a stream's report. ``committed`` is what all groups of the log have committed.

    Raises StreamNotFoundError where a topic is not there or the manifest is not written yet, RecordError for records
    that are none of ours.
    """
    from featurestream.errors import StreamNotFoundError
    from featurestream.manifest_topic import read_facts
    from featurestream.names import tap_topic
    from featurestream.seek import Lanes

    facts = read_facts(source, stream)
    manifest = facts.manifest
    if manifest is None:
        raise StreamNotFoundError(f'stream "{stream}" has no manifest yet', hint="its producer is about to write it")
    snapshot = _Snapshot(source)
    topics = [tap_topic(stream, tap.name) for tap in manifest.taps]
    lanes = Lanes(snapshot, manifest.layout, topics)
    stamps = [
        record.timestamp_ms
        for place in lanes.places()
        for record in (lanes.first_record(*place), lanes.last_record(*place))
        if record is not None
    ]
    return StreamReport(
        facts,
        tuple(_report_tap(lanes, manifest, tap) for tap in manifest.taps),
        lanes.earliest(),
        lanes.next_missing(),
        min(stamps, default=None),
        max(stamps, default=None),
        producer_state(facts, now_ms=now_ms),
        tuple(_readers(snapshot, stream, topics, committed)),
    )


class _Snapshot:
    """A source that looks at each lane and record once: a report's numbers then fit together."""

    def __init__(self, source: RecordSource) -> None:
        self._source = source
        self._bounds: dict[Place, Bounds] = {}
        self._records: dict[tuple[str, int, int], LogRecord] = {}

    def bounds(self, topic: str, lane: int) -> Bounds:
        return self.all_bounds([(topic, lane)])[topic, lane]

    def all_bounds(self, places: Sequence[Place]) -> dict[Place, Bounds]:
        self._bounds |= self._source.all_bounds([place for place in places if place not in self._bounds])
        return {place: self._bounds[place] for place in places}

    def record_at(self, topic: str, lane: int, offset: int) -> LogRecord:
        if (topic, lane, offset) not in self._records:
            self._records[topic, lane, offset] = self._source.record_at(topic, lane, offset)
        return self._records[topic, lane, offset]

    def offsets_at_time(self, places: Sequence[Place], time_ms: int) -> dict[Place, int]:
        return self._source.offsets_at_time(places, time_ms)

    def read(self, topic: str, lane: int, offset: int) -> LaneReader:
        return self._source.read(topic, lane, offset)

    def close(self) -> None:
        self._source.close()


def _report_tap(lanes: Lanes, manifest: Manifest, tap: TapFacts) -> TapReport:
    from featurestream.batch import row_bytes
    from featurestream.names import tap_topic

    layout = manifest.layout
    bytes_of_row = row_bytes(manifest.dtype, tap.shape)
    topic = tap_topic(manifest.stream, tap.name)
    records, sample = 0, None
    for lane in range(layout.lanes):
        low, high = lanes.source.bounds(topic, lane)
        records += high - low
        if sample is None:
            sample = lanes.first_record(topic, lane)
    size = 0
    if sample is not None:
        # The last batch of a pass is smaller. So: a mean of the features, and one record's measure of all the rest.
        features = layout.samples * layout.views * bytes_of_row / layout.pass_batches
        size = round(records * (features + _envelope(sample)))
    return TapReport(tap.name, tap.spec, tuple(tap.shape), bytes_of_row, records, size)


def _envelope(record: LogRecord) -> int:
    """Return the bytes of a record that are not features."""
    from featurestream.errors import RecordError
    from featurestream.wire import decode

    value = record.value or b""
    try:
        features = decode(value).payload.nbytes
    except RecordError as error:
        raise error.at(record.topic, record.lane, record.offset) from error
    headers = sum(len(name) + len(text) for name, text in record.headers)
    return len(value) + len(record.key or b"") + headers - features


def producer_state(facts: StreamFacts, *, now_ms: int) -> str:
    """Return what the leases say of the producer; of several ranks, the best that any of them is."""
    states = {lease_state(lease, facts.lease_stamps_ms[rank], now_ms=now_ms) for rank, lease in facts.leases.items()}
    return next((state for state in ("live", "lost", "ended") if state in states), "none")


def lease_state(lease: Lease, stamp_ms: int, *, now_ms: int) -> str:
    """Return what a lease says of its producer; ``stamp_ms`` is when its last heartbeat was appended."""
    from featurestream_producer.lease import LEASE_TTL_S, lives, this_host

    if lease.released:
        return "ended"
    # The process list knows more than a heartbeat, but only here.
    alive = lives(lease) if lease.host == this_host() else now_ms - stamp_ms <= LEASE_TTL_S * 1000
    return "live" if alive else "lost"


def _readers(source: RecordSource, stream: str, topics: Sequence[str], committed: Committed) -> Iterable[ReaderReport]:
    from featurestream.names import parse_reader_group

    for group, places in sorted(committed.items()):
        name = parse_reader_group(group)
        if name is None or name[0] != stream:
            continue
        behind = dict.fromkeys(topics, 0)
        for (topic, lane), offset in places.items():
            if topic in behind:
                low, high = source.bounds(topic, lane)
                behind[topic] += high - min(max(offset, low), high)
        # A batch has one record in each topic, so the topic that is furthest behind tells the batches.
        yield ReaderReport(name[1], max(behind.values(), default=0))


def _show_all(log: Log, *, as_json: bool) -> None:
    """Print a line a stream. A stream that cannot be read is named with its error, and the command fails at its end."""
    import time

    from featurectl.output import print_json, print_table
    from featurestream.errors import FeatureStreamError
    from featurestream.manifest_topic import list_streams

    reports: list[StreamReport] = []
    errors: list[tuple[str, FeatureStreamError]] = []
    committed = log.committed_positions()
    source = log.source()
    try:
        for name in list_streams(log):
            try:
                reports.append(report_stream(source, name, committed, now_ms=round(time.time() * 1000)))
            except FeatureStreamError as error:
                errors.append((name, error))
    finally:
        source.close()
    if as_json:
        for report in reports:
            print_json(report.summary())
    elif reports:
        print_table(*_streams_table(reports))
    elif not errors:
        typer.echo("there are no streams yet; make one with featurectl produce, or see a whole run: featurectl demo")
    for name, why in errors:
        options.say(f"stream {name} cannot be shown: {why}")
    if errors:
        raise typer.Exit(errors[0][1].exit_code)


def _show_one(log: Log, stream: str, *, as_json: bool) -> None:
    import time

    from featurectl.output import print_facts, print_json, print_table
    from featurectl.stream_health import health_lines, health_table
    from featurestream.experiments import read_experiments
    from featurestream.manifest_topic import require_manifest

    require_manifest(log, stream)  # the error that lists the streams and suggests the nearest
    source = log.source()
    try:
        report = report_stream(source, stream, log.committed_positions(), now_ms=round(time.time() * 1000))
    finally:
        source.close()
    experiments = list(read_experiments(log, stream).values())
    now_ms = round(time.time() * 1000)
    if as_json:
        print_json(
            report.everything()
            | {"experiments": [experiment_json(one, report.next_batch, now_ms=now_ms) for one in experiments]}
        )
        return
    print_facts(_facts_of(report))
    typer.echo("")
    print_table(*_taps_table(report))
    if report.facts.passes:
        typer.echo("")
        print_table(*_passes_table(report))
    if report.facts.health:
        typer.echo("")
        print_facts(health_lines(report.facts))
        typer.echo("")
        print_table(*health_table(report.facts))
    if experiments:
        typer.echo("")
        print_table(*_experiments_table(experiments, report.next_batch, now_ms=now_ms))
    if report.readers:
        typer.echo("")
        print_table(["reader", ">batches behind"], [[reader.experiment, str(reader.lag)] for reader in report.readers])


def _streams_table(reports: Iterable[StreamReport]) -> tuple[list[str], list[list[str]]]:
    from featurectl.output import count_text, span_text
    from featurestream_producer.plan import size_text

    columns = ["stream", "model", "~taps", ">samples", ">passes", ">batches", ">bytes", "appended", "producer",
               ">readers"]  # fmt: skip
    return columns, [
        [
            report.facts.stream,
            report.manifest.backbone.name,
            ", ".join(tap.name for tap in report.taps),
            count_text(report.manifest.data.samples),
            f"{len(report.facts.passes)}/{report.manifest.passes or 'endless'}",
            count_text(report.next_batch - report.first_batch),
            size_text(report.size),
            span_text(report.first_ms, report.last_ms),
            report.producer,
            str(len(report.readers)),
        ]
        for report in reports
    ]


def _facts_of(report: StreamReport) -> list[tuple[str, str]]:
    from featurectl.output import count_text, time_text
    from featurestream_producer.plan import size_text

    manifest, facts, layout = report.manifest, report.facts, report.manifest.layout
    data = manifest.data
    split = f", split {data.split}" if data.split else ""
    labels = {"class": f"{data.class_count} classes", "none": "no labels", "value": "a number each"}.get(
        data.label_kind, f"{data.label_values} numbers each"
    )
    numbers = dict(manifest.transform)
    name = str(numbers.pop("name", "unnamed"))
    views = f" ({layout.views} views each)" if layout.views > 1 else ""
    asked = "without end" if manifest.passes is None else f"of {manifest.passes}"
    producers = [
        (
            f"rank {rank}",
            f"process {lease.pid} on {lease.host}, last heartbeat {time_text(facts.lease_stamps_ms[rank])}",
        )
        for rank, lease in sorted(facts.leases.items())
    ]
    pairs = [
        ("stream", f"{facts.stream}, fingerprint {manifest.fingerprint}"),
        ("data", f"{data.source}{split}: {count_text(data.samples)} samples, {labels}"),
        ("transform", ", ".join([name, *(f"{key} {_text(value)}" for key, value in numbers.items())])),
        ("model", f"{manifest.backbone.name}, weights {manifest.backbone.weights}"),
        ("published", f"{manifest.dtype}, {layout.batch_samples} samples a batch{views}, {layout.lanes} lanes, "
                      f"seed {manifest.seed}"),
        ("created", manifest.created_at),
        ("passes", f"{len(facts.passes)} {asked} done{', complete' if facts.end else ''}"),
        ("producer", report.producer + (f" ({producers[0][1]})" if len(producers) == 1 else "")),
        *(producers if len(producers) > 1 else []),
    ]  # fmt: skip
    pairs += [("warning", f"{warning.at}: {warning.text}") for warning in facts.retention_warnings.values()]
    if report.first_ms is None:
        return [*pairs, ("on the log", "nothing yet")]
    held = report.next_batch - report.first_batch
    return [
        *pairs,
        ("on the log", f"{count_text(held)} batches from batch:{report.first_batch} on, {layout.pass_batches} a pass; "
                       f"about {size_text(report.size)}"),
        ("appended", f"{time_text(report.first_ms)} to {time_text(report.last_ms)}"),
    ]  # fmt: skip


def _taps_table(report: StreamReport) -> tuple[list[str], list[list[str]]]:
    from featurectl.output import count_text
    from featurestream_producer.plan import size_text

    return ["tap", "layer and pool", ">shape of a row", ">bytes of a row", ">records", ">bytes"], [
        [
            tap.name,
            tap.spec,
            " x ".join(map(str, tap.shape)) or "one number",
            count_text(tap.row_bytes),
            count_text(tap.records),
            size_text(tap.size),
        ]
        for tap in report.taps
    ]


def _passes_table(report: StreamReport) -> tuple[list[str], list[list[str]]]:
    from featurectl.output import count_text

    return [">pass", ">samples", ">missing", "batches", "started", "finished"], [
        [
            str(number),
            count_text(done.samples),
            count_text(done.missing),
            f"{done.first_batch} to {done.last_batch}",
            done.started_at,
            done.finished_at,
        ]
        for number, done in sorted(report.facts.passes.items())
    ]


def experiment_json(experiment: Experiment, next_batch: int, *, now_ms: int) -> dict[str, Any]:
    """Return everything about an experiment but its rows of metrics, as JSON values.

    ``next_batch`` is the stream's first batch that is not complete yet: what ``lag_batches`` counts to.
    """
    return {
        "experiment": experiment.label,
        **experiment.run.model_dump(mode="json"),
        "state": experiment.state_at(now_ms),
        "lag_batches": experiment.lag(next_batch),
    }


def _experiments_table(
    experiments: Iterable[Experiment], next_batch: int, *, now_ms: int
) -> tuple[list[str], list[list[str]]]:
    from featurestream.position import Position
    from featurestream_consumer.reporters.console import format_metric

    rows = []
    for one in experiments:
        run, lag = one.run, one.lag(next_batch)
        speed = "-" if run.rows_per_s is None else f"{run.rows_per_s:,.0f}"
        rows.append(
            [
                one.label,
                one.state_at(now_ms),
                run.host,
                str(Position(run.position.batch, run.position.row)),
                "-" if lag is None else str(lag),
                f"{run.epoch}/{run.epochs}",
                str(run.rereads),
                f"{run.rows:,}",
                speed,
                ", ".join(f"{name} {format_metric(name, value)}" for name, value in run.metrics.items()) or "-",
            ]
        )
    columns = ["experiment", "state", "host", "reads next", ">behind", ">epochs", ">re-reads", ">rows", ">rows/s",
               "~metrics"]  # fmt: skip
    return columns, rows


def _forget(log: Log, stream: str, name: str) -> None:
    import time

    from featurestream.experiments import forget_experiment
    from featurestream.manifest_topic import require_manifest

    require_manifest(log, stream)
    for run in forget_experiment(log, stream, name, now_ms=round(time.time() * 1000)):
        options.say(f"forgot {run.name}@{run.id}, begun {run.started_at}; {run.folder} on {run.host} is as it was")


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

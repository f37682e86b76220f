"""What the programs measure of themselves while they run, and how Prometheus reads it.

Every metric's name stands here and nowhere else; docs/monitoring.md says the same in a table that a test compares.
Nothing is counted for the metrics' sake: a program gives a function that reads its own accounts, and that function is
called when somebody scrapes. ::

    with serve(9400) as telemetry:
        telemetry.add(lambda: [PRODUCER_ROWS.at(ledger.rows, "digits-train")])

One exporter a process: a producer and a trainer on one machine have two ports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from featurestream.errors import InternalError, OutsideError, UsageError


class Sample(NamedTuple):
    """The value of a metric for one set of labels, now."""

    metric: Metric
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exported.

    Attributes:
        name: with its unit, as Prometheus has it; that of a counter ends in ``_total``.
        kind: a counter only grows while the process lives; a gauge is a value of the moment; a histogram counts
            values by their size.
        unit: what is counted, or the unit of measure.
        labels: what tells its time series apart: streams, experiments, workers and stages, never samples.
        help: what it says, in one sentence.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    help: str

    def at(self, value: float, *labels: object) -> Sample:
        """Return its value for labels in their order. Raises InternalError for too many labels, or too few."""
        if len(labels) != len(self.labels):
            raise InternalError(f"{self.name} has the labels {self.labels}, got {labels}")
        return Sample(self, tuple(map(str, labels)), value)


STREAM: Final = ("stream",)
WORKER: Final = ("stream", "worker")
READER: Final = ("stream", "reader")
EXPERIMENT: Final = ("stream", "experiment")

# ---- the producer -----------------------------------------------------------------------------------------------

PRODUCER_BATCHES: Final = Metric(
    "featurestream_producer_batches_total", "counter", "batches", STREAM, "Batches that this run has sent."
)
PRODUCER_SAMPLES: Final = Metric(
    "featurestream_producer_samples_total", "counter", "samples", STREAM,
    "Visits of a sample of which rows were sent: the rows divided by the views.",
)  # fmt: skip
PRODUCER_ROWS: Final = Metric(
    "featurestream_producer_rows_total", "counter", "rows", STREAM, "Rows that this run has sent."
)
PRODUCER_BYTES: Final = Metric(
    "featurestream_producer_bytes_total", "counter", "bytes", STREAM,
    "Bytes of the records that this run has sent, of all taps.",
)  # fmt: skip
PRODUCER_MISSING: Final = Metric(
    "featurestream_producer_missing_samples_total", "counter", "samples", STREAM,
    "Samples whose image could not be decoded, and which have no rows; each counted once a run.",
)  # fmt: skip
PRODUCER_NEXT_BATCH: Final = Metric(
    "featurestream_producer_next_batch", "gauge", "batch number", STREAM, "One more than the greatest batch sent."
)
PRODUCER_DURABLE_BATCH: Final = Metric(
    "featurestream_producer_durable_batch", "gauge", "batch number", STREAM,
    "All batches below this one are known to be durable; it moves at the ends of passes.",
)  # fmt: skip
PRODUCER_STAGES: Final = Metric(
    "featurestream_producer_stage_seconds_total", "counter", "seconds", (*WORKER, "stage"),
    "Seconds of a device's thread by stage: images (waiting for them), forward (computing), kafka (waiting for room to "
    "send), devices (waiting for slower ones); and, beside them, sending (the sender's own work).",
)  # fmt: skip
PRODUCER_QUEUES: Final = Metric(
    "featurestream_producer_queue_length", "gauge", "items", (*WORKER, "queue"),
    "What waits: images (batches loaded), features (batches computed), kafka (records that the broker has not "
    "confirmed).",
)  # fmt: skip
PRODUCER_PAUSED: Final = Metric(
    "featurestream_producer_paused_seconds_total", "counter", "seconds", STREAM,
    "Seconds in which it waited for readers (--ahead, --idle).",
)  # fmt: skip
PRODUCER_SILENCE: Final = Metric(
    "featurestream_producer_broker_silence_seconds", "gauge", "seconds", STREAM,
    "For how long the broker's answer to a heartbeat is overdue; 0 while it answers.",
)  # fmt: skip
PRODUCER_READER_LAG: Final = Metric(
    "featurestream_producer_reader_lag_batches", "gauge", "batches", READER,
    "How many batches have been sent that a live reader has not read.",
)  # fmt: skip
PRODUCER_READER_RETENTION: Final = Metric(
    "featurestream_producer_reader_retention_ratio", "gauge", "ratio", READER,
    "How much of its retention what a live reader still needs has behind it; at 1 it may be deleted.",
)  # fmt: skip
PRODUCER_WARNINGS: Final = Metric(
    "featurestream_producer_retention_warnings_total", "counter", "warnings", STREAM,
    "Readers that it has warned about, because retention came near.",
)  # fmt: skip

PRODUCER: Final = (
    PRODUCER_BATCHES, PRODUCER_SAMPLES, PRODUCER_ROWS, PRODUCER_BYTES, PRODUCER_MISSING, PRODUCER_NEXT_BATCH,
    PRODUCER_DURABLE_BATCH, PRODUCER_STAGES, PRODUCER_QUEUES, PRODUCER_PAUSED, PRODUCER_SILENCE, PRODUCER_READER_LAG,
    PRODUCER_READER_RETENTION, PRODUCER_WARNINGS,
)  # fmt: skip

# ---- a reader, and what it trains -------------------------------------------------------------------------------

READER_BATCHES: Final = Metric(
    "featurestream_reader_batches_total", "counter", "batches", STREAM,
    "Batches read, of all taps together; one that is read again counts again.",
)  # fmt: skip
READER_ROWS: Final = Metric("featurestream_reader_rows_total", "counter", "rows", STREAM, "Rows read.")
READER_BYTES: Final = Metric(
    "featurestream_reader_bytes_total", "counter", "bytes", STREAM, "Bytes of the records read, of all taps."
)
READER_DUPLICATES: Final = Metric(
    "featurestream_reader_duplicates_total", "counter", "records", STREAM, "Duplicates that were dropped."
)
READER_REFUSED: Final = Metric(
    "featurestream_reader_refused_records_total", "counter", "records", STREAM,
    "Records that are not what they should be; the first one ends the reading.",
)  # fmt: skip
READER_WAIT: Final = Metric(
    "featurestream_reader_wait_seconds_total", "counter", "seconds", STREAM, "Seconds in which it waited for Kafka."
)
READER_EXPIRY: Final = Metric(
    "featurestream_reader_expiry_seconds", "gauge", "seconds", STREAM,
    "Seconds until the batch that is read next reaches its retention by time; the whole of it where none waits.",
)  # fmt: skip
READER_RETENTION: Final = Metric(
    "featurestream_reader_retention_ratio", "gauge", "ratio", STREAM,
    "How much of its retention, by time or bytes, the batch that is read next has behind it; at 1 it may be deleted.",
)  # fmt: skip
READER_WARNINGS: Final = Metric(
    "featurestream_reader_retention_warnings_total", "counter", "warnings", STREAM,
    "Times that it has warned that retention comes near.",
)  # fmt: skip
TRAINER_STAGES: Final = Metric(
    "featurestream_trainer_stage_seconds_total", "counter", "seconds", (*STREAM, "stage"),
    "Seconds by stage: read (waiting for records, and decoding), train, validate, checkpoint.",
)  # fmt: skip
EXPERIMENT_RUNNING: Final = Metric(
    "featurestream_experiment_running", "gauge", "0 or 1", EXPERIMENT, "1 until it has finished or diverged."
)
EXPERIMENT_LAG: Final = Metric(
    "featurestream_experiment_lag_batches", "gauge", "batches", EXPERIMENT,
    "Batches that are there and that it has not been trained on, from its position on.",
)  # fmt: skip
EXPERIMENT_BATCH: Final = Metric(
    "featurestream_experiment_next_batch", "gauge", "batch number", EXPERIMENT, "The batch of its position."
)
EXPERIMENT_EPOCH: Final = Metric(
    "featurestream_experiment_epoch", "gauge", "epochs", EXPERIMENT, "Epochs that it has ended."
)
EXPERIMENT_STEPS: Final = Metric(
    "featurestream_experiment_steps_total", "counter", "steps", EXPERIMENT, "Optimiser steps since its beginning."
)
EXPERIMENT_ROWS: Final = Metric(
    "featurestream_experiment_rows_total", "counter", "rows", EXPERIMENT, "Rows trained on since its beginning."
)
EXPERIMENT_LOSS: Final = Metric(
    "featurestream_experiment_loss", "gauge", "the loss's own", EXPERIMENT, "The mean loss of the last batch."
)
EXPERIMENT_METRIC: Final = Metric(
    "featurestream_experiment_metric", "gauge", "the metric's own", (*EXPERIMENT, "rows", "metric"),
    "The metrics reported last, on the rows of training and of validation.",
)  # fmt: skip
EXPERIMENT_CHECKPOINT_AGE: Final = Metric(
    "featurestream_experiment_checkpoint_age_seconds", "gauge", "seconds", EXPERIMENT,
    "Seconds since its last checkpoint; since this process began with it where there is none.",
)  # fmt: skip

TRAINER: Final = (
    READER_BATCHES, READER_ROWS, READER_BYTES, READER_DUPLICATES, READER_REFUSED, READER_WAIT, READER_EXPIRY,
    READER_RETENTION, READER_WARNINGS, TRAINER_STAGES, EXPERIMENT_RUNNING, EXPERIMENT_LAG, EXPERIMENT_BATCH,
    EXPERIMENT_EPOCH, EXPERIMENT_STEPS, EXPERIMENT_ROWS, EXPERIMENT_LOSS, EXPERIMENT_METRIC, EXPERIMENT_CHECKPOINT_AGE,
)  # fmt: skip

# ---- the gateway ------------------------------------------------------------------------------------------------

PATH: Final = ("path",)
GATEWAY_REQUESTS: Final = Metric(
    "featurestream_gateway_requests_total", "counter", "requests", (*PATH, "status"),
    "Requests answered, by the path's pattern and the status; 499 where the client went before.",
)  # fmt: skip
GATEWAY_SECONDS: Final = Metric(
    "featurestream_gateway_request_seconds", "histogram", "seconds", PATH,
    "From a request to the last byte of its answer; of live connections their whole life.",
)  # fmt: skip
GATEWAY_BYTES: Final = Metric(
    "featurestream_gateway_sent_bytes_total", "counter", "bytes", PATH, "Bytes of bodies sent."
)
GATEWAY_ROWS: Final = Metric(
    "featurestream_gateway_rows_total", "counter", "rows", (*STREAM, "format"), "Rows read for answers."
)
GATEWAY_READERS: Final = Metric(
    "featurestream_gateway_readers", "gauge", "answers", (), "Answers that are being read or sent."
)
GATEWAY_HELD: Final = Metric(
    "featurestream_gateway_held_bytes", "gauge", "bytes", (), "What answers hold together while they are made and sent."
)
GATEWAY_LISTENERS: Final = Metric(
    "featurestream_gateway_listeners", "gauge", "connections", (), "Live connections without features."
)
GATEWAY_LANES: Final = Metric(
    "featurestream_gateway_idle_lanes", "gauge", "lanes", (), "Lanes that stay open for the next answer."
)
GATEWAY_CONNECTIONS: Final = Metric(
    "featurestream_gateway_connections", "gauge", "connections", (), "Open connections of all kinds."
)

GATEWAY: Final = (
    GATEWAY_REQUESTS, GATEWAY_SECONDS, GATEWAY_BYTES, GATEWAY_ROWS, GATEWAY_READERS, GATEWAY_HELD, GATEWAY_LISTENERS,
    GATEWAY_LANES, GATEWAY_CONNECTIONS,
)  # fmt: skip

# ---- the exporter -----------------------------------------------------------------------------------------------

Source = Callable[[], Iterable[Sample]]


class Telemetry:
    """What a process exports: the sources that its parts have added.

    Attributes:
        host, port: where it answers, under ``/metrics``.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port
        self._sources: list[Source] = []

    @property
    def url(self) -> str:
        """Where the metrics are."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/metrics"

    def add(self, source: Source) -> None:
        """Have a source asked at every scrape, in the exporter's thread: it only reads, and what it reads is whole."""
        self._sources.append(source)

    def samples(self) -> list[Sample]:
        """Return what all sources say now."""
        return [sample for source in tuple(self._sources) for sample in source()]


@contextmanager
def serve(port: int, host: str = "127.0.0.1") -> Iterator[Telemetry]:
    """Answer Prometheus on a port while the block lasts; 0 takes a free one.

    Beside our own metrics there are those of the process (memory, CPU, open files) and of Python, under the names that
    all programs have for them. There is no password: bind it to loopback, or to a network of your own.

    Raises UsageError for a host that this machine is not, OutsideError for a port that is taken or not allowed.
    """
    import socket

    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server

    telemetry = Telemetry(host)
    registry = CollectorRegistry()
    registry.register(_Collector(telemetry))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except socket.gaierror as error:
        raise UsageError(
            f'"{host}" is no address of this machine: {error.strerror}', hint="such as 127.0.0.1; see --metrics-host"
        ) from error
    except OSError as error:
        raise OutsideError(
            f"metrics cannot be shown on {host}, port {port}: {error.strerror}",
            hint="--metrics-port 0 takes a port that is free",
        ) from error
    telemetry.port = server.server_port
    try:
        yield telemetry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Collector:
    """Turns samples into the families of the Prometheus client."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Any]:
        """Yield a family for each metric that has samples."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[Metric, Any] = {}
        for metric, labels, value in self._telemetry.samples():
            if metric not in families:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                families[metric] = kind(metric.name, metric.help, labels=metric.labels)
            families[metric].add_metric(labels, value)
        yield from families.values()

"""The run registry: what experiments say of themselves on ``<stream>.experiments``, for whoever wants to know.

A topic of one partition, compacted, whose values are JSON; its keys are ``run/<name>/<id>``,
``metrics/<name>/<id>/<n>`` and ``validation/<name>/<id>``, where ``<id>`` tells runs of one name apart. Nothing is
trained from it: the truth about a run is in its run folder. The JSON Schemas are in ``schemas/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from featurestream.closing import Closing
from featurestream.compacted import records_until
from featurestream.errors import (
    BrokerError,
    GoneError,
    RecordError,
    StreamNotFoundError,
    UnknownNameError,
    UsageError,
)
from featurestream.manifest import Value, from_json, to_json
from featurestream.names import check_stream_name, experiments_topic
from featurestream.ports import LaneReader, Log, LogRecord, RecordSource
from featurestream.topics import experiments_topic_settings
from featurestream.validation import Validation

RUN_PREFIX: Final = "run/"
METRICS_PREFIX: Final = "metrics/"
VALIDATION_PREFIX: Final = "validation/"

CHUNK_ROWS: Final = 64
CHUNK_BYTES: Final = 256 * 1024
#: A running experiment is written at least so often, and counts as lost without a word for so long: a broker that
#: restarts takes two beats.
BEAT_S: Final = 10.0
LOST_S: Final = 40.0

State = Literal["running", "finished", "stopped", "diverged", "failed"]


class Place(Value):
    """A place in the stream: what is read next."""

    batch: int = Field(ge=0)
    row: int = Field(default=0, ge=0)


class RunRecord(Value):
    """One run of an experiment."""

    name: str = Field(description="the experiment's name")
    id: str = Field(description="12 hexadecimal digits, drawn when the run began and kept when it goes on")
    state: State = Field(description="stopped: by a person; failed: by an error; both can be gone on with")
    reason: str | None = Field(default=None, description="why it ended before its end")
    stream: str
    host: str = Field(description="where it runs, or ran last")
    folder: str = Field(description="its run folder, an absolute path there")
    started_at: str = Field(description="ISO 8601 with zone, as are the others")
    updated_at: str
    finished_at: str | None = None
    fingerprint: str = Field(description="the stream's")
    validation_fingerprint: str | None = Field(default=None, description="the validation stream's")
    config: dict[str, Any] = Field(description="the configuration as resolved, every setting")
    start: Place = Field(description="where the run began")
    stop: int | None = Field(default=None, description="the batch before which its range ends; null: endless")
    position: Place
    epoch: int = Field(ge=0, description="epochs ended")
    epochs: int = Field(ge=1, description="epochs asked for")
    step: int = Field(ge=0, description="optimiser steps")
    rows: int = Field(ge=0, description="rows trained on, counted again when they come again")
    batches: int = Field(ge=0, description="batches read, counted likewise")
    rows_per_s: float | None = Field(
        default=None, description="of the last seconds; of a run that has ended, of its last process as a whole"
    )
    passes: int = Field(ge=0, description="passes read, the one that is being read included")
    rereads: int = Field(ge=0, description="epochs that read a pass again, likewise")
    metrics: dict[str, float | None] = Field(
        description="the final metrics; before the end, of the newest validation, or else of the newest training row"
    )
    main_metric: str | None = Field(default=None, description="the metric that runs are compared by")
    metric_rows: int = Field(ge=0, description="rows of metrics that count, from the first")
    metric_chunks: int = Field(ge=0, description="records that they lie in")
    validation: Literal["none", "published", "left out"] = Field(
        default="none", description="of the validation rows; left out: they did not fit into a record"
    )
    lineage: dict[str, Any] | None = Field(default=None, description="where a fork comes from, as in its run.json")

    @property
    def key(self) -> str:
        """What its keys in the topic end with."""
        return f"{self.name}/{self.id}"

    @property
    def ended(self) -> bool:
        """Whether nothing works on it, as far as it says so itself."""
        return self.state != "running"


class MetricsChunk(Value):
    """Some rows of an experiment's metrics, as metrics.jsonl has them."""

    first: int = Field(ge=0, description="the number of the first of them, from 0")
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment as the registry knows it.

    Attributes:
        label: its name; where runs on other machines, or in other folders, have the same one, ``<name>@<id>``.
        run: what it says of itself.
        stamp_ms: when it said so, milliseconds since the epoch by the broker's clock.
        rows: its rows of metrics, in their order.
        validation: how good it was on every validation row, where that is known.
    """

    label: str
    run: RunRecord
    stamp_ms: int
    rows: Sequence[Mapping[str, Any]] = ()
    validation: Validation | None = None

    def state_at(self, now_ms: int) -> str:
        """Return the run's state; ``lost`` for one that runs, by its own words, but has not said so for 40 s."""
        lost = not self.run.ended and now_ms - self.stamp_ms > LOST_S * 1000
        return "lost" if lost else self.run.state

    def lag(self, next_batch: int) -> int | None:
        """Return how many batches lie between its position and the stream's end, ``next_batch``, or its own end.

        None for an experiment that has finished or diverged: it reads no more.
        """
        if self.run.state in ("finished", "diverged"):
            return None
        stop = next_batch if self.run.stop is None else min(self.run.stop, next_batch)
        return max(0, stop - self.run.position.batch)


@dataclass(slots=True)
class Registry:
    """What the records of the topic come to, record by record."""

    runs: dict[str, tuple[RunRecord, int]] = field(default_factory=dict)  # by <name>/<id>, with the stamp
    chunks: dict[str, dict[int, MetricsChunk]] = field(default_factory=dict)
    validations: dict[str, Validation] = field(default_factory=dict)

    def apply(self, record: LogRecord) -> None:
        """Take over one record: the last value of a key counts, a tombstone takes it away.

        Raises RecordError for a value that is none of ours.
        """
        key = (record.key or b"").decode("utf-8", "replace")
        value = record.value
        try:
            if key.startswith(RUN_PREFIX):
                run = key.removeprefix(RUN_PREFIX)
                if value is None:
                    self.runs.pop(run, None)
                else:
                    self.runs[run] = (from_json(RunRecord, value), record.timestamp_ms)
            elif key.startswith(METRICS_PREFIX):
                run, _, number = key.removeprefix(METRICS_PREFIX).rpartition("/")
                self._apply_chunk(run, number, value)
            elif key.startswith(VALIDATION_PREFIX):
                run = key.removeprefix(VALIDATION_PREFIX)
                if value is None:
                    self.validations.pop(run, None)
                else:
                    self.validations[run] = from_json(Validation, value)
            # Other keys are a later version's: unknown facts change none of the known ones.
        except RecordError as error:
            raise error.at(record.topic, record.lane, record.offset) from error

    def _apply_chunk(self, run: str, number: str, value: bytes | None) -> None:
        if not number.isdecimal():
            raise RecordError(f'"{number}" is not the number of a chunk of metrics')
        if value is None:
            self.chunks.get(run, {}).pop(int(number), None)
        else:
            self.chunks.setdefault(run, {})[int(number)] = from_json(MetricsChunk, value)

    def keys_of(self, run: RunRecord) -> list[str]:
        """Return every key that a run has in the topic, its record last: without it the others are nobody's."""
        return [
            *(f"{METRICS_PREFIX}{run.key}/{number}" for number in sorted(self.chunks.get(run.key, ()))),
            *([f"{VALIDATION_PREFIX}{run.key}"] if run.key in self.validations else []),
            f"{RUN_PREFIX}{run.key}",
        ]

    def all_runs(self) -> list[RunRecord]:
        """Return every run of the topic, in the order in which they began."""
        return sorted((run for run, _ in self.runs.values()), key=lambda run: (run.started_at, run.id))

    def experiments(self) -> dict[str, Experiment]:
        """Return the experiments by their labels, in the order in which they began.

        A run in the folder of an earlier one has taken its place: the earlier one is not among them.
        """
        newest = {(run.name, run.host, run.folder): run for run in self.all_runs()}
        runs = sorted(newest.values(), key=lambda run: (run.started_at, run.id))
        names = [run.name for run in runs]
        found = {}
        for run in runs:
            label = run.name if names.count(run.name) == 1 else f"{run.name}@{run.id}"
            validation = self.validations.get(run.key) if run.validation == "published" else None
            found[label] = Experiment(label, run, self.runs[run.key][1], self._rows(run), validation)
        return found

    def _rows(self, run: RunRecord) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for number in range(run.metric_chunks):
            chunk = self.chunks.get(run.key, {}).get(number)
            if chunk is None or chunk.first != len(rows):
                break  # it is being written
            rows += chunk.rows
        return rows[: run.metric_rows]


class ExperimentsFollower(Closing):
    """A stream's run registry as it grows: each look reads what has come since the one before.

    Close it, or use it as a context manager. One thread at a time may use it.
    """

    def __init__(self, log: Log, stream: str) -> None:
        self.stream = check_stream_name(stream)
        self.registry = Registry()
        self._topic = experiments_topic(stream)
        self._source: RecordSource = log.source()
        self._reader: LaneReader | None = None
        self._offset = 0

    def close(self) -> None:
        """Release the connections."""
        self._forget()
        self._source.close()

    def look(self) -> dict[str, Experiment]:
        """Return the experiments by their labels as they are now; none where none has ever joined.

        Raises BrokerError where the log cannot be read, RecordError for a record that is none of ours.
        """
        try:
            low, high = self._source.bounds(self._topic, 0)
        except StreamNotFoundError:
            self._forget()
            return {}
        if high < self._offset:  # the topic was made anew
            self._forget()
        try:
            self._read(low, high)
        except (GoneError, BrokerError, RecordError):
            self._forget()
            raise
        return self.registry.experiments()

    def _read(self, low: int, high: int) -> None:
        if self._reader is None and low < high:
            self._offset = low
            self._reader = self._source.read(self._topic, 0, low)
        if self._reader is not None:
            for record in records_until(high, self._reader, self._source, self._topic, self._offset):
                self.registry.apply(record)
                self._offset = record.offset + 1

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None
        self._offset = 0
        self.registry = Registry()


class ExperimentsTopic(Closing):
    """Writes a stream's run registry. Close it, or use it as a context manager."""

    def __init__(self, log: Log, stream: str) -> None:
        self.stream = check_stream_name(stream)
        self.topic = experiments_topic(stream)
        self._log = log
        self._sink = log.sink()

    def close(self) -> None:
        """Give up what was not flushed and release the connection."""
        self._sink.close()

    def create(self) -> None:
        """Create the topic where it is not there yet."""
        self._log.create_topic(self.topic, 1, experiments_topic_settings())

    def write_run(self, run: RunRecord) -> None:
        """Write a run's record; as all writes here, it is durable after :meth:`flush`."""
        self._write(f"{RUN_PREFIX}{run.key}", run)

    def write_metrics(self, run: str, number: int, chunk: MetricsChunk) -> None:
        """Write one chunk of the metrics of the run whose keys end with ``run``."""
        self._write(f"{METRICS_PREFIX}{run}/{number}", chunk)

    def write_validation(self, run: str, validation: Validation) -> None:
        """Write how good the run whose keys end with ``run`` was on every validation row."""
        self._write(f"{VALIDATION_PREFIX}{run}", validation)

    def forget(self, keys: Iterable[str]) -> None:
        """Write a tombstone for each key."""
        for key in keys:
            self._write(key, None)

    def flush(self) -> None:
        """Return when everything written is durable. Raises BrokerError where it is not."""
        self._sink.flush()

    def _write(self, key: str, value: BaseModel | None) -> None:
        self._sink.append(self.topic, 0, key=key.encode(), value=None if value is None else to_json(value))


def read_experiments(log: Log, stream: str) -> dict[str, Experiment]:
    """Return what a stream's run registry says now: experiments by their labels, none where none has ever joined.

    Raises BrokerError where the log cannot be read, RecordError for a record that is none of ours.
    """
    with ExperimentsFollower(log, stream) as follower:
        return follower.look()


def find_experiment(experiments: Mapping[str, Experiment], stream: str, name: str) -> Experiment:
    """Return the experiment that ``name`` names: a label, or ``<name>@<id>`` with the beginning of an id.

    Raises UnknownNameError with those that there are, UsageError for a name that several runs have.
    """
    if name in experiments:
        return experiments[name]
    plain, _, beginning = name.partition("@")
    found = [one for one in experiments.values() if one.run.name == plain and one.run.id.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    if found:
        which = ", ".join(f"{one.label} (on {one.run.host}, begun {one.run.started_at})" for one in found)
        raise UsageError(f'{len(found)} runs of stream "{stream}" are called "{name}"', hint=f"say which: {which}")
    raise UnknownNameError(f"experiment of stream {stream}", name, list(experiments))


def forget_experiment(log: Log, stream: str, name: str, *, now_ms: int) -> list[RunRecord]:
    """Take an experiment out of the registry, with the earlier runs in its folder; return what was there of it.

    Run folders are not touched. Raises as :func:`find_experiment`, and UsageError for one that is running: it would be
    back at once.
    """
    with ExperimentsFollower(log, stream) as follower:
        found = find_experiment(follower.look(), stream, name)
        if found.state_at(now_ms) == "running":
            raise UsageError(
                f'experiment "{found.label}" is running on {found.run.host}: it would be back at once',
                hint="stop it first",
            )
        run = found.run
        same = [
            other
            for other in follower.registry.all_runs()
            if (other.name, other.host, other.folder) == (run.name, run.host, run.folder)
        ]
        keys = [key for other in same for key in follower.registry.keys_of(other)]
    with ExperimentsTopic(log, stream) as topic:
        topic.forget(keys)
        topic.flush()
    return same


def chunks_of(rows: Sequence[Mapping[str, Any]], first: int = 0) -> list[MetricsChunk]:
    """Return rows of metrics in chunks of bounded size; ``first`` is the number of the first row.

    A chunk is closed by its rows alone, so the same rows always give the same chunks.
    """
    chunks: list[MetricsChunk] = []
    held: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        plain = dict(row)
        length = len(json.dumps(plain))
        if held and (len(held) == CHUNK_ROWS or size + length > CHUNK_BYTES):
            chunks.append(MetricsChunk(first=first, rows=held))
            first += len(held)
            held, size = [], 0
        held.append(plain)
        size += length
    if held:
        chunks.append(MetricsChunk(first=first, rows=held))
    return chunks

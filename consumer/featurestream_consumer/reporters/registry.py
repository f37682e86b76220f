"""What the experiments of this process say of themselves in their stream's run registry, while they train.

A thread of its own writes it, about once a second, from what training leaves anyway: the experiments' counters, their
run.json and metrics.jsonl. Training never waits for it; where the broker does not take it, the user is told once, and
later attempts make up for what is missing.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from featurestream.errors import FeatureStreamError
from featurestream.experiments import (
    BEAT_S,
    ExperimentsFollower,
    ExperimentsTopic,
    MetricsChunk,
    Place,
    RunRecord,
    State,
    chunks_of,
)
from featurestream.ports import Log
from featurestream.position import Position
from featurestream.validation import pack_validation
from featurestream_consumer.paired import SCORES_NAME, read_scores
from featurestream_consumer.reporters.console import PLACE

if TYPE_CHECKING:
    from featurestream_consumer.experiment import Experiment
    from featurestream_consumer.runs import Run

TICK_S: Final = 1.0
#: A sweep writes a record an experiment: so many in a second are enough.
RECORDS_PER_S: Final = 20
SPEED_S: Final = 10.0  # the seconds that the speed is of
RETRY_S: Final = 10.0
#: Where training has ended, its last words get so long: a broker that is away must not hold up the command.
LAST_WORDS_S: Final = 10.0


class RegistryReporter:
    """Writes the experiments of one process into the registry of ``stream`` while the ``with`` block lasts.

    The error that ends the block is their reason, where they have not come to an end of their own.
    """

    def __init__(self, log: Log, stream: str, experiments: Sequence[Experiment], *, say: Callable[[str], None]) -> None:
        self._log = log
        self._stream = stream
        self._entries = [_Entry(experiment) for experiment in experiments]
        self._say = say
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._topic: ExperimentsTopic | None = None
        self._looked = False
        self._retry_at = 0.0
        self._told = False
        self._pause_s = max(TICK_S, len(self._entries) / RECORDS_PER_S)
        self._thread = threading.Thread(target=self._run, name="run registry", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._error = error
        self._done.set()
        self._thread.join(LAST_WORDS_S)
        if self._thread.is_alive():
            self._tell("the broker does not answer")

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._done.is_set()
            if ended or time.monotonic() >= self._retry_at:
                try:
                    self._publish(ended=ended)
                except FeatureStreamError as error:
                    self._tell(error.message)
                    self._close()
                    self._retry_at = time.monotonic() + RETRY_S
            if not ended:
                self._done.wait(self._pause_s)
        self._close()

    def _publish(self, *, ended: bool) -> None:
        if self._topic is None:
            self._topic = ExperimentsTopic(self._log, self._stream)
            self._topic.create()
        written = [entry.write(self._topic, ended=ended, error=self._error) for entry in self._entries]
        if any(written):
            self._topic.flush()
        for entry in self._entries:
            entry.confirm()
        if not self._looked:
            self._looked = True
            self._look_around(self._topic)

    def _look_around(self, topic: ExperimentsTopic) -> None:
        """Take out what stood in a new run's folder before it, and name other runs that have its name."""
        new = {entry.record.key: entry.record for entry in self._entries if entry.record and not entry.resumed}
        if not new:
            return
        with ExperimentsFollower(self._log, self._stream) as follower:
            follower.look()
            registry = follower.registry
        for run in new.values():
            for other in registry.all_runs():
                if other.name != run.name or other.key in new:
                    continue
                if (other.host, other.folder) == (run.host, run.folder):
                    topic.forget(registry.keys_of(other))
                else:
                    self._say(
                        f'another run is called "{run.name}": {run.name}@{other.id} in {other.folder} on {other.host}, '
                        f"begun {other.started_at}; in the run registry this one is {run.name}@{run.id}"
                    )
        topic.flush()

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._say(
                f"the run registry of {self._stream} is not written ({why}): training goes on, but other machines do "
                "not see it"
            )

    def _close(self) -> None:
        if self._topic is not None:
            self._topic.close()
            self._topic = None


def finish_late(log: Log, stream: str, runs: Sequence[Run], *, say: Callable[[str], None]) -> None:
    """Write the end of finished runs that the registry knows, and believes to be unfinished.

    They were killed, or the broker was away, between the end of training and the last word about it. A registry that
    cannot be read or written is told of.
    """
    try:
        with ExperimentsFollower(log, stream) as follower:
            follower.look()
            known = follower.registry.runs
        late = [
            (run, known[key][0]) for run in runs if (key := f"{run.record['name']}/{run.record.get('id')}") in known
        ]
        late = [(run, record) for run, record in late if record.state != "finished"]
        if not late:
            return
        with ExperimentsTopic(log, stream) as topic:
            for run, record in late:
                _write_end(topic, run, record)
            topic.flush()
    except FeatureStreamError as error:
        say(f"the run registry of {stream} is not written ({error.message})")


def _write_end(topic: ExperimentsTopic, run: Run, record: RunRecord) -> None:
    told, metrics = run.record, _Metrics(run.metrics_path)
    for number, chunk in metrics.read():
        topic.write_metrics(record.key, number, chunk)
    end = {
        "state": "finished",
        "reason": None,
        "updated_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "finished_at": told["finished"],
        "position": Place(**told["end"]),
        "epoch": told["epoch"],
        "step": told["step"],
        "passes": told["passes"],
        "rereads": told["rereads"],
        "metrics": told["metrics"],
        "metric_rows": metrics.rows,
        "metric_chunks": metrics.chunks,
        "validation": _write_validation(topic, record.key, run, told["metrics"]),
    }
    topic.write_run(record.model_copy(update=end))


class _Entry:
    """One experiment, and how much of it is in the registry."""

    def __init__(self, experiment: Experiment) -> None:
        self.record: RunRecord | None = None  # what was written last, and is durable
        self.resumed = experiment.resumed
        self._experiment = experiment
        self._host = socket.gethostname()
        self._speed = _Speed(experiment.trainer.rows_seen)
        self._metrics = _Metrics(experiment.run.metrics_path)
        self._written: RunRecord | None = None
        self._written_at = 0.0
        self._validation: Literal["none", "published", "left out"] = "none"

    def write(self, topic: ExperimentsTopic, *, ended: bool, error: BaseException | None) -> bool:
        """Write what has changed; return whether anything was written."""
        if self.record is not None and self.record.ended:
            return False
        experiment = self._experiment
        state, reason = _state_of(experiment, ended=ended, error=error)
        key = f"{experiment.config.name}/{experiment.run.record['id']}"
        chunks = self._metrics.read()
        for number, chunk in chunks:
            topic.write_metrics(key, number, chunk)
        if experiment.result is not None:
            self._validation = _write_validation(topic, key, experiment.run, experiment.result.metrics)
        record = self._record(state, reason)
        now = time.monotonic()
        if self.record is not None and _same(self.record, record) and now - self._written_at < BEAT_S:
            return bool(chunks)
        topic.write_run(record)
        self._written, self._written_at = record, now
        return True

    def confirm(self) -> None:
        """Take note that everything written is durable."""
        self._metrics.confirm()
        if self._written is not None:
            self.record, self._written = self._written, None

    def _record(self, state: State, reason: str | None) -> RunRecord:
        experiment = self._experiment
        config, plan, trainer, told = experiment.config, experiment.plan, experiment.trainer, experiment.run.record
        epoch, position = experiment.epoch, experiment.position
        begun = min(epoch + 1, config.epochs)
        if epoch >= config.epochs:
            position = Position(plan.segment(config.epochs - 1).stop)
        passes, rereads = plan.counts(begun)
        result = experiment.result
        speed = self._speed.now(trainer.rows_seen) if state == "running" else self._speed.overall(trainer.rows_seen)
        return RunRecord(
            name=config.name,
            id=told["id"],
            state=state,
            reason=reason,
            stream=config.stream,
            host=self._host,
            folder=str(experiment.run.folder.resolve()),
            started_at=told["started"],
            updated_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            finished_at=told["finished"],
            fingerprint=told["fingerprint"],
            validation_fingerprint=told["validation_fingerprint"],
            config=told["config"],
            start=Place(batch=plan.start.batch, row=plan.start.row),
            stop=plan.stop,
            position=Place(batch=position.batch, row=position.row),
            epoch=epoch,
            epochs=config.epochs,
            step=trainer.step_count,
            rows=trainer.rows_seen,
            batches=_batches(experiment, epoch, position),
            rows_per_s=speed,
            passes=passes,
            rereads=rereads,
            metrics=self._metrics.newest if result is None else dict(result.metrics),
            main_metric=trainer.main_metric if config.validate_stream is not None else None,
            metric_rows=self._metrics.rows,
            metric_chunks=self._metrics.chunks,
            validation=self._validation,
            lineage=told.get("lineage"),
        )


class _Metrics:
    """The rows of a metrics.jsonl as they come: what is not durable in the registry yet is read again.

    Attributes:
        rows: how many there are.
        chunks: how many chunks they lie in.
        newest: the metrics of the newest validation, or, before there is one, of the newest training row.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self.chunks = 0
        self.newest: dict[str, float | None] = {}
        self._validated = False
        self._path = path
        self._size = -1  # of the file when all of it was durable
        # Where the last chunk begins, which may still grow: its number, its first row and its first byte.
        self._open = (0, 0, 0)
        self._found: tuple[int, tuple[int, int, int]] | None = None

    def read(self) -> list[tuple[int, MetricsChunk]]:
        """Return the chunks that have changed, each with its number."""
        try:
            if self._path.stat().st_size == self._size:
                return []
            with self._path.open("rb") as file:
                file.seek(self._open[2])
                content = file.read()
        except OSError:
            return []  # the reporter that writes it has said what is wrong
        lines = content.split(b"\n")[:-1]  # what follows the last line feed is unfinished, or nothing
        rows = [json.loads(line) for line in lines]
        number, first, begin = self._open
        chunks = chunks_of(rows, first)
        if not chunks:
            return []
        closed = chunks[-1].first - first
        size = begin + len(content) - len(content.rsplit(b"\n", 1)[-1])
        self._found = (
            size,
            (number + len(chunks) - 1, first + closed, begin + sum(len(line) + 1 for line in lines[:closed])),
        )
        self.rows, self.chunks = first + len(rows), number + len(chunks)
        self._take_newest(rows)
        return list(enumerate(chunks, start=number))

    def confirm(self) -> None:
        """Take note that what was read last is durable."""
        if self._found is not None:
            self._size, self._open = self._found
            self._found = None

    def _take_newest(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            validated = row["kind"] == "validation"
            if validated or not self._validated:
                self._validated = validated
                self.newest = {
                    name: value
                    for name, value in row.items()
                    if name not in PLACE and (value is None or isinstance(value, (int, float)))
                }


class _Speed:
    """Rows a second: of the last seconds, and over all."""

    def __init__(self, rows: int) -> None:
        self._began = (time.monotonic(), rows)
        self._seen = deque([self._began])

    def now(self, rows: int) -> float | None:
        """Return the speed over the last seconds; None where there is nothing to measure yet."""
        now = time.monotonic()
        self._seen.append((now, rows))
        while len(self._seen) > 2 and now - self._seen[1][0] >= SPEED_S:
            self._seen.popleft()
        return _rate(self._seen[0], (now, rows))

    def overall(self, rows: int) -> float | None:
        """Return the speed since the beginning."""
        return _rate(self._began, (time.monotonic(), rows))


def _rate(one: tuple[float, int], other: tuple[float, int]) -> float | None:
    seconds = other[0] - one[0]
    return (other[1] - one[1]) / seconds if seconds > 0 else None


def _state_of(experiment: Experiment, *, ended: bool, error: BaseException | None) -> tuple[State, str | None]:
    if experiment.error is not None:
        return "diverged", str(experiment.error)
    if experiment.result is not None:
        return "finished", None
    if not ended:
        return "running", None
    if error is None or isinstance(error, KeyboardInterrupt):
        return "stopped", "interrupted"
    return "failed", str(error) if isinstance(error, FeatureStreamError) else f"{type(error).__name__}: {error}"


def _batches(experiment: Experiment, epoch: int, position: Position) -> int:
    """Return the batches read, from what each epoch reads."""
    plan, epochs = experiment.plan, experiment.config.epochs
    segments = [plan.segment(number) for number in range(min(epoch, epochs))]
    whole = sum(segment.stop - segment.start.batch for segment in segments)
    return whole if epoch >= epochs else whole + max(0, position.batch - plan.segment(epoch).start.batch)


def _write_validation(
    topic: ExperimentsTopic, key: str, run: Run, metrics: Mapping[str, float]
) -> Literal["none", "published", "left out"]:
    """Write how good a finished run is on every validation row, where there is any and it fits; return which."""
    fingerprint = run.record["validation_fingerprint"]
    if fingerprint is None or not (run.folder / SCORES_NAME).is_file():
        return "none"
    values, scores = {}, None
    for metric in metrics:
        try:
            scores = read_scores(run.folder, metric)
            values[metric] = scores.row_values()
        except FeatureStreamError:  # a metric whose rows have no values of their own: nothing can be paired by it
            continue
    if scores is None:
        return "none"
    found = pack_validation(fingerprint, scores.index, scores.label, values)
    if found is None:
        return "left out"
    topic.write_validation(key, found)
    return "published"


def _same(one: RunRecord, other: RunRecord) -> bool:
    passing = {"updated_at": "", "rows_per_s": None}
    return one.model_copy(update=passing) == other.model_copy(update=passing)

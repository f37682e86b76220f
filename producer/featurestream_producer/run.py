"""The producer, composed: a configuration and a log in, a published stream out.

::

    from featurestream.kafka import KafkaLog
    from featurestream.cluster import resolve_cluster
    from featurestream_producer.config import ProduceConfig
    from featurestream_producer.run import produce

    config = ProduceConfig(data="photos/", stream="photos", model="resnet18", taps=["avgpool"], passes=2)
    result = produce(config, KafkaLog(resolve_cluster()))
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from featurestream.errors import BrokerError, UsageError
from featurestream.layout import Layout
from featurestream.manifest import End, Manifest, PassRecord
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream.names import manifest_topic, tap_topic
from featurestream.ports import Log
from featurestream.progress import Progress
from featurestream.record import MissingSample
from featurestream.topics import tap_topic_settings
from featurestream_producer.config import ProduceConfig
from featurestream_producer.devices import loader_workers
from featurestream_producer.interrupts import stop_on_signals
from featurestream_producer.launch import END_S, Crew, Failed, start
from featurestream_producer.lease import HeldLease
from featurestream_producer.ledger import FinishedPass, Ledger
from featurestream_producer.pace import Pace
from featurestream_producer.pacer import Pacer
from featurestream_producer.plan import duration_text, size_text
from featurestream_producer.prepare import (
    Prepared,
    ReaderMaker,
    agreed,
    check_an_image,
    made_with,
    prepare,
    version_warnings,
)
from featurestream_producer.requests import RequestServer, Served, Unserved, requests_wait
from featurestream_producer.resume import PassSoFar, Tail, find_tail, fresh_tail, passes_so_far
from featurestream_producer.sampling import order_checksum, permutation
from featurestream_producer.worker import Done, Durable, Job, Sent, Stages

WAIT_LINE_S: Final = 5.0  # how long a producer waits for readers before a line says so
TICK_S: Final = 0.2  # how soon Ctrl-C and a lost lease are noticed
SHOWN_MISSING: Final = 3

WARNING: Final = "warning: "

Say = Callable[[str], None]
ShowProgress = Callable[[str, int | None, str], Progress]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of the producer did.

    Attributes:
        stream, fingerprint: what it published.
        batches, rows, bytes: what this run added: batches of which at least one tap was lacking, their rows, and the
            bytes of their records.
        missing: samples without rows, each counted once however often a pass met it.
        missing_ids: the ids of the first few of them.
        seconds: how long batches were made, from the first worker's start to the last one's end.
        images_per_s: rows a second of that time.
        stages: where the devices' threads spent it, in seconds, a mean over the workers.
        finished: a finite stream is complete now.
        interrupted: a signal ended the run; the stream can be gone on with.
        waited_s: seconds in which it waited for readers.
        unread: nobody read, and so the run ended (``idle`` stop).
        warnings: of retention that came near to what a reader has not read.
    """

    stream: str
    fingerprint: str
    batches: int
    rows: int
    missing: int
    missing_ids: tuple[str, ...]
    bytes: int
    seconds: float
    images_per_s: float
    stages: Stages
    finished: bool
    interrupted: bool
    waited_s: float = 0.0
    unread: bool = False
    warnings: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return the result as one JSON object."""
        return asdict(self)


def _to_log(line: str) -> None:
    _log.log(logging.WARNING if line.startswith(WARNING) else logging.INFO, line)


def produce(config: ProduceConfig, log: Log, *, say: Say = _to_log, progress: ShowProgress | None = None) -> Result:
    """Publish a stream, from nothing or from where it ends, until it is complete or a signal comes.

    ``say`` gets lines for people (by default Python's logging does); ``progress`` makes what shows the progress, such
    as the class :class:`~featurestream.progress.Progress` itself. In the main thread, SIGINT and SIGTERM end the run
    cleanly: what was computed is sent, and the result says ``interrupted``.

    Whatever happens, what was appended stays, and the same call goes on after it. Raises what
    :func:`~featurestream_producer.prepare.prepare` raises, and

    - StreamMismatchError: the stream exists and is another one
    - StreamBusyError: another producer holds the stream, or has taken it over
    - BrokerError: the log cannot be read or written
    - FeatureRangeError: a feature does not fit the dtype; nothing of its batch was published
    - DataError: no image can be decoded
    - OutsideError: a worker or loader process was killed
    """
    prepared = prepare(config)
    return publish(prepared, log, say=say, progress=progress)


def publish(prepared: Prepared, log: Log, *, say: Say, progress: ShowProgress | None = None) -> Result:
    """Publish what is prepared; see :func:`produce`."""
    stream = prepared.config.stream
    with ManifestTopic(log, stream) as topic:
        existing = _facts(log, topic, prepared)
        if (
            existing.manifest is not None
            and _is_finished(existing, agreed(existing.manifest, prepared))
            and not requests_wait(log, existing.manifest)
        ):
            say(f'stream "{stream}" is finished: {_passes(existing.manifest)}, {_batches(existing.manifest)}')
            return _nothing_done(existing.manifest)
        weights = prepared.backbone.weights
        say(f"{WARNING if weights.source == 'random' else ''}{weights.text()}")
        check_an_image(prepared)
        topic.create()
        with HeldLease(log, stream) as lease:
            lease.take(take_over=prepared.config.take_over, say=say)
            # What was read before the lease may be another producer's yesterday.
            return _Run(prepared, log, topic, lease, say).publish(progress)


def _facts(log: Log, topic: ManifestTopic, prepared: Prepared) -> StreamFacts:
    """Return what is known of the stream; refuse topics that are there without a manifest."""
    stream, topics = topic.stream, log.topics()
    facts = topic.read() if manifest_topic(stream) in topics else StreamFacts(stream)
    strays = [name for tap in prepared.manifest.taps if (name := tap_topic(stream, tap.name)) in topics]
    if facts.manifest is None and strays:
        raise UsageError(
            f'topic "{strays[0]}" exists, but there is no manifest of a stream "{stream}"',
            hint="it belongs to something else, or the manifest was deleted: delete the topic, or name the stream "
            "differently",
        )
    return facts


class _Run:
    """One run, under the stream's lease."""

    def __init__(self, prepared: Prepared, log: Log, topic: ManifestTopic, lease: HeldLease, say: Say) -> None:
        self._prepared = prepared
        self._log = log
        self._topic = topic
        self._lease = lease
        self._say = say
        self._stop = threading.Event()
        self._unread = False
        self._warnings: list[str] = []

    def publish(self, progress: ShowProgress | None) -> Result:
        """Publish what is left, from what the manifest's topic says now."""
        facts = _facts(self._log, self._topic, self._prepared)
        if facts.manifest is None:
            manifest = self._prepared.manifest
            self._topic.write_manifest(manifest)
            for line in self._prepared.plan(manifest).warnings():
                self._say(f"{WARNING}{line}")
            self._create_topics(manifest)
            return self._go_on(manifest, 0, fresh_tail(manifest), {}, progress)
        manifest = agreed(facts.manifest, self._prepared)
        config = self._prepared.config
        for line in version_warnings(facts.manifest, made_with(self._prepared.devices[0])):
            self._say(f"{WARNING}{line}")
        if config.given("retention_ms") or config.given("retention_bytes"):
            self._say(f"{WARNING}the stream's topics exist and keep the retention that they were created with")
        self._create_topics(manifest)  # the producer that wrote the manifest may have died before it did
        finished = next(number for number in range(len(facts.passes) + 1) if number not in facts.passes)
        source = self._log.source()
        try:
            tail = find_tail(source, manifest, finished)
            so_far = passes_so_far(source, manifest, tail, finished)
        finally:
            source.close()
        if facts.manifest.passes != manifest.passes:
            self._change_passes(manifest, tail, facts)
        return self._go_on(manifest, finished, tail, so_far, progress)

    def _create_topics(self, manifest: Manifest) -> None:
        config = self._prepared.config
        settings = tap_topic_settings(
            retention_ms=config.retention_ms, retention_bytes=config.retention_bytes, lanes=manifest.lanes
        )
        for tap in manifest.taps:
            self._log.create_topic(tap_topic(manifest.stream, tap.name), manifest.lanes, settings)

    def _change_passes(self, manifest: Manifest, tail: Tail, facts: StreamFacts) -> None:
        """Write the manifest with another number of passes; UsageError where more is there already."""
        begun = manifest.layout.pass_of(tail.untouched - 1) + 1 if tail.untouched else 0
        if manifest.passes is not None and manifest.passes < begun:
            raise UsageError(
                f'stream "{manifest.stream}" cannot have {_passes(manifest)}: it has begun {begun} already',
                hint=f"--passes {begun} ends it after what is there; a smaller stream needs a name of its own",
            )
        self._topic.write_manifest(manifest)
        if facts.end is not None:
            self._topic.write_end(None)
        self._say(f'stream "{manifest.stream}" now has {_passes(manifest)}')

    def _pace(self, manifest: Manifest) -> Pace:
        config = self._prepared.config
        return Pace(config.ahead, config.idle or ("pause" if manifest.passes is None else "run"))

    def _jobs(self, manifest: Manifest, tail: Tail) -> list[Job]:
        prepared = self._prepared
        devices = prepared.devices
        return [
            Job(
                manifest=manifest,
                tail=tail,
                dataset=prepared.dataset,
                transform=prepared.transform,
                index=index,
                workers=len(devices),
                device=device,
                loader_workers=loader_workers(device, len(devices), os.cpu_count() or 1)
                if prepared.config.workers is None
                else prepared.config.workers,
                paced=not self._pace(manifest).free,
            )
            for index, device in enumerate(devices)
        ]

    def _go_on(
        self,
        manifest: Manifest,
        finished_passes: int,
        tail: Tail,
        so_far: Mapping[int, PassSoFar],
        progress: ShowProgress | None,
    ) -> Result:
        """Publish what the tail lacks, and keep the accounts."""
        jobs = self._jobs(manifest, tail)
        ledger = Ledger.open(manifest.layout, finished_passes, [job.durable_below for job in jobs], so_far)
        self._record(manifest, ledger.finished(), self._say)
        left = None if manifest.passes is None else _images_left(manifest, tail)
        if left == 0:
            self._serve_requests(jobs[0])
            return self._result(manifest, ledger, Stages(), 0.0)
        if tail.untouched:
            at = tail.first_lacking
            self._say(f'stream "{manifest.stream}" goes on at batch {at} (pass {manifest.layout.pass_of(at)})')
        began = time.perf_counter()
        crew = start(jobs, self._log, ReaderMaker(self._prepared.config) if len(jobs) > 1 else self._own_reader)
        try:
            with stop_on_signals(self._stop), self._pacer(manifest, tail) as pacer, crew:
                if progress is None:
                    stages = self._listen(manifest, jobs, ledger, _Pacing(pacer, crew, self._say, None))
                else:
                    with progress(manifest.stream, left, "img") as shown:
                        stages = self._listen(manifest, jobs, ledger, _Pacing(pacer, crew, shown.say, shown))
        except BrokerError as error:
            raise BrokerError(
                error.message,
                hint=f"{error.hint}; batches below {ledger.safe_below} are safe on the log, and perhaps later ones: "
                "the same command goes on where the stream ends",
                **error.facts,
            ) from error
        seconds = time.perf_counter() - began - pacer.waited_s
        return self._result(manifest, ledger, stages, seconds, waited_s=pacer.waited_s)

    def _serve_requests(self, job: Job) -> None:
        """Publish what is requested of a stream that has nothing left to publish."""
        alone = len(self._prepared.devices) == 1
        reader = self._own_reader(job) if alone else ReaderMaker(self._prepared.config)(job)
        with RequestServer(job, self._log, lambda event: self._say(_request_line(event))) as server:
            server.finish(reader, self._stop)

    def _pacer(self, manifest: Manifest, tail: Tail) -> Pacer:
        plan, layout = self._prepared.plan(manifest), manifest.layout
        sizes = {tap.name: plan.tap_pass_bytes(tap) / layout.pass_batches for tap in plan.taps}
        return Pacer(self._pace(manifest), manifest, self._log, batch_bytes=sizes, next_batch=tail.untouched)

    def _own_reader(self, _job: Job) -> Any:
        return self._prepared.reader

    def _listen(self, manifest: Manifest, jobs: list[Job], ledger: Ledger, pacing: _Pacing) -> Stages:
        """Keep the accounts until every worker has ended; raise what the first one failed with."""
        crew, shown = pacing.crew, pacing.shown
        running = {job.index for job in jobs}
        stages: list[Stages] = []
        failure: BaseException | None = None
        deadline = float("inf")
        began = time.perf_counter()
        while running and time.monotonic() < deadline:
            event = crew.next_event(TICK_S)
            if failure is None:
                self._lease.check()
                self._steer(pacing)
            match event:
                case Sent():
                    pacing.next_batch = max(pacing.next_batch, event.batch + 1)
                    ledger.sent(event.batch, rows=event.rows, size=event.size, missing=event.missing, at_ms=event.at_ms)
                    if shown is not None:
                        speed = ledger.bytes / max(time.perf_counter() - began, 1e-9)
                        images = event.rows + len(event.missing) * manifest.views
                        shown.advance(images, rate=f"{size_text(speed)}/s")
                case Durable():
                    self._record(manifest, ledger.is_durable(event.worker, event.below), pacing.say)
                case Served() | Unserved():
                    pacing.say(_request_line(event))
                case Done():
                    running.discard(event.worker)
                    stages.append(event.stages)
                case Failed():
                    running.discard(event.worker)
                    if failure is None:
                        failure = event.error
                        deadline = time.monotonic() + END_S
                        crew.stop()
        if failure is not None:
            raise failure
        self._warn(pacing)
        return _mean(stages)

    def _steer(self, pacing: _Pacing) -> None:
        """Ask the workers to end, or tell them how far readers let them go."""
        if self._stop.is_set():
            pacing.crew.stop()
        else:
            self._unread = pacing.step() or self._unread
            self._warn(pacing)

    def _warn(self, pacing: _Pacing) -> None:
        for warning in pacing.pacer.warnings():
            pacing.say(f"{WARNING}{warning.text}")
            self._warnings.append(warning.text)
            self._topic.write_retention_warning(warning)

    def _record(self, manifest: Manifest, finished: list[FinishedPass], say: Say) -> None:
        for done in finished:
            layout = manifest.layout
            if done.gone:
                say(
                    f"{WARNING}{done.gone} batches of pass {done.number} were deleted by retention before it was "
                    "finished: samples that were missing in them are not counted"
                )
            started = datetime.fromtimestamp((done.started_ms or time.time() * 1000) / 1000, UTC)
            self._topic.write_pass(
                PassRecord(
                    number=done.number,
                    samples=layout.samples - done.missing,
                    missing=done.missing,
                    first_batch=layout.pass_start(done.number),
                    last_batch=layout.pass_start(done.number + 1) - 1,
                    started_at=started.isoformat(timespec="milliseconds"),
                    finished_at=_now(),
                    order_checksum=order_checksum(permutation(manifest.seed, done.number, layout.samples)),
                )
            )

    def _result(
        self, manifest: Manifest, ledger: Ledger, stages: Stages, seconds: float, *, waited_s: float = 0.0
    ) -> Result:
        """Return what was done, and say it; write that the stream is complete where it is."""
        total = manifest.total_batches
        finished = total is not None and ledger.safe_below >= total
        if finished and total is not None and manifest.passes is not None:
            self._topic.write_end(End(passes=manifest.passes, batches=total, at=_now()))
        missing = list(ledger.missing.values())
        result = Result(
            stream=manifest.stream,
            fingerprint=manifest.fingerprint,
            batches=ledger.batches,
            rows=ledger.rows,
            missing=len(missing),
            missing_ids=tuple(sample.id for sample in missing[:SHOWN_MISSING]),
            bytes=ledger.bytes,
            seconds=seconds,
            images_per_s=ledger.rows / seconds if seconds > 0 else 0.0,
            stages=stages,
            finished=finished,
            interrupted=self._stop.is_set() and not finished,
            waited_s=waited_s,
            unread=self._unread and not finished,
            warnings=tuple(self._warnings),
        )
        self._say(_summary(result))
        if missing:
            self._say(_missing_line(missing))
        if result.interrupted or result.unread:
            self._say(
                f"{'nobody reads' if result.unread else 'stopped'}: everything that was sent is safe; the same command "
                f'goes on with stream "{manifest.stream}" at batch {ledger.safe_below}'
            )
        return result


class _Pacing:
    """What one run's loop does with the pacer's verdicts: the workers' bounds, and what people see."""

    def __init__(self, pacer: Pacer, crew: Crew, say: Say, shown: Progress | None) -> None:
        self.next_batch = pacer.next_batch
        self.pacer = pacer
        self.crew = crew
        self.say = say
        self.shown = shown
        self._allowed: int | None = 0  # as the bounds are at first
        self._waiting_since: float | None = None
        self._said = False

    def step(self) -> bool:
        """Pass on how far the workers may go; tell whether the run is to end because nobody reads."""
        if self.pacer.pace.free:
            return False
        verdict = self.pacer.verdict(self.next_batch)
        if verdict.below != self._allowed:
            self._allowed = verdict.below
            self.crew.allow(verdict.below)
        if verdict.action == "go":
            self._waiting_since, self._said = None, False
            return False
        if verdict.action == "stop":
            self.crew.stop()
            return True
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        if self.shown is not None:
            self.shown.note(verdict.text)
        if not self._said and now - self._waiting_since >= WAIT_LINE_S:
            self.say(f"{verdict.text}; Ctrl-C ends it, --idle run and a larger --ahead go on without")
            self._said = True
        return False


def _is_finished(facts: StreamFacts, manifest: Manifest) -> bool:
    return facts.end is not None and manifest.passes == facts.end.passes


def _nothing_done(manifest: Manifest) -> Result:
    return Result(
        manifest.stream, manifest.fingerprint, 0, 0, 0, (), 0, 0.0, 0.0, Stages(), finished=True, interrupted=False
    )


def _images_left(manifest: Manifest, tail: Tail) -> int:
    layout, total = manifest.layout, manifest.total_batches or 0
    begun = sum(layout.rows_of(batch) for batch in tail.to_publish(range(layout.lanes), min(tail.untouched, total)))
    return begun + _images_below(layout, total) - _images_below(layout, min(tail.untouched, total))


def _images_below(layout: Layout, batch: int) -> int:
    whole = layout.pass_of(batch) * layout.samples
    return (whole + layout.sample_range(batch).start) * layout.views


def _mean(stages: list[Stages]) -> Stages:
    count = max(len(stages), 1)
    return Stages(
        sum(one.data_s for one in stages) / count,
        sum(one.forward_s for one in stages) / count,
        sum(one.send_s for one in stages) / count,
        sum(one.sending_s for one in stages) / count,
    )


def _summary(result: Result) -> str:
    stages = result.stages
    all_s = max(stages.data_s + stages.forward_s + stages.send_s, 1e-9)
    return (
        f"published {result.rows:,} rows in {result.batches:,} batches ({size_text(result.bytes)}) "
        f"in {duration_text(result.seconds)}: {result.images_per_s:,.0f} images/s; the device's time: "
        f"waiting for images {stages.data_s / all_s:.0%}, computing {stages.forward_s / all_s:.0%}, "
        f"waiting for Kafka {stages.send_s / all_s:.0%}"
        + (f"; {duration_text(result.waited_s)} more in which it waited for readers" if result.waited_s else "")
    )


def _missing_line(missing: list[MissingSample]) -> str:
    shown = "; ".join(f"{sample.id} ({sample.reason})" for sample in missing[:SHOWN_MISSING])
    more = f"; and {len(missing) - SHOWN_MISSING} more" if len(missing) > SHOWN_MISSING else ""
    count = "1 image" if len(missing) == 1 else f"{len(missing):,} images"
    return f"{WARNING}{count} could not be decoded, and got no rows: {shown}{more}"


def _request_line(event: Served | Unserved) -> str:
    if isinstance(event, Unserved):
        return f"{WARNING}requests are not served: {event.reason}"
    missing = f", {event.missing} without an image that can be decoded" if event.missing else ""
    return f"requested: {event.rows} rows{missing}, as batch {event.batch} of stream {event.stream}"


def _passes(manifest: Manifest) -> str:
    if manifest.passes is None:
        return "passes without end"
    return "1 pass" if manifest.passes == 1 else f"{manifest.passes} passes"


def _batches(manifest: Manifest) -> str:
    return f"{manifest.total_batches:,} batches" if manifest.total_batches is not None else "endless"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

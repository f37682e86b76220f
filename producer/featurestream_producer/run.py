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
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from featurestream.errors import BrokerError, StreamMismatchError, StreamNotFoundError, UsageError
from featurestream.interrupts import stop_on_signals
from featurestream.layout import Layout
from featurestream.logs import WARNING, Line
from featurestream.manifest import Manifest
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream.names import manifest_topic, tap_topic
from featurestream.ports import Log, RecordSource
from featurestream.progress import Progress
from featurestream.record import MissingSample
from featurestream.seek import Lanes
from featurestream.telemetry import Telemetry
from featurestream.topics import tap_topic_settings
from featurestream_producer.config import ProduceConfig
from featurestream_producer.contact import ContactWatch
from featurestream_producer.data_changes import find_changes, find_image_changes
from featurestream_producer.devices import loader_workers
from featurestream_producer.distance import Distance, LaneEnds
from featurestream_producer.health_watch import HealthWatch
from featurestream_producer.launch import END_S, Crew, Failed, start
from featurestream_producer.lease import HeldLease
from featurestream_producer.ledger import Ledger
from featurestream_producer.monitor import Monitor
from featurestream_producer.pace import Pace
from featurestream_producer.pacer import Pacer
from featurestream_producer.pass_records import PassRecorder
from featurestream_producer.plan import duration_text, size_text
from featurestream_producer.prepare import (
    Prepared,
    ReaderMaker,
    agreed,
    check_an_image,
    made_with,
    prepare,
    ready,
    version_warnings,
)
from featurestream_producer.ranks import Rank
from featurestream_producer.requests import RequestServer, Served, Unserved, requests_wait
from featurestream_producer.resume import PassSoFar, Tail, find_tail, fresh_tail, passes_so_far, reaches_end
from featurestream_producer.stages import RecentStages, Stages, mean
from featurestream_producer.taps import TapReader
from featurestream_producer.worker import Done, Durable, Job, Ready, Sent

WAIT_LINE_S: Final = 5.0  # how long a producer waits for readers before a line says so
TICK_S: Final = 0.2  # how soon Ctrl-C and a lost lease are noticed
CREATE_LOOK_S: Final = 0.5  # how soon a rank notices that the stream was created
SHOWN_MISSING: Final = 3

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
        warnings: what was conspicuous at the inputs and the features, and of retention that came near to what a reader
            has not read.
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


def produce(
    config: ProduceConfig,
    log: Log,
    *,
    say: Say = _to_log,
    progress: ShowProgress | None = None,
    rank: Rank | None = None,
) -> Result:
    """Publish a stream, from nothing or from where it ends, until it is complete or a signal comes.

    ``say`` gets lines for people (by default Python's logging does); ``progress`` makes what shows the progress, such
    as the class :class:`~featurestream.progress.Progress` itself. In the main thread, SIGINT and SIGTERM end the run
    cleanly: what was computed is sent, and the result says ``interrupted``. Of several ranks (``rank``; by default what
    torchrun's environment says) each publishes the lanes that are its own.

    Whatever happens, what was appended stays, and the same call goes on after it. Raises what
    :func:`~featurestream_producer.prepare.prepare` raises, and

    - StreamMismatchError: the stream exists and is another one
    - StreamBusyError: another producer holds the stream, or has taken it over
    - BrokerError: the log cannot be read or written
    - FeatureRangeError: a feature does not fit the dtype; nothing of its batch was published
    - DataError: no image can be decoded
    - OutsideError: a worker or loader process was killed
    """
    prepared = prepare(config, rank)
    return publish(prepared, log, say=say, progress=progress)


def publish(
    prepared: Prepared,
    log: Log,
    *,
    say: Say,
    progress: ShowProgress | None = None,
    telemetry: Telemetry | None = None,
) -> Result:
    """Publish what is prepared; see :func:`produce`. ``telemetry`` takes what can be said of the run while it lasts."""
    stream = prepared.config.stream
    with ManifestTopic(log, stream) as topic:
        existing = _facts(log, topic, prepared)
        if (
            existing.manifest is not None
            and _is_finished(existing, _agreed(existing.manifest, prepared, log, say))
            and not requests_wait(log, existing.manifest)
            and _is_whole(log, existing.manifest, say)
        ):
            say(f'stream "{stream}" is finished: {_passes(existing.manifest)}, {_batches(existing.manifest)}')
            return _nothing_done(existing.manifest)
        weights = prepared.backbone.weights
        say(f"{WARNING if weights.source == 'random' else ''}{weights.text()}")
        check_an_image(prepared)
        topic.create()
        with HeldLease(log, stream, rank=prepared.rank) as lease:
            lease.take(take_over=prepared.config.take_over, say=say)
            # What was read before the lease may be another producer's yesterday.
            return _Run(prepared, log, topic, lease, say=say, telemetry=telemetry).publish(progress)


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


def _agreed(existing: Manifest, prepared: Prepared, log: Log, say: Say) -> Manifest:
    """Return what :func:`agreed` does; where the data set has changed, the error also says which samples have."""
    try:
        return agreed(existing, prepared)
    except StreamMismatchError as error:
        if existing.data.sha256 == prepared.manifest.data.sha256:
            raise
        say("the data set is another than the stream's: looking into the stream which samples have changed")
        source = log.source()
        try:
            changes = find_changes(source, existing, prepared.dataset)
        finally:
            source.close()
        known = "" if changes.known == existing.data.samples else f" (the log tells of {changes.known:,} samples)"
        what = changes.text() or "no difference in what the log still holds"
        raise StreamMismatchError(
            f"{error.message}; samples{known}: {what}",
            hint="a stream's data set is fixed: restore it, or name the new stream differently",
            **error.facts,
        ) from error


class _Run:
    """One run, under the stream's lease."""

    def __init__(
        self,
        prepared: Prepared,
        log: Log,
        topic: ManifestTopic,
        lease: HeldLease,
        *,
        say: Say,
        telemetry: Telemetry | None,
    ) -> None:
        self._prepared = prepared
        self._telemetry = telemetry
        self._log = log
        self._topic = topic
        self._lease = lease
        self._say = say
        self._stop = threading.Event()
        self._facts = StreamFacts(topic.stream)
        self._unread = False
        self._warnings: list[str] = []

    def publish(self, progress: ShowProgress | None) -> Result:
        """Publish what is left, from what the manifest's topic says now."""
        rank = self._prepared.rank
        facts = _facts(self._log, self._topic, self._prepared)
        waited = facts.manifest is None and rank.number > 0
        if waited:
            facts = self._wait_for_manifest()
        self._facts = facts
        if facts.manifest is None:
            manifest = self._prepared.manifest
            self._topic.write_manifest(manifest)
            for line in self._prepared.plan(manifest).warnings():
                self._say(f"{WARNING}{line}")
            self._create_topics(manifest)
            return self._go_on(manifest, 0, fresh_tail(manifest, rank.lanes(manifest.lanes)), {}, progress)
        manifest = agreed(facts.manifest, self._prepared)
        config = self._prepared.config
        for line in version_warnings(facts.manifest, made_with(self._prepared.devices[0])):
            self._say(f"{WARNING}{line}")
        if not waited and (config.given("retention_ms") or config.given("retention_bytes")):
            self._say(f"{WARNING}the stream's topics exist and keep the retention that they were created with")
        self._create_topics(manifest)  # the producer that wrote the manifest may have died before it did
        finished = next(number for number in range(len(facts.passes) + 1) if number not in facts.passes)
        source = self._log.source()
        try:
            if facts.manifest.passes != manifest.passes:
                topics = [tap_topic(manifest.stream, tap.name) for tap in manifest.taps]
                self._change_passes(manifest, Lanes(source, manifest.layout, topics).after_end(), facts)
            tail = find_tail(source, manifest, finished, rank.lanes(manifest.lanes))
            self._check_images(source, facts.manifest)
            so_far = passes_so_far(source, manifest, tail, finished)
        finally:
            source.close()
        return self._go_on(manifest, finished, tail, so_far, progress)

    def _check_images(self, source: RecordSource, manifest: Manifest) -> None:
        """Raise StreamMismatchError where images at the end of the stream are no longer what they were.

        Where a library that decodes or resizes is another one now, that is why, and a line says so.
        """
        prepared = self._prepared
        lanes = prepared.rank.lanes(manifest.lanes)
        changes = find_image_changes(source, manifest, prepared.dataset, prepared.transform, lanes)
        if not changes.repeatable:
            self._say(f"{WARNING}the transform makes another image each time: rows of this stream cannot be repeated")
        elif changes.changed and version_warnings(manifest, made_with(prepared.devices[0])):
            self._say(f"{WARNING}{changes.text()}; libraries are others than when the stream was begun, see above")
        elif changes.changed:
            raise StreamMismatchError(
                f'the images of stream "{manifest.stream}" have changed under their names: {changes.text()}',
                hint="bring the files back as they were, or name the new stream differently",
            )

    def _wait_for_manifest(self) -> StreamFacts:
        """Return the facts of a stream that rank 0 creates: one rank does, or two might make two different ones."""
        self._say("waiting for rank 0 to create the stream")
        while True:
            facts = _facts(self._log, self._topic, self._prepared)
            if facts.manifest is not None:
                return facts
            self._lease.check()
            time.sleep(CREATE_LOOK_S)

    def _create_topics(self, manifest: Manifest) -> None:
        config = self._prepared.config
        settings = tap_topic_settings(
            retention_ms=config.retention_ms, retention_bytes=config.retention_bytes, lanes=manifest.lanes
        )
        for tap in manifest.taps:
            self._log.create_topic(tap_topic(manifest.stream, tap.name), manifest.lanes, settings)

    def _change_passes(self, manifest: Manifest, after_end: int, facts: StreamFacts) -> None:
        """Write the manifest with another number of passes; UsageError where more is there already.

        ``after_end`` is one more than the greatest batch on the log.
        """
        begun = max([0, *(number + 1 for number in facts.passes)])
        if after_end:
            begun = max(begun, manifest.layout.pass_of(after_end - 1) + 1)
        if manifest.passes is not None and manifest.passes < begun:
            raise UsageError(
                f'stream "{manifest.stream}" cannot have {_passes(manifest)}: it has begun {begun} already',
                hint=f"--passes {begun} ends it after what is there; a smaller stream needs a name of its own",
            )
        if self._prepared.rank.number > 0:
            return  # rank 0 writes it
        self._topic.write_manifest(manifest)
        if facts.end is not None:
            self._topic.write_end(None)
        self._say(f'stream "{manifest.stream}" now has {_passes(manifest)}')

    def _pace(self, manifest: Manifest) -> Pace:
        config = self._prepared.config
        return Pace(config.ahead, config.idle or ("pause" if manifest.passes is None else "run"))

    def _jobs(self, manifest: Manifest, tail: Tail) -> list[Job]:
        prepared = self._prepared
        devices, rank = prepared.devices, prepared.rank
        return [
            Job(
                manifest=manifest,
                tail=tail,
                dataset=prepared.dataset,
                transform=prepared.transform,
                index=rank.number + place * rank.size,  # no two workers of all ranks have the same
                workers=len(devices) * rank.size,
                device=device,
                loader_workers=loader_workers(device, len(devices) * rank.local_size, os.cpu_count() or 1)
                if prepared.config.workers is None
                else prepared.config.workers,
                expected=prepared.backbone.preset if prepared.backbone.preset_known else None,
                paced=not self._pace(manifest).free,
            )
            for place, device in enumerate(devices)
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
        ledger = Ledger.open(manifest.layout, finished_passes, {job.index: job.durable_below for job in jobs}, so_far)
        recorder = PassRecorder(self._topic, manifest, self._prepared.rank)
        recorder.record(ledger.finished(), self._say)
        left = None if manifest.passes is None else _images_left(manifest, tail)
        if left == 0:
            self._serve_requests(jobs[0])
            return self._result(manifest, ledger, recorder, Stages())
        if tail.untouched:
            at = tail.first_lacking
            number = manifest.layout.pass_of(at)
            line = f'stream "{manifest.stream}" goes on at batch {at} (pass {number})'
            self._say(Line(line, batch=at, **{"pass": number}))
        began = time.perf_counter()
        try:
            with ExitStack() as stack:
                distance = self._distance(manifest, finished_passes, jobs, stack)
                if distance is not None:
                    jobs = [replace(job, limit=distance.limit) for job in jobs]
                make_reader = ReaderMaker(self._prepared.config) if len(jobs) > 1 else self._own_reader
                stack.enter_context(stop_on_signals(self._stop))
                pacer = stack.enter_context(self._pacer(manifest, tail))
                crew = stack.enter_context(start(jobs, self._log, make_reader))
                shown = None if progress is None else stack.enter_context(progress(self._title, left, "img"))
                pacing = _Pacing(pacer, crew, self._say if shown is None else shown.say, shown)
                stack.enter_context(ContactWatch(lambda: self._lease.silent_s, pacing.say))
                monitor = Monitor(manifest, ledger, pacer, lambda: self._lease.silent_s)
                if self._telemetry is not None:
                    self._telemetry.add(monitor.samples)
                stages = self._listen(
                    manifest, jobs, ledger=ledger, recorder=recorder, distance=distance, pacing=pacing, monitor=monitor
                )
        except BrokerError as error:
            raise BrokerError(
                error.message,
                hint=f"{error.hint}; batches below {ledger.safe_below}{self._where} are safe on the log, and perhaps "
                "later ones: the same command goes on where the stream ends",
                **error.facts,
            ) from error
        seconds = time.perf_counter() - began - pacer.waited_s
        return self._result(manifest, ledger, recorder, stages, seconds=seconds, waited_s=pacer.waited_s)

    def _distance(
        self, manifest: Manifest, finished_passes: int, jobs: Sequence[Job], stack: ExitStack
    ) -> Distance | None:
        """Return the bound among all workers of the stream; None where there is only one. ``stack`` ends its looks."""
        rank, total = self._prepared.rank, manifest.total_batches
        if len(jobs) == 1 and rank.alone:
            return None
        left = {job.index: job.tail.to_publish(job.lanes, total) for job in jobs}
        if rank.alone:
            return Distance(manifest.layout, total, left)
        own = frozenset(rank.lanes(manifest.lanes))
        others = [lane for lane in range(manifest.lanes) if lane not in own]
        topic = tap_topic(manifest.stream, manifest.taps[0].name)
        ends = LaneEnds(self._log.source(), manifest.layout, topic, others, finished_passes)
        stack.enter_context(ends)
        return Distance(manifest.layout, total, left, lambda: ends.next_batch)

    @property
    def _title(self) -> str:
        rank, stream = self._prepared.rank, self._prepared.config.stream
        return stream if rank.alone else f"{stream}, {rank}"

    @property
    def _where(self) -> str:
        rank = self._prepared.rank
        return "" if rank.alone else f" in the lanes of {rank}"

    def _serve_requests(self, job: Job) -> None:
        """Publish what is requested of a stream that has nothing left to publish."""
        if job.index:  # another rank serves
            return
        alone = len(self._prepared.devices) == 1
        reader = self._own_reader(job) if alone else ReaderMaker(self._prepared.config)(job)
        with RequestServer(job, self._log, lambda event: self._say(_request_line(event))) as server:
            server.finish(reader, self._stop)

    def _pacer(self, manifest: Manifest, tail: Tail) -> Pacer:
        plan, layout = self._prepared.plan(manifest), manifest.layout
        sizes = {tap.name: plan.tap_pass_bytes(tap) / layout.pass_batches for tap in plan.taps}
        return Pacer(self._pace(manifest), manifest, self._log, batch_bytes=sizes, next_batch=tail.untouched)

    def _own_reader(self, job: Job) -> TapReader:
        return ready(self._prepared.reader, job.manifest)

    def _listen(
        self,
        manifest: Manifest,
        jobs: list[Job],
        *,
        ledger: Ledger,
        recorder: PassRecorder,
        distance: Distance | None,
        pacing: _Pacing,
        monitor: Monitor,
    ) -> Stages:
        """Keep the accounts until every worker has ended; raise what the first one failed with."""
        crew, shown = pacing.crew, pacing.shown
        running = {job.index for job in jobs}
        stages: list[Stages] = []
        failure: BaseException | None = None
        deadline = float("inf")
        say = self._say if shown is None else shown.say
        health = HealthWatch(self._topic, manifest, self._facts, jobs, lambda line: say(f"{WARNING}{line}"))
        began, recent = time.perf_counter(), RecentStages()
        while running and time.monotonic() < deadline:
            event = crew.next_event(TICK_S)
            if failure is None:
                self._lease.check()
                self._steer(pacing, monitor)
            match event:
                case Ready():
                    health.begin(event)
                case Sent():
                    health.see(event)
                    monitor.see(event)
                    if distance is not None:
                        distance.sent(event.worker)
                    pacing.sent(event.batch)
                    ledger.sent(event.batch, rows=event.rows, size=event.size, missing=event.missing, at_ms=event.at_ms)
                    images = event.rows + len(event.missing) * manifest.views
                    recent.see(event.worker, event.stages)
                    _advance(shown, images, ledger.bytes / max(time.perf_counter() - began, 1e-9), recent.mean())
                case Durable():
                    recorder.record(ledger.is_durable(event.worker, event.below), pacing.say)
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
            if distance is not None:
                crew.open_to(distance.limit)
                self._tell_overdue(distance, say)
        self._close_health(health, failure)
        if failure is not None:
            raise failure
        self._warn(pacing, monitor)
        return mean(stages)

    def _close_health(self, health: HealthWatch, failure: BaseException | None) -> None:
        if not isinstance(failure, BrokerError):  # a log that is gone takes no facts
            health.write()
        self._warnings += health.warnings

    def _tell_overdue(self, distance: Distance, say: Say) -> None:
        lane = distance.overdue(time.monotonic())
        if lane is not None:
            rank = self._prepared.rank
            say(
                f"waiting for rank {lane % rank.size} of {rank.size}: its lanes are behind, and do not move; if it has "
                "ended, its command goes on where they end"
            )

    def _steer(self, pacing: _Pacing, monitor: Monitor) -> None:
        """Ask the workers to end, or tell them how far readers let them go."""
        if self._stop.is_set():
            pacing.crew.stop()
        else:
            self._unread = pacing.step() or self._unread
            self._warn(pacing, monitor)

    def _warn(self, pacing: _Pacing, monitor: Monitor) -> None:
        for warning in pacing.pacer.warnings():
            monitor.warnings += 1
            facts = warning.model_dump(include={"reader", "batch", "tap", "share", "by"})
            pacing.say(Line(f"{WARNING}{warning.text}", **facts))
            self._warnings.append(warning.text)
            self._topic.write_retention_warning(warning)

    def _result(
        self,
        manifest: Manifest,
        ledger: Ledger,
        recorder: PassRecorder,
        stages: Stages,
        *,
        seconds: float = 0.0,
        waited_s: float = 0.0,
    ) -> Result:
        """Return what was done, and say it; write that the stream is complete where it is."""
        total, rank = manifest.total_batches, self._prepared.rank
        done = total is not None and ledger.safe_below >= total
        finished = done and recorder.end()
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
            interrupted=self._stop.is_set() and not done,
            waited_s=waited_s,
            unread=self._unread and not done,
            warnings=tuple(self._warnings),
        )
        self._say(Line(_summary(result), **_counts(result)))
        if missing:
            ids = [sample.id for sample in missing[:SHOWN_MISSING]]
            self._say(Line(_missing_line(missing), missing=len(missing), ids=ids))
        if done and not finished:
            self._say(f"{rank} has published its lanes; the stream is complete when the other ranks have")
        if result.interrupted or result.unread:
            why = "nobody reads" if result.unread else "stopped"
            line = (
                f"{why}: everything that was sent is safe; the same command goes on with stream "
                f'"{manifest.stream}" at batch {ledger.safe_below}{self._where}'
            )
            self._say(Line(line, batch=ledger.safe_below))
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

    def sent(self, batch: int) -> None:
        """Take note of a batch that was sent."""
        self.next_batch = self.pacer.next_batch = max(self.next_batch, batch + 1)

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


def _is_whole(log: Log, manifest: Manifest, say: Say) -> bool:
    """Tell whether the log still holds what the stream's end says; say so where it does not."""
    source = log.source()
    try:
        if reaches_end(source, manifest):
            return True
        what = "batches at its end"
    except StreamNotFoundError as error:
        what = error.message
    finally:
        source.close()
    say(f'{WARNING}stream "{manifest.stream}" was complete, and the log has lost {what}: they are published again')
    return False


def _nothing_done(manifest: Manifest) -> Result:
    return Result(
        manifest.stream, manifest.fingerprint, 0, 0, 0, (), 0, 0.0, 0.0, Stages(), finished=True, interrupted=False
    )


def _images_left(manifest: Manifest, tail: Tail) -> int:
    layout, total = manifest.layout, manifest.total_batches or 0
    begun = min(tail.untouched, total)
    there = sum(layout.rows_of(batch) for batch in tail.to_publish(tail.lanes, begun))
    return there + _images_in(layout, tail.lanes, range(begun, total))


def _images_in(layout: Layout, lanes: Sequence[int], batches: range) -> int:
    """Return the rows of those of some batches that lie in some lanes."""
    count = sum(len(range(layout.next_in_lane(lane, batches.start), batches.stop, layout.lanes)) for lane in lanes)
    lasts = range(layout.pass_batches - 1, batches.stop, layout.pass_batches)  # of each pass: they may be smaller
    smaller = sum(last >= batches.start and layout.lane_of(last) in lanes for last in lasts)
    lacking = layout.pass_batches * layout.batch_samples - layout.samples
    return (count * layout.batch_samples - smaller * lacking) * layout.views


def _advance(shown: Progress | None, images: int, bytes_per_s: float, stages: Stages) -> None:
    if shown is not None:
        facts = {"rate": f"{size_text(bytes_per_s)}/s", "stages": stages.brief()}
        shown.advance(images, **{name: text for name, text in facts.items() if text})


def _summary(result: Result) -> str:
    return (
        f"published {result.rows:,} rows in {result.batches:,} batches ({size_text(result.bytes)}) "
        f"in {duration_text(result.seconds)}: {result.images_per_s:,.0f} images/s; the device's time: "
        f"{result.stages.text() or 'none'}"
        + (f"; {duration_text(result.waited_s)} more in which it waited for readers" if result.waited_s else "")
    )


def _counts(result: Result) -> dict[str, Any]:
    """Return what the summary says, as data."""
    facts = result.facts()
    names = ("batches", "rows", "bytes", "missing", "seconds", "images_per_s", "stages", "waited_s", "finished")
    return {name: facts[name] for name in names}


def _missing_line(missing: list[MissingSample]) -> str:
    shown = "; ".join(f"{sample.id} ({sample.reason})" for sample in missing[:SHOWN_MISSING])
    more = f"; and {len(missing) - SHOWN_MISSING} more" if len(missing) > SHOWN_MISSING else ""
    count = "1 image" if len(missing) == 1 else f"{len(missing):,} images"
    return f"{WARNING}{count} could not be decoded, and got no rows: {shown}{more}"


def _request_line(event: Served | Unserved) -> str:
    if isinstance(event, Unserved):
        return f"{WARNING}requests are not served: {event.reason}"
    missing = f", {event.missing} without an image that can be decoded" if event.missing else ""
    line = f"requested: {event.rows} rows{missing}, as batch {event.batch} of stream {event.stream}"
    return Line(line, stream=event.stream, batch=event.batch, rows=event.rows, missing=event.missing)


def _passes(manifest: Manifest) -> str:
    if manifest.passes is None:
        return "passes without end"
    return "1 pass" if manifest.passes == 1 else f"{manifest.passes} passes"


def _batches(manifest: Manifest) -> str:
    return f"{manifest.total_batches:,} batches" if manifest.total_batches is not None else "endless"

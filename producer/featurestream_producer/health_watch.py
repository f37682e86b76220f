"""Keep the health of a run's workers: what they report, added up, written to the manifest's topic and warned about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np

from featurestream.health import Canary, Health
from featurestream.manifest import Manifest
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream_producer.health import (
    Finding,
    Glance,
    InputSums,
    TapSums,
    canary_warnings,
    device_warnings,
    input_warnings,
    separability,
    tap_warnings,
)
from featurestream_producer.worker import Job, Ready, Sent

FIRST_LOOK: Final = 8  # batches of a worker before its health is judged
BEGINNER: Final = "the one that began the stream"


class HealthWatch:
    """The health of the workers that this process has started.

    ``facts``: what the manifest's topic said when the run began. A worker of the same lanes goes on with the sums that
    are there, and what the stream's first run made of the canary is what all later ones are held against. ``warn`` gets
    a line for each thing that is conspicuous, once; ``warnings`` keeps them.
    """

    def __init__(
        self,
        topic: ManifestTopic,
        manifest: Manifest,
        facts: StreamFacts,
        jobs: Sequence[Job],
        warn: Callable[[str], None],
    ) -> None:
        self.warnings: list[str] = []
        self._topic = topic
        self._dtype = manifest.dtype
        self._warn = warn
        self._first_run = facts.canary is None
        self._reference = facts.canary
        self._said: set[str] = set()
        self._workers = {job.index: _Worker(job, facts.health.get(job.index)) for job in jobs}
        if 0 in self._workers:
            for number in facts.health:
                if number >= jobs[0].workers:
                    topic.write_health(number, None)

    def begin(self, event: Ready) -> None:
        """Take a worker's canary, and hold it against that of the stream's first run."""
        self._workers[event.worker].canary = event.canary
        if self._first_run and event.worker == 0:
            self._topic.write_canary(event.canary)
            self._reference = event.canary
        self._reference = self._reference or event.canary  # until worker 0 begins
        self._say(canary_warnings(event.canary, self._reference, BEGINNER))

    def see(self, event: Sent) -> None:
        """Add a batch; judge and write the worker's health where it is time: at 8 batches, 16, 32, ..."""
        if event.glance is None:
            return
        worker = self._workers[event.worker]
        worker.add(event.batch, event.glance)
        if worker.batches >= worker.next_look:
            worker.next_look = 2 * worker.batches
            self.write([event.worker])

    def write(self, numbers: Sequence[int] | None = None) -> None:
        """Write the health of workers (default: all) that have seen something new, and say what is conspicuous."""
        wanted = [n for n in (self._workers if numbers is None else numbers) if self._workers[n].has_news]
        known = {number: health for number, worker in self._workers.items() if (health := worker.health()) is not None}
        for number in wanted:
            one, first = known[number], known[min(known)]
            found = [*input_warnings(one.inputs), *(w for tap in one.taps for w in tap_warnings(tap, self._dtype))]
            if self._reference is not None:
                found += canary_warnings(one.canary, self._reference, BEGINNER)
            if one is not first:
                found += device_warnings([first, one])
            texts = list(dict.fromkeys(finding.text for finding in found))
            self._topic.write_health(number, one.model_copy(update={"warnings": texts}))
            self._workers[number].written = one.batches
            self._say(found)

    def _say(self, found: Sequence[Finding]) -> None:
        for finding in found:
            if finding.key not in self._said:
                self._said.add(finding.key)
                self.warnings.append(finding.text)
                self._warn(finding.text)


class _Worker:
    """What one worker has seen, on top of what a worker of the same lanes had seen in earlier runs."""

    def __init__(self, job: Job, before: Health | None) -> None:
        names = [tap.name for tap in job.manifest.taps]
        if before is not None and (tuple(before.lanes), [tap.name for tap in before.taps]) != (job.lanes, names):
            before = None
        self.canary: Canary | None = None
        self.batches = 0 if before is None else before.batches
        self.written = self.batches
        self.next_look = self.batches + FIRST_LOOK
        self._job = job
        self._inputs = InputSums() if before is None else InputSums.of(before.inputs)
        self._taps = {name: TapSums() for name in names}
        self._ratios: dict[str, tuple[float | None, int]] = dict.fromkeys(names, (None, 0))
        for tap in () if before is None else before.taps:
            self._taps[tap.name] = TapSums.of(tap)
            self._ratios[tap.name] = tap.separability, tap.probe_rows
        self._early: dict[int, Glance] = {}

    @property
    def has_news(self) -> bool:
        """There are batches that were not written yet."""
        return self.canary is not None and self.batches > self.written

    def add(self, batch: int, glance: Glance) -> None:
        """Add a batch."""
        self.batches += 1
        self._inputs.add(glance.inputs)
        for name, seen in glance.taps.items():
            self._taps[name].add(seen)
        if glance.labels is not None:
            self._early[batch] = glance

    def health(self) -> Health | None:
        """Return what was seen so far; None before the canary has come."""
        if self.canary is None:
            return None
        taps = []
        for name, sums in self._taps.items():
            ratio, rows = self._ratios[name]
            if ratio is None:
                ratio, rows = self._separability(name)
            taps.append(sums.facts(name, ratio, rows))
        job = self._job
        return Health(
            worker=job.index,
            workers=job.workers,
            device=job.device,
            lanes=list(job.lanes),
            batches=self.batches,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            canary=self.canary,
            inputs=self._inputs.facts(job.expected),
            taps=taps,
            warnings=[],
        )

    def _separability(self, tap: str) -> tuple[float | None, int]:
        """Return the separability over the first batches, in their order, and how many rows it comes from."""
        parts = [
            (seen.probed, glance.labels)
            for _, glance in sorted(self._early.items())
            if (seen := glance.taps[tap]).probed is not None and glance.labels is not None
        ]
        if not parts:
            return None, 0
        labels_N = np.concatenate([labels for _, labels in parts])
        ratio = separability(np.concatenate([features for features, _ in parts]), labels_N)
        return ratio, 0 if ratio is None else len(labels_N)

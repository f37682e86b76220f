"""Record which passes are finished, whether one producer has made them or several ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from featurestream.manifest import End, Manifest, PassRecord, Share
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream_producer.ledger import FinishedPass
from featurestream_producer.ranks import Rank
from featurestream_producer.sampling import order_checksum, permutation


class PassRecorder:
    """Writes what the manifest's topic says of finished passes, and of the stream's end.

    A producer that is alone knows when a pass is finished. A rank only knows its own lanes: it writes its share, and
    then looks whether all shares are there. Shares are durable before the look, so whoever comes last sees them all;
    two that come at the same time write the same record twice.
    """

    def __init__(self, topic: ManifestTopic, manifest: Manifest, rank: Rank) -> None:
        self._topic = topic
        self._manifest = manifest
        self._rank = rank

    def record(self, finished: Iterable[FinishedPass], say: Callable[[str], None]) -> None:
        """Take note of passes whose batches in this producer's lanes are all durable."""
        shared = False
        for done in finished:
            if done.gone:
                say(
                    f"warning: {done.gone} batches of pass {done.number} were deleted by retention before it was "
                    "finished: samples that were missing in them are not counted"
                )
            started = datetime.fromtimestamp((done.started_ms or time.time() * 1000) / 1000, UTC)
            started_at = started.isoformat(timespec="milliseconds")
            if self._rank.alone:
                self._write(done.number, done.missing, started_at)
            else:
                self._topic.write_share(
                    Share(
                        number=done.number, rank=self._rank.number, ranks=self._rank.size, missing=done.missing,
                        started_at=started_at,
                    )
                )  # fmt: skip
                shared = True
        if shared:
            self._gather(self._topic.read())

    def end(self) -> bool:
        """Return whether a finite stream, of which all in this producer's lanes is durable, is complete; write so."""
        total, passes = self._manifest.total_batches, self._manifest.passes
        if total is None or passes is None:
            return False
        if not self._rank.alone:
            facts = self._topic.read()
            self._gather(facts)
            if any(number not in facts.passes for number in range(passes)):
                return False
        self._topic.write_end(End(passes=passes, batches=total, at=_now()))
        return True

    def _gather(self, facts: StreamFacts) -> None:
        """Write the record of each pass of which all shares are there; take the shares away."""
        for number in sorted({share.number for share in facts.shares.values()}):
            shares = [share for share in facts.shares.values() if share.number == number]
            # Shares of a run of more or fewer ranks are of other lanes.
            ours = [share for share in shares if share.ranks == self._rank.size]
            if number not in facts.passes and len(ours) == self._rank.size:
                missing, started_at = sum(share.missing for share in ours), min(share.started_at for share in ours)
                facts.passes[number] = self._write(number, missing, started_at)
            if number in facts.passes:
                for share in shares:
                    self._topic.forget_share(share)

    def _write(self, number: int, missing: int, started_at: str) -> PassRecord:
        layout = self._manifest.layout
        record = PassRecord(
            number=number,
            samples=layout.samples - missing,
            missing=missing,
            first_batch=layout.pass_start(number),
            last_batch=layout.pass_start(number + 1) - 1,
            started_at=started_at,
            finished_at=_now(),
            order_checksum=order_checksum(permutation(self._manifest.seed, number, layout.samples)),
        )
        self._topic.write_pass(record)
        return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

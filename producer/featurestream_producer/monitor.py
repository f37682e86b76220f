"""What a run of the producer exports of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from featurestream import telemetry as t
from featurestream.manifest import Manifest
from featurestream.telemetry import Sample
from featurestream_producer.ledger import Ledger
from featurestream_producer.pacer import Pacer
from featurestream_producer.stages import Stages
from featurestream_producer.worker import Queued, Sent


@dataclass
class Monitor:
    """The accounts of a run, read from another thread than the one that keeps them.

    Attributes:
        silent_s: tells for how long the broker is overdue.
        warnings: readers warned about so far.
    """

    manifest: Manifest
    ledger: Ledger
    pacer: Pacer
    silent_s: Callable[[], float]
    warnings: int = 0
    _workers: dict[int, tuple[Stages, Queued]] = field(default_factory=dict)

    def see(self, event: Sent) -> None:
        """Take note of what a worker says of itself with a batch."""
        self._workers[event.worker] = event.stages, event.queued

    def samples(self) -> Iterator[Sample]:
        """Yield what there is to say now."""
        stream, ledger, pacer = self.manifest.stream, self.ledger, self.pacer
        yield t.PRODUCER_BATCHES.at(ledger.batches, stream)
        yield t.PRODUCER_SAMPLES.at(ledger.rows // self.manifest.views, stream)
        yield t.PRODUCER_ROWS.at(ledger.rows, stream)
        yield t.PRODUCER_BYTES.at(ledger.bytes, stream)
        yield t.PRODUCER_MISSING.at(len(ledger.missing), stream)
        yield t.PRODUCER_NEXT_BATCH.at(pacer.next_batch, stream)
        yield t.PRODUCER_DURABLE_BATCH.at(ledger.safe_below, stream)
        yield t.PRODUCER_PAUSED.at(pacer.waited_s, stream)
        yield t.PRODUCER_SILENCE.at(self.silent_s(), stream)
        yield t.PRODUCER_WARNINGS.at(self.warnings, stream)
        for worker, (stages, queued) in tuple(self._workers.items()):
            for stage, seconds in (
                ("images", stages.data_s), ("forward", stages.forward_s), ("kafka", stages.send_s),
                ("devices", stages.ahead_s), ("sending", stages.sending_s),
            ):  # fmt: skip
                yield t.PRODUCER_STAGES.at(seconds, stream, worker, stage)
            for queue, length in (
                ("images", queued.images), ("features", queued.features), ("kafka", queued.records)
            ):  # fmt: skip
                yield t.PRODUCER_QUEUES.at(length, stream, worker, queue)
        for reader in pacer.readers:
            yield t.PRODUCER_READER_LAG.at(max(0, pacer.next_batch - reader.batch), stream, reader.name)
        for name, share in pacer.shares.items():
            yield t.PRODUCER_READER_RETENTION.at(share, stream, name)

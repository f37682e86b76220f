"""Read and write `<stream>.manifest`, and find the streams of a log."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel

from featurestream.closing import Closing
from featurestream.compacted import records_until
from featurestream.errors import RecordError, StreamNotFoundError, names_text, nearest
from featurestream.health import CANARY_KEY, HEALTH_PREFIX, Canary, Health
from featurestream.manifest import (
    END_KEY,
    LEASE_KEY,
    MANIFEST_KEY,
    PASS_PREFIX,
    REQUEST_PREFIX,
    RETENTION_PREFIX,
    SHARE_PREFIX,
    End,
    Lease,
    Manifest,
    PassRecord,
    Request,
    RetentionWarning,
    Share,
    from_json,
    to_json,
)
from featurestream.names import check_stream_name, manifest_topic, stream_of_manifest_topic
from featurestream.ports import Log, LogRecord, RecordSource
from featurestream.topics import manifest_topic_settings


@dataclass(slots=True)
class StreamFacts:
    """What the manifest's topic says of a stream at one moment."""

    stream: str
    manifest: Manifest | None = None
    passes: dict[int, PassRecord] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)  # by rank
    lease_stamps_ms: dict[int, int] = field(default_factory=dict)  # when the last heartbeats were appended
    shares: dict[str, Share] = field(default_factory=dict)  # by key, of passes that are not finished
    end: End | None = None
    canary: Canary | None = None
    health: dict[int, Health] = field(default_factory=dict)  # by worker
    retention_warnings: dict[str, RetentionWarning] = field(default_factory=dict)  # the last one of each reader
    requests: dict[str, Request] = field(default_factory=dict)  # by their ids, in the order in which they came

    @property
    def lease(self) -> Lease | None:
        """The lease of the lowest rank that has not released it; of the lowest one where all have."""
        return min(self.leases.values(), key=lambda lease: (lease.released, lease.rank), default=None)

    def apply(self, record: LogRecord) -> None:
        """Take over one record of the topic: the last value of a key counts, a tombstone takes it away."""
        key = (record.key or b"").decode("utf-8", "replace")
        value = record.value
        try:
            if key == MANIFEST_KEY:
                self.manifest = None if value is None else self._own(from_json(Manifest, value))
            elif key == LEASE_KEY or key.startswith(f"{LEASE_KEY}/"):
                self._apply_lease(key, record)
            elif key.startswith(SHARE_PREFIX):
                self.shares.pop(key, None)
                if value is not None:
                    self.shares[key] = from_json(Share, value)
            elif key == END_KEY:
                self.end = from_json(End, value) if value is not None else None
            elif key.startswith(PASS_PREFIX) and value is not None:
                done = from_json(PassRecord, value)
                self.passes[done.number] = done
            elif key == CANARY_KEY:
                self.canary = from_json(Canary, value) if value is not None else None
            elif key.startswith(HEALTH_PREFIX) and value is not None:
                seen = from_json(Health, value)
                self.health[seen.worker] = seen
            elif key.startswith(HEALTH_PREFIX):
                self.health = {n: seen for n, seen in self.health.items() if key != f"{HEALTH_PREFIX}{n}"}
            elif key.startswith(RETENTION_PREFIX) and value is not None:
                warning = from_json(RetentionWarning, value)
                self.retention_warnings[warning.reader] = warning
            elif key.startswith(REQUEST_PREFIX) and value is not None:
                self.requests[key.removeprefix(REQUEST_PREFIX)] = from_json(Request, value)
            # Other keys are a later version's: unknown facts change none of the known ones.
        except RecordError as error:
            raise error.at(record.topic, record.lane, record.offset) from error

    def _own(self, manifest: Manifest) -> Manifest:
        """Return a manifest that is this stream's: its name decides which topics are read."""
        if manifest.stream != self.stream:
            raise RecordError(
                f'it is the manifest of a stream "{manifest.stream}", expected "{self.stream}"',
                hint="a copy of a stream under another name needs a manifest with that name",
            )
        return manifest

    def _apply_lease(self, key: str, record: LogRecord) -> None:
        self.leases = {rank: lease for rank, lease in self.leases.items() if lease.key != key}
        if record.value is not None:
            lease = from_json(Lease, record.value)
            self.leases[lease.rank] = lease
            self.lease_stamps_ms[lease.rank] = record.timestamp_ms


class ManifestTopic(Closing):
    """The manifest topic of one stream on one log. Close it, or use it as a context manager."""

    def __init__(self, log: Log, stream: str) -> None:
        self.stream = check_stream_name(stream)
        self.topic = manifest_topic(stream)
        self._log = log
        self._sink = log.sink()

    def close(self) -> None:
        """Release the connection."""
        self._sink.close()

    def create(self) -> None:
        """Create the topic where it is not there yet."""
        self._log.create_topic(self.topic, 1, manifest_topic_settings())

    def read(self) -> StreamFacts:
        """Return what the topic says now. Raises StreamNotFoundError where there is no such stream."""
        source = self._log.source()
        try:
            return read_facts(source, self.stream)
        finally:
            source.close()

    def write_manifest(self, manifest: Manifest) -> None:
        """Publish the manifest; returns when it is durable, as all writes here do."""
        self._write(MANIFEST_KEY, manifest)

    def write_pass(self, done: PassRecord) -> None:
        """Publish the record of a finished pass."""
        self._write(f"{PASS_PREFIX}{done.number}", done)

    def write_lease(self, lease: Lease) -> None:
        """Publish a producer's lease, or its next heartbeat."""
        self._write(lease.key, lease)

    def forget_lease(self, lease: Lease) -> None:
        """Take away the lease of a rank that there is no longer."""
        self._write(lease.key, None)

    def write_share(self, share: Share) -> None:
        """Publish that a rank has done its share of a pass."""
        self._write(share.key, share)

    def forget_share(self, share: Share) -> None:
        """Take away a share that is of no more use."""
        self._write(share.key, None)

    def write_retention_warning(self, warning: RetentionWarning) -> None:
        """Publish the last warning about a reader."""
        self._write(f"{RETENTION_PREFIX}{warning.reader}", warning)

    def write_request(self, name: str, request: Request) -> None:
        """Publish a request under an id of its own, which nobody writes twice: its place in the topic is its turn."""
        self._write(f"{REQUEST_PREFIX}{name}", request)

    def write_end(self, end: End | None) -> None:
        """Publish that the stream is complete, or (None) that it no longer is."""
        self._write(END_KEY, end)

    def write_canary(self, canary: Canary) -> None:
        """Publish what the stream's first run made of the fixed input."""
        self._write(CANARY_KEY, canary)

    def write_health(self, worker: int, health: Health | None) -> None:
        """Publish what a worker has seen, or (None) that there is no such worker any more."""
        self._write(f"{HEALTH_PREFIX}{worker}", health)

    def _write(self, key: str, value: BaseModel | None) -> None:
        self._sink.append(self.topic, 0, key=key.encode(), value=None if value is None else to_json(value))
        self._sink.flush()


def read_facts(source: RecordSource, stream: str) -> StreamFacts:
    """Return what a stream's manifest topic says now. Raises StreamNotFoundError where there is no such topic."""
    topic = manifest_topic(stream)
    facts = StreamFacts(stream)
    low, high = source.bounds(topic, 0)
    reader = source.read(topic, 0, low)
    try:
        for record in records_until(high, reader, source, topic, low):
            facts.apply(record)
    finally:
        reader.close()
    return facts


def list_streams(log: Log) -> list[str]:
    """Return the names of the log's streams, sorted."""
    return sorted(stream for topic in log.topics() if (stream := stream_of_manifest_topic(topic)) is not None)


def require_manifest(log: Log, stream: str, *, source: RecordSource | None = None) -> Manifest:
    """Return a stream's manifest, or raise StreamNotFoundError that lists the streams and suggests the nearest.

    It is read from ``source``, which stays the caller's, or from one of its own. Where a cluster does not let the login
    see the topic, that is a BrokerError that names the right.
    """
    check_stream_name(stream)
    own = source or log.source()
    try:
        manifest = read_facts(own, stream).manifest
    except StreamNotFoundError:
        manifest = None
    finally:
        if own is not source:
            own.close()
    if manifest is not None:
        return manifest
    # A topic of this name may be there all the same: created, but its producer has published nothing yet.
    known = [name for name in list_streams(log) if name != stream]
    near = nearest(stream, known)
    parts = [f'did you mean "{near}"?'] if near else []
    parts.append(f"there are: {names_text(known)}" if known else "there are none yet: make one with featurectl produce")
    raise StreamNotFoundError(f'there is no stream "{stream}"', hint="; ".join(parts), stream=stream, known=known)

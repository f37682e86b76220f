"""Topics as only a real broker has them: compressed, compacted, with transactions, of other applications.

The invariant is that of the corpus: a typed error in one line or a true reading, in bounds of memory, and at once.
"""

from __future__ import annotations

import json
import logging
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from featurestream.cluster import Cluster
from featurestream.errors import GoneError, HoleError, RecordError, StreamNotFoundError, UsageError
from featurestream.kafka import KafkaLog, KafkaSource
from featurestream.manifest import MANIFEST_KEY, Manifest, to_json
from featurestream.names import manifest_topic, record_key, tap_topic
from featurestream.seek import batch_of
from featurestream.stream import FeatureStream
from featurestream.wire import encode, headers_of
from tests.featurectl.conftest import Cli
from tests.hostile.outcome import check_outcome, refusal
from tests.support import append, create, make_batch_record, make_manifest

pytestmark = pytest.mark.broker

SILENT = logging.Logger("hostile", logging.CRITICAL)  # a plain producer lives on when the broker has ended
TAP = "avgpool"
MB = 2**20
TRAIN = ("--tap", TAP, "--head", "linear", "--epochs", "1", "--device", "cpu", "--reporter", "jsonl")


@pytest.fixture
def log(broker: Cluster) -> Iterator[KafkaLog]:
    with KafkaLog(broker) as log:
        yield log


@pytest.fixture
def manifest(unique: str) -> Manifest:
    """A stream of three batches in one lane."""
    return make_manifest(unique, lanes=1, taps=(TAP,), passes=1, samples=12)


@pytest.fixture
def commands(
    cli: Cli, broker: Cluster, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[int | str | None]]:
    """Look at the stream with the commands and train on it; check how each of them ends, and return their codes."""
    monkeypatch.setenv("FEATURESTREAM_BOOTSTRAP_SERVERS", broker.bootstrap_servers)

    looks = (("streams", manifest.stream), ("streams", manifest.stream, "--json"), ("peek", manifest.stream))
    training = ("train", manifest.stream, "--name", "E1", *TRAIN, "--runs", str(tmp_path / "commanded"))

    def run(*, train: bool = True) -> list[int | str | None]:
        codes = []
        for words in (*looks, training) if train else looks:
            outcome = cli(*words)
            check_outcome(outcome, " ".join(words))
            codes.append(outcome.code)
        return codes

    return run


def read(log: KafkaLog, manifest: Manifest, **range_of: str) -> list[int]:
    """Read a range, compare every value with what belongs there, and return the numbers of the batches."""
    numbers = []
    with FeatureStream(manifest.stream, TAP, log=log, **range_of) as stream:
        for batch in stream:
            number = batch.next_position.batch - 1
            right = make_batch_record(manifest, number, TAP)
            assert batch.numpy().tobytes() == right.numpy().tobytes()
            assert batch.indices.tolist() == right.indices.tolist()
            assert batch.labels.tolist() == right.labels.tolist()
            numbers.append(number)
    return numbers


def send(producer: Producer, manifest: Manifest, numbers: Sequence[int]) -> None:
    """Append batches with a client of another program."""
    for number in numbers:
        record = make_batch_record(manifest, number, TAP)
        producer.produce(
            tap_topic(manifest.stream, TAP), encode(record), record_key(record.pass_number, number), 0,
            headers=list(headers_of(record)),
        )  # fmt: skip
    assert producer.flush(20) == 0


# ---- batches that become larger --------------------------------------------------------------------------------------


def explode(broker: Cluster, manifest: Manifest, codec: str, size: int, count: int = 1) -> None:
    """Append batches of one record of zeros in place of batch 1: ``size`` bytes unpacked, a few kB on the way."""
    limits = {"message.max.bytes": 1_000_000_000, "batch.size": 900_000_000, "compression.type": codec}
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, **limits}, logger=SILENT)
    errors: list[KafkaError | None] = []
    headers = list(headers_of(make_batch_record(manifest, 1, TAP)))
    for _ in range(count):
        producer.produce(
            tap_topic(manifest.stream, TAP), bytes(size), b"0/1", 0, headers=headers,
            on_delivery=lambda error, _: errors.append(error),
        )  # fmt: skip
        assert producer.flush(30) == 0
    assert errors == [None] * count, "the broker has let them through"


READER = """
import re, sys
from pathlib import Path
from featurestream.errors import FeatureStreamError
from featurestream.stream import FeatureStream

def peak_mb():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

stream, address, properties = sys.argv[1:]
opened = FeatureStream(stream, bootstrap_servers=address, kafka_config=Path(properties))
before = peak_mb()
try:
    list(opened)
except FeatureStreamError as error:
    print(peak_mb() - before, type(error).__name__, error)
"""


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_small_batch_that_becomes_large_is_refused_for_the_memory_of_what_one_fetch_brings(
    broker, log, manifest, tmp_path, codec
):
    """With fetches of one batch: six batches of 32 MB each, of which one is unpacked, and copied once."""
    create(log, manifest)
    append(log, manifest, [0])
    explode(broker, manifest, codec, 32 * MB, 6)
    properties = tmp_path / "reader.properties"
    properties.write_text("fetch.message.max.bytes=1\n")
    words = [sys.executable, "-c", READER, manifest.stream, broker.bootstrap_servers, str(properties)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    grown, kind, told = done.stdout.split(" ", 2)
    assert kind == "RecordError"
    assert f"{manifest.stream}.{TAP}, lane 0, offset 1: " in told
    assert int(grown) < 4 * 32


def test_a_batch_that_becomes_larger_than_the_client_takes_is_an_error_that_names_its_place(
    broker, log, manifest, commands
):
    create(log, manifest)
    append(log, manifest, [0])
    topic = tap_topic(manifest.stream, TAP)
    explode(broker, manifest, "zstd", 120 * MB)
    error = refusal(lambda: read(log, manifest))
    assert isinstance(error, RecordError)
    assert f"{topic}, lane 0, offset 1: the client cannot unpack a batch" in str(error)
    assert commands() == [3, 3, 3, 3]


# ---- topics with holes -----------------------------------------------------------------------------------------------


@contextmanager
def compacting_at_once(broker: Cluster) -> Iterator[None]:
    """Have the broker look for something to compact ten times a second."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})

    def change(how: AlterConfigOpType, value: str | None) -> None:
        entry = ConfigEntry("log.cleaner.backoff.ms", value, incremental_operation=how)
        everywhere = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[entry])
        admin.incremental_alter_configs([everywhere])[everywhere].result(10)

    change(AlterConfigOpType.SET, "100")
    try:
        yield
    finally:
        change(AlterConfigOpType.DELETE, None)


def compacted(
    broker: Cluster, log: KafkaLog, manifest: Manifest, numbers: Sequence[int], *, left: Sequence[int]
) -> None:
    """Append batches to a stream whose tap's topic is compacted; return when its lane begins with what must be left.

    The last of them is appended again and again: what is written to just now is never compacted.
    """
    settings = {"min.cleanable.dirty.ratio": "0", "segment.ms": "50", "delete.retention.ms": "0"}
    create(log, manifest, **{"cleanup.policy": "compact"}, **settings)
    append(log, manifest, numbers)
    topic = tap_topic(manifest.stream, TAP)
    with compacting_at_once(broker), log.source() as source:
        until = time.monotonic() + 30
        while (found := lane(source, topic))[: len(left)] != left:
            assert time.monotonic() < until, f"it was not compacted: {found}"
            append(log, manifest, numbers[-1:])


def lane(source: KafkaSource, topic: str) -> list[int]:
    """Return the numbers of the batches that a lane holds, in its order."""
    numbers, (low, high) = [], source.bounds(topic, 0)
    while low < high:
        record = source.record_at(topic, 0, low)
        numbers.append(batch_of(record))
        low = record.offset + 1
    return numbers


def test_a_compacted_topic_is_read_over_its_holes(broker, log, manifest, commands):
    compacted(broker, log, manifest, [0, 1, 1, 1, 2], left=[0, 1, 2])
    assert read(log, manifest) == read(log, manifest, start="batch:0", stop="latest") == [0, 1, 2]
    assert read(log, manifest, start="offset:1") == [1, 2], "offset 1 was compacted away"
    assert commands() == [0, 0, 0, 0]


def test_a_topic_in_which_compaction_has_moved_a_batch_behind_others_is_refused(broker, log, manifest, commands):
    """A zombie's duplicate is what compaction keeps: batch 1 stands behind batch 2 then."""
    compacted(broker, log, manifest, [0, 1, 2, 1], left=[0, 2, 1])
    error = refusal(lambda: read(log, manifest))
    assert isinstance(error, HoleError)
    assert f"batch 1 is missing from {manifest.stream}.{TAP}, lane 0: offset 2 holds batch 2" in str(error)
    assert commands() == [0, 0, 4, 4]


def test_a_batch_that_compaction_has_moved_from_the_beginning_is_gone_as_after_retention(broker, log, manifest):
    compacted(broker, log, manifest, [0, 1, 0, 2], left=[1, 0, 2])
    assert isinstance(refusal(lambda: read(log, manifest, start="batch:0")), GoneError)
    assert read(log, manifest, start="earliest") == [1, 2]


# ---- transactions ----------------------------------------------------------------------------------------------------


@pytest.fixture
def transactional(broker: Cluster, unique: str) -> Producer:
    """A client of another program that writes in transactions, as a mirror does that promises exactly once."""
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "transactional.id": unique}, logger=SILENT)
    producer.init_transactions(30)
    return producer


def test_a_stream_that_was_written_in_transactions_is_read_as_any_other(log, manifest, transactional, commands):
    """What was aborted, and what is not committed yet, is not there, and the markers are nothing."""
    topic = tap_topic(manifest.stream, TAP)
    create(log, manifest)
    transactional.begin_transaction()
    transactional.produce(topic, b"poison", b"0/0", 0)
    transactional.flush(10)
    transactional.abort_transaction(30)
    with FeatureStream(manifest.stream, TAP, log=log) as stream:
        assert stream.start.batch == 0
    with pytest.raises(UsageError, match="nothing to read"):
        read(log, manifest, stop="latest")
    assert commands(train=False) == [0, 0, 2], "there is a stream, and nothing to peek at"
    for number in range(3):
        transactional.begin_transaction()
        send(transactional, manifest, [number])
        transactional.commit_transaction(30)
    # Two offsets of the aborted one; then 2, 4 and 6 hold the batches, and a marker stands behind each.
    assert read(log, manifest) == read(log, manifest, stop="latest") == [0, 1, 2]
    assert read(log, manifest, start="offset:3") == read(log, manifest, start="batch:1") == [1, 2]
    transactional.begin_transaction()
    transactional.produce(topic, b"poison", b"0/2", 0)
    transactional.flush(10)
    assert read(log, manifest, stop="latest") == [0, 1, 2], "an open transaction hides nothing before it"
    assert commands() == [0, 0, 0, 0]
    transactional.abort_transaction(30)


def test_a_manifest_that_was_written_in_a_transaction_is_found(log, manifest, transactional):
    create(log, manifest)
    append(log, manifest, range(3))
    transactional.begin_transaction()
    transactional.produce(manifest_topic(manifest.stream), to_json(manifest), MANIFEST_KEY, 0)
    transactional.commit_transaction(30)
    assert read(log, manifest) == [0, 1, 2]


# ---- topics of another application -----------------------------------------------------------------------------------

AVRO = struct.pack(">bI", 0, 7) + b"\x02\x0eorder-7\x00\x80\x01"  # a schema registry's magic byte and number, then Avro


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (b"hello, these are no features", []),
        (json.dumps({"order": 7, "batch": 1, "tap": TAP}).encode(), [("ce_type", b"order"), ("ce_id", None)]),
        (AVRO, [("content-type", b"application/avro"), ("format", b"1")]),
        (None, []),
    ],
    ids=["text", "JSON", "Avro", "a tombstone"],
)
def test_what_another_application_writes_into_a_tap_is_refused_with_its_place(
    broker, log, manifest, commands, *, value, headers
):  # fmt: skip
    create(log, manifest)
    append(log, manifest, [0])
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers}, logger=SILENT)
    for key in (None, b"0/1", b"\xff\xfe"):
        producer.produce(tap_topic(manifest.stream, TAP), value, key, 0, headers=headers)
    assert producer.flush(10) == 0
    error = refusal(lambda: read(log, manifest))
    assert isinstance(error, RecordError)
    assert f"{manifest.stream}.{TAP}, lane 0, offset " in str(error)
    assert set(commands()) <= {3, 4}


def test_a_manifests_topic_of_another_application_is_no_stream(broker, log, manifest, unique, *, cli, commands):
    topic = manifest_topic(unique)
    log.create_topic(topic, 3, {})
    log.create_topic(tap_topic(unique, TAP), 3, {})
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers}, logger=SILENT)
    for lane_number in range(3):
        for key in (None, b"7", b"order/7", b"\xff"):
            producer.produce(topic, b'{"order": 7, "stream": "x", "format": 1}', key, lane_number)
            producer.produce(tap_topic(unique, TAP), AVRO, key, lane_number)
    assert producer.flush(10) == 0
    assert isinstance(refusal(lambda: read(log, manifest)), StreamNotFoundError)
    assert commands() == [2, 2, 2, 2]
    shown = cli("streams")
    assert f"stream {unique} cannot be shown" in shown.err
    check_outcome(shown, "streams")
    producer.produce(topic, b'{"order": 7}', MANIFEST_KEY, 0)
    assert producer.flush(10) == 0
    error = refusal(lambda: read(log, manifest))
    assert isinstance(error, RecordError)
    assert f"{topic}, lane 0, offset 4: not a manifest" in str(error)
    assert commands() == [3, 3, 3, 3]

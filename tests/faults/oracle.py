"""An independent reader that says whether a stream is what was promised: ``python -m tests.faults.oracle STREAM``.

Written from schemas/README.md alone, with plain confluent-kafka, msgpack, xxHash and NumPy: nothing of featurestream is
imported, so that no mistake can be on both sides. It reads every topic of a stream, from the first record to the last,
and prints one line for each of the assertions below. Exit code 1: one is broken, and the line names topic, partition,
offset and batch. Exit code 2: the stream cannot be looked at. What the log alone cannot tell comes in files of text:

===============  ====================================================================================================
``--acked``      ``TAP BATCH``: acknowledged; without the file, every batch of a pass that the stream calls finished
``--sent``       ``TAP BATCH CONTENT``: handed to the sink, once for each time
``--reference``  ``TAP BATCH CONTENT``: of an undisturbed extraction, every record of it
``--yielded``    ``BATCH TAP CONTENT``: what one reader has got, in its order; give it once for each reader
``--resumed``    any lines, compared with those of ``--uninterrupted``: what a resumed reader has got, or has trained
``--healed``     ``SECONDS WHAT``: how long after a fault had ended the next step was made; at most ``--bound``
``--left``       ``WHAT``: a process, thread or file that is still there and should not be
===============  ====================================================================================================

CONTENT is the checksum of all that a record says, but for the stream's name and the moment of extraction: see
:func:`content_of`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import xxhash
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

ASSERTIONS = {
    "A1": "every acknowledged batch is there exactly once, duplicates dropped",
    "A2": "nothing is there that was never sent",
    "A3": "every lane is in order and dense",
    "A4": "every record can be read and has the checksum of its bytes",
    "A5": "all taps of a batch agree in rows, ids and labels",
    "A6": "features equal those of a reference extraction",
    "A7": "the readers' merges are byte-identical to the log's",
    "A8": "resumed reading equals uninterrupted reading",
    "A9": "there is progress after healing, within the bound",
    "A10": "no process, thread, file or topic is left behind",
}
CONTENT_TYPE = "application/vnd.featurestream.features+msgpack"
WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "uint8": 1, "int64": 8}
REQUIRED = (
    "stream", "fingerprint", "tap", "pass", "batch", "views", "rows", "dtype", "shape", "indices", "ids", "labels",
    "missing", "extracted_at",
)  # fmt: skip
OPTIONAL = ("inputs", "pad")
WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,15}")
SHOWN = 5  # violations of one assertion that are printed
SILENT_S = 30.0
ELECTING = (
    KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)  # fmt: skip
BOUND_S = 60.0


class RefusedError(Exception):
    """A record is not what schemas/README.md says."""


class UnanswerableError(Exception):
    """The stream cannot be looked at."""


class Place(NamedTuple):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}, partition {self.partition}, offset {self.offset}"


@dataclass(frozen=True)
class Found:
    """A record that could be read: its place, its numbers, and checksums of what it says."""

    place: Place
    tap: str
    batch: int
    samples: int  # present and missing
    identity: int  # rows, indices, ids, labels, views and missing
    content: str


# ---- the wire, from schemas/README.md ---------------------------------------------------------------------------


def content_of(
    *, tap: str, batch: int, pass_number: int, views: int, indices: np.ndarray, ids: Sequence[str],
    labels: np.ndarray | None, missing: Iterable[Sequence[Any]], dtype: str, shape: Sequence[int], payload: bytes,
) -> tuple[int, str]:  # fmt: skip
    """Return (identity, content): xxh3-64 over what all taps of a batch share, and over that and the tap's own."""
    kind = "none" if labels is None else f"{labels.dtype.kind}{labels.shape}"
    shared = json.dumps([batch, pass_number, views, list(ids), [list(one) for one in missing], kind]).encode()
    hashed = xxhash.xxh3_64(shared + np.ascontiguousarray(indices, "<i8").tobytes())
    if labels is not None:
        hashed.update(np.ascontiguousarray(labels, "<i8" if labels.dtype.kind == "i" else "<f4").tobytes())
    identity = hashed.intdigest()
    hashed.update(json.dumps([tap, dtype, list(shape)]).encode())
    hashed.update(payload)
    return identity, hashed.hexdigest()


def parse_headers(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, Any]:
    """Return the six record headers; raises RefusedError where one is missing, repeated or of another form."""
    found: dict[str, Any] = {}
    for name in ("content-type", "format", "fingerprint", "pass", "batch", "rows"):
        values = [value for other, value in headers if other == name]
        if len(values) != 1 or values[0] is None:
            raise RefusedError(f'the record header "{name}" stands there {len(values)} times')
        found[name] = values[0].decode("ascii", "replace")
    if found["content-type"] != CONTENT_TYPE or found["format"] != "1":
        raise RefusedError(f"content type {found['content-type']}, format {found['format']}")
    for name in ("pass", "batch", "rows"):
        if not WHOLE_NUMBER.fullmatch(found[name]):
            raise RefusedError(f'the record header "{name}" is {found[name]!r}')
        found[name] = int(found[name])
    return found


def parse_value(value: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header map and the payload of a record's value."""
    try:
        parts = msgpack.unpackb(value, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise RefusedError(f"no msgpack: {error}") from error
    if not isinstance(parts, list) or len(parts) != 4 or parts[0] != 1:
        raise RefusedError("no array of format 1, checksum, header and payload")
    _, checksum, packed, payload = parts
    if not isinstance(packed, bytes) or not isinstance(payload, bytes):
        raise RefusedError("header and payload must be bin")
    seen = xxhash.xxh3_64_intdigest(packed + payload)
    if seen != checksum:
        raise RefusedError(f"the checksum of its bytes is {seen:016x}, it says {checksum:016x}")
    try:
        header = msgpack.unpackb(packed)
    except (ValueError, msgpack.UnpackException) as error:
        raise RefusedError(f"its header is no msgpack: {error}") from error
    if not isinstance(header, dict):
        raise RefusedError("its header is no map")
    lacking = [name for name in REQUIRED if name not in header]
    unknown = [name for name in header.get("must_understand") or () if name not in (*REQUIRED, *OPTIONAL)]
    if lacking or unknown:
        raise RefusedError(f"its header lacks {lacking}, and {unknown} must be understood")
    rows, shape, dtype = header["rows"], header["shape"], header["dtype"]
    if dtype not in WIDTHS:
        raise RefusedError(f"dtype {dtype!r}")
    size = rows * WIDTHS[dtype]
    for length in shape:
        size *= length
    if size != len(payload):
        raise RefusedError(f"{len(payload)} bytes, expected {size} for {rows} rows of {shape} {dtype}")
    if len(header["indices"]) != rows or len(header["ids"]) != rows:
        raise RefusedError(f"{len(header['indices'])} indices and {len(header['ids'])} ids for {rows} rows")
    if header["labels"] is not None and len(header["labels"]) != rows:
        raise RefusedError(f"{len(header['labels'])} labels for {rows} rows")
    return header, payload


def labels_of(header: dict[str, Any]) -> np.ndarray | None:
    """Return the labels: int64, or float32; None where there are none."""
    labels = header["labels"]
    if labels is None:
        return None
    whole = all(type(label) is int for label in labels)
    return np.array(labels, np.int64 if whole else np.float32)


def read_record(place: Place, key: bytes | None, headers: Any, value: bytes | None) -> tuple[Found, str]:
    """Return what a record says, and its fingerprint. Raises RefusedError where it is none."""
    outside = parse_headers(headers or ())
    if value is None:
        raise RefusedError("a tombstone")
    header, payload = parse_value(value)
    inside = {name: header[name] for name in ("fingerprint", "pass", "batch", "rows")}
    if inside != {name: outside[name] for name in inside}:
        raise RefusedError(f"its headers say {outside}, its value says {inside}")
    if key != f"{header['pass']}/{header['batch']}".encode():
        raise RefusedError(f"its key is {key!r}")
    identity, content = content_of(
        tap=header["tap"], batch=header["batch"], pass_number=header["pass"], views=header["views"],
        indices=np.array(header["indices"], np.int64), ids=header["ids"], labels=labels_of(header),
        missing=header["missing"], dtype=header["dtype"], shape=header["shape"], payload=payload,
    )  # fmt: skip
    samples = header["rows"] // header["views"] + len(header["missing"])
    return Found(place, header["tap"], header["batch"], samples, identity, content), header["fingerprint"]


# ---- reading a log ----------------------------------------------------------------------------------------------


class Reader:
    """Reads whole topics with one plain consumer."""

    def __init__(self, address: str) -> None:
        self._settings = {
            "bootstrap.servers": address, "group.id": "oracle", "enable.auto.commit": False,
            "auto.offset.reset": "error", "check.crcs": False, "enable.partition.eof": True,
        }  # fmt: skip
        self._admin = AdminClient({"bootstrap.servers": address})

    def topics(self) -> dict[str, list[int]]:
        """Return the partitions of every topic."""
        try:
            found = self._admin.list_topics(timeout=SILENT_S).topics
        except KafkaException as error:
            raise UnanswerableError(f"no answer from Kafka: {error}") from error
        return {name: sorted(topic.partitions) for name, topic in found.items() if topic.partitions}

    def records(self, topic: str, partition: int) -> tuple[int, Iterator[Any]]:
        """Return the first offset of a partition and its messages up to its present end."""
        consumer = Consumer(self._settings)
        low, high = self._bounds(consumer, TopicPartition(topic, partition))
        return low, self._until(consumer, topic, partition, low, high)

    def _bounds(self, consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
        until = time.monotonic() + SILENT_S
        while True:
            try:
                return consumer.get_watermark_offsets(place, timeout=SILENT_S)
            except KafkaException as error:
                # A broker that has just come back does not lead its partitions yet.
                if error.args[0].code() not in ELECTING or time.monotonic() > until:
                    raise UnanswerableError(f"no answer from Kafka: {error}") from error
                consumer.poll(0.1)

    def _until(self, consumer: Consumer, topic: str, partition: int, low: int, high: int) -> Iterator[Any]:
        try:
            if low == high:
                return
            consumer.assign([TopicPartition(topic, partition, low)])
            while low < high:
                message = consumer.poll(SILENT_S)
                error = None if message is None else message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    return  # what is left are the marks of transactions
                if message is None or error is not None:
                    raise UnanswerableError(f"nothing at {Place(topic, partition, low)}, up to {high}: {error}")
                low = message.offset() + 1
                yield message
        finally:
            consumer.close()


@dataclass
class Stream:
    """What the log holds of a stream: its manifest's facts, and every record that could be read."""

    name: str
    fingerprint: str
    samples: int
    batch_samples: int
    lanes: int
    passes: int | None
    taps: list[str]
    finished: set[int] = field(default_factory=set)
    first: dict[tuple[str, int], int] = field(default_factory=dict)  # what retention has left of (tap, lane)
    copies: dict[tuple[str, int], list[Found]] = field(default_factory=dict)  # of (tap, batch), in order

    @property
    def pass_batches(self) -> int:
        """Batches in a pass."""
        return -(-self.samples // self.batch_samples)

    def samples_of(self, batch: int) -> int:
        """Samples of a batch."""
        first = batch % self.pass_batches * self.batch_samples
        return min(self.batch_samples, self.samples - first)


def read_manifest(reader: Reader, name: str) -> Stream:
    """Return a stream's facts, without its records."""
    topic = f"{name}.manifest"
    if topic not in reader.topics():
        raise UnanswerableError(f"there is no stream {name}: no topic {topic}")
    facts: dict[str, Any] = {}
    for message in reader.records(topic, 0)[1]:
        key = (message.key() or b"").decode()
        facts.pop(key, None)
        if message.value() is not None:
            facts[key] = json.loads(message.value())
    if "manifest" not in facts:
        raise UnanswerableError(f"the topic {topic} holds no manifest")
    manifest = facts["manifest"]
    return Stream(
        name, manifest["fingerprint"], manifest["data"]["samples"], manifest["batch_samples"], manifest["lanes"],
        manifest["passes"], [tap["name"] for tap in manifest["taps"]],
        {int(key.removeprefix("pass/")) for key in facts if key.startswith("pass/")},
    )  # fmt: skip


# ---- the assertions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """What is handed to the oracle beside the log; see the module."""

    acked: Path | None = None
    sent: Path | None = None
    reference: Path | None = None
    yielded: Sequence[Path] = ()
    resumed: Path | None = None
    uninterrupted: Path | None = None
    healed: Path | None = None
    left: Path | None = None
    bound_s: float = BOUND_S


@dataclass
class Verdict:
    """What was found: violations by assertion, how much was looked at, and what nobody asked about."""

    violations: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in ASSERTIONS})
    checked: Counter[str] = field(default_factory=Counter)
    asked: set[str] = field(default_factory=lambda: {"A1", "A2", "A3", "A4", "A5", "A10"})
    records: int = 0
    duplicates: int = 0

    @property
    def broken(self) -> list[str]:
        """The assertions that do not hold."""
        return [name for name, found in self.violations.items() if found]

    def lines(self) -> list[str]:
        """Return one line for each assertion, and the first violations of those that are broken."""
        found = []
        for name, text in ASSERTIONS.items():
            if self.violations[name]:
                found.append(f"{name} BROKEN: {text}")
                found += [f"    {line}" for line in self.violations[name][:SHOWN]]
                more = len(self.violations[name]) - SHOWN
                found += [f"    and {more} more"] if more > 0 else []
            elif name in self.asked:
                found.append(f"{name} holds: {text} ({self.checked[name]} checked)")
            else:
                found.append(f"{name} was not asked: {text}")
        return found


def examine(stream: str, address: str, files: Files | None = None) -> Verdict:
    """Read a stream's every topic and judge it. Raises UnanswerableError where it cannot be read."""
    files = files or Files()
    reader, verdict = Reader(address), Verdict()
    facts = read_manifest(reader, stream)
    topics = reader.topics()
    for tap in facts.taps:
        _read_tap(reader, facts, tap, topics.get(f"{stream}.{tap}", []), verdict)
    _presence(facts, verdict, files)
    _origin(facts, verdict, files)
    _agreement(facts, verdict)
    if files.reference is not None:
        _reference(facts, verdict, files.reference)
    for path in files.yielded:
        _merge(facts, verdict, path)
    if files.resumed is not None and files.uninterrupted is not None:
        _resumed(verdict, files.resumed, files.uninterrupted)
    if files.healed is not None:
        _healed(verdict, files.healed, files.bound_s)
    known = {f"{stream}.manifest", f"{stream}.experiments", *(f"{stream}.{tap}" for tap in facts.taps)}
    strays = [topic for topic in topics if topic.startswith(f"{stream}.") and topic not in known]
    verdict.violations["A10"] += [f"the topic {topic} is none of the stream's" for topic in strays]
    verdict.violations["A10"] += [] if files.left is None else [" ".join(line) for line in _lines(files.left)]
    verdict.checked["A10"] = len(topics)
    return verdict


def _read_tap(reader: Reader, facts: Stream, tap: str, partitions: list[int], verdict: Verdict) -> None:
    """Read a tap's partitions: order, density and checksums as they come."""
    topic = f"{facts.name}.{tap}"
    for partition in sorted({*partitions, *range(facts.lanes)}):
        if partition not in partitions:
            verdict.violations["A3"].append(f"{topic} has no partition {partition}")
            continue
        low, messages = reader.records(topic, partition)
        due: int | None = partition
        if low > 0:  # after retention, what is left begins anywhere, or nothing is left
            due, facts.first[tap, partition] = None, 2**62
        for message in messages:
            place = Place(topic, partition, message.offset())
            verdict.records += 1
            try:
                found, fingerprint = read_record(place, message.key(), message.headers(), message.value())
            except RefusedError as error:
                verdict.violations["A4"].append(f"{place}: {error}")
                due = None if due is None else due + facts.lanes
                continue
            verdict.checked["A4"] += 1
            if fingerprint != facts.fingerprint:
                verdict.violations["A2"].append(
                    f"{place}, batch {found.batch}: of fingerprint {fingerprint}, the stream has {facts.fingerprint}"
                )
                continue
            if due is None:
                due = found.batch
                facts.first[tap, partition] = found.batch
            if found.batch % facts.lanes != partition or found.tap != tap:
                verdict.violations["A3"].append(f"{place}: holds batch {found.batch} of tap {found.tap}")
            elif found.batch > due:
                verdict.violations["A3"].append(f"{place}: holds batch {found.batch} where batch {due} was due")
                due = found.batch + facts.lanes
            elif found.batch == due:
                due += facts.lanes
            else:
                verdict.duplicates += 1
                if (tap, found.batch) not in facts.copies and found.batch >= facts.first.get((tap, partition), 0):
                    verdict.violations["A3"].append(f"{place}: batch {found.batch} comes after batch {due}")
            verdict.checked["A3"] += 1
            facts.copies.setdefault((tap, found.batch), []).append(found)


def _presence(facts: Stream, verdict: Verdict, files: Files) -> None:
    """A1: what was acknowledged is there, with all of its samples."""
    acked = _acked(facts, files.acked)
    for tap, batch in sorted(acked):
        if batch < facts.first.get((tap, batch % facts.lanes), 0):
            continue  # retention has deleted it
        verdict.checked["A1"] += 1
        if (tap, batch) not in facts.copies:
            lane = batch % facts.lanes
            verdict.violations["A1"].append(
                f"{facts.name}.{tap}, partition {lane}, offset {batch // facts.lanes} or later: batch {batch} was "
                "acknowledged and is not there"
            )
    for (_, batch), copies in facts.copies.items():
        if copies[0].samples != facts.samples_of(batch):
            verdict.violations["A1"].append(
                f"{copies[0].place}, batch {batch}: {copies[0].samples} samples, expected {facts.samples_of(batch)}"
            )


def _acked(facts: Stream, path: Path | None) -> set[tuple[str, int]]:
    if path is not None:
        return {(tap, int(batch)) for tap, batch in _lines(path)}
    batches = [p * facts.pass_batches + b for p in facts.finished for b in range(facts.pass_batches)]
    return {(tap, batch) for tap in facts.taps for batch in batches}


def _origin(facts: Stream, verdict: Verdict, files: Files) -> None:
    """A2: what is there was sent, as often and with this content; copies of one batch say the same."""
    sent: Counter[tuple[str, int]] = Counter()
    contents: dict[tuple[str, int], set[str]] = {}
    if files.sent is not None:
        for tap, text, content in _lines(files.sent):
            sent[tap, int(text)] += 1
            contents.setdefault((tap, int(text)), set()).add(content)
    total = None if facts.passes is None else facts.passes * facts.pass_batches
    for (tap, batch), copies in facts.copies.items():
        verdict.checked["A2"] += len(copies)
        broken = verdict.violations["A2"]
        if total is not None and batch >= total:
            broken.append(f"{copies[0].place}, batch {batch}: the stream ends before batch {total}")
        for other in copies[1:]:
            if other.content != copies[0].content:
                broken.append(f"{other.place}, batch {batch}: says other things than {copies[0].place}")
        if files.sent is None:
            continue
        if len(copies) > sent[tap, batch]:
            broken.append(f"{copies[-1].place}, batch {batch}: {len(copies)} copies, sent {sent[tap, batch]} times")
        if (tap, batch) in contents and copies[0].content not in contents[tap, batch]:
            broken.append(f"{copies[0].place}, batch {batch}: not with the content that was sent")


def _agreement(facts: Stream, verdict: Verdict) -> None:
    for batch in sorted({batch for _, batch in facts.copies}):
        found = [facts.copies[tap, batch][0] for tap in facts.taps if (tap, batch) in facts.copies]
        verdict.checked["A5"] += 1
        for other in found[1:]:
            if other.identity != found[0].identity:
                verdict.violations["A5"].append(
                    f"{other.place}, batch {batch}: not the rows, ids and labels of {found[0].place}"
                )


def _reference(facts: Stream, verdict: Verdict, path: Path) -> None:
    verdict.asked.add("A6")
    reference = {(tap, int(batch)): content for tap, batch, content in _lines(path)}
    for place, copies in sorted(facts.copies.items()):
        verdict.checked["A6"] += 1
        if copies[0].content != reference.get(place):
            verdict.violations["A6"].append(f"{copies[0].place}, batch {place[1]}: not as in the reference extraction")


def _merge(facts: Stream, verdict: Verdict, path: Path) -> None:
    """A7: a reader has got the log's batches, joined over its taps, in batch order, without a gap."""
    verdict.asked.add("A7")
    got = [(int(batch), tap, content) for batch, tap, content in _lines(path)]
    taps = list(dict.fromkeys(tap for _, tap, _ in got))
    first = got[0][0] if got else 0
    for number, (batch, tap, content) in enumerate(got):
        due = (first + number // len(taps), taps[number % len(taps)])
        copies = facts.copies.get((due[1], due[0]))
        verdict.checked["A7"] += 1
        where = copies[0].place if copies else f"{facts.name}.{due[1]}, partition {due[0] % facts.lanes}"
        if (batch, tap) != due:
            verdict.violations["A7"].append(f"{where}, batch {due[0]} was due, {path.name} has batch {batch} of {tap}")
            return
        if copies is None or content != copies[0].content:
            verdict.violations["A7"].append(f"{where}, batch {batch}: {path.name} has other bytes")


def _resumed(verdict: Verdict, resumed: Path, uninterrupted: Path) -> None:
    verdict.asked.add("A8")
    one, other = _lines(resumed), _lines(uninterrupted)
    verdict.checked["A8"] = len(other)
    for number, (seen, expected) in enumerate(zip(one, other, strict=False), start=1):
        if seen != expected:
            verdict.violations["A8"].append(f"line {number}: {' '.join(seen)}, uninterrupted {' '.join(expected)}")
    if len(one) != len(other):
        verdict.violations["A8"].append(f"{len(one)} lines, uninterrupted {len(other)}")


def _healed(verdict: Verdict, path: Path, bound_s: float) -> None:
    verdict.asked.add("A9")
    for seconds, *what in _lines(path):
        verdict.checked["A9"] += 1
        if float(seconds) > bound_s:
            verdict.violations["A9"].append(f"{' '.join(what)}: {float(seconds):.1f} s, at most {bound_s:.0f} s")


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdict on a stream; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.oracle", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stream")
    parser.add_argument("--bootstrap-servers", required=True)
    for name in ("acked", "sent", "reference", "resumed", "uninterrupted", "healed", "left"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--yielded", type=Path, action="append", default=[])
    parser.add_argument("--bound", type=float, default=BOUND_S, dest="bound_s")
    chosen = vars(parser.parse_args(arguments))
    try:
        verdict = examine(chosen.pop("stream"), chosen.pop("bootstrap_servers"), Files(**chosen))
    except (UnanswerableError, KafkaException, OSError) as error:
        print(f"the oracle cannot answer: {error}", file=sys.stderr)
        return 2
    print("\n".join(verdict.lines()))
    print(f"{verdict.records} records, {verdict.duplicates} of them duplicates")
    return 1 if verdict.broken else 0


if __name__ == "__main__":
    sys.exit(main())

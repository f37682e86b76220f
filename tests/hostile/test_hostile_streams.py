"""A stream in which somebody else has written: a typed error in one line, or a true reading; at once, in bounds."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from featurestream.memory import MemoryLog
from featurestream.names import manifest_topic, tap_topic
from featurestream.stream import FeatureStream
from featurestream.testing import hostile_headers, hostile_values
from featurestream.wire import headers_of
from tests.hostile.outcome import CODES, check_outcome, refusal, train_on
from tests.hostile.streams import (
    MANIFEST,
    STREAM,
    TAP,
    HostileRecord,
    HostileValue,
    good_record,
    hostile_facts,
    hostile_records,
    put,
    stream_with,
    stream_with_fact,
)
from tests.support import append, create

RECORDS = hostile_records()
FACTS = hostile_facts()
GOOD_HEADERS = headers_of(good_record())
#: What is no record at all, behind headers that promise one; and good records behind headers that are none.
VALUES = [HostileRecord(one.name, one.value, GOOD_HEADERS, one.says) for one in hostile_values()]
HEADERS = [HostileRecord(one.name, b"", one.headers, one.says) for one in hostile_headers()]
MORE_MB = 300
TRAIN = ("--tap", TAP, "--head", "linear", "--epochs", "1", "--device", "cpu", "--reporter", "jsonl")
READING = ("train", "sweep", "probe")  # to the end, with a run folder
COMMANDS: dict[str, tuple[str, ...]] = {
    "streams": ("streams",),
    "streams STREAM": ("streams", STREAM),
    "streams --json": ("streams", STREAM, "--json"),
    "peek": ("peek", STREAM),
    "train": ("train", STREAM, "--name", "E1", *TRAIN),
    "sweep": ("sweep", "sweep.yaml"),
    "probe": ("probe", STREAM),
    "picture": ("picture", STREAM, "--batch", "1", "--row", "0"),
    "request": ("request", STREAM, "--ids", "ids.txt"),
}
SWEEP = f"""
stream: {STREAM}
epochs: 1
base: {{tap: {TAP}, batch_size: 4, device: cpu, reporters: jsonl, head: linear}}
grid:
  seed: [0, 1]
"""


def read(log: MemoryLog) -> None:
    """Read everything of every row."""
    with FeatureStream(STREAM, TAP, log=log) as stream:
        for batch in stream:
            assert batch.numpy().shape == (len(batch.ids), 2)
            assert batch.labels is None or len(batch.labels) == len(batch.indices)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_a_record_that_does_not_fit_its_stream_is_refused_where_it_can_be_told(
    record: HostileRecord, tmp_path: Path
) -> None:
    log = stream_with(record)
    if record.reads is None:
        read(log)
    else:
        assert record.reads in str(refusal(lambda: read(log)))
    assert (record.trains or record.reads or "") in str(refusal(lambda: train_on(log, STREAM, TAP, tmp_path)))


def test_the_good_record_in_its_place_is_read_and_trained_on(tmp_path: Path) -> None:
    from featurestream.wire import encode

    log = stream_with(HostileRecord("good", encode(good_record()), GOOD_HEADERS, None))
    read(log)
    train_on(log, STREAM, TAP, tmp_path)


def test_what_is_no_record_ends_a_reading_with_its_place_and_reason() -> None:
    for record in [*VALUES, *HEADERS]:
        log = stream_with(record)
        error = refusal(lambda log=log: read(log))
        told = str(error)
        assert record.reads in told or "its value says batch 3" in told or "says fingerprint" in told, record.name
        assert "toy.avgpool, lane 0, offset 1: " in str(error), record.name


def test_what_is_no_record_ends_training_too_and_leaves_a_record_that_says_so(tmp_path: Path) -> None:
    for number, record in enumerate(VALUES[:: len(VALUES) // 12]):
        runs, log = tmp_path / str(number), stream_with(record)
        refusal(lambda log=log, runs=runs: train_on(log, STREAM, TAP, runs))
        assert '"state": "stopped"' in (runs / "E1" / "run.json").read_text()


def test_a_record_that_ends_at_any_byte_is_refused_by_every_reader_of_lanes() -> None:
    from featurestream.wire import encode

    value = encode(good_record())
    for length in range(len(value)):
        log = stream_with(HostileRecord("cut", value[:length], GOOD_HEADERS, None))
        refusal(lambda log=log: read(log))


def grown_mb(before_kb: int) -> float:
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the files that commands need."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
    (folder / "ids.txt").write_text("1\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_survives_hostile_manifests(command, cli, log, here) -> None:
    """Exit codes as documented, one line, in bounds, and no file outside of the run folders.

    Each hostile value goes to one command, the claims of huge numbers to several.
    """
    place = list(COMMANDS).index(command)
    huge = "2^" if command in ("peek", "train", "probe") else None
    chosen = [
        fact for number, fact in enumerate(FACTS) if number % len(COMMANDS) == place or (huge and huge in fact.name)
    ]
    for number, fact in enumerate(chosen):
        if command in READING and "2^53 - 1" in fact.name:
            continue  # a stream that goes on for ever is read for ever
        log.delete_topics(list(log.topics()))
        stream_with_fact(fact, log)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = cli(*COMMANDS[command], *run_folder(command, here, number))
        check_outcome(outcome, f"{command}: {fact.name}")
        assert grown_mb(before) < MORE_MB, fact.name
        if fact.says is not None and command not in ("streams", "request"):
            assert outcome.code in CODES, fact.name
    left = sorted(path.name for path in here.iterdir())
    assert set(left) <= {"sweep.yaml", "ids.txt", "runs"}, left


def run_folder(command: str, here: Path, number: int) -> tuple[object, ...]:
    """Each run has a folder of its own, so that none goes on with another's."""
    return ("--runs", here / "runs" / str(number)) if command in READING else ()


@pytest.mark.parametrize("fact", [fact for fact in FACTS if fact.says], ids=lambda fact: fact.name)
def test_what_a_manifest_cannot_say_is_refused_with_its_reason(fact: HostileValue) -> None:
    log = stream_with_fact(fact)
    assert fact.says in str(refusal(lambda: read(log)))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("streams", "request")])
def test_a_command_survives_hostile_records(command, cli, log, here) -> None:
    place = list(COMMANDS).index(command)
    chosen = [*(RECORDS if command == "train" else RECORDS[place % 6 :: 6]), *VALUES[place::90], *HEADERS[place::60]]
    for number, record in enumerate(chosen):
        log.delete_topics(list(log.topics()))
        stream_with(record, log)
        check_outcome(cli(*COMMANDS[command], *run_folder(command, here, number)), f"{command}: {record.name}")


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a\x00b", "a" * 300])
def test_a_name_is_never_a_path(name: str, cli, log, here) -> None:
    """Neither that of a stream nor of a tap nor of a run."""
    create(log, MANIFEST)
    append(log, MANIFEST, range(3))
    for words in (
        ("peek", "--", name), ("streams", "--", name), ("probe", "--runs", here / "runs", "--", name),
        ("picture", "--batch", "0", "--row", "0", "--", name),
        ("train", "--name", "E1", *TRAIN, "--runs", here / "runs", "--", name),
        ("train", STREAM, "--name", name, *TRAIN, "--runs", here / "runs"),
        ("train", STREAM, "--name", "E1", "--tap", name, "--runs", here / "runs"),
    ):  # fmt: skip
        outcome = cli(*words)
        assert outcome.code in CODES, words
        check_outcome(outcome, str(words))
    assert sorted(path.name for path in here.rglob("*")) == ["ids.txt", "sweep.yaml"]


def test_a_picture_calls_no_code_that_a_manifest_names(cli, log, here) -> None:
    (here / "planted.py").write_text("from pathlib import Path\nPath('ran').touch()\ndef call(*a, **k): pass\n")
    for field, fact in (
        ("transform", {"transform": {"name": "planted:call", "image_size": 8}}),
        ("data set", {"data": MANIFEST.data.model_copy(update={"location": "planted:call"})}),
    ):
        log.delete_topics(list(log.topics()))
        create(log, MANIFEST.model_copy(update=fact))
        append(log, MANIFEST, range(3))
        outcome = cli(*COMMANDS["picture"])
        assert outcome.code == 2
        assert f"names code of somebody's as its {field}: planted:call" in outcome.err
        assert "--trust planted:call" in outcome.err
        assert not (here / "ran").exists()
    assert cli(*COMMANDS["picture"], "--trust", "planted:call").code in CODES
    assert (here / "ran").exists(), "else nothing was proven"


def test_a_topic_of_another_application_is_no_stream(cli, log, here) -> None:
    log.create_topic("orders", 3, {})
    log.create_topic("orders.manifest", 2, {})
    put(log, "orders", b"7", b'{"order": 7}', (("ce_type", b"order"),))
    put(log, "orders.manifest", b"7", b'{"order": 7}')
    put(log, "orders.manifest", b"\xff\xfe", b"\x00" * 100)
    assert cli("peek", "orders").code == 2
    assert "orders cannot be shown" in cli("streams").err
    assert cli("train", "orders", "--name", "E1", *TRAIN).code == 2
    log.create_topic(manifest_topic("no"), 1, {})
    assert "no stream" in cli("peek", "no").err
    create(log, MANIFEST)
    put(log, tap_topic(STREAM, TAP), b"7", b'{"order": 7}', (("ce_type", b"order"),))
    outcome = cli("peek", STREAM)
    assert outcome.code == 3
    assert "toy.avgpool, lane 0, offset 0" in outcome.err

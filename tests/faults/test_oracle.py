"""The oracle shares no code with what it judges, reads what others have written, and says its verdict in lines."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featurestream.kafka import KafkaLog
from tests.faults.oracle import ASSERTIONS, labels_of, parse_value
from tests.support import append, make_manifest, publish

ORACLE = Path(__file__).with_name("oracle.py")
GOLDEN = Path(__file__).parents[2] / "schemas" / "golden" / "feature-record-v1"
LIBRARIES = {"confluent_kafka", "msgpack", "numpy", "xxhash"}


def test_the_oracle_imports_nothing_of_ours_and_few_libraries():
    imported = set()
    for node in ast.walk(ast.parse(ORACLE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            imported.add((node.module or "").split(".")[0])
    assert imported - sys.stdlib_module_names == LIBRARIES


def test_running_the_oracle_loads_nothing_of_ours():
    look = "import sys, tests.faults.oracle; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=ORACLE.parents[2], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert loaded >= LIBRARIES
    assert [name for name in loaded if name.startswith("feature")] == []


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.msgpack")), ids=lambda file: file.stem)
def test_it_finds_in_the_golden_records_what_stands_beside_them(file: Path):
    expected = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    header, payload = parse_value(file.read_bytes())
    assert len(payload) == expected["payload_bytes"]
    for name in ("batch", "rows", "ids", "indices", "shape", "dtype"):
        assert header[name] == expected["header"][name]


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [(None, None), ([1, 2], "int64"), ([1.0, 2.0], "float32"), ([[1.0], [0.5]], "float32")],
)
def test_whole_numbers_are_classes_and_others_values(labels, dtype):
    found = labels_of({"labels": labels})
    assert (None if found is None else found.dtype) == (None if dtype is None else np.dtype(dtype))


def run(stream: str, address: str, *more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults.oracle", stream, "--bootstrap-servers", address, *map(str, more)]
    return subprocess.run(command, cwd=ORACLE.parents[2], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.broker
def test_its_exit_code_and_lines_say_what_is_broken_and_where(broker, unique, tmp_path):
    address = broker.bootstrap_servers
    with KafkaLog(broker) as log:
        manifest = make_manifest(unique, samples=30, lanes=3)
        publish(log, manifest, range(9))
        acked = tmp_path / "acked.txt"
        acked.write_text("layer3 8\navgpool 8\n")
        whole = run(unique, address, "--acked", acked)
        assert whole.returncode == 0, whole.stdout + whole.stderr
        assert whole.stdout.splitlines() == [
            "A1 holds: every acknowledged batch is there exactly once, duplicates dropped (2 checked)",
            "A2 holds: nothing is there that was never sent (18 checked)",
            "A3 holds: every lane is in order and dense (18 checked)",
            "A4 holds: every record can be read and has the checksum of its bytes (18 checked)",
            "A5 holds: all taps of a batch agree in rows, ids and labels (9 checked)",
            *(f"{name} was not asked: {ASSERTIONS[name]}" for name in ("A6", "A7", "A8", "A9")),
            whole.stdout.splitlines()[9],
            "18 records, 0 of them duplicates",
        ]
        append(log, manifest, [13])
        acked.write_text("layer3 10\n")
        broken = run(unique, address, "--acked", acked)
        assert broken.returncode == 1
        assert "A1 BROKEN" in broken.stdout
        assert f"    {unique}.layer3, partition 1, offset 3 or later: batch 10 was acknowledged" in broken.stdout
        assert f"    {unique}.layer3, partition 1, offset 3: holds batch 13 where batch 10 was due" in broken.stdout


@pytest.mark.broker
def test_a_stream_that_is_not_there_or_holds_no_manifest_is_exit_code_2(broker, unique):
    assert f"there is no stream {unique}" in run(unique, broker.bootstrap_servers).stderr
    with KafkaLog(broker) as log:
        log.create_topic(f"{unique}.manifest", 1, {})
    done = run(unique, broker.bootstrap_servers)
    assert (done.returncode, "holds no manifest" in done.stderr) == (2, True)


@pytest.mark.broker
def test_duplicates_of_a_killed_producer_are_dropped_and_counted(broker, unique):
    with KafkaLog(broker) as log:
        manifest = make_manifest(unique, samples=30, lanes=3)
        publish(log, manifest, [0, 1, 2, 3, 4, 5, 0, 3, 6])
    done = run(unique, broker.bootstrap_servers)
    assert done.returncode == 0, done.stdout
    assert "18 records, 4 of them duplicates" in done.stdout

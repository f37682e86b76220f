"""An independent reader, kcat, sees what the schemas promise."""

from __future__ import annotations

import shutil
import subprocess

import msgpack
import numpy as np
import pytest
import xxhash

from featurestream.kafka import KafkaLog
from tests.support import make_manifest, publish

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed (Debian package kcat)"),
]


def kcat(address: str, topic: str, lane: int, *options: str) -> bytes:
    """Return what kcat prints of a lane, from its beginning to its end."""
    command = ["kcat", "-b", address, "-t", topic, "-C", "-p", str(lane), "-o", "beginning", "-e", "-q", *options]
    return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout


def test_kcat_reads_keys_headers_and_values_of_a_real_topic(broker, unique):
    with KafkaLog(broker) as log:
        manifest = publish(log, make_manifest(unique, lanes=2))
    address, topic = broker.bootstrap_servers, f"{unique}.layer3"

    lines = kcat(address, topic, 1, "-f", "%p %o %k %h\n").decode().splitlines()
    assert [line.split()[:3] for line in lines] == [["1", "0", "0/1"], ["1", "1", "1/3"], ["1", "2", "1/5"]]
    headers = dict(pair.split("=", 1) for pair in lines[0].split(maxsplit=3)[3].split(","))
    assert headers["content-type"] == "application/vnd.featurestream.features+msgpack"
    assert (headers["pass"], headers["batch"], headers["rows"]) == ("0", "1", "4")
    assert headers["fingerprint"] == manifest.fingerprint

    value = kcat(address, topic, 1, "-c", "1", "-D", "", "-f", "%s")
    form, checksum, header, payload = msgpack.unpackb(value)
    assert form == 1
    assert checksum == xxhash.xxh3_64_intdigest(header + payload)
    facts = msgpack.unpackb(header)
    assert facts["ids"] == ["img/4.png", "img/5.png", "img/6.png", "img/7.png"]
    rows = np.frombuffer(payload, "<f4").reshape(facts["rows"], *facts["shape"])
    assert rows.tolist() == [[40, 41], [50, 51], [60, 61], [70, 71]]


def test_kcat_reads_the_manifest_as_json(broker, unique):
    with KafkaLog(broker) as log:
        manifest = publish(log, make_manifest(unique))
    text = kcat(broker.bootstrap_servers, f"{unique}.manifest", 0, "-f", "%k\t%s\n").decode()
    key, value = text.splitlines()[0].split("\t", 1)
    assert key == "manifest"
    assert type(manifest).model_validate_json(value) == manifest

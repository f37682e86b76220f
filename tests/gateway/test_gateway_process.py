"""``featurectl gateway`` as a process on a real broker: how it begins, what it holds, and how it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import numpy as np
import psutil
import pytest

from featurestream import FeatureStream
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.manifest import TapFacts, sealed
from featurestream.names import record_key, tap_topic
from featurestream.record import Record
from featurestream.wire import encode, headers_of
from tests.gateway.serving import events_in, npy_rows
from tests.support import create, make_batch_record, make_manifest, publish

pytestmark = pytest.mark.broker


@contextlib.contextmanager
def gateway(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``featurectl gateway`` on a free port; give the process and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "featurectl", "gateway", "--port", "0", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.match(r"gateway: (http://\S+)", line):
                yield process, found[1]
                break
        else:
            raise AssertionError("the gateway did not begin")
    finally:
        process.kill()
        process.communicate()


def _ask(url: str, path: str, **options: int) -> socket.socket:
    """Return a connection on which a request was sent; options are those of sockets, such as SO_RCVBUF."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.settimeout(20)
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    connection.connect((host, int(port)))
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return connection


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_while_it_answers_and_live_connections_are_open(
    broker: Cluster, unique: str, number: signal.Signals, code: int
) -> None:
    with KafkaLog(broker) as log:
        publish(log, make_manifest(unique, passes=None), range(4))
    with gateway() as (process, url), httpx.Client(base_url=url, timeout=20) as client, contextlib.ExitStack() as stack:
        live = stack.enter_context(client.stream("GET", f"/v1/streams/{unique}/live", params={"from": "batch:3"}))
        events = events_in(live.iter_lines())
        assert next(events)[2]["batch"] == 3
        waiting = stack.enter_context(_ask(url, f"/v1/streams/{unique}/records?from=batch:4&wait=30"))
        assert len(client.get(f"/v1/streams/{unique}/records").json()["rows"]) == 14
        while "featurestream_gateway_connections 3.0" not in client.get("/metrics").text:
            pass
        process.send_signal(number)
        kind, _, data = next(events)
        assert (kind, data["status"]) == ("problem", 503)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == code
        assert "Traceback" not in errors
        assert waiting.recv(1000).startswith(b"HTTP/1.1 503 ")


def test_rows_over_http_are_those_that_a_reader_on_kafka_has(broker: Cluster, unique: str) -> None:
    with KafkaLog(broker) as log:
        publish(log, make_manifest(unique, samples=300, batch_samples=20, lanes=3))
        expected = FeatureStream(unique, "layer3", log=log).read_all()
    with gateway("--stream", unique) as (_, url), httpx.Client(base_url=url, timeout=20) as client:
        parts = []
        answer = client.get("/data", params={"taps": "layer3", "format": "npy"})
        while True:
            parts.append(npy_rows(answer))
            if "next" not in answer.links:
                break
            answer = client.get(answer.links["next"]["url"])
        first = parts[0]
        assert len(first) == 20
        answer = client.get("/after", params={"timestamp": 0, "taps": "layer3", "format": "npy", "n": 37})
        parts = [npy_rows(answer)]
        while "next" in answer.links:
            answer = client.get(answer.links["next"]["url"])
            parts.append(npy_rows(answer))
        rows = np.concatenate(parts)
        assert rows["features"]["layer3"].tobytes() == expected.numpy().tobytes()
        assert rows["label"].tolist() == expected.labels.tolist()
        assert tuple(rows["id"].tolist()) == expected.ids
        assert client.get("/readyz").json() == {"status": "ready"}


CLIENTS = 200
MB = 4
READERS = 8


def test_its_memory_is_bounded_whatever_200_clients_do(broker: Cluster, unique: str) -> None:
    """They ask for all they can get, and take nothing of it: kept would be 200 times 4 MiB.

    What may be held: an answer for each of 8 readers, once more while it is encoded, and what open lanes read ahead.
    """
    with KafkaLog(broker) as log:
        _publish_large(log, unique)
    options = ("--stream", unique, "--readers", str(READERS), "--max-mb", str(MB), "--idle", "1")
    with gateway(*options) as (process, url), contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60))
        path = f"/v1/streams/{unique}/records?format=msgpack"
        assert len(client.get(path).content) > 3 * 2**20
        memory = psutil.Process(process.pid)
        before = memory.memory_info().rss
        for _ in range(CLIENTS):
            stack.enter_context(_ask(url, path, SO_RCVBUF=4096))
        most, status = before, 0
        while status != 200:  # as soon as the slow ones are cut, whoever takes his answer gets one
            status = client.get(path).status_code
            most = max(most, memory.memory_info().rss)
        for _ in range(10):
            assert client.get(path).status_code in (200, 429)
            most = max(most, memory.memory_info().rss)
        grown = (most - before) / 2**20
        print(f"{CLIENTS} slow clients: {before / 2**20:.0f} MiB before, {most / 2**20:.0f} MiB at most")
        assert grown < 2 * READERS * MB + 192, f"the gateway has grown by {grown:.0f} MiB"
        assert client.get("/healthz").status_code == 200


def _publish_large(log: KafkaLog, stream: str) -> None:
    """Publish 16 batches of 500 KB."""
    manifest = make_manifest(stream, samples=64, batch_samples=4, passes=1, taps=("layer3",))
    wide = [TapFacts(name="layer3", spec="layer3", layer="layer3", shape=[32_000])]
    manifest = sealed(manifest.model_copy(update={"taps": wide}))
    create(log, manifest)
    sink = log.sink()
    narrow = sealed(manifest.model_copy(update={"taps": [wide[0].model_copy(update={"shape": [2]})]}))
    for batch in range(16):
        small = make_batch_record(narrow, batch, "layer3")
        record = Record(
            **{name: getattr(small, name) for name in ("stream", "tap", "batch", "pass_number", "views", "dtype")},
            fingerprint=manifest.fingerprint, shape=(32_000,), payload=np.zeros(small.rows * 128_000, np.uint8),
            indices=small.indices, ids=small.ids, labels=small.labels,
        )  # fmt: skip
        sink.append(tap_topic(stream, "layer3"), batch % 2, key=record_key(0, batch), value=encode(record),
                    headers=headers_of(record))  # fmt: skip
    sink.flush()
    sink.close()

"""``featurectl gateway`` as a process on a real broker: how it begins, what it holds, and how it ends."""

from __future__ import annotations

import contextlib
import os
import re
import select
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
from featurestream.names import manifest_topic, record_key, tap_topic
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


def test_a_single_batch_of_topics_that_were_made_anew_is_the_new_ones(broker: Cluster, unique: str) -> None:
    manifest = make_manifest(unique, taps=("avgpool",))
    with KafkaLog(broker) as log, gateway() as (_, url), httpx.Client(base_url=url, timeout=20) as client:
        publish(log, manifest)
        path, batch = f"/v1/streams/{unique}/records", {"from": "batch:1", "until": "batch:2"}
        assert client.get(path, params=batch).json()["fingerprint"] == manifest.fingerprint
        log.delete_topics([manifest_topic(unique), tap_topic(unique, "avgpool")])
        anew = publish(log, make_manifest(unique, taps=("avgpool",), seed=1))
        answer = client.get(path, params=batch)
        while answer.status_code != 200:
            assert answer.status_code in (404, 502)  # for a second, the old manifest is still believed
            answer = client.get(path, params=batch)
        assert (answer.json()["fingerprint"], len(answer.json()["rows"])) == (anew.fingerprint, 4)


CLIENTS = 200
MB = 4
READERS = 8
LANES_MB = 96  # what two lanes of each reading and those that stay open read ahead, and what Python itself takes


def test_its_memory_is_bounded_whatever_200_clients_do(broker: Cluster, unique: str) -> None:
    """They ask for all they can get, and take nothing of it: kept would be 200 times 4 MiB.

    What may be held: the memory for all answers, 8 times 4 MiB, and what open lanes read ahead.
    """
    with KafkaLog(broker) as log:
        _publish_large(log, unique, 16)
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
        assert grown < 8 * MB + LANES_MB, f"the gateway has grown by {grown:.0f} MiB"
        assert client.get("/healthz").status_code == 200


def test_slow_readers_of_large_answers_share_the_memory_for_all(broker: Cluster, unique: str) -> None:
    """60 clients each take 64 kB of 16 MB at a time: all answers together stay below 64 MiB, and lanes come on top.

    Then they leave in the middle of their answers, as others do at once: that ends these, and nothing is told of it.
    """
    with KafkaLog(broker) as log:
        _publish_large(log, unique, 34)
    with gateway("--stream", unique, "--memory-mb", "64") as (process, url), contextlib.ExitStack() as stack:
        memory = psutil.Process(process.pid)
        client = stack.enter_context(httpx.Client(base_url=url, timeout=20))
        client.get("/v1/streams").raise_for_status()
        before = memory.memory_info().rss
        path = f"/v1/streams/{unique}/records?format=npy"
        slow = [_ask(url, path, SO_RCVBUF=65_536) for _ in range(60)]
        slow.append(_ask(url, f"/v1/streams/{unique}/live?from=earliest", SO_RCVBUF=4096))
        most = held = 0
        for _ in range(15):
            ready, _, _ = select.select(slow, [], [], 0.1)
            for one in ready:
                one.recv(65_536)
            text = client.get("/metrics").text
            found = re.search(r"^featurestream_gateway_held_bytes (\S+)$", text, re.MULTILINE)
            assert found
            held = max(held, float(found[1]))
            most = max(most, memory.memory_info().rss)
        grown = (most - before) / 2**20
        print(f"60 slow readers: {before / 2**20:.0f} MiB before, {most / 2**20:.0f} MiB at most")
        assert 16 * 2**20 < held <= 64 * 2**20
        assert grown < 64 + LANES_MB, f"the gateway has grown by {grown:.0f} MiB"
        for one in slow:
            one.close()
        for _ in range(20):
            with _ask(url, f"{path}&until=batch:12") as one:
                one.recv(1)  # the answer has begun, and goes on being sent
        while "featurestream_gateway_held_bytes 0.0" not in client.get("/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=20)
        assert told == ""


def _publish_large(log: KafkaLog, stream: str, batches: int) -> None:
    """Publish batches of 500 KB."""
    manifest = make_manifest(stream, samples=4 * batches, batch_samples=4, passes=1, taps=("layer3",))
    wide = [TapFacts(name="layer3", spec="layer3", layer="layer3", shape=[32_000])]
    manifest = sealed(manifest.model_copy(update={"taps": wide}))
    create(log, manifest)
    sink = log.sink()
    narrow = sealed(manifest.model_copy(update={"taps": [wide[0].model_copy(update={"shape": [2]})]}))
    for batch in range(batches):
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

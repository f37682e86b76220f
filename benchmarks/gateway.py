"""The gateway against ``FeatureStream`` on Kafka, a bare HTTP server, and the original design; and its memory."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from benchmarks.broker import client_versions, topics, unique
from benchmarks.clients import Load, ask, closing_connection, load, slow_clients
from benchmarks.features import make_manifest, publish
from benchmarks.measure import Clock, Run, cpu_ms, in_turn, rate, ratio
from benchmarks.report import Report, Table, package_versions
from benchmarks.servers import Server, bare, gateway, original, running
from featurestream.cluster import Cluster
from featurestream.http import HttpLog
from featurestream.kafka import KafkaLog
from featurestream.manifest import Manifest
from featurestream.names import manifest_topic, tap_topic
from featurestream.stream import FeatureStream
from featurestream.topics import tap_topic_settings

LANES = 4
WIDTH = 2048
ROWS = 124  # 513 kB a record
VOLUME = 400_000_000
CLIENTS = (1, 10, 100)
SECONDS = 5.0
SLOW_CLIENTS = 100
SLOW_S = 20.0
PAUSE_S = 0.2  # of a slow client, after 64 kB
SKIPPED = 4 * LANES  # batches before the clock starts: until then connections are opened and queues fill
TAP = "avgpool"
MB = 1_000_000

GATEWAY_MSGPACK, BARE_MSGPACK = "gateway, msgpack", "bare HTTP, the same msgpack"
GATEWAY_JSON, BARE_JSON = "gateway, JSON", "bare HTTP, the same JSON"
ORIGINAL = "the original design: Flask, JSON"


def run(
    cluster: Cluster,
    *,
    rows: int = ROWS,
    width: int = WIDTH,
    volume: int = VOLUME,
    clients: Sequence[int] = CLIENTS,
    seconds: float = SECONDS,
    slow: int = SLOW_CLIENTS,
    slow_s: float = SLOW_S,
    repeats: int = 5,
) -> Report:
    """Measure slow clients for ``slow_s``, ``volume`` bytes read as a stream, and requests for ``seconds`` each."""
    batches = max(volume // (rows * width * 2), 2 * SKIPPED)
    manifest = make_manifest(unique("gateway"), rows=rows, width=width, batches=batches, taps=(TAP,), lanes=LANES)
    settings = tap_topic_settings(retention_ms=3_600_000, retention_bytes=2**40, lanes=LANES)
    with (
        KafkaLog(cluster) as log,
        topics(log, [manifest_topic(manifest.stream)], 1, {}),
        topics(log, [tap_topic(manifest.stream, TAP)], LANES, settings),
    ):
        publish(log, manifest)
        with running(gateway, cluster.bootstrap_servers) as served:
            memory = _memory(served, manifest, slow, slow_s)  # first: what else a process did stays in its memory
            reading = _reading(cluster, served, manifest, repeats)
            asking = _asking(served, manifest, clients, seconds)
    return Report(
        theme="gateway",
        question=f"Batches of {rows} rows of {width} float16 numbers, {batches * rows * width * 2 / MB:,.0f} MB, "
        f"{LANES} lanes. First: the whole stream, read by one client, as `FeatureStream` on Kafka and through the "
        "gateway (`HttpLog`), as the gateway's msgpack answers, cursor after cursor, and as many bytes of a bare HTTP "
        "server (uvicorn with a minimal ASGI application). Then: requests for one batch each, by as many clients at "
        "once. MB are those of the features as the stream has them, whatever they grow to on the way.",
        tables=[
            Table(("one reader", "MB/s", "client CPU ms/MB", "of FeatureStream on Kafka"), reading),
            Table(("requests for a batch", "clients", "MB/s", "answers/s", "p50 ms", "p99 ms", "sent away"), asking),
            Table(("the gateway's memory", "clients", "seconds", "before MB", "largest MB", "2nd half MB"), memory),
        ],
        remarks=[
            f"Medians of {repeats} repeats in turn, the ratio with its smallest and largest; the first {SKIPPED} "
            "batches are not counted. The gateway runs with its own limits: 16 answers at once, which hold 128 MB "
            "together, the others wait; who waits longer than 5 s is sent away (429), asks again, and his time goes "
            "on. Broker, server and clients share the machine.",
            "The bare server and the original hold what they send in memory; the gateway reads it from Kafka. The "
            "original is the design of the feature server that the gateway takes the place of, written for this "
            "benchmark: Flask's own threaded server, over a deque of nested lists in its process, as JSON.",
            f"Memory is the resident set of the gateway's process: before any client, the largest with {slow} clients "
            f"that take 64 kB of an answer of 16 MB every {PAUSE_S} s, and the largest of the second half of that "
            "time: flat, if it is no larger.",
        ],
        versions={**package_versions("uvicorn", "fastapi", "numpy", "msgpack"), **client_versions()},
    )


# ---- one reader -----------------------------------------------------------------------------------------------------


def _reading(cluster: Cluster, served: Server, manifest: Manifest, repeats: int) -> list[tuple[str, ...]]:
    stream = manifest.stream
    body = _body(served, f"/v1/streams/{stream}/records?from=batch:0&format=msgpack")
    log = HttpLog(f"http://{served.host}:{served.port}")
    direct, over_http = "FeatureStream on Kafka", "FeatureStream through the gateway"
    answers, plain = "the gateway's msgpack answers", "bare HTTP, as many bytes"
    with running(bare, "application/msgpack", body) as sending:
        ways: dict[str, Callable[[], Run]] = {
            direct: lambda: _stream(FeatureStream(stream, TAP, bootstrap_servers=cluster.bootstrap_servers), manifest),
            over_http: lambda: _stream(FeatureStream(stream, TAP, log=log), manifest),
            answers: lambda: _answers(served, manifest),
            plain: lambda: _bare_bytes(sending, len(body), manifest),
        }
        runs = in_turn(ways, repeats)
    return [
        (name, f"{rate(runs, name):,.0f}", f"{cpu_ms(runs, name):.2f}", str(ratio(runs, name, direct))) for name in ways
    ]


def _stream(stream: FeatureStream, manifest: Manifest) -> Run:
    rows = 0
    clock = Clock()
    with stream:
        for number, batch in enumerate(stream, 1):
            rows += len(batch.numpy())
            if number == SKIPPED:
                clock = Clock()
        run = clock.stop(_megabytes(manifest, (manifest.total_batches or 0) - SKIPPED))
    if rows != manifest.data.samples:
        raise RuntimeError(f"{rows} rows were read")
    return run


def _answers(served: Server, manifest: Manifest) -> Run:
    """Read all answers without looking into them."""
    rows = 0
    query = "from=batch:0"
    with closing_connection(served) as connection:
        clock = Clock()
        while query:
            connection.request("GET", f"/v1/streams/{manifest.stream}/records?{query}&format=msgpack")
            answer = connection.getresponse()
            answer.read()
            rows += int(answer.headers["Featurestream-Rows"])
            following = answer.headers["Featurestream-Next"]
            query = f"cursor={following}" if following else ""
        run = clock.stop(_megabytes(manifest, manifest.total_batches or 0))
    if rows != manifest.data.samples:
        raise RuntimeError(f"{rows} rows were read")
    return run


def _bare_bytes(sending: Server, size: int, manifest: Manifest) -> Run:
    megabytes = _megabytes(manifest, manifest.total_batches or 0)
    with closing_connection(sending) as connection:
        clock = Clock()
        for _ in range(max(1, round(megabytes * MB / size))):
            ask(connection, "/")
        return clock.stop(megabytes)


# ---- many clients ---------------------------------------------------------------------------------------------------


def _asking(served: Server, manifest: Manifest, clients: Sequence[int], seconds: float) -> list[tuple[str, ...]]:
    batches = manifest.total_batches or 0

    def path(form: str, number: int) -> str:
        batch = number % batches
        return f"/v1/streams/{manifest.stream}/records?from=batch:{batch}&until=batch:{batch + 1}&format={form}"

    with ExitStack() as stack:
        bodies = {form: _body(served, path(form, 0)) for form in ("msgpack", "json")}
        servers: dict[str, tuple[Server, Callable[[int], str]]] = {
            GATEWAY_MSGPACK: (served, partial(path, "msgpack")),
            BARE_MSGPACK: (
                stack.enter_context(running(bare, "application/msgpack", bodies["msgpack"])),
                lambda _: "/",
            ),
            GATEWAY_JSON: (served, partial(path, "json")),
            BARE_JSON: (stack.enter_context(running(bare, "application/json", bodies["json"])), lambda _: "/"),
        }
        if find_spec("flask") is not None:
            features = _features(bodies["json"])
            servers[ORIGINAL] = (stack.enter_context(running(original, TAP, features)), lambda _: "/data")
        lines = [
            _line(name, count, load(server, asked, clients=count, seconds=seconds), manifest)
            for count in clients
            for name, (server, asked) in servers.items()
        ]
    if ORIGINAL not in servers:
        lines.append((f"{ORIGINAL}: not installed", "", "", "", "", "", ""))
    return lines


def _line(name: str, clients: int, found: Load, manifest: Manifest) -> tuple[str, ...]:
    return (
        name,
        str(clients),
        f"{found.rate * _megabytes(manifest, 1):,.1f}",
        f"{found.rate:,.1f}",
        f"{found.milliseconds(50):,.0f}",
        f"{found.milliseconds(99):,.0f}",
        str(found.refused),
    )


def _features(body: bytes) -> NDArray[np.float16]:
    return np.array([row["features"][TAP] for row in json.loads(body)["rows"]], np.float16)


def _body(served: Server, path: str) -> bytes:
    with closing_connection(served) as connection:
        connection.request("GET", path)
        answer: http.client.HTTPResponse = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}: {body[:300]!r}")
        return body


# ---- memory ---------------------------------------------------------------------------------------------------------


def _memory(served: Server, manifest: Manifest, clients: int, seconds: float) -> list[tuple[str, ...]]:
    path = f"/v1/streams/{manifest.stream}/records?from=batch:0&format=msgpack"
    before = served.process.memory_info().rss
    halves = [0, 0]
    with slow_clients(served, path, clients=clients, pause_s=PAUSE_S):
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            half = int(passed >= seconds / 2)
            halves[half] = max(halves[half], served.process.memory_info().rss)
            time.sleep(0.05)
    return [
        (
            "slow clients",
            str(clients),
            f"{seconds:,.0f}",
            *(f"{size / MB:,.0f}" for size in (before, max(halves), halves[1])),
        )
    ]


def _megabytes(manifest: Manifest, batches: int) -> float:
    """Return the size of the features of so many batches."""
    return batches * manifest.batch_samples * manifest.tap(TAP).numbers * 2 / MB

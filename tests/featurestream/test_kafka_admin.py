"""featurestream.kafka.admin: a cluster that answers, with and without brokers that are ready."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog
from featurestream.kafka.admin import ping

API_VERSIONS, METADATA = 18, 3
METADATA_VERSION = 4
UNSUPPORTED_VERSION, UNKNOWN_TOPIC = 35, 3
CLIENT = """
import sys
from confluent_kafka.admin import AdminClient
from featurestream.errors import BrokerError
from featurestream.kafka.admin import describe
from featurestream.kafka.client import ask, open_client

client, reports = open_client(AdminClient, {"bootstrap.servers": sys.argv[1]})
for line in sys.stdin:
    try:
        found = ask(client, reports, float(line), lambda look_s: describe(client, reports, look_s))
        print(len(found.brokers), flush=True)
    except BrokerError as error:
        print(error.message, flush=True)
"""


class Answering:
    """A broker that answers two questions, with brokers only when there are any: Kafka's protocol, ApiVersions 0 and
    Metadata 4 (https://kafka.apache.org/protocol).

    Attributes:
        address: where it listens.
        ready: whether it tells of a broker, which is itself.
    """

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._port = self._server.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self.ready = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as requests:
            while head := requests.read(4):
                request = requests.read(struct.unpack(">i", head)[0])
                key, version, number, client = struct.unpack_from(">hhih", request)
                body = request[10 + max(client, 0) :]
                answer = struct.pack(">i", number) + (
                    self._versions(version) if key == API_VERSIONS else self._metadata(body)
                )
                connection.sendall(struct.pack(">i", len(answer)) + answer)

    def _versions(self, version: int) -> bytes:
        known = ((API_VERSIONS, 0, 0), (METADATA, METADATA_VERSION, METADATA_VERSION))
        error = 0 if version == 0 else UNSUPPORTED_VERSION
        return struct.pack(">hi", error, len(known)) + b"".join(struct.pack(">hhh", *one) for one in known)

    def _metadata(self, body: bytes) -> bytes:
        brokers = [struct.pack(">i", 1) + _text("127.0.0.1") + struct.pack(">ih", self._port, -1)] if self.ready else []
        (count,) = struct.unpack_from(">i", body)  # -1: all topics
        names, at = [b"there"] if count < 0 else [], 4
        for _ in range(count):
            (length,) = struct.unpack_from(">h", body, at)
            names.append(body[at + 2 : at + 2 + length])
            at += 2 + length
        topics = [THERE if name == b"there" else _unknown(name) for name in names]
        cluster = _text("fake") + struct.pack(">i", 1)
        return struct.pack(">i", 0) + _array(brokers) + cluster + _array(topics)


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _array(parts: list[bytes]) -> bytes:
    return struct.pack(">i", len(parts)) + b"".join(parts)


def _unknown(topic: bytes) -> bytes:
    return struct.pack(">hh", UNKNOWN_TOPIC, len(topic)) + topic + struct.pack(">?i", False, 0)


ONE_REPLICA = struct.pack(">ii", 1, 1)
ONE_LANE = struct.pack(">ihii", 1, 0, 0, 1) + 2 * ONE_REPLICA
THERE = struct.pack(">h", 0) + _text("there") + struct.pack(">?", False) + ONE_LANE


@pytest.fixture
def answering() -> Iterator[Answering]:
    broker = Answering()
    yield broker
    broker.close()


def test_a_cluster_none_of_whose_brokers_is_ready_is_waited_for_and_ends_no_process(answering: Answering) -> None:
    """By a client that has known the broker before, in a process of its own: the client library can end the process."""
    answering.ready = True
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, answering.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as asking:

        def describe(limit_s: float) -> str:
            assert asking.stdin is not None
            assert asking.stdout is not None
            print(limit_s, file=asking.stdin, flush=True)
            return asking.stdout.readline()

        assert describe(10) == "1\n"
        answering.ready = False
        assert describe(1).startswith(f"no answer from Kafka at {answering.address} for 1 s")
    assert asking.returncode == 0


def test_a_log_whose_cluster_was_not_ready_finds_it_again(answering: Answering) -> None:
    """Also where its client has forgotten every broker, which happens now and then."""
    answering.ready = True
    with KafkaLog(Cluster(answering.address), stall_s=0.5) as log:
        for _ in range(3):
            assert log.topics() == {"there": 1}
            answering.ready = False
            with pytest.raises(BrokerError, match="no answer from Kafka"):
                log.topics()
            answering.ready = True


def test_a_broker_that_never_was_ready_is_no_cluster(answering: Answering) -> None:
    with pytest.raises(BrokerError, match=f"no answer from Kafka at {answering.address} for 0 s"):
        ping(answering.address, 0.3)


def test_a_cluster_is_there_as_soon_as_a_broker_is_ready(answering: Answering) -> None:
    answering.ready = True
    ping(answering.address, 10)

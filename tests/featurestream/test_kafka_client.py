"""featurestream.kafka.client: a cluster that does not answer, a login that is refused, a process that was forked."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog
from featurestream.kafka.client import Reports, ask, open_client
from featurestream.kafka.config import admin_settings, finder_settings, producer_settings

NOWHERE = Cluster("127.0.0.1:9")


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port where every connection is closed at once, as a TLS listener does with who does not speak TLS."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.recv(1)
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (AdminClient, admin_settings(NOWHERE, "me")),
        (Producer, producer_settings(NOWHERE, "me", 1024)),
        (Consumer, finder_settings(NOWHERE, "me")),
    ],
)
def test_a_cluster_that_is_not_there_is_an_error_in_time_with_address_and_reason(kind, settings):
    client, reports = open_client(kind, settings)
    began = time.monotonic()
    with pytest.raises(BrokerError, match=r"Kafka at 127\.0\.0\.1:9 for 1 s: .*Connection refused; is the broker") as e:
        ask(client, reports, 1.0, lambda look_s: client.list_topics(timeout=look_s))
    assert time.monotonic() - began < 5
    assert e.value.bootstrap_servers == "127.0.0.1:9"


def test_a_port_that_hangs_up_may_want_another_protocol(deaf_port):
    cluster = Cluster(f"127.0.0.1:{deaf_port}")
    client, reports = open_client(AdminClient, admin_settings(cluster, "me"))
    with pytest.raises(BrokerError, match=r"does the broker expect another security\.protocol"):
        ask(client, reports, 1.5, lambda look_s: client.list_topics(timeout=look_s))


@pytest.mark.broker
def test_a_tls_client_at_a_plain_port_is_told_so(broker):
    cluster = Cluster(broker.bootstrap_servers, {"security.protocol": "SSL"})
    client, reports = open_client(AdminClient, admin_settings(cluster, "me"))
    with pytest.raises(BrokerError, match=r"expects security\.protocol=PLAINTEXT, and this client came with SSL"):
        ask(client, reports, 1.5, lambda look_s: client.list_topics(timeout=look_s))


@pytest.mark.broker
@pytest.mark.parametrize(
    "use",
    [
        lambda log: log.topics(),
        lambda log: log.create_topic("t", 1, {}),
        lambda log: log.sink(),
        lambda log: log.source().bounds("t", 0),
        lambda log: log.source().read("t", 0, 0),
        lambda log: log.commit_positions("featurestream.a.b", {("t", 0): 1}),
    ],
)
def test_a_login_where_none_is_wanted_is_an_error_at_once(broker, use):
    login = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "u",
        "sasl.password": "secret",
    }
    began = time.monotonic()
    with (
        KafkaLog(Cluster(broker.bootstrap_servers, login)) as log,
        pytest.raises(BrokerError, match=r"came with SASL_PLAINTEXT; put .*--kafka-config") as error,
    ):
        use(log)
    assert time.monotonic() - began < 5
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("code", [KafkaError._AUTHENTICATION, KafkaError._SSL])
def test_a_report_of_a_refused_login_or_certificate_is_final(code):
    reports = Reports("h:1")
    reports.answered()
    reports.check()
    reports.on_error(KafkaError(code, "ssl://h:1/1: certificate verify failed (after 3ms in state SSL_HANDSHAKE)"))
    for _ in range(2):
        with pytest.raises(BrokerError, match="Kafka at h:1 cannot be talked to: certificate verify failed; check"):
            reports.check()
        reports.answered()


def test_a_report_without_a_reason_does_not_hide_the_one_before():
    reports = Reports("h:1")
    reports.on_error(KafkaError(KafkaError._TRANSPORT, "h:1/1: Connection refused (after 0ms in state CONNECT)"))
    reports.on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"))
    reports.check()
    assert reports.doubt
    assert reports.reason == "Connection refused"
    reports.answered()
    assert not reports.doubt


def test_what_the_cluster_answers_passes_and_what_passes_is_asked_again():
    client, reports = open_client(AdminClient, admin_settings(NOWHERE, "me"))
    answers = iter([KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_CONTROLLER, None])
    looks = []

    def question(look_s: float) -> str:
        looks.append(look_s)
        code = next(answers)
        if code is not None:
            raise KafkaException(KafkaError(code))
        return "yes"

    assert ask(client, reports, 10.0, question) == "yes"
    assert looks == [0.5, 1.0, 2.0]
    assert reports.contact

    def refuse(look_s: float) -> str:
        raise KafkaException(KafkaError(KafkaError.POLICY_VIOLATION))

    with pytest.raises(KafkaException):
        ask(client, reports, 10.0, refuse)


def test_what_a_broker_says_to_the_end_is_the_reason():
    client, reports = open_client(AdminClient, admin_settings(NOWHERE, "me"))

    def question(look_s: float) -> str:
        raise KafkaException(KafkaError(KafkaError.BROKER_NOT_AVAILABLE, "none of its brokers is ready"))

    with pytest.raises(BrokerError, match="for 0 s: none of its brokers is ready"):
        ask(client, reports, 0.2, question)


def test_log_lines_go_to_our_logger_and_repeats_are_left_out(caplog):
    caplog.set_level(logging.INFO, "featurestream.kafka")
    client, reports = open_client(AdminClient, admin_settings(NOWHERE, "me"))
    with pytest.raises(BrokerError):
        ask(client, reports, 1.0, lambda look_s: client.list_topics(timeout=look_s))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("FAIL 127.0.0.1:9: Connect to ipv4#127.0.0.1:9 failed: Connection refused")


SILENT = """
from confluent_kafka import Consumer
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka.client import ask, open_client
from featurestream.kafka.config import finder_settings
client, reports = open_client(Consumer, finder_settings(Cluster("127.0.0.1:9"), "me"))
try:
    ask(client, reports, 0.5, lambda look_s: client.list_topics(timeout=look_s))
except BrokerError:
    print("failed")
"""

FORKED = """
import os
from featurestream.cluster import Cluster
from featurestream.errors import UsageError
from featurestream.kafka import KafkaLog
log = KafkaLog(Cluster("127.0.0.1:9"))
source = log.source()
if os.fork() == 0:
    for use in (log.topics, lambda: source.bounds("t", 0), lambda: source.read("t", 0, 0)):
        try:
            use()
        except UsageError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
"""


def test_nothing_of_the_client_reaches_a_users_terminal():
    done = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("failed\n", "")


def test_a_client_in_a_forked_process_says_that_it_does_nothing_there():
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert done.stdout.count("is used in process") == 3
    assert 'method "spawn"' in done.stdout

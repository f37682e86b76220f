"""featurestream.broker.process: the life of a real broker, its deaths, and what stands in its way."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from featurestream.broker import EmbeddedBroker, process
from featurestream.broker.config import server_properties
from featurestream.broker.ports import is_open, read_ports
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError, UsageError

NewBroker = Callable[[str], EmbeddedBroker]

# A program that starts the broker of a home, prints its process id and ends.
STARTER = """
import sys
from pathlib import Path
from featurestream.broker import EmbeddedBroker
print(EmbeddedBroker(Path(sys.argv[1])).up().pid)
"""

# A program that holds a lock file as Kafka does, until its standard input ends.
HOLDER = """
import fcntl, sys
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


def write_record(address: str | None, topic: str, value: bytes) -> None:
    """Create ``topic`` and write one record, acknowledged."""
    settings = {"bootstrap.servers": address or ""}
    admin = AdminClient(settings)  # named: its requests die with it
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(10)
    producer = Producer({**settings, "acks": "all"})
    producer.produce(topic, value, partition=0)
    assert producer.flush(10) == 0


def read_record(address: str | None, topic: str) -> bytes:
    """Read the first record of ``topic``."""
    consumer = Consumer({"bootstrap.servers": address or "", "group.id": "reader"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = consumer.poll(10)
        assert message is not None
        assert message.error() is None
        value = message.value()
        assert isinstance(value, bytes)
        return value
    finally:
        consumer.close()


@pytest.mark.broker
def test_up_is_idempotent_and_any_object_on_the_same_home_sees_the_same_broker(
    broker: Cluster, session_home: Path
) -> None:
    embedded = EmbeddedBroker(session_home)
    said: list[str] = []
    first = embedded.up(said.append)
    assert first == embedded.up(said.append) == EmbeddedBroker(session_home).status()
    assert first.running
    assert first.bootstrap_servers == broker.bootstrap_servers
    assert said == []


@pytest.mark.broker
def test_the_broker_listens_on_loopback_only(broker: Cluster, session_home: Path) -> None:
    pid = EmbeddedBroker(session_home).status().pid
    listening = [found for found in psutil.Process(pid).net_connections() if found.status == psutil.CONN_LISTEN]
    assert len(listening) == 2
    assert {found.laddr.ip.removeprefix("::ffff:") for found in listening} == {"127.0.0.1"}


@pytest.mark.broker
def test_a_record_survives_a_kill_a_stop_and_a_move_to_other_ports(new_broker: NewBroker) -> None:
    embedded = new_broker("home")
    first = embedded.up()
    write_record(first.bootstrap_servers, "survivor", b"still here")

    os.kill(first.pid or 0, signal.SIGKILL)
    second = embedded.up()
    assert second.bootstrap_servers == first.bootstrap_servers
    assert second.pid != first.pid
    assert read_record(second.bootstrap_servers, "survivor") == b"still here"

    assert embedded.down() is True
    assert embedded.down() is False
    assert not embedded.status().running

    known = read_ports((embedded.home / "server.properties").read_text())
    assert known is not None
    said: list[str] = []
    with socket.create_server(("127.0.0.1", known[0])), socket.create_server(("127.0.0.1", known[1])):
        moved = embedded.up(said.append)
    assert moved.bootstrap_servers not in {None, first.bootstrap_servers}
    assert said == [
        f"port {known[0]} is taken by another program: the embedded broker moves to "
        f"{(moved.bootstrap_servers or '').removeprefix('127.0.0.1:')}"
    ]
    assert read_record(moved.bootstrap_servers, "survivor") == b"still here"


@pytest.mark.broker
def test_programs_that_start_it_at_once_get_one_broker_that_outlives_them(
    new_broker: NewBroker, broker: Cluster
) -> None:
    """It also runs beside the session's broker, which has another home."""
    embedded = new_broker("shared")
    starters = [
        subprocess.Popen([sys.executable, "-c", STARTER, str(embedded.home)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    pids = {starter.communicate(timeout=120)[0].strip() for starter in starters}
    status = embedded.status()
    assert pids == {str(status.pid)}
    assert status.running
    assert status.bootstrap_servers != broker.bootstrap_servers
    assert is_open(int(broker.bootstrap_servers.rpartition(":")[2]))


@pytest.mark.broker
@pytest.mark.parametrize("content", [None, "1", "999999999", "no number", "my own"])
def test_a_lost_or_wrong_pid_file_does_not_mislead(broker: Cluster, session_home: Path, content: str | None) -> None:
    pid_file = session_home / "broker.pid"
    right = pid_file.read_text()
    try:
        if content is None:
            pid_file.unlink()
        else:
            pid_file.write_text(str(os.getpid()) if content == "my own" else content)
        status = EmbeddedBroker(session_home).up()
        assert status.bootstrap_servers == broker.bootstrap_servers
        assert status.pid == int(right)
    finally:
        pid_file.write_text(right)


def test_a_pid_that_another_program_has_by_now_is_not_taken_for_the_broker(tmp_path: Path) -> None:
    (tmp_path / "broker.pid").write_text(str(os.getpid()))
    assert not EmbeddedBroker(tmp_path).status().running
    assert EmbeddedBroker(tmp_path).down() is False


def test_looking_leaves_no_trace(tmp_path: Path) -> None:
    embedded = EmbeddedBroker(tmp_path / "nowhere")
    status = embedded.status()
    assert (status.running, status.bootstrap_servers, status.pid) == (False, None, None)
    assert embedded.down() is False
    with pytest.raises(UsageError, match="featurectl broker up"):
        embedded.logs()
    assert not embedded.home.exists()


@pytest.mark.broker
def test_a_process_that_holds_the_data_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "data" / ".lock"
    lock.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(BrokerError, match=rf"data in .* is in use by process {holder.pid} \(python"):
            EmbeddedBroker(tmp_path).up()


@pytest.mark.broker
def test_looking_at_the_lock_does_not_take_it_away(tmp_path: Path) -> None:
    lock = tmp_path / "data" / ".lock"
    lock.parent.mkdir()
    EmbeddedBroker(tmp_path)._check_folder()
    with lock.open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_home_that_cannot_be_a_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match=f"cannot write in {tmp_path}/file: .*FEATURESTREAM_HOME"):
        EmbeddedBroker(tmp_path / "file").up()


@pytest.mark.broker
def test_a_disk_without_room_is_told_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ROOM_MB", 10**12)
    with pytest.raises(BrokerError, match=r"no room for the broker's data: \d+ MB free in .*data"):
        EmbeddedBroker(tmp_path).up()


def test_an_ended_broker_says_why_at_its_own_address_alone(tmp_path: Path) -> None:
    (tmp_path / "server.properties").write_text(server_properties(9001, 9002))
    (tmp_path / "broker.log").write_text(
        "[2026-01-01 00:00:00,000] INFO [KafkaRaftServer nodeId=1] Kafka Server started\n"
        "[2026-01-01 00:00:09,000] ERROR Error while appending records: No space left on device\n"
        "\tat java.base/sun.nio.ch.FileDispatcherImpl.write0(Native Method)\n"
        "[2026-01-01 00:00:10,000] INFO Stopping\n"
    )
    why = EmbeddedBroker(tmp_path).why_gone("127.0.0.1:9001")
    assert why is not None
    assert why == (
        f"the embedded broker in {tmp_path} has ended; its log's last error: "
        "[2026-01-01 00:00:09,000] ERROR Error while appending records: No space left on device"
    )
    assert EmbeddedBroker(tmp_path).why_gone("127.0.0.1:9003") is None


@pytest.mark.broker
def test_a_start_that_fails_shows_the_end_of_the_log_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = tmp_path / "java"
    java.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "  -version) echo 'openjdk version \"21\"' >&2 ;;\n"
        "  *StorageTool*) exit 0 ;;\n"
        "  *) echo 'ERROR the moon is full'; exit 1 ;;\n"
        "esac\n"
    )
    java.chmod(0o755)
    monkeypatch.setenv("FEATURESTREAM_JAVA", str(java))
    embedded = EmbeddedBroker(tmp_path / "home")
    with pytest.raises(BrokerError, match="ERROR the moon is full") as caught:
        embedded.up()
    assert caught.value.exit_code == 3
    assert not embedded.status().running


@pytest.mark.broker
def test_data_that_cannot_be_prepared_is_an_error_with_what_the_tool_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = tmp_path / "java"
    java.write_text(
        '#!/bin/sh\n[ "$1" = -version ] && echo \'openjdk version "21"\' && exit 0\necho "no space left"; exit 1\n'
    )
    java.chmod(0o755)
    monkeypatch.setenv("FEATURESTREAM_JAVA", str(java))
    with pytest.raises(BrokerError, match=r"home/data cannot be prepared: no space left"):
        EmbeddedBroker(tmp_path / "home").up()

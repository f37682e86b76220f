"""featurestream.broker: what Kafka is told, which ports it gets and where its data lies. No process is started."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from featurestream.broker.config import broker_command, format_command, server_properties
from featurestream.broker.home import broker_home
from featurestream.broker.java import Java
from featurestream.broker.ports import choose_ports, is_free, is_open, read_ports

JAVA = Java(Path("/opt/java/bin/java"), 21, "PATH")


def test_the_broker_listens_on_loopback_only() -> None:
    lines = dict(line.split("=", 1) for line in server_properties(20001, 20002).splitlines() if line[0] != "#")
    assert lines["listeners"] == "PLAINTEXT://127.0.0.1:20001,CONTROLLER://127.0.0.1:20002"
    assert lines["advertised.listeners"] == "PLAINTEXT://127.0.0.1:20001"
    assert lines["controller.quorum.voters"] == "1@127.0.0.1:20002"


def test_topics_are_never_made_by_mistake() -> None:
    assert "auto.create.topics.enable=false\n" in server_properties(1, 2)


def test_the_ports_are_remembered_in_the_settings_themselves() -> None:
    assert read_ports(server_properties(20001, 20002)) == (20001, 20002)
    assert read_ports("") is None


def test_the_jars_are_given_in_one_class_path_and_the_mark_comes_first() -> None:
    command = broker_command(JAVA, [Path("/j/a.jar"), Path("/j/b.jar")], "-Dmark=1")
    assert command[:2] == ["/opt/java/bin/java", "-Dmark=1"]
    assert command[-4:] == ["-cp", "/j/a.jar:/j/b.jar", "kafka.Kafka", "server.properties"]


def test_the_process_that_prepares_the_data_does_not_look_like_the_broker() -> None:
    command = format_command(JAVA, [Path("/j/a.jar")])
    assert not any(argument.startswith("-Dfeaturestream.home") for argument in command)
    assert "kafka.tools.StorageTool" in command


def test_free_ports_lie_below_those_of_outgoing_connections(tmp_path: Path) -> None:
    broker, controller = choose_ports(tmp_path, None)
    assert broker != controller
    assert min(broker, controller) >= 20000
    assert max(broker, controller) < 30000


def test_remembered_ports_are_kept_and_a_taken_one_is_replaced(tmp_path: Path) -> None:
    broker, controller = choose_ports(tmp_path, None)
    assert choose_ports(tmp_path, (broker, controller)) == (broker, controller)
    with socket.create_server(("127.0.0.1", broker)):
        assert not is_free(broker)
        assert is_open(broker)
        moved, kept = choose_ports(tmp_path, (broker, controller))
    assert kept == controller
    assert moved not in {broker, controller}
    assert not is_open(broker)


def test_a_home_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEATURESTREAM_HOME", str(tmp_path))
    assert broker_home() == tmp_path


def test_each_python_environment_has_a_home_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATURESTREAM_HOME")
    monkeypatch.setattr(sys, "prefix", "/one/.venv")
    one = broker_home()
    monkeypatch.setattr(sys, "prefix", "/two/.venv")
    two = broker_home()
    assert one != two
    assert one.parent == two.parent

"""featurestream.cluster: which cluster is used, and what is said where it does not answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestream.cluster import ANSWER_S, Cluster, resolve_cluster
from featurestream.errors import BrokerError, UsageError


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that is taken and at which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def mute() -> Iterator[str]:
    """An address that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_named_cluster_that_refuses_connections_is_an_error_that_names_address_cause_and_next_step(
    nobody: str,
) -> None:
    with pytest.raises(BrokerError) as caught:
        resolve_cluster(nobody, timeout_s=0.6)
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert text.startswith(f"no answer from Kafka at {nobody} for ")
    assert "Connection refused" in text
    assert "named by --bootstrap-servers" in text
    assert "featurectl broker up" in text


def test_a_named_cluster_that_never_answers_is_given_up_when_the_time_is_over(mute: str) -> None:
    started = time.monotonic()
    with pytest.raises(BrokerError, match=mute):
        resolve_cluster(mute, timeout_s=0.8)
    assert 0.7 <= time.monotonic() - started < 3
    assert ANSWER_S == 10


def test_the_message_tells_how_to_undo_the_environment_variable(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTREAM_BOOTSTRAP_SERVERS", nobody)
    with pytest.raises(BrokerError, match="unset FEATURESTREAM_BOOTSTRAP_SERVERS"):
        resolve_cluster(timeout_s=0.6)


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1:9092,", " "])
def test_what_cannot_be_an_address_is_refused_before_anything_is_asked(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        resolve_cluster(address)


def test_the_argument_goes_before_the_environment_and_that_before_the_file(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "client.properties"
    config.write_text("bootstrap.servers=127.0.0.1:3\n")
    with pytest.raises(BrokerError, match=rf"127\.0\.0\.1:3 for .*\(named by bootstrap\.servers in {config}\)"):
        resolve_cluster(None, config, timeout_s=0.5)
    monkeypatch.setenv("FEATURESTREAM_BOOTSTRAP_SERVERS", "127.0.0.1:2")
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:2 for "):
        resolve_cluster(None, config, timeout_s=0.5)
    with pytest.raises(BrokerError, match=f"{nobody} for "):
        resolve_cluster(nobody, config, timeout_s=0.5)


def test_a_settings_file_that_names_no_cluster_never_falls_back_to_the_embedded_broker(tmp_path: Path) -> None:
    config = tmp_path / "client.properties"
    config.write_text("security.protocol=SSL\n")
    with pytest.raises(UsageError, match=r"no bootstrap\.servers"):
        resolve_cluster(None, config)


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.properties: No such file"):
        resolve_cluster(None, tmp_path / "nowhere.properties")


def test_a_setting_that_the_client_library_does_not_know_is_named(nobody: str, tmp_path: Path) -> None:
    config = tmp_path / "client.properties"
    config.write_text("ssl.keystroke=1\n")
    with pytest.raises(UsageError, match=r"ssl\.keystroke"):
        resolve_cluster(nobody, config)


def test_passwords_are_not_in_the_repr_of_a_cluster() -> None:
    cluster = Cluster("kafka:9092", {"sasl.password": "hunter2"})
    assert "hunter2" not in repr(cluster)
    assert hash(cluster) == hash(Cluster("kafka:9092"))


@pytest.mark.broker
def test_where_no_cluster_is_named_the_embedded_broker_is_used_and_one_line_says_so(
    broker: Cluster, session_home: Path
) -> None:
    said: list[str] = []
    assert resolve_cluster(say=said.append) == broker
    assert broker.embedded
    assert said == [
        f"no cluster named: using the embedded Kafka 4.3.1 at {broker.bootstrap_servers} (data in {session_home})"
    ]


@pytest.mark.broker
def test_a_cluster_named_in_a_file_is_used_with_the_other_settings_of_that_file(
    broker: Cluster, tmp_path: Path
) -> None:
    config = tmp_path / "client.properties"
    config.write_text(f"bootstrap.servers = {broker.bootstrap_servers}\nclient.id: lab\n")
    assert resolve_cluster(None, config) == Cluster(broker.bootstrap_servers, {"client.id": "lab"})


@pytest.mark.broker
def test_a_login_where_none_is_wanted_is_told_long_before_the_time_is_over(broker: Cluster, tmp_path: Path) -> None:
    config = tmp_path / "client.properties"
    config.write_text(
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username=ada\nsasl.password=hunter2\n"
    )
    config.chmod(0o600)
    started = time.monotonic()
    with pytest.raises(BrokerError, match="SASL") as caught:
        resolve_cluster(broker.bootstrap_servers, config, timeout_s=30)
    assert time.monotonic() - started < 10
    assert "hunter2" not in str(caught.value)

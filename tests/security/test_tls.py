"""TLS and SCRAM, against a broker that wants them: what fits works, and what does not is told at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurestream.cluster import Cluster, resolve_cluster
from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog
from featurestream.kafka.handshake import spoken_protocol
from tests.secure_broker import SecureBroker, make_ca

pytestmark = pytest.mark.broker

PATIENCE_S = 60.0  # an error that comes long before is no time-out


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, _, _ = make_ca(tmp_path_factory.mktemp("other"))
    return path


def test_a_scram_login_over_tls_reads_and_lists(secure: SecureBroker, tmp_path: Path) -> None:
    file = secure.write_properties(tmp_path / "client.properties", "viewer")
    cluster = resolve_cluster(None, file)
    assert cluster.bootstrap_servers == secure.addresses["SASL_SSL"]
    with KafkaLog(cluster) as log:
        assert "t-nobody-may-see" not in log.topics()


def test_a_certificate_is_compared_with_the_hosts_name(secure: SecureBroker, tmp_path: Path) -> None:
    port = secure.addresses["SASL_SSL"].partition(":")[2]
    file = secure.write_properties(tmp_path / "c.properties", "viewer", bootstrap_servers=f"localhost:{port}")
    assert resolve_cluster(None, file).bootstrap_servers == f"localhost:{port}"
    # The same place by a name that the certificate does not have.
    elsewhere = secure.write_properties(tmp_path / "e.properties", "viewer", bootstrap_servers=f"127.1:{port}")
    with pytest.raises(BrokerError, match="certificate verify failed"):
        resolve_cluster(None, elsewhere, timeout_s=PATIENCE_S)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sasl_password": "wrong"}, "cannot be talked to: SASL authentication error: Authentication failed"),
        ({"sasl_username": "stranger"}, "cannot be talked to: SASL authentication error: Authentication failed"),
        ({"sasl_mechanism": "PLAIN"}, "Unsupported SASL mechanism: broker's supported mechanisms: SCRAM-SHA-512"),
        ({"ssl_ca_location": "OTHER"}, "certificate verify failed"),
        (
            {"security_protocol": "SASL_PLAINTEXT"},
            "expects security.protocol=SASL_SSL, and this client came with SASL_P",
        ),
        ({"security_protocol": "PLAINTEXT"}, "expects security.protocol=SASL_SSL, and this client came with PLAINTEXT"),
        ({"security_protocol": "SSL"}, "put security.protocol=SASL_SSL, with sasl.mechanism, sasl.username and sasl."),
        (
            {"security_protocol": "PLAINTEXT", "bootstrap_servers": "SSL"},
            "put security.protocol=SSL into the properties",
        ),
        ({"bootstrap_servers": "SSL"}, "expects security.protocol=SSL, and this client came with SASL_SSL"),
        ({"bootstrap_servers": "PLAINTEXT"}, "expects security.protocol=PLAINTEXT, and this client came with SASL_SSL"),
        (
            {"bootstrap_servers": "SASL_PLAINTEXT", "security_protocol": "PLAINTEXT"},
            "expects security.protocol=SASL_PLAINTEXT, and this client came with PLAINTEXT",
        ),
    ],
    ids=str,
)
def test_what_the_broker_does_not_take_is_told_at_once(
    secure: SecureBroker, other_ca: Path, tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    meant = {"OTHER": str(other_ca), **secure.addresses}
    changes = {key: meant.get(value, value) if key != "security_protocol" else value for key, value in changes.items()}
    file = secure.write_properties(tmp_path / "client.properties", "viewer", **changes)
    began = time.monotonic()
    with pytest.raises(BrokerError) as caught:
        resolve_cluster(None, file, timeout_s=PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2
    assert said in str(caught.value)
    assert caught.value.exit_code == 3
    assert "hunter2" not in str(caught.value)


def test_a_log_that_is_opened_without_a_look_tells_it_too(secure: SecureBroker) -> None:
    cluster = Cluster(secure.addresses["SSL"])
    for use in (KafkaLog(cluster).topics, KafkaLog(cluster).sink, lambda: KafkaLog(cluster).source().bounds("t", 0)):
        with pytest.raises(BrokerError, match=r"expects security\.protocol=SSL"):
            use()


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_a_port_is_asked_what_it_speaks(secure: SecureBroker, protocol: str) -> None:
    assert spoken_protocol(secure.addresses[protocol]) == protocol
    assert spoken_protocol(f"127.0.0.1:9,{secure.addresses[protocol]}") == protocol


def test_a_port_where_nobody_speaks_kafka_tells_nothing() -> None:
    assert spoken_protocol("127.0.0.1:9") is None
    assert spoken_protocol("no port") is None


def test_a_command_says_it_in_one_line_with_exit_code_3(secure: SecureBroker, tmp_path: Path) -> None:
    file = secure.write_properties(tmp_path / "client.properties", "viewer", sasl_password="hunter2-that-is-wrong")
    done = subprocess.run(
        [sys.executable, "-m", "featurectl", "streams", "--kafka-config", str(file)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: Kafka at ")
    assert "hunter2" not in done.stdout + done.stderr

"""featurestream.client_properties: secrets come from a file that only its owner reads, or from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestream.client_properties import environment_properties, is_secret, read_properties, variable_of
from featurestream.cluster import resolve_cluster
from featurestream.errors import UsageError

SECRETS = (
    "sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem", "sasl.jaas.config",
    "sasl.oauthbearer.client.secret", "sasl.oauthbearer.config", "ssl.keystore.key", "ssl.truststore.password",
)  # fmt: skip


def write(path: Path, text: str, mode: int) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("key", SECRETS)
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_with_a_secret_that_others_may_open_is_refused_with_the_order_that_helps(
    tmp_path: Path, key: str, mode: int
) -> None:
    file = write(tmp_path / "client.properties", f"{key}=hunter2\n", mode)
    with pytest.raises(UsageError, match=rf"holds {key}.* mode is {mode:04o}; chmod 600 {file}") as caught:
        read_properties(file)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("mode", "text"), [(0o600, "sasl.password=x"), (0o400, "sasl.password=x"), (0o644, "a=b"),
                                            (0o644, "sasl.password=\nsasl.username=ada")])  # fmt: skip
def test_a_file_without_secrets_or_for_its_owner_alone_is_read(tmp_path: Path, mode: int, text: str) -> None:
    assert read_properties(write(tmp_path / "client.properties", text, mode))


def test_a_private_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = write(tmp_path / "me.key", "-----BEGIN PRIVATE KEY-----", 0o644)
    file = write(tmp_path / "client.properties", f"ssl.key.location={key}\n", 0o600)
    with pytest.raises(UsageError, match=f"{key} is the private key that {file} names.*chmod 600 {key}"):
        read_properties(file)


def test_what_is_no_text_is_refused_without_a_piece_of_it(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_bytes(b"sasl.password=hunter2\xff")
    with pytest.raises(UsageError, match="not UTF-8") as caught:
        read_properties(file)
    assert "hunter2" not in str(caught.value)


def test_a_variable_is_a_property_and_an_empty_one_is_none() -> None:
    variables = {"FEATURESTREAM_KAFKA_SASL_PASSWORD": "a_b", "FEATURESTREAM_KAFKA_SSL_CA_LOCATION": "", "HOME": "/x"}
    assert environment_properties(variables) == {"sasl.password": "a_b"}
    assert variable_of("sasl.password") == "FEATURESTREAM_KAFKA_SASL_PASSWORD"


def test_a_variable_where_nothing_names_a_cluster_never_leads_to_the_embedded_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEATURESTREAM_KAFKA_SASL_PASSWORD", "hunter2")
    with pytest.raises(UsageError, match="FEATURESTREAM_KAFKA_SASL_PASSWORD is set, and nothing names a") as caught:
        resolve_cluster()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", ["sasl.username", "sasl.mechanism", "ssl.ca.location", "bootstrap.servers"])
def test_what_is_no_secret_is_not_taken_for_one(key: str) -> None:
    assert not is_secret(key)

"""A password goes to the broker and nowhere else: everything that real runs leave behind is searched for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NoReturn

import pytest

from featurestream.cluster import Cluster
from featurestream.errors import BrokerError
from featurestream.kafka import KafkaLog
from tests.producing import BACKBONE, write_images
from tests.secure_broker import SecureBroker
from tests.security.conftest import Outcome, People, Run, password_of
from tests.security.rights import documented, granted_to

pytestmark = pytest.mark.broker

SECRET = password_of("producer")
CLASSES = ("--tap", "late", "--epochs", "1", "--device", "cpu", "--batch-size", "4")


def places_of(secret: str, folder: Path) -> list[str]:
    """Return the files below ``folder`` that hold a secret, in their bytes or in their names."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if secret in str(path) or secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("by", ["file", "Java's file", "environment"])
def test_no_output_log_record_or_file_of_a_run_holds_the_password(
    people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, by: str
) -> None:
    caplog.set_level(logging.DEBUG)
    stream = "secret-" + {"file": "file", "Java's file": "java", "environment": "env"}[by]
    for role in ("producer", "trainer"):  # one user makes, reads and trains
        people.may(*granted_to("producer", documented(role), stream))
    work, hidden = tmp_path / "work", tmp_path / "hidden"
    work.mkdir()
    hidden.mkdir()
    monkeypatch.chdir(work)
    properties = people.broker.properties("producer")
    if by == "environment":
        monkeypatch.setenv("FEATURESTREAM_KAFKA_SASL_PASSWORD", properties.pop("sasl.password"))
    elif by == "Java's file":
        user, password = properties.pop("sasl.username"), properties.pop("sasl.password")
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        properties["sasl.jaas.config"] = f'{module} required username="{user}" password="{password}";'
    config = hidden / "client.properties"
    config.touch(mode=0o600)
    config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()), encoding="utf-8")
    images = write_images(hidden / "images", 8)

    cluster = ("--kafka-config", config)
    commands: list[tuple[object, ...]] = [
        ("produce", images, "--stream", stream, "--model", BACKBONE, "--tap", "5=late", "--image-size", "16",
         "--device", "cpu", "--workers", "0"),
        ("streams", stream, "--json"), ("streams", stream), ("peek", stream, "--json"),
        ("train", stream, "--name", "E1", *CLASSES),
        ("train", stream, "--name", "E1", *CLASSES, "--json"),
        ("doctor", "--json"), ("peek", "no-such-stream"),
    ]  # fmt: skip
    said = [people.run(*command, *cluster) for command in commands]

    assert [outcome.code for outcome in said] == [0, 0, 0, 0, 0, 0, 0, 3], [outcome.err for outcome in said]
    assert SECRET not in "".join(outcome.out + outcome.err for outcome in said)
    assert SECRET not in caplog.text
    assert (work / "runs" / "E1" / "run.json").exists()
    assert places_of(SECRET, work) == []


def test_the_most_talkative_client_does_not_log_the_password(
    secure: SecureBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "featurestream.kafka")
    properties = secure.properties("viewer") | {"debug": "all"}
    with KafkaLog(Cluster(properties.pop("bootstrap.servers"), properties)) as log:
        log.topics()
        log.source().close()
    assert "sasl.password = [redacted]" in caplog.text
    assert password_of("viewer") not in caplog.text


def test_the_search_finds_a_password_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "run.json").write_text(f'{{"password": "{SECRET}"}}')
    (tmp_path / SECRET).touch()
    assert len(places_of(SECRET, tmp_path)) == 2


def test_a_traceback_does_not_hold_the_password(
    secure: SecureBroker, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: KafkaLog) -> NoReturn:
        raise RuntimeError(f"a bug in {self} with {self.cluster} and {vars(self)}")

    monkeypatch.setattr(KafkaLog, "source", fail)
    config = secure.write_properties(tmp_path / "client.properties", "producer")
    outcome: Outcome = run("peek", "any", "--kafka-config", config)
    assert outcome.code == 70
    assert "Traceback" in outcome.err
    assert "a bug in" in outcome.err
    assert SECRET not in outcome.out + outcome.err


def test_an_error_carries_no_password_in_its_facts(secure: SecureBroker) -> None:
    properties = secure.properties("producer", sasl_password="hunter2-that-is-wrong")
    address = properties.pop("bootstrap.servers")
    with pytest.raises(BrokerError) as caught:
        KafkaLog(Cluster(address, properties)).topics()
    assert "hunter2" not in repr(caught.value.facts) + str(caught.value)

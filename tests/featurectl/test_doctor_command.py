"""featurectl doctor: what is there, what is missing, and what to do about it; nothing is started."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from featurectl import doctor
from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster

REQUIREMENTS = [
    "numpy<3,>=2.1",
    'jgo<4,>=3.2; extra == "broker"',
    "torch<3,>=2.11; extra == 'producer'",
    'pillow<14,>=11; python_version >= "3.11" and extra == "producer"',
    'torch<3,>=2.11; extra == "all"',
]


def test_extras_are_read_from_the_packages_own_metadata() -> None:
    assert doctor.parse_extras(REQUIREMENTS) == {"broker": ["jgo"], "producer": ["torch", "pillow"]}
    assert doctor.parse_extras([]) == {}


def test_an_extra_that_lacks_a_package_names_it_and_the_command_that_installs_it() -> None:
    check = doctor.check_extra("producer", ["numpy", "no-such-package-of-ours"])
    assert (check.state, check.needed) == ("missing", True)
    assert check.found.startswith("no no-such-package-of-ours (but numpy ")
    assert check.advice == 'pip install "featurestream[producer]"'


def test_an_extra_that_the_main_job_can_do_without_is_not_needed() -> None:
    assert not doctor.check_extra("timm", ["no-such-package-of-ours"]).needed


def test_a_broker_that_does_not_run_is_a_note_and_stays_so(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEATURESTREAM_HOME", str(tmp_path / "home"))
    outcome = cli("doctor", "--json")
    assert outcome.code == 0
    checks = {check["name"]: check for check in outcome.rows}
    assert checks["embedded broker"]["state"] == "note"
    assert checks["embedded broker"]["advice"] == "commands start it on first use"
    assert checks["Java"]["state"] == "ok"
    assert checks["extra producer"]["state"] == "ok"
    assert checks["featurestream"]["found"].startswith("0.")
    assert not EmbeddedBroker(tmp_path / "home").status().running
    assert not (tmp_path / "home").exists()


def test_people_are_told_what_to_try_next(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEATURESTREAM_HOME", str(tmp_path / "home"))
    lines = cli("doctor").out.splitlines()
    assert lines[0].split() == ["state", "what", "found", "what", "to", "do"]
    assert lines[-1] == "everything that the main job needs is here; try it with: featurectl demo"


def test_without_java_the_main_job_cannot_run(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEATURESTREAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEATURESTREAM_JAVA", str(tmp_path / "no-java"))
    outcome = cli("doctor")
    assert outcome.code == 3
    assert outcome.out.splitlines()[-1] == "the main job cannot run: Java"
    line = next(line for line in outcome.out.splitlines() if "Java" in line)
    assert line.startswith("MISSING")
    assert 'pip install "featurestream[broker]"' in line


def test_a_full_disk_is_named_with_a_way_out(tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2, 1, 500_000_000))
    check = doctor.check_room(tmp_path / "not" / "there")
    assert (check.state, check.found) == ("missing", f"0.5 GB free in {tmp_path / 'not' / 'there'}")
    assert "FEATURESTREAM_HOME" in check.advice


def test_jars_that_are_not_there_are_downloaded_by_the_first_start(tmp_path, monkeypatch) -> None:
    from featurestream.broker import jars

    monkeypatch.setattr(jars, "jar_folder", lambda: tmp_path)
    check = doctor.check_jars()
    assert (check.state, check.advice) == ("note", "the first start downloads them, once")


def test_a_jar_that_is_not_what_the_lock_says_is_named(tmp_path, monkeypatch) -> None:
    from featurestream.broker import jars

    monkeypatch.setattr(jars, "jar_folder", lambda: tmp_path)
    for jar in jars.locked_jars():
        (tmp_path / jar.filename).write_bytes(b"something else")
    check = doctor.check_jars()
    assert check.state == "missing"
    assert "is not the jar that was released as" in check.found
    assert check.advice.startswith(f"delete {tmp_path}")


def test_a_cluster_that_is_named_and_does_not_answer_is_missing(cli, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_S", 0.2)
    outcome = cli("doctor", "--bootstrap-servers", "127.0.0.1:1", "--json")
    assert outcome.code == 3
    check = outcome.rows[-1]
    assert (check["name"], check["state"]) == ("cluster", "missing")
    assert "no answer from Kafka at 127.0.0.1:1" in check["found"]
    assert "leave out --bootstrap-servers" in check["advice"]


@pytest.mark.broker
def test_a_broker_that_runs_answers(cli, broker: Cluster) -> None:
    checks = {check["name"]: check for check in cli("doctor", "--json").rows}
    assert checks["embedded broker"]["state"] == "ok"
    assert checks["embedded broker"]["found"].endswith(f"answers at {broker.bootstrap_servers}")
    named = cli("doctor", "--json", "--bootstrap-servers", broker.bootstrap_servers)
    assert named.code == 0
    assert named.rows[-1]["found"] == f"Kafka answers at {broker.bootstrap_servers}"

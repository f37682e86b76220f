"""featurectl broker: what the commands print and with which code they end."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from featurectl.broker import app
from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster


@pytest.mark.broker
def test_up_prints_the_address_and_nothing_else_on_standard_output(broker: Cluster) -> None:
    result = CliRunner().invoke(app, ["up"])
    assert result.exit_code == 0
    assert result.stdout == f"{broker.bootstrap_servers}\n"
    assert result.stderr.startswith("Apache Kafka 4.3.1 runs: process ")


@pytest.mark.broker
def test_the_status_of_a_running_broker_has_exit_code_0(broker: Cluster) -> None:
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"running: Apache Kafka 4.3.1 at {broker.bootstrap_servers} (process ")
    facts = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
    assert facts.keys() == {"running", "bootstrap_servers", "pid", "home", "version"}
    assert facts["running"] is True


@pytest.mark.broker
def test_logs_print_the_last_lines(broker: Cluster) -> None:
    result = CliRunner().invoke(app, ["logs", "-n", "1"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.broker
def test_down_stops_the_broker_and_status_then_has_exit_code_3(
    new_broker: Callable[[str], EmbeddedBroker], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = new_broker("home")
    monkeypatch.setenv("FEATURESTREAM_HOME", str(embedded.home))
    started = CliRunner().invoke(app, ["up"])
    assert started.exit_code == 0
    assert "started: process" in started.stderr
    assert CliRunner().invoke(app, ["down"]).stdout == f"stopped (data stays in {embedded.home})\n"
    assert CliRunner().invoke(app, ["down"]).stdout == f"was not running (data in {embedded.home})\n"
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 3
    assert result.stdout.endswith("start it with: featurectl broker up\n")
    facts = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
    assert (facts["running"], facts["bootstrap_servers"]) == (False, None)

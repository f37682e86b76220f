"""docs/monitoring.md says of every metric what the code says; what Grafana and the alerts ask for is really there."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import pytest
import yaml

from featurestream.telemetry import GATEWAY, PRODUCER, TRAINER
from tests.project.conftest import Composed, Kafka
from tests.project.documents import ROOT

PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
ALL = (*PRODUCER, *TRAINER, *GATEWAY)
#: What Prometheus's clients export of every process, and the labels that Prometheus gives every time series.
OF_EVERY_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
OF_PROMETHEUS = {"job", "instance"}
WORDS = {"by", "on", "or", "and", "unless", "without", "ignoring", "group_left", "bool", "offset"}


def test_the_page_has_one_line_for_each_metric_with_what_the_code_says_of_it() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| `featurestream_")]
    assert lines == [
        f"| `{metric.name}` | {metric.kind} | {metric.unit} | {', '.join(f'`{label}`' for label in metric.labels)} "
        f"| {metric.help} |"
        for metric in ALL
    ]


def test_the_page_names_no_metric_that_there_is_not() -> None:
    assert set(re.findall(r"featurestream_\w+_\w+", PAGE)) == {metric.name for metric in ALL}


# ---- what is asked for ----------------------------------------------------------------------------------------------


def dashboard(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / f"deploy/grafana/dashboards/{name}.json").read_text(encoding="utf-8"))
    return loaded


def queries(name: str) -> list[str]:
    """Return what the panels of a dashboard ask Prometheus."""
    return [target["expr"] for panel in dashboard(name)["panels"] for target in panel.get("targets", ())]


def alerts() -> list[str]:
    """Return the expressions of the alerts."""
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def asked_for(query: str) -> dict[str, set[str]]:
    """Return the metrics that a query names, each with the labels that it is asked to have."""
    plain = re.sub(r'"[^"]*"', '""', query)
    grouped = {label for labels in re.findall(r"\b(?:by|without) \(([^)]*)\)", plain) for label in labels.split(", ")}
    plain = re.sub(r"\[[^\]]*\]|\b(?:by|without) \([^)]*\)", "", plain)
    found: dict[str, set[str]] = {}
    for name, call, selector in re.findall(r"([a-zA-Z_:][\w:]*)(\s*\()?(\{[^}]*\})?", re.sub(r"\$\w+", "", plain)):
        if not call and name not in WORDS and not re.search(rf"\{{[^}}]*\b{name}\b[^}}]*\}}", plain):
            found[name] = {*re.findall(r"(\w+)\s*[=!]", selector), *grouped}
    return found


def test_the_metrics_of_a_query_are_found_with_the_labels_that_it_wants() -> None:
    query = 'sum by (stage, job) (rate(a_total{stream=~"$stream",stage!="b c"}[1m])) > 0.8 or c_seconds'
    assert asked_for(query) == {"a_total": {"stream", "stage", "job"}, "c_seconds": {"stage", "job"}}


@pytest.mark.parametrize("query", [*queries("featurestream"), *(one for one in alerts() if "kafka_" not in one)])
def test_what_is_asked_of_our_programs_is_what_they_export(query: str) -> None:
    """That they export what is documented, with these labels, tests/e2e/test_monitoring.py sees of real runs."""
    labels = {metric.name: {*metric.labels, *OF_PROMETHEUS} for metric in ALL}
    asked = asked_for(query)
    assert asked
    for name, wanted in asked.items():
        assert wanted <= labels.get(name, OF_PROMETHEUS if name in OF_EVERY_PROCESS else set()), name


@pytest.mark.broker
@pytest.mark.timeout(900)
def test_what_is_asked_of_kafka_is_what_its_agent_exports(composed: Composed, compose_kafka: Kafka) -> None:
    """After the services of docker-compose.yml have written and read."""
    assert composed.finished
    with urllib.request.urlopen(compose_kafka.metrics, timeout=30) as answer:
        text = answer.read().decode()
    labels: dict[str, set[str]] = {}
    for name, given in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        labels.setdefault(name, {*OF_PROMETHEUS}).update(re.findall(r'(\w+)="', given))
    asked = [asked_for(query) for query in (*queries("kafka"), *(one for one in alerts() if "kafka_" in one))]
    for name, wanted in (item for one in asked for item in one.items()):
        assert wanted <= labels.get(name, set()), name
    assert re.search(r'^kafka_topic_records_in_total\{topic="demo-train.avgpool"\} 12.0$', text, re.MULTILINE)


@pytest.mark.parametrize("name", ["featurestream", "kafka"])
def test_a_dashboard_is_whole(name: str) -> None:
    """Panels that do not overlap, each with an id of its own, on the data source that is provisioned."""
    board = dashboard(name)
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    (uid,) = [one["uid"] for one in source["datasources"]]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23
    targets = [target for panel in panels for target in panel.get("targets", ())]
    assert {target["datasource"]["uid"] for target in targets} == {uid}
    assert board["uid"] == name

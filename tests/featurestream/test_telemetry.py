"""The exporter: what Prometheus reads, and the rules that our metrics keep."""

from __future__ import annotations

import re
import urllib.request

import pytest

from featurestream.errors import InternalError, OutsideError, UsageError
from featurestream.telemetry import (
    EXPERIMENT_LOSS,
    PRODUCER,
    PRODUCER_BATCHES,
    PRODUCER_STAGES,
    TRAINER,
    Metric,
    Telemetry,
    serve,
)

ALL = (*PRODUCER, *TRAINER)


def scrape(telemetry: Telemetry) -> str:
    with urllib.request.urlopen(telemetry.url, timeout=10) as answer:
        return answer.read().decode()


def test_prometheus_reads_what_the_sources_say_at_that_moment() -> None:
    batches = 7
    with serve(0) as telemetry:
        telemetry.add(lambda: [PRODUCER_BATCHES.at(batches, "digits"), EXPERIMENT_LOSS.at(0.25, "digits", "E1")])
        first = scrape(telemetry)
        batches = 8
        second = scrape(telemetry)
    assert "# TYPE featurestream_producer_batches_total counter" in first
    assert 'featurestream_producer_batches_total{stream="digits"} 7.0' in first
    assert "# TYPE featurestream_experiment_loss gauge" in first
    assert 'featurestream_experiment_loss{experiment="E1",stream="digits"} 0.25' in first
    assert 'featurestream_producer_batches_total{stream="digits"} 8.0' in second


def test_time_series_of_one_metric_from_several_sources_are_one_family() -> None:
    with serve(0) as telemetry:
        for worker in (0, 1):
            telemetry.add(lambda worker=worker: [PRODUCER_STAGES.at(worker, "digits", worker, "images")])
        text = scrape(telemetry)
    assert text.count("# HELP featurestream_producer_stage_seconds_total ") == 1
    assert text.count("featurestream_producer_stage_seconds_total{") == 2


def test_the_process_itself_is_measured_too() -> None:
    with serve(0) as telemetry:
        text = scrape(telemetry)
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total", "python_info"):
        assert f"\n{name}" in text


def test_nobody_but_this_machine_is_answered_unless_it_is_asked_for() -> None:
    with serve(0) as telemetry:
        assert telemetry.url.startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_says_how_to_find_a_free_one() -> None:
    with (
        serve(0) as telemetry,
        pytest.raises(OutsideError, match=r"port \d+: Address already in use; --metrics-port 0"),
    ):
        serve(telemetry.port).__enter__()


def test_a_host_that_is_none_of_this_machines_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match=r'"no\.such\.host\.invalid" is no address of this machine'):
        serve(0, "no.such.host.invalid").__enter__()


def test_the_port_is_free_again_afterwards() -> None:
    with serve(0) as telemetry:
        port = telemetry.port
    with serve(port) as again:
        assert again.port == port


def test_labels_too_few_or_too_many_are_our_bug() -> None:
    with pytest.raises(InternalError, match="has the labels"):
        PRODUCER_BATCHES.at(1)


def test_every_metric_has_a_name_of_its_own() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_metrics_name_follows_prometheus(metric: Metric) -> None:
    """https://prometheus.io/docs/practices/naming: snake case, base units, and counters alone end in _total."""
    assert re.fullmatch(r"featurestream(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    stem = metric.name.removesuffix("_total")
    for unit in ("seconds", "bytes", "ratio"):
        assert stem.endswith(f"_{unit}") == (metric.unit == unit)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_time_series_are_told_apart_by_few_things_and_never_by_samples(metric: Metric) -> None:
    assert metric.labels[0] == "stream"
    assert set(metric.labels) <= {"stream", "experiment", "reader", "worker", "stage", "queue", "rows", "metric"}

"""What the gateway counts of itself, as Prometheus reads it; the names are in :mod:`featurestream.telemetry`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from featurestream.telemetry import GATEWAY_BYTES, GATEWAY_REQUESTS, GATEWAY_ROWS, GATEWAY_SECONDS, Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Meters:
    """Counters, times and states of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._requests = self._make(Counter, GATEWAY_REQUESTS)
        self._bytes = self._make(Counter, GATEWAY_BYTES)
        self._seconds = self._make(Histogram, GATEWAY_SECONDS, buckets=BUCKETS)
        self._rows = self._make(Counter, GATEWAY_ROWS)

    def answered(self, path: str, status: int, sent: int, seconds: float) -> None:
        """Count a request. ``path`` is the route's pattern; status 499: the client went before an answer."""
        self._requests.labels(path, str(status)).inc()
        self._bytes.labels(path).inc(sent)
        self._seconds.labels(path).observe(seconds)

    def rows(self, stream: str, form: str, count: int) -> None:
        """Count rows that were read for an answer."""
        self._rows.labels(stream, form).inc(count)

    def watch(self, metric: Metric, value: Callable[[], float]) -> None:
        """Show a state whenever it is asked for."""
        self._make(Gauge, metric).set_function(value)

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)

    def _make(self, kind: type[Any], metric: Metric, **more: Any) -> Any:
        return kind(metric.name, metric.help, metric.labels, registry=self._registry, **more)

"""What the gateway counts of itself, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Meters:
    """Counters, times and states of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "featurestream_gateway_requests", "Requests answered.", ["path", "status"], registry=self._registry
        )
        self._bytes = Counter(
            "featurestream_gateway_sent_bytes", "Bytes of bodies sent.", ["path"], registry=self._registry
        )
        self._seconds = Histogram(
            "featurestream_gateway_request_seconds",
            "From a request to the last byte of its answer.",
            ["path"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self._registry,
        )
        self._rows = Counter("featurestream_gateway_rows", "Rows sent.", ["stream", "format"], registry=self._registry)

    def answered(self, path: str, status: int, sent: int, seconds: float) -> None:
        """Count a request. ``path`` is the route's pattern; status 499: the client went before an answer."""
        self._requests.labels(path, str(status)).inc()
        self._bytes.labels(path).inc(sent)
        self._seconds.labels(path).observe(seconds)

    def rows(self, stream: str, form: str, count: int) -> None:
        """Count rows that were read for an answer."""
        self._rows.labels(stream, form).inc(count)

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Show a state whenever it is asked for."""
        Gauge(f"featurestream_gateway_{name}", meaning, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)

"""All streams at one moment, and how fast they grow."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from featurestream.errors import FeatureStreamError
from featurestream.layout import Layout
from featurestream.manifest_topic import list_streams
from featurestream_gateway.catalogue import Catalogue, rows_before
from featurestream_gateway.problems import problem_of
from featurestream_gateway.programs import Committed, Programs, Report

RATE_S: Final = 10.0  # a rate is taken over so many seconds


@dataclass(frozen=True, slots=True)
class Streams:
    """All streams: their reports by name, and the errors of those that cannot be shown."""

    reports: Mapping[str, Report]
    errors: Mapping[str, FeatureStreamError]

    def summaries(self) -> list[dict[str, Any]]:
        """Return the streams' summaries."""
        return [report.summary() for report in self.reports.values()]

    def problems(self) -> list[dict[str, Any]]:
        """Return a problem for each stream that cannot be shown."""
        return [{"stream": name} | problem_of(error) for name, error in self.errors.items()]


def look_at_streams(catalogue: Catalogue, programs: Programs, committed: Committed) -> Streams:
    """Return all streams of the log."""
    reports: dict[str, Report] = {}
    errors: dict[str, FeatureStreamError] = {}
    source = catalogue.log.source()
    try:
        for name in list_streams(catalogue.log):
            try:
                reports[name] = programs.report(source, name, committed, round(time.time() * 1000))
            except FeatureStreamError as error:
                errors[name] = error
    finally:
        source.close()
    return Streams(reports, errors)


class Rates:
    """How fast streams grow, from looks at them. May be used by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks: dict[str, deque[tuple[float, int, int]]] = {}  # when, rows and batches published

    def look(self, summary: Mapping[str, Any], layout: Layout, now: float) -> dict[str, float | None]:
        """Return rows and bytes a second; None until there are two looks.

        ``now``: seconds of a clock that never falls.
        """
        batches = summary["next_batch"]
        held = batches - summary["first_batch"]
        with self._lock:
            looks = self._looks.setdefault(summary["stream"], deque())
            if looks and (batches < looks[-1][2] or now - looks[-1][0] > 3 * RATE_S):
                looks.clear()  # it was made anew, or nobody has looked for a while
            if not looks or now > looks[-1][0]:
                looks.append((now, rows_before(layout, batches), batches))
            while len(looks) > 2 and now - looks[1][0] >= RATE_S:
                looks.popleft()
            first, last = looks[0], looks[-1]
        seconds = last[0] - first[0]
        if not seconds:
            return {"rows_per_s": None, "bytes_per_s": None}
        batch_bytes = summary["bytes"] / held if held > 0 else 0.0
        return {
            "rows_per_s": (last[1] - first[1]) / seconds,
            "bytes_per_s": (last[2] - first[2]) * batch_bytes / seconds,
        }

"""A stream's health as people read it: what its producer has seen of inputs and features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featurestream.health import Health
    from featurestream.manifest_topic import StreamFacts


def warnings_of(facts: StreamFacts) -> list[str]:
    """Return everything conspicuous, each once: what the workers have written, and where they disagree."""
    from featurestream_producer.health import device_warnings

    workers = _workers(facts)
    found = [text for worker in workers for text in worker.warnings]
    found += [finding.text for finding in device_warnings(workers)]
    return list(dict.fromkeys(found))


def health_lines(facts: StreamFacts) -> list[tuple[str, str]]:
    """Return what was looked at, what the inputs are like, whether devices agree, and all warnings."""
    from featurectl.output import count_text
    from featurestream_producer.health import colour_range, merged_inputs

    workers = _workers(facts)
    inputs = merged_inputs(workers)
    devices = ", ".join(f"{worker.device} ({count_text(worker.batches)})" for worker in workers)
    lines = [("batches looked at", devices)]
    if inputs.numbers:
        numbers = f"mean {_texts(inputs.mean)}, std {_texts(inputs.std)} of red, green, blue"
        if inputs.expected_mean is not None:
            low, high = colour_range(inputs)
            numbers += f"; as colours from {round(low, 2) + 0.0:.2f} to {high:.2f}"
        lines.append(("inputs", numbers))
    if len(workers) > 1:
        lines.append(("fixed input", _agreement(workers)))
    warnings = warnings_of(facts)
    return [*lines, *(("warning", text) for text in warnings)] if warnings else [*lines, ("warnings", "none")]


def health_table(facts: StreamFacts) -> tuple[list[str], list[list[str]]]:
    """Return the taps' statistics over all workers, as columns and rows."""
    from featurestream_producer.health import merged_taps

    columns = ["tap", ">rows looked at", ">mean", ">std", ">std between rows", ">zeros", ">largest", ">separability"]
    return columns, [
        [
            tap.name,
            str(tap.rows),
            f"{tap.mean:.4g}",
            f"{math.sqrt(tap.variance):.4g}",
            "-" if tap.spread is None else f"{math.sqrt(tap.spread):.4g}",
            f"{tap.zeros / max(tap.numbers, 1):.1%}",
            f"{tap.largest:.4g}",
            "-" if tap.separability is None else f"{tap.separability:.3g}",
        ]
        for tap in merged_taps(_workers(facts))
    ]


def _agreement(workers: list[Health]) -> str:
    """Return how far the workers' features of the fixed input are apart."""
    from featurestream_producer.health import sketch_distance

    first = {tap.name: tap for tap in workers[0].canary.taps}
    pairs = [(tap, first[tap.name]) for worker in workers[1:] for tap in worker.canary.taps if tap.name in first]
    if all(one.checksum == other.checksum for one, other in pairs):
        return "the same on all devices, bit for bit"
    apart = max(sketch_distance(one.sketch, other.sketch) for one, other in pairs)
    return f"devices are at most {apart:.2%} apart"


def _workers(facts: StreamFacts) -> list[Health]:
    return [health for _, health in sorted(facts.health.items())]


def _texts(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)

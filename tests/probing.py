"""A small stream whose features tell its classes apart, the deeper the tap the better: what probes are tested on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from featurestream.manifest import BackboneFacts, DataFacts, Manifest, TapFacts, sealed
from featurestream.names import record_key, tap_topic
from featurestream.ports import Log
from featurestream.record import Record
from featurestream.wire import encode, headers_of
from tests.support import create

SAMPLES = 150
WIDTHS = {"layer1": 6, "layer2": 12, "fc": 4}


class Stream:
    """A small stream with features of our own making; a pass differs from the one before by a little noise.

    Deeper taps tell the three classes further apart. ``labels`` are class numbers or values.
    """

    def __init__(self, name: str, *, labels: np.ndarray | None = None, first: int = 0, **changes: Any) -> None:
        if labels is None:
            labels = np.arange(first, first + SAMPLES) * 7 % 3
        kind = "class" if labels.dtype.kind == "i" else "value" if labels.ndim == 1 else "target"
        self.labels = labels
        data = DataFacts(
            source="toy", samples=len(labels), label_kind=kind,
            label_values=1 if labels.ndim == 1 else labels.shape[1],
            class_count=3 if kind == "class" else None, sha256=f"{first:064d}",
        )  # fmt: skip
        settings: dict[str, Any] = {
            "stream": name,
            "data": data,
            "transform": {"name": "eval"},
            "backbone": BackboneFacts(name="toy", weights="random", weights_sha256="0" * 64),
            "taps": [TapFacts(name=tap, spec=tap, layer=f"net.{tap}", shape=[n]) for tap, n in WIDTHS.items()],
            "dtype": "float32", "seed": 0, "batch_samples": 9, "lanes": 2, "passes": 1,
            "created_at": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        self.manifest = sealed(Manifest(**(settings | changes)))
        self.first = first

    def features(self, tap: str, pass_number: int = 0) -> np.ndarray:
        """The features (samples, D) of a pass at a tap."""
        width = WIDTHS[tap]
        random = np.random.default_rng([self.first, pass_number, width])
        noise = random.normal(size=(len(self.labels), width))
        told = self.labels.reshape(len(self.labels), -1)[:, :1] % 3
        clear = {"layer1": 0.2, "layer2": 0.8, "fc": 1.5}[tap]
        sign = np.cos(np.arange(width) + told * 2.1)
        return (np.nan_to_num(sign) * clear + noise + 3).astype(np.float32)

    def append(self, log: Log, batches: Iterable[int] | None = None) -> None:
        """Append batches, by default all of a finite stream; a pass's order is rotated by its number."""
        manifest = self.manifest
        layout = manifest.layout
        sink = log.sink()
        for batch in range(manifest.total_batches or 0) if batches is None else batches:
            number = layout.pass_of(batch)
            places = layout.sample_range(batch)
            indices = np.roll(np.arange(len(self.labels)), number)[places.start : places.stop]
            for tap in manifest.taps:
                record = Record(
                    stream=manifest.stream, fingerprint=manifest.fingerprint, tap=tap.name, batch=batch,
                    pass_number=number, views=1, dtype="float32", shape=tuple(tap.shape),
                    payload=np.frombuffer(self.features(tap.name, number)[indices].tobytes(), np.uint8),
                    indices=indices, ids=tuple(f"{index}.png" for index in indices), labels=self.labels[indices],
                    extracted_ns=0,
                )  # fmt: skip
                sink.append(
                    tap_topic(manifest.stream, tap.name), layout.lane_of(batch),
                    key=record_key(number, batch), value=encode(record), headers=headers_of(record),
                )  # fmt: skip
        sink.flush()
        sink.close()

    def publish(self, log: Log) -> Stream:
        """Create the stream and append all of it."""
        create(log, self.manifest)
        self.append(log)
        return self

"""``FeatureStream`` against reading the same rows with WebDataset and MosaicML Streaming from the local disk.

Both come with ``pip install --group bench``; what is not installed is left out, and the report says so.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.broker import client_versions, topics, unique
from benchmarks.features import make_manifest, make_record, publish
from benchmarks.measure import Clock, Run, cpu_ms, in_turn, rate, ratio
from benchmarks.report import Report, Table, package_versions
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.manifest import Manifest
from featurestream.names import manifest_topic, tap_topic
from featurestream.stream import FeatureStream
from featurestream.topics import tap_topic_settings

LANES = 4
WIDTH = 2048
ROWS = 124  # in a record, and in the batches that all of them give: 513 kB
VOLUME = 200_000_000
SKIPPED = 4 * LANES  # batches before the clock starts: until then files and connections are opened
LIMIT_S = 2.0  # a slow way is measured on the beginning
SHARD_BYTES = 64_000_000
MB = 1_000_000

#: Package to import: the name that it is installed by.
PACKAGES = {"webdataset": "webdataset", "streaming": "mosaicml-streaming"}
TITLES = {"webdataset": "WebDataset", "streaming": "MosaicML Streaming"}

#: What a reader gives: features (rows, WIDTH) and labels (rows,).
Batch = tuple[NDArray[np.float16], NDArray[np.int64]]


def run(
    cluster: Cluster, *, width: int = WIDTH, rows: int = ROWS, volume: int = VOLUME, repeats: int = 5,
    limit_s: float = LIMIT_S,
) -> Report:  # fmt: skip
    """Measure ``volume`` bytes of features, from Kafka and from files in a temporary folder."""
    batches = max(volume // (rows * width * 2), 2 * SKIPPED)
    manifest = make_manifest(unique("storage"), rows=rows, width=width, batches=batches, lanes=LANES)
    names = [tap_topic(manifest.stream, tap.name) for tap in manifest.taps]
    settings = tap_topic_settings(retention_ms=3_600_000, retention_bytes=2**40, lanes=LANES)
    installed = [package for package in PACKAGES if find_spec(package) is not None]
    with (
        tempfile.TemporaryDirectory(prefix="featurestream-rows-") as folder,
        KafkaLog(cluster) as log,
        topics(log, [manifest_topic(manifest.stream)], 1, {}),
        topics(log, names, LANES, settings),
    ):
        publish(log, manifest)
        ways: dict[str, Callable[[], Iterable[Batch]]] = {"FeatureStream": partial(_stream, cluster, manifest)}
        for package in installed:
            for unit in ("row", "batch"):
                path = Path(folder) / f"{package}-{unit}"
                path.mkdir()
                ways[f"{TITLES[package]}, a sample a {unit}"] = _KINDS[package](path, unit, manifest)
        runs = in_turn({name: partial(_timed, way, manifest, limit_s) for name, way in ways.items()}, repeats)
    lines = [
        (
            name,
            f"{rate(runs, name):,.0f}",
            f"{cpu_ms(runs, name):.2f}",
            "" if name == "FeatureStream" else str(ratio(runs, "FeatureStream", name)),
        )
        for name in ways
    ]
    lines += [
        (f"{TITLES[package]}: not installed", "", "", "") for package in PACKAGES if package not in installed
    ]  # fmt: skip
    return Report(
        theme="storage",
        question=f"MB of features a second as batches of {rows} rows of {width} float16 numbers, with their labels, as "
        "NumPy arrays in one process: `FeatureStream` from a broker on this machine (checksum, lanes merged in order) "
        "against files on the local disk, everything from the page cache. A sample a row is how both are used; a "
        "sample a batch is the best that their formats allow for.",
        tables=[Table(("from", "MB/s", "CPU ms/MB", "FeatureStream is faster by"), lines)],
        remarks=[
            f"Medians of {repeats} repeats in turn, with the smallest and the largest factor. The first {SKIPPED} "
            f"batches are not counted; a way is measured to the end of {volume / MB:,.0f} MB or for {limit_s:.0f} s. "
            "CPU is this process's; the broker, which shares the cores, takes some too.",
            "No shuffling, no compression, no worker processes. Files are read by one reader; FeatureStream joins, "
            "follows and seeks by time on top of this, they do not.",
        ],
        versions={
            **package_versions("numpy", *(PACKAGES[package] for package in installed)),
            **client_versions(),
        },
    )


def _timed(way: Callable[[], Iterable[Batch]], manifest: Manifest, limit_s: float) -> Run:
    """Read with one way; return the run in MB."""
    size = rows = 0
    clock, began = Clock(), time.perf_counter()
    for number, (features, labels) in enumerate(way(), 1):
        if features.shape != (len(labels), manifest.taps[0].shape[0]) or features.dtype != np.float16:
            raise RuntimeError(f"a batch of {features.dtype} {features.shape} with {len(labels)} labels came")
        size += features.nbytes
        rows += len(features)
        if number == SKIPPED:
            clock, began, size = Clock(), time.perf_counter(), 0
        elif number > SKIPPED and time.perf_counter() - began > limit_s:
            return clock.stop(size / MB)
    if rows != manifest.data.samples:
        raise RuntimeError(f"{rows} rows were read")
    return clock.stop(size / MB)


def _stream(cluster: Cluster, manifest: Manifest) -> Iterator[Batch]:
    with FeatureStream(manifest.stream, bootstrap_servers=cluster.bootstrap_servers) as stream:
        for batch in stream:
            yield batch.numpy(), np.asarray(batch.labels)


def _samples(manifest: Manifest, unit: str) -> Iterator[Batch]:
    """Yield what goes into the files: all rows of a batch, or each of them."""
    width = manifest.taps[0].shape[0]
    for batch in range(manifest.total_batches or 0):
        record = make_record(manifest, batch, manifest.taps[0].name)
        features, labels = record.payload.view(np.float16).reshape(-1, width), np.asarray(record.labels)
        yield from [(features, labels)] if unit == "batch" else zip(features, labels, strict=True)


def _webdataset(folder: Path, unit: str, manifest: Manifest) -> Callable[[], Iterable[Batch]]:
    """Write shards as WebDataset has them; return how they are read."""
    import webdataset

    with webdataset.ShardWriter(str(folder / "%04d.tar"), maxsize=SHARD_BYTES, verbose=0) as writer:
        for number, (features, labels) in enumerate(_samples(manifest, unit)):
            writer.write({"__key__": f"{number:09d}", "features.npy": features, "labels.npy": np.asarray(labels)})
    shards = sorted(str(path) for path in folder.iterdir())

    def read() -> Iterator[Batch]:
        dataset = webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("features.npy", "labels.npy")
        if unit == "batch":
            return iter(dataset)
        return _stacked(dataset, manifest.batch_samples)

    return read


def _mosaicml(folder: Path, unit: str, manifest: Manifest) -> Callable[[], Iterable[Batch]]:
    """Write shards as MosaicML Streaming has them; return how they are read."""
    warnings.filterwarnings("ignore", module="streaming")
    from streaming import MDSWriter, StreamingDataset

    columns = {"features": "ndarray:float16", "labels": "ndarray:int64"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for features, labels in _samples(manifest, unit):
            writer.write({"features": features, "labels": np.atleast_1d(labels)})
    dataset: Any = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)

    def read() -> Iterator[Batch]:
        samples = ((sample["features"], sample["labels"]) for sample in dataset)
        return samples if unit == "batch" else _stacked(samples, manifest.batch_samples)

    return read


_KINDS: dict[str, Callable[[Path, str, Manifest], Callable[[], Iterable[Batch]]]] = {
    "webdataset": _webdataset,
    "streaming": _mosaicml,
}


def _stacked(samples: Iterable[Batch], rows: int) -> Iterator[Batch]:
    features: list[NDArray[np.float16]] = []
    labels: list[NDArray[np.int64]] = []
    for row, label in samples:
        features.append(row)
        labels.append(label)
        if len(features) == rows:
            yield np.stack(features), np.hstack(labels)
            features, labels = [], []
    if features:
        yield np.stack(features), np.hstack(labels)

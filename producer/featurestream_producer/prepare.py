"""Everything that can be wrong, found before an image is decoded or a topic created."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import numpy as np
import torch

from featurestream.errors import DataError, UsageError
from featurestream.heap import keep_memory
from featurestream.manifest import BackboneFacts, DataFacts, Manifest, TapFacts, check_same, sealed
from featurestream.table import label_facts
from featurestream_producer.backbones import Backbone, build_backbone
from featurestream_producer.config import DEFAULT_LANES, ProduceConfig
from featurestream_producer.datasets import ImageDataset, decoder_of, open_dataset
from featurestream_producer.devices import device_title, find_devices, fix_rounding, loader_workers
from featurestream_producer.loader import BatchPlan, load_batch
from featurestream_producer.plan import Plan, Speed, choose_batch_samples, plan_of
from featurestream_producer.ranks import Rank, find_rank
from featurestream_producer.sampling import permutation, sample_seed
from featurestream_producer.taps import DTYPES, TapReader, TapSpec, parse_taps
from featurestream_producer.transfer import open_transfer
from featurestream_producer.transforms import Transform, build_transform
from featurestream_producer.worker import Job

#: Packages whose version may change the last bits of a feature.
DECIDING_PACKAGES: Final = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "torchcodec")
MEASURE_S: Final = 2.0
FEW: Final = 8  # images that go through before anything is measured
MOST_BATCHES: Final = 100  # that are measured, of a device that takes milliseconds for one


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that can work: its parts, and the manifest that it would give a new stream."""

    config: ProduceConfig
    devices: tuple[str, ...]
    dataset: ImageDataset
    transform: Transform
    backbone: Backbone
    reader: TapReader
    manifest: Manifest
    rank: Rank

    def plan(self, manifest: Manifest, speed: Speed | None = None) -> Plan:
        """Return the plan of the stream that ``manifest`` describes, with this run's retention."""
        return plan_of(
            manifest,
            self.dataset.ids,
            retention_ms=self.config.retention_ms,
            retention_bytes=self.config.retention_bytes,
            speed=speed,
        )


def prepare(config: ProduceConfig, rank: Rank | None = None) -> Prepared:
    """Return the run that ``config`` asks for, on one of several ranks (default: as torchrun's environment says).

    Names, data, backbone, taps and devices are checked by building them; a sample that is too large for a record, and
    lanes that are fewer than devices, are refused. Images are not read, and no broker is needed. Raises what the parts
    raise: UsageError, UnknownNameError, DataError, FeatureRangeError.
    """
    fix_rounding()
    keep_memory()
    rank = find_rank() if rank is None else rank
    devices = find_devices(config.devices, rank)
    lanes = config.lanes if config.given("lanes") else max(DEFAULT_LANES, len(devices) * rank.size)
    check_lanes(lanes, devices, rank)
    specs = parse_taps(list(config.taps))
    dataset = open_dataset(
        config.data,
        root=config.root,
        path_column=config.path_column,
        label_column=config.label_column,
        split=config.split,
        decoder=config.decoder,
    )
    backbone = build_backbone(config.model, weights=config.weights, seed=config.seed)
    transform = build_transform(config.transform, image_size=config.image_size, preset=backbone.preset)
    # With several devices each gets a process, and this one must not take memory on any of them.
    reader = build_reader(config, backbone, transform, specs, devices[0] if len(devices) == 1 else "cpu")
    taps = [_tap_facts(spec, reader.shapes[spec.name]) for spec in specs]
    data = data_facts(
        dataset,
        root=config.root,
        path_column=config.path_column,
        label_column=config.label_column,
        split=config.split,
    )
    manifest = Manifest(
        stream=config.stream,
        data=data,
        decoder=decoder_of(dataset),
        transform=transform.describe(),
        backbone=BackboneFacts(
            name=backbone.name,
            weights=backbone.weights.source,
            weights_sha256=backbone.weights.sha256,
            autocast=config.autocast,
            compiled=config.compile or None,
        ),
        taps=taps,
        dtype=config.dtype,
        seed=config.seed,
        batch_samples=choose_batch_samples(
            taps,
            dtype=config.dtype,
            samples=len(dataset),
            views=config.views,
            longest_id_bytes=max(len(text.encode()) for text in dataset.ids),
            label_values=data.label_values,
            batch_size=config.batch_size,
        ),
        lanes=lanes,
        views=config.views,
        passes=config.passes,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        made_with=made_with(devices[0]),
    )
    return Prepared(config, devices, dataset, transform, backbone, reader, sealed(manifest), rank)


def build_reader(
    config: ProduceConfig, backbone: Backbone, transform: Transform, specs: Sequence[TapSpec], device: str
) -> TapReader:
    """Return the reader of the taps on a device."""
    return TapReader(
        backbone.model,
        specs,
        image_size=transform.image_size,
        dtype=DTYPES[config.dtype],
        device=device,
        model_name=config.model,
        autocast=None if config.autocast is None else DTYPES[config.autocast],
    )


def ready(reader: TapReader, manifest: Manifest) -> TapReader:
    """Return the reader as the stream's manifest wants it: compiled for its batches, or not."""
    if manifest.backbone.compiled:
        reader.compile(manifest.batch_samples * manifest.views)
    return reader


@dataclass(frozen=True)
class ReaderMaker:
    """Builds a job's reader anew, in a process of its own. Picklable."""

    config: ProduceConfig

    def __call__(self, job: Job) -> TapReader:
        """Return the reader on the job's device; DataError where the weights are not those of the manifest."""
        backbone = build_backbone(self.config.model, weights=self.config.weights, seed=self.config.seed)
        if backbone.weights.sha256 != job.manifest.backbone.weights_sha256:
            raise DataError(
                f"the weights of {self.config.model} are others each time they are built: "
                f"{backbone.weights.sha256[:12]} here, {job.manifest.backbone.weights_sha256[:12]} in the manifest",
                hint="a backbone of your own must seed its random weights, or load them from a file",
            )
        specs = parse_taps(list(self.config.taps))
        return ready(build_reader(self.config, backbone, job.transform, specs, job.device), job.manifest)


def agreed(existing: Manifest, prepared: Prepared) -> Manifest:
    """Return the manifest of a stream that exists, with the passes that this run asks for.

    Lanes, batch size and passes that were not given are the stream's own. Raises StreamMismatchError where the run
    would publish another stream, with every field that differs.
    """
    config, wanted = prepared.config, prepared.manifest
    updates: dict[str, object] = {}
    if not config.given("lanes"):
        updates["lanes"] = existing.lanes
    if not config.given("batch_size"):
        updates["batch_samples"] = existing.batch_samples
    check_same(existing, sealed(wanted.model_copy(update=updates)))
    check_lanes(existing.lanes, prepared.devices, prepared.rank)
    return existing.model_copy(update={"passes": config.passes}) if config.given("passes") else existing


def check_lanes(lanes: int, devices: Sequence[str], rank: Rank) -> None:
    """Raise UsageError where a device of this rank would have no lane."""
    own = len(rank.lanes(lanes))
    if own < len(devices):
        whole = f"{lanes} lane{'s' if lanes > 1 else ''}"
        what = f"{len(devices)} device{'s' if len(devices) > 1 else ''}"
        share = whole if rank.alone else f"the {own} of {whole} that {rank} has"
        raise UsageError(
            f"{what} cannot share {share}: each needs one of its own",
            hint=f"a new stream can have --lanes {len(devices) * rank.size}; an existing one takes at most "
            f"{lanes} device{'s' if lanes > 1 else ''}",
        )


def version_warnings(existing: Manifest, here: dict[str, str]) -> list[str]:
    """Return a line for each library that was another when the stream was begun."""
    return [
        f"this stream was begun with {name} {before}, this is {here.get(name, 'absent')}: "
        "the last bits of features may differ"
        for name, before in existing.made_with.items()
        if here.get(name) != before
    ]


def made_with(device: str) -> dict[str, str]:
    """Return what decides the last bits of a feature: libraries' versions, and what computes."""
    found = {}
    for package in DECIDING_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    title = device_title(device)
    return {**found, "device": platform.machine() if title == "cpu" else title}


def check_an_image(prepared: Prepared) -> None:
    """Decode and transform images until the first one works, and raise DataError where none does.

    So a wrong root, or a folder of something else, ends before a topic is created, whatever the data set's size.
    """
    reasons: list[str] = []
    seed = prepared.config.seed
    for index in range(len(prepared.dataset)):
        try:
            prepared.transform(prepared.dataset.load(index), sample_seed(seed, 0, index, 0))
        except DataError as error:
            if not reasons:
                reasons.append(error.message)
            continue
        return
    raise DataError(
        f"none of the {len(prepared.dataset):,} images of {prepared.dataset.source} can be decoded; the first: "
        f"{reasons[0]}",
        hint="do the paths lead to images? another folder is set with --root",
    )


def measure(prepared: Prepared) -> Speed:
    """Return the speed of the forward and of loading, each measured for about :data:`MEASURE_S` after a few images.

    The forward is measured on random pixels on the first device, loading on the first images of pass 0 in this
    process. Raises DataError where no image can be decoded.
    """
    devices, device = prepared.devices, prepared.devices[0]
    cores = os.cpu_count() or 1
    loaders = prepared.config.workers
    if loaders is None:
        loaders = loader_workers(device, len(devices), cores)
    threads = torch.get_num_threads()
    if len(devices) > 1 and device == "cpu":
        torch.set_num_threads(max(1, threads // len(devices)))  # as each process has them
    try:
        images_s = _forward_speed(prepared, device)
    finally:
        torch.set_num_threads(threads)
    return Speed(
        images_s,
        device_title(device),
        len(devices),
        load_images_s=_load_speed(prepared),
        loaders=cores if device == "cpu" else max(loaders, 1) * len(devices),
    )


def _forward_speed(prepared: Prepared, device: str) -> float:
    """Return the images a second of the forward, copies included: of a part of a batch, or of several batches."""
    size, manifest = prepared.transform.image_size, prepared.manifest
    reader = prepared.reader
    if len(prepared.devices) > 1:
        specs = parse_taps(list(prepared.config.taps))
        reader = build_reader(prepared.config, prepared.backbone, prepared.transform, specs, device)
    reader, transfer = ready(reader, manifest), open_transfer(device)
    rows = manifest.batch_samples * manifest.views
    few = rows if manifest.backbone.compiled else min(rows, FEW)  # compiled, fewer rows take as long as all
    generator = np.random.default_rng(0)
    images_BCHW = torch.from_numpy(generator.standard_normal((rows, 3, size, size), dtype=np.float32))

    def seconds(count: int, times: int = 1) -> float:
        began = time.perf_counter()
        for coming in [transfer.fetch(reader.capture(transfer.bring(images_BCHW[:count]))) for _ in range(times)]:
            coming.wait().check()
        return time.perf_counter() - began

    seconds(few)  # the first forward also chooses algorithms and takes memory
    many = max(few, min(rows, int(few * MEASURE_S / max(seconds(few), 1e-6))))
    times = max(1, min(MOST_BATCHES, int(MEASURE_S / max(seconds(many), 1e-6))))
    return many * times / seconds(many, times)


def _load_speed(prepared: Prepared) -> float:
    """Return the images (views) a second that one core decodes and transforms; what cannot be decoded counts too."""
    check_an_image(prepared)
    manifest = prepared.manifest
    order = permutation(manifest.seed, 0, len(prepared.dataset))

    def load(first: int, count: int) -> float:
        plan = BatchPlan(0, 0, order[first : first + count])
        began = time.perf_counter()
        load_batch(prepared.dataset, prepared.transform, plan, seed=manifest.seed, views=manifest.views)
        return time.perf_counter() - began

    few = min(len(order), FEW)
    load(0, few)  # the first images also import what decodes them
    few_s = load(0, few)
    # Others than the first ones, which the machine now has in memory.
    many = max(1, min(len(order) - few, manifest.batch_samples, int(few * MEASURE_S / max(few_s, 1e-6))))
    first = few if len(order) > few else 0
    return many * manifest.views / load(first, many)


def _tap_facts(spec: TapSpec, shape: tuple[int, ...]) -> TapFacts:
    named = "" if spec.name == spec.layer else f"={spec.name}"
    return TapFacts(
        name=spec.name, spec=spec.text.removesuffix(named), layer=spec.layer, pool=spec.pool, shape=list(shape)
    )


def data_facts(
    dataset: ImageDataset, *, root: Path | None, path_column: str | None, label_column: str | None, split: str | None
) -> DataFacts:
    """Return what a manifest says of a data set that was opened with these arguments."""
    place = Path(dataset.source)
    return DataFacts(
        source=dataset.source,
        location=str(place.absolute()) if place.exists() else None,
        root=None if root is None else str(root.absolute()),
        path_column=path_column,
        label_column=label_column,
        split=split,
        samples=len(dataset),
        sha256=dataset.fingerprint(),
        **label_facts(dataset.labels, dataset.classes),
    )

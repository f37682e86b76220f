"""What is planted is found: in the manifest's topic, in the result, and in the lines that a run prints."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from featurestream.errors import StreamMismatchError
from featurestream.health import Canary, TapCanary
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream.memory import MemoryLog
from featurestream_producer import run as run_module
from featurestream_producer.canary import fixed_image, fixed_input, make_canary
from featurestream_producer.config import ProduceConfig
from featurestream_producer.health import look_at, look_at_inputs
from featurestream_producer.health_watch import HealthWatch
from featurestream_producer.prepare import prepare
from featurestream_producer.preset import IMAGENET, Preset
from featurestream_producer.resume import fresh_tail
from featurestream_producer.run import Result, produce
from featurestream_producer.stages import Stages
from featurestream_producer.taps import TapReader, parse_taps
from featurestream_producer.transforms import FunctionTransform, TrainTransform, normalise
from featurestream_producer.worker import Job, Ready, Sent
from tests.producing import config, seen_numbers, write_images

HERE = "tests.producer.test_health_watch"
SMALL = "squeezenet1_1"


def facts_of(log: MemoryLog) -> StreamFacts:
    with ManifestTopic(log, "toy") as topic:
        return topic.read()


def run(config: ProduceConfig, log: MemoryLog | None = None) -> tuple[Result, list[str], StreamFacts]:
    said: list[str] = []
    log = log or MemoryLog()
    result = produce(config, log, say=said.append)
    return result, [line for line in said if line.startswith("warning: ") and "RANDOM" not in line], facts_of(log)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 400)


def squeezenet(images: Path, transform: str, **changes: Any) -> ProduceConfig:
    """Return a run of 100 batches of 4 images through a model of torchvision's, whose preset is ImageNet's."""
    chosen: dict[str, Any] = {
        "model": SMALL, "weights": "random", "taps": ("features.0:gap=early",), "transform": transform,
        "image_size": 32, "batch_size": 4, "passes": 1,
    }  # fmt: skip
    return config(images, "toy", **chosen | changes)


# ---- transforms that are planted ------------------------------------------------------------------------------------


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1).float()


def right(image: Image.Image) -> torch.Tensor:
    return normalise(image.resize((32, 32)), IMAGENET)


def without_normalize(image: Image.Image) -> torch.Tensor:
    return pixels_of(image) / 255


def without_scaling(image: Image.Image) -> torch.Tensor:
    return pixels_of(image)


def normalised_twice(image: Image.Image) -> torch.Tensor:
    once = right(image)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    return (once - mean) / std


def halves(image: Image.Image) -> torch.Tensor:
    return pixels_of(image) / 127.5 - 1


def black(image: Image.Image) -> torch.Tensor:
    return torch.zeros(3, 32, 32)


@pytest.mark.parametrize("mistake", ["without_normalize", "without_scaling", "normalised_twice", "halves"])
def test_a_wrong_normalisation_is_found_within_a_hundred_batches(images: Path, mistake: str) -> None:
    result, warned, facts = run(squeezenet(images, f"{HERE}:{mistake}"))
    assert result.batches == 100
    [line] = warned
    assert line.startswith("warning: the inputs are not normalised as the weights want it (mean ")
    assert result.warnings == (line.removeprefix("warning: "),)
    assert facts.health[0].warnings[0].startswith("the inputs are not normalised as the weights want it")


@pytest.mark.parametrize("transform", ["eval", "train", f"{HERE}:right"])
def test_a_right_normalisation_is_not_warned_about(images: Path, transform: str) -> None:
    result, warned, facts = run(squeezenet(images, transform))
    assert (warned, result.warnings, facts.health[0].warnings) == ([], (), [])
    assert facts.health[0].batches == 100
    assert facts.health[0].inputs.expected_mean == list(IMAGENET.mean)


def test_it_is_found_long_before_the_end(images: Path) -> None:
    """At the eighth batch; the line stands in front of the one that sums the run up."""
    said: list[str] = []
    produce(squeezenet(images, f"{HERE}:halves", passes=2), MemoryLog(), say=said.append)
    assert [line.split(" ")[0] for line in said] == ["warning:", "warning:", "published"]


def test_of_a_model_of_the_users_nobody_knows_the_normalisation(images: Path) -> None:
    changes = {"transform": f"{HERE}:without_normalize", "image_size": 32}
    result, _, facts = run(config(images, "toy", **changes))
    assert result.warnings == ()
    assert facts.health[0].inputs.expected_mean is None
    result, _, _ = run(config(images, "toy", **changes | {"transform": f"{HERE}:without_scaling"}))
    assert result.warnings[0].startswith("the inputs are not scaled (mean 12")


# ---- taps that are planted ------------------------------------------------------------------------------------------


class Blind(nn.Module):
    """Gives the same for every image, but for the canary's sake not the same in all places."""

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.arange(8.0).expand(len(images_BCHW), -1)


class Clipped(nn.Module):
    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return (40 * (images_BCHW.mean(3).flatten(1) - 0.5)).clamp(-1, 1)


class Loud(nn.Module):
    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return 60_000 * images_BCHW.mean((2, 3)).tanh()


def degenerate() -> nn.Module:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blind, self.clipped, self.loud = Blind(), Clipped(), Loud()

        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            return torch.cat([one(images_BCHW) for one in (self.blind, self.clipped, self.loud)], 1)

    return All()


def bright(image: Image.Image) -> torch.Tensor:
    return pixels_of(image) / 255


def test_a_constant_a_saturated_and_an_overflowing_tap_are_found(images: Path) -> None:
    _, warned, facts = run(
        config(images, "toy", model=f"{HERE}:degenerate", taps=("blind", "clipped", "loud"), passes=1,
               transform=f"{HERE}:bright", image_size=32)
    )  # fmt: skip
    starts = ['tap "blind" is constant: rows of different images are the same', 'tap "clipped" is saturated: ',
              'tap "loud" is close to the end of float16: it reaches ']  # fmt: skip
    assert len(warned) == len(facts.health[0].warnings) == 3
    for line, start in zip(sorted(warned), starts, strict=True):
        assert line.startswith(f"warning: {start}")


# ---- facts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return write_images(tmp_path)


def test_a_run_that_goes_on_adds_to_what_is_there(few: Path) -> None:
    """A pass each, and both at once: the same facts; the separability stays that of the stream's first batches."""
    log = MemoryLog()
    _, _, first = run(config(few, "toy", passes=1), log)
    _, _, both = run(config(few, "toy", passes=2), log)
    _, _, whole = run(config(few, "toy", passes=2))
    assert (first.health[0].batches, both.health[0].batches) == (6, 12)
    assert seen_numbers(both) == pytest.approx(seen_numbers(whole), rel=1e-9)
    assert both.health[0].taps[0].separability == first.health[0].taps[0].separability is not None
    assert both.canary == first.canary == whole.canary


def test_a_run_that_does_nothing_writes_nothing(few: Path) -> None:
    log = MemoryLog()
    _, _, before = run(config(few, "toy"), log)
    _, _, after = run(config(few, "toy"), log)
    assert after.health == before.health


def test_a_transform_that_was_changed_between_two_runs_is_found(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    chosen = {"transform": f"{HERE}:right", "image_size": 32}
    run(config(few, "toy", passes=1, **chosen), log)
    monkeypatch.setattr(importlib.import_module(HERE), "right", halves)  # the producer finds it by its name
    with pytest.raises(StreamMismatchError, match='the images of stream "toy" have changed under their names'):
        run(config(few, "toy", passes=2, **chosen), log)
    # Where a library is another one too, that may be why: then it goes on, and both are told.
    monkeypatch.setattr(run_module, "version_warnings", lambda *_: ["torchvision is another one"])
    result, warned, facts = run(config(few, "toy", passes=2, **chosen), log)
    (found,) = result.warnings
    assert found.startswith("the transform makes something else of a fixed image than the one that began the stream: ")
    assert f"warning: {found}" in warned
    assert facts.canary is not None
    assert facts.canary.transform != facts.health[0].canary.transform


def jobs_of(images: Path, count: int) -> list[Job]:
    prepared = prepare(config(images, "toy"))
    manifest = prepared.manifest
    return [
        Job(manifest, fresh_tail(manifest), prepared.dataset, prepared.transform, index, count, "cpu", 0)
        for index in range(count)
    ]


def watch(
    log: MemoryLog, jobs: list[Job], seen: list[tuple[int, float]], *, sketches: tuple[float, ...] = (1.0, 1.0)
) -> tuple[list[str], StreamFacts]:
    """Report batches of (worker, what is added to their features); the last worker begins first."""
    warned: list[str] = []
    with ManifestTopic(log, "toy") as topic:
        topic.create()
        found = HealthWatch(topic, jobs[0].manifest, topic.read(), jobs, warned.append)
        for job in reversed(jobs):
            sketch = TapCanary(name="late", checksum=str(sketches[job.index]), sketch=[sketches[job.index]])
            found.begin(Ready(job.index, Canary(device="cpu", transform="t", taps=[sketch])))
        inputs = look_at_inputs(torch.rand(16, 3, 8, 8), 1, None)
        for batch, (worker, shift) in enumerate(seen):
            features = torch.randn(16, 8, generator=torch.Generator().manual_seed(batch)) + shift
            glance = look_at({"early": features, "late": features}, inputs, np.arange(16) % 2, 1, probe=True)
            found.see(Sent(worker, batch, 16, 0, (), 0, glance, Stages()))
        found.write()
        assert found.warnings == warned
        return warned, topic.read()


def test_workers_that_disagree_are_warned_about_once(few: Path) -> None:
    jobs = jobs_of(few, 2)
    fine, facts = watch(MemoryLog(), jobs, [(0, 0.0), (1, 0.0)] * 20)
    assert fine == []
    assert [(one.batches, one.warnings) for one in facts.health.values()] == [(20, []), (20, [])]
    warned, facts = watch(MemoryLog(), jobs, [(0, 0.0), (1, 3.0)] * 20, sketches=(1.0, 1.2))
    assert len(warned) == 3
    assert warned[0].startswith(
        'tap "late": cpu and the one that began the stream disagree on a fixed input: 20.0% apart'
    )
    assert sorted(line.partition(":")[0] for line in warned[1:]) == ['tap "early"', 'tap "late"']
    assert all(line.endswith("the devices disagree") for line in warned[1:])
    assert facts.canary is not None
    assert facts.canary.taps[0].sketch == [1.0]  # worker 0's, although worker 1 began first


def test_the_separability_is_that_of_the_first_batches_in_their_order(few: Path) -> None:
    """Whoever saw them, and whichever came first; here the labels mean nothing."""
    [job] = jobs_of(few, 1)
    _, facts = watch(MemoryLog(), [job], [(0, 0.0)] * 30)
    tap = facts.health[0].taps[1]
    assert (tap.name, tap.probe_rows) == ("late", 30 * 16)
    assert tap.separability == pytest.approx(1.0, abs=0.5)


# ---- the canary -----------------------------------------------------------------------------------------------------


def reader_of(model: nn.Module, dtype: torch.dtype = torch.float16) -> TapReader:
    return TapReader(model, parse_taps(["0=t"]), image_size=16, dtype=dtype, device="cpu")


def test_the_canary_is_the_same_every_time_and_another_one_with_other_weights() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    small, other = (TrainTransform(Preset(16, 16, mean, IMAGENET.std)) for mean in (IMAGENET.mean, (0.5, 0.5, 0.5)))
    canary = make_canary(reader_of(model), small, "cpu")
    assert make_canary(reader_of(model), small, "cpu") == canary
    assert make_canary(reader_of(model), other, "cpu").transform != canary.transform
    with torch.no_grad():
        model[0].weight += 1e-3  # type: ignore[union-attr, operator]
    assert make_canary(reader_of(model), small, "cpu").taps[0].checksum != canary.taps[0].checksum


def test_the_fixed_input_and_image_are_pinned() -> None:
    """They must never change: streams hold what came of them."""
    images_BCHW = fixed_input(2)
    assert images_BCHW.shape == (2, 3, 2, 2)
    assert images_BCHW.flatten()[:3].tolist() == [0.8429824709892273, -0.6850838661193848, -0.9040594100952148]
    image = fixed_image()
    assert (image.size, image.getpixel((0, 0)), image.getpixel((319, 239))) == (
        (320, 240),
        (206, 50, 120),
        (100, 18, 42),
    )


def test_an_input_that_no_image_is_like_may_leave_the_range() -> None:
    model = nn.Sequential(nn.Flatten())
    loud = nn.Sequential(type("Louder", (nn.Module,), {"forward": lambda _self, x: x.flatten(1) * 1e6})())
    size = Preset(16, 16, IMAGENET.mean, IMAGENET.std)
    assert len(make_canary(reader_of(model), TrainTransform(size), "cpu").taps[0].sketch) == 64
    assert make_canary(reader_of(loud), TrainTransform(size), "cpu").taps[0].sketch == []


def fussy(image: Image.Image) -> torch.Tensor:
    raise OSError(f"not {image.size}")


def test_a_transform_that_wants_other_images_has_no_canary_and_no_error() -> None:
    canary = make_canary(reader_of(nn.Sequential(nn.Flatten())), FunctionTransform(f"{HERE}:fussy", 16), "cpu")
    assert canary.transform is None

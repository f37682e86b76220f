"""The same plan gives the same batch, whoever loads it; an image that cannot be decoded is listed, never raised."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from featurestream.errors import OutsideError, UsageError
from featurestream_producer.datasets import ImageDataset, open_dataset
from featurestream_producer.loader import BatchLoader, BatchPlan, LoadedBatch, load_batch
from featurestream_producer.preset import IMAGENET
from featurestream_producer.sampling import permutation
from featurestream_producer.transforms import Transform, build_transform

SAMPLES = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven pictures of two classes; a/03.png is no image."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(SAMPLES):
        place = root / ("a" if number < 6 else "b")
        place.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(place / f"{number:02d}.png")
    (root / "a" / "03.png").write_bytes(b"no image")
    return root


@pytest.fixture
def dataset(folder: Path) -> ImageDataset:
    return open_dataset(str(folder))


@pytest.fixture
def transform() -> Transform:
    return build_transform("train", image_size=16, preset=IMAGENET)


def plans(batch_size: int, passes: int = 1) -> list[BatchPlan]:
    cut = [
        (number, permutation(5, number, SAMPLES)[start : start + batch_size])
        for number in range(passes)
        for start in range(0, SAMPLES, batch_size)
    ]
    return [BatchPlan(batch, number, part) for batch, (number, part) in enumerate(cut)]


def loaded(
    dataset: ImageDataset, transform: Transform, batches: Iterable[BatchPlan], *, workers: int, views: int = 1
) -> list[LoadedBatch]:
    with BatchLoader(dataset, transform, seed=5, views=views, batches=batches, workers=workers) as loader:
        return list(loader)


def by_row(batches: Iterable[LoadedBatch], views: int = 1) -> dict[tuple[int, int, int], torch.Tensor]:
    """Return every image under (pass, sample, view)."""
    found = {}
    for batch in batches:
        for row, (sample, image) in enumerate(zip(batch.present.tolist(), batch.images, strict=True)):
            found[batch.plan.pass_number, sample, row % views] = image
    return found


def same(a: dict[tuple[int, int, int], torch.Tensor], b: dict[tuple[int, int, int], torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ---- what a batch holds ----------------------------------------------------------------------------------------


def test_rows_are_the_plans_samples_in_order_with_their_views_side_by_side(
    dataset: ImageDataset, transform: Transform
) -> None:
    batch = load_batch(dataset, transform, BatchPlan(7, 2, np.array([9, 0])), seed=5, views=3)
    assert (batch.plan.batch, batch.images.dtype, tuple(batch.images.shape)) == (7, torch.float32, (6, 3, 16, 16))
    assert (batch.present.tolist(), batch.present.dtype, batch.missing) == ([9, 9, 9, 0, 0, 0], np.int64, ())
    assert len({image.sum().item() for image in batch.images}) == 6


def test_an_image_that_cannot_be_decoded_is_listed_with_its_reason(dataset: ImageDataset, transform: Transform) -> None:
    batch = load_batch(dataset, transform, BatchPlan(0, 0, np.array([2, 3, 4])), seed=5, views=2)
    assert batch.present.tolist() == [2, 2, 4, 4]
    ((index, name, reason),) = batch.missing
    assert (index, name) == (3, "a/03.png")
    assert "UnidentifiedImageError" in reason
    whole = load_batch(dataset, transform, BatchPlan(0, 0, np.array([2, 4])), seed=5, views=2)
    assert torch.equal(batch.images, whole.images)


def test_a_batch_without_one_image_has_no_rows(dataset: ImageDataset, transform: Transform) -> None:
    batch = load_batch(dataset, transform, BatchPlan(0, 0, np.array([3])), seed=5, views=2)
    assert (tuple(batch.images.shape), len(batch.present), len(batch.missing)) == ((0, 3, 16, 16), 0, 1)


def test_an_image_that_cannot_be_transformed_is_missing_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (1, 60_000)).save(tmp_path / "a" / "long.png")
    found = load_batch(
        open_dataset(str(tmp_path)),
        build_transform("eval", image_size=None, preset=IMAGENET),
        BatchPlan(0, 0, np.array([0])),
        seed=0,
        views=1,
    )
    assert "would be resized to 256 x 15360000" in found.missing[0][2]


# ---- determinism -----------------------------------------------------------------------------------------------


def test_images_do_not_depend_on_the_batch_size(dataset: ImageDataset, transform: Transform) -> None:
    first = by_row(loaded(dataset, transform, plans(4, 2), workers=0, views=2), 2)
    assert len(first) == 2 * (SAMPLES - 1) * 2
    for size in (1, 3, 100):
        assert same(by_row(loaded(dataset, transform, plans(size, 2), workers=0, views=2), 2), first)


def test_batches_do_not_depend_on_the_number_of_loader_processes(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loader_transform.py").write_text(
        "import random, numpy, torch\n"
        "def noisy(image):\n"
        "    return torch.rand(3, 8, 8) + random.random() + float(numpy.random.rand()) + sum(image.getpixel((0, 0)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    transform = build_transform("loader_transform:noisy", image_size=8, preset=IMAGENET)
    here = loaded(dataset, transform, plans(3, 2), workers=0, views=2)
    there = loaded(dataset, transform, plans(3, 2), workers=2, views=2)
    assert [batch.plan.batch for batch in there] == list(range(8))
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.images, b.images)
        assert (a.present.tolist(), a.missing) == (b.present.tolist(), b.missing)


def test_loading_leaves_the_global_generator_alone(dataset: ImageDataset, transform: Transform) -> None:
    state = torch.get_rng_state()
    loaded(dataset, transform, plans(4), workers=0)
    assert torch.equal(torch.get_rng_state(), state)


# ---- life ------------------------------------------------------------------------------------------------------


def endless() -> Iterator[BatchPlan]:
    return (BatchPlan(number, number, np.array([0, 1])) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "loader"]


def test_an_endless_plan_is_read_only_a_little_ahead(dataset: ImageDataset, transform: Transform) -> None:
    taken: list[int] = []

    def counted() -> Iterator[BatchPlan]:
        for plan in endless():
            taken.append(plan.batch)
            yield plan

    with BatchLoader(dataset, transform, seed=5, views=1, batches=counted(), workers=0) as loader:
        batches = iter(loader)
        numbers = [next(batches).plan.batch for _ in range(5)]
    assert numbers == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 3 + 1  # the last one while the loader was being closed
    assert not loader_threads()


def test_an_error_in_the_plans_is_raised_where_batches_are_read(dataset: ImageDataset, transform: Transform) -> None:
    def broken() -> Iterator[BatchPlan]:
        yield from itertools.islice(endless(), 2)
        raise KeyError("plans")

    with (
        pytest.raises(KeyError, match="plans"),
        BatchLoader(dataset, transform, seed=5, views=1, batches=broken(), workers=0) as loader,
    ):
        list(loader)
    assert not loader_threads()


def test_an_interrupt_ends_every_process_by_the_programs_own_hand(dataset: ImageDataset, transform: Transform) -> None:
    with pytest.raises(KeyboardInterrupt):
        read_until_interrupted(dataset, transform)
    assert not multiprocessing.active_children()
    assert not list(Path(tempfile.gettempdir()).glob("featurestream-loader-*"))


def read_until_interrupted(dataset: ImageDataset, transform: Transform) -> None:
    with BatchLoader(dataset, transform, seed=5, views=1, batches=endless(), workers=1) as loader:
        for number, _ in enumerate(loader):
            if number == 3:
                (child,) = multiprocessing.active_children()
                # Ctrl-C reaches the whole process group; a loader process neither ends by it nor complains.
                os.kill(child.pid or 0, signal.SIGINT)
            if number == 12:
                raise KeyboardInterrupt


def test_a_loader_process_that_is_killed_is_an_error_with_a_hint(dataset: ImageDataset, transform: Transform) -> None:
    def kill_and_read() -> None:
        with BatchLoader(dataset, transform, seed=5, views=1, batches=endless(), workers=1) as loader:
            for batch in loader:
                if batch.plan.batch == 2:
                    psutil.Process(multiprocessing.active_children()[0].pid).kill()

    with pytest.raises(OutsideError, match=r"a loader process ended unexpectedly; .* use fewer --workers"):
        kill_and_read()
    assert not multiprocessing.active_children()


# ---- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_transform_ends_the_loading_with_its_own_error(
    dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    (tmp_path / "broken_transform.py").write_text("def broken(image): return image.nothing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    transform = build_transform("broken_transform:broken", image_size=8, preset=IMAGENET)
    with pytest.raises(UsageError, match=r'^transform "broken_transform:broken" failed on an image of 30 x 20 pixels'):
        loaded(dataset, transform, plans(4), workers=workers)
    assert not multiprocessing.active_children()
    assert not loader_threads()


KILLED = """
import itertools, multiprocessing, os, sys
import numpy as np
from featurestream_producer.datasets import open_dataset
from featurestream_producer.loader import BatchLoader, BatchPlan
from featurestream_producer.preset import IMAGENET
from featurestream_producer.transforms import build_transform

if __name__ == "__main__":
    plans = (BatchPlan(number, 0, np.array([0])) for number in itertools.count())
    transform = build_transform("eval", image_size=8, preset=IMAGENET)
    with BatchLoader(open_dataset(sys.argv[1]), transform, seed=0, views=1, batches=plans, workers=1) as loader:
        next(iter(loader))
        print(multiprocessing.active_children()[0].pid, flush=True)
        os.kill(os.getpid(), 9)
"""


def test_a_killed_program_leaves_no_loader_process_and_no_file(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, script, folder], stdout=subprocess.PIPE, env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(ended.stdout)).wait(timeout=30)
    assert not list(tmp_path.glob("featurestream-loader-*"))


def test_what_cannot_be_sent_to_a_process_says_what_to_do(transform: Transform) -> None:
    local = ImageDataset("mine", ["x"], None, None, lambda index: Image.new("RGB", (9, 9)))
    assert len(loaded(local, transform, [BatchPlan(0, 0, np.array([0]))], workers=0)) == 1
    with pytest.raises(UsageError, match=r"cannot be sent to loader processes: .*; define .* or use --workers 0"):
        loaded(local, transform, [BatchPlan(0, 0, np.array([0]))], workers=1)


def test_impossible_numbers_are_refused(dataset: ImageDataset, transform: Transform) -> None:
    with pytest.raises(UsageError, match="0 views are not possible"):
        BatchLoader(dataset, transform, seed=5, views=0, batches=[], workers=0)
    with pytest.raises(UsageError, match="-1 loader processes are not possible"):
        BatchLoader(dataset, transform, seed=5, views=1, batches=[], workers=-1)
    with BatchLoader(dataset, transform, seed=5, views=1, batches=[], workers=0) as loader:
        assert list(loader) == []
        with pytest.raises(UsageError, match="can be iterated once"):
            next(iter(loader))

"""Batches on their way to a device and back, where nothing is carried, and where what comes back is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from featurestream.errors import FeatureRangeError, OutsideError
from featurestream.manifest_topic import require_manifest
from featurestream.memory import MemoryLog
from featurestream_producer import worker
from featurestream_producer.run import produce
from featurestream_producer.taps import Captured
from featurestream_producer.transfer import Coming, PlainTransfer, Transfer, open_transfer
from tests.producing import config, contents, read_lanes, write_images

FAILING = 4  # the fifth batch


class Late(PlainTransfer):
    """A device that tells only when it is waited for what became of a batch, as CUDA does."""

    def __init__(self, error: Exception | None, features: float = 0.0) -> None:
        super().__init__("cpu")
        self._error, self._features = error, features
        self._batches = 0

    def fetch(self, captured: Captured) -> Coming:
        number, self._batches = self._batches, self._batches + 1

        def wait() -> Captured:
            if number != FAILING:
                return captured
            if self._error is not None:
                raise self._error
            return captured.map(lambda tensor: tensor + self._features)

        return Coming(wait)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def carried_by(monkeypatch: pytest.MonkeyPatch, transfer: Transfer) -> None:
    monkeypatch.setattr(worker, "open_transfer", lambda _device: transfer)


def batches(log: MemoryLog) -> set[int]:
    return {record.batch for lane in read_lanes(log, require_manifest(log, "toy")).values() for record in lane}


def test_on_the_cpu_nothing_is_copied() -> None:
    images = torch.rand(2, 3, 4, 4)
    features = torch.rand(2, 5)
    transfer = open_transfer("cpu")
    assert transfer.bring(images) is images
    captured = Captured({"a": features}, torch.zeros(1), "")
    assert transfer.fetch(captured).wait().features["a"] is features


def test_a_device_that_fails_late_ends_the_run_with_the_batch_and_what_came_before_is_safe(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    carried_by(monkeypatch, Late(RuntimeError("CUDA error: an illegal memory access was encountered\nmore")))
    with pytest.raises(OutsideError, match="the model failed on batch 4 on cpu: RuntimeError: CUDA error: an illegal"):
        produce(config(photos, "toy", lanes=1), log, say=[].append)
    assert batches(log) == {0, 1, 2, 3}
    monkeypatch.undo()
    produce(config(photos, "toy", lanes=1), log, say=[].append)
    produce(config(photos, "other", lanes=1), log, say=[].append)
    assert contents(log, require_manifest(log, "toy")) == contents(log, require_manifest(log, "other"))


def test_a_range_that_is_found_out_late_publishes_nothing_of_that_batch(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    carried_by(monkeypatch, Late(None, features=float("inf")))
    with pytest.raises(FeatureRangeError, match=r'tap "early": the backbone gives inf'):
        produce(config(photos, "toy", lanes=1), log, say=[].append)
    assert batches(log) == {0, 1, 2, 3}

"""What only a GPU can show of the producer: copies beside the forward, and that they change nothing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featurestream.manifest_topic import require_manifest
from featurestream.memory import MemoryLog
from featurestream_producer.run import produce
from featurestream_producer.taps import TapReader, parse_taps
from featurestream_producer.transfer import AHEAD, CudaTransfer
from tests.producing import config, contents, write_images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    widths = [3, 64, 128, 256]
    layers = [nn.Conv2d(one, two, 3, padding=1) for one, two in pairwise(widths)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def reader(autocast: torch.dtype | None = None) -> TapReader:
    taps = parse_taps(["0:gap", "4=last"])
    return TapReader(model(), taps, image_size=64, dtype=torch.float16, device="cuda:0", autocast=autocast)


def batch(number: int) -> Tensor:
    return torch.rand(32, 3, 64, 64, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_batches_that_overlap_give_what_each_gives_alone(autocast: torch.dtype | None) -> None:
    """Twenty in flight, none waited for: a buffer that is used again too early would show."""
    features, transfer = reader(autocast), CudaTransfer("cuda:0")
    coming = [transfer.fetch(features.capture(transfer.bring(batch(number)))) for number in range(20)]
    for number, one in enumerate(coming):
        arrived = one.wait().check()
        alone = features(batch(number))
        for tap, feature in alone.items():
            assert arrived[tap].device.type == "cpu"
            assert arrived[tap].is_pinned()
            assert torch.equal(arrived[tap], feature.cpu()), (number, tap)


def test_what_the_loader_has_handed_over_may_be_overwritten() -> None:
    features, transfer = reader(), CudaTransfer("cuda:0")
    images = batch(0)
    coming = transfer.fetch(features.capture(transfer.bring(images)))
    images.zero_()
    alone = features(batch(0))
    assert all(torch.equal(feature, alone[tap].cpu()) for tap, feature in coming.wait().check().items())


def test_the_device_is_given_no_more_than_a_few_batches() -> None:
    features, transfer = reader(), CudaTransfer("cuda:0")
    for number in range(3 * AHEAD):
        transfer.fetch(features.capture(transfer.bring(batch(number))))
        assert len(transfer._computed) <= AHEAD


def test_a_batch_without_images_comes_back_without_rows() -> None:
    features, transfer = reader(), CudaTransfer("cuda:0")
    coming = transfer.fetch(features.capture(transfer.bring(torch.empty(0, 3, 64, 64))))
    assert [feature.shape for feature in coming.wait().check().values()] == [(0, 64), (0, 256)]


def test_autocast_computes_in_its_dtype() -> None:
    plain, rounded = reader()(batch(0)), reader(torch.bfloat16)(batch(0))
    assert not torch.equal(plain["last"], rounded["last"])
    assert torch.allclose(plain["last"].float(), rounded["last"].float(), atol=0.02)


@pytest.mark.parametrize("settings", [{}, {"autocast": "bfloat16"}, {"compile": True}])
def test_a_stream_that_was_stopped_goes_on_as_it_would_have_been(photos: Path, settings: dict[str, object]) -> None:
    log = MemoryLog()
    cuda = {"devices": ("cuda:0",), **settings}
    produce(config(photos, "one", **cuda), log, say=[].append)
    produce(config(photos, "two", passes=1, **cuda), log, say=[].append)
    result = produce(config(photos, "two", **cuda), log, say=[].append)
    assert result.stages.forward_s > 0
    assert contents(log, require_manifest(log, "one")) == contents(log, require_manifest(log, "two"))

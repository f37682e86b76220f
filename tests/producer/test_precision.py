"""What a backbone computes in, and by which kernels: what is the same then, and what the stream says of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featurestream.errors import FeatureRangeError, StreamMismatchError, UsageError
from featurestream.manifest_topic import require_manifest
from featurestream.memory import MemoryLog
from featurestream_producer.devices import fix_rounding
from featurestream_producer.run import produce
from featurestream_producer.taps import TapReader, parse_taps
from tests.producing import config, contents, write_images


class Flattened(nn.Module):
    """Takes a map for a plain array, which it is not where channels lie last in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4 * 4 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        map_BCHW = self.conv(x)
        return self.linear(map_BCHW.view(len(map_BCHW), -1))


class Fickle(nn.Module):
    """Computes something else the third time: no kernels that are made once do that."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x[..., 0, :8].mean(1) * (2.0 if self.calls > 2 else 1.0))


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    )  # fmt: skip


def reader(
    model: nn.Module, *taps: str, dtype: torch.dtype = torch.float32, size: int = 8, autocast: torch.dtype | None = None
) -> TapReader:
    return TapReader(model, parse_taps(taps), image_size=size, dtype=dtype, device="cpu", autocast=autocast)


def images(rows: int = 7) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


# ---- in memory ----------------------------------------------------------------------------------------------------


def test_convolutions_run_with_the_channels_last() -> None:
    model = convolutions()
    reader(model, "2:gap")
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_model_that_cannot_take_that_gets_its_maps_as_torch_lays_them_out() -> None:
    torch.manual_seed(0)
    model = Flattened()
    batch = torch.randn(2, 3, 6, 6)
    with torch.inference_mode():
        expected = model(batch)
    assert torch.equal(reader(model, "linear", size=6)(batch)["linear"], expected)
    assert model.conv.weight.is_contiguous()


# ---- autocast -----------------------------------------------------------------------------------------------------


def test_autocast_computes_products_in_its_dtype_and_pools_in_float32() -> None:
    """In bfloat16, which has 8 bits: 257 is 256, 3 x 86 = 258 is 258, and the mean of 256 and 258 would not be 257."""
    model = nn.Conv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, 3.0, 0.0]).reshape(1, 3, 1, 1))
    model = nn.Sequential(model)
    batch = torch.zeros(1, 3, 2, 2)
    batch[0, 0, 0] = 257.0  # the first row of pixels takes it once
    batch[0, 1, 1] = 86.0  # the second row three times that
    taps = ("0:flat=map", "0:gap=mean")
    plain = reader(model, *taps, size=2)(batch)
    assert plain["map"].tolist() == [[257.0, 257.0, 258.0, 258.0]]
    assert plain["mean"].tolist() == [[257.5]]
    rounded = reader(model, *taps, size=2, autocast=torch.bfloat16)(batch)
    assert rounded["map"].tolist() == [[256.0, 256.0, 258.0, 258.0]]
    assert rounded["mean"].tolist() == [[257.0]]
    assert rounded["mean"].dtype == torch.float32


def test_autocast_that_leaves_float16s_range_says_which_dtype_has_room() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[0].weight.fill_(60_000.0)
    features = reader(model, "0:gap", dtype=torch.float32, autocast=torch.float16)
    with pytest.raises(FeatureRangeError, match=r"gives inf; .*use --autocast bfloat16"):
        features(torch.ones(1, 3, 8, 8))


def test_a_stream_of_autocast_has_a_fingerprint_of_its_own_and_goes_on_with_autocast_only(photos: Path) -> None:
    log = MemoryLog()
    plain = produce(config(photos, "plain"), log, say=[].append)
    one = produce(config(photos, "one", autocast="bfloat16"), log, say=[].append)
    produce(config(photos, "two", autocast="bfloat16", passes=1), log, say=[].append)
    produce(config(photos, "two", autocast="bfloat16"), log, say=[].append)
    assert one.fingerprint != plain.fingerprint
    manifest = require_manifest(log, "one")
    assert manifest.backbone.autocast == "bfloat16"
    assert contents(log, manifest) == contents(log, require_manifest(log, "two"))
    with pytest.raises(StreamMismatchError, match=r'backbone\.autocast is "bfloat16", asked for null'):
        produce(config(photos, "two", passes=3), log, say=[].append)


# ---- torch.compile ------------------------------------------------------------------------------------------------


def test_compiled_rows_are_the_same_in_a_batch_of_any_size() -> None:
    """Batches of 7, 4 and 3 images on kernels for 4: split, whole and filled up."""
    plain = reader(convolutions(), "0:gap", "2:gmp", "5")(images())
    compiled = reader(convolutions(), "0:gap", "2:gmp", "5")
    compiled.compile(4, backend="aot_eager")
    whole = compiled(images())
    for tap, feature in plain.items():
        assert torch.allclose(whole[tap], feature, rtol=1e-5)
        assert torch.equal(whole[tap][:4], compiled(images()[:4])[tap])
        assert torch.equal(whole[tap][4:], compiled(images()[4:])[tap])
    assert compiled(images()[:0])["5"].shape == (0, 5)


def test_a_layer_that_the_next_one_overwrites_is_taken_before() -> None:
    compiled = reader(convolutions(), "0:gap", "1:gap")
    compiled.compile(2, backend="eager")
    features = compiled(images(2))
    assert not torch.equal(features["0"], features["1"])
    plain = reader(convolutions(), "0:gap", "1:gap")(images(2))
    assert torch.equal(features["0"], plain["0"])


def test_a_model_that_is_another_one_later_cannot_be_compiled_once() -> None:
    fickle = reader(Fickle(), "linear")
    fickle.compile(2, backend="eager")
    fickle(images(2))  # the probe was the first call, this the second
    with pytest.raises(UsageError, match=r"cannot be compiled once for all batches.*leave --compile out"):
        fickle(images(2))


def test_a_backend_that_fails_is_the_users_to_leave_out() -> None:
    def broken(_graph: object, _inputs: object) -> None:
        raise RuntimeError("no compiler here")

    features = reader(convolutions(), "5")
    features.compile(2, backend=broken)  # type: ignore[arg-type]  # torch takes functions too
    with pytest.raises(UsageError, match=r"the model cannot be compiled: .*no compiler here.*leave --compile out"):
        features(images(2))


@pytest.mark.slow
def test_a_compiled_stream_goes_on_as_it_would_have_been(photos: Path) -> None:
    """By C++ kernels: 40 samples in batches of 7, the sixth of which has 5; begun with a pass of its own."""
    log = MemoryLog()
    produce(config(photos, "one", compile=True), log, say=[].append)
    produce(config(photos, "two", compile=True, passes=1), log, say=[].append)
    torch.compiler.reset()
    produce(config(photos, "two", compile=True), log, say=[].append)
    manifest = require_manifest(log, "one")
    assert manifest.backbone.compiled is True
    assert contents(log, manifest) == contents(log, require_manifest(log, "two"))
    with pytest.raises(StreamMismatchError, match=r"backbone\.compiled"):
        produce(config(photos, "two", passes=3), log, say=[].append)


# ---- threads ------------------------------------------------------------------------------------------------------

PRODUCTS = """
import torch
torch.manual_seed(0)
rows, layer = torch.randn(1182, 768), torch.nn.Linear(768, 3072)  # six images' tokens in a ViT-B
found = []
for threads in (1, 2):
    torch.set_num_threads(threads)
    with torch.inference_mode():
        found.append(layer(rows))
print(torch.equal(*found))
"""


def test_products_do_not_depend_on_how_many_threads_a_worker_has() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    fix_rounding(environment)
    assert environment["MKL_CBWR"] == "AUTO,STRICT"
    printed = subprocess.check_output([sys.executable, "-c", PRODUCTS], env=environment, text=True)
    assert printed == "True\n"


def test_a_setting_of_the_users_stays() -> None:
    environment = {"MKL_CBWR": "AVX2"}
    fix_rounding(environment)
    assert environment == {"MKL_CBWR": "AVX2"}

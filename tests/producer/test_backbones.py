"""A backbone is frozen, the same every time it is built, and honest about its weights."""

from __future__ import annotations

import importlib.util
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import nn

from featurestream.errors import DataError, MissingExtraError, UnknownNameError, UsageError
from featurestream_producer.backbones import Backbone, build_backbone
from featurestream_producer.backbones.timm import weights_name
from featurestream_producer.backbones.torchvision import preset_of
from featurestream_producer.layers import probe
from featurestream_producer.preset import IMAGENET, Preset

SMALL = "squeezenet1_1"
SMALL_FILE = "squeezenet1_1-b8a52dc0.pth"  # the name under which torch keeps its weights


@pytest.fixture(scope="module")
def small() -> Backbone:
    return build_backbone(SMALL, weights="random", seed=3)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return torch's cache folder, empty; every download is refused at once."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # made with the first use, and kept with its proxies
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_random_weights_are_those_of_the_seed(small: Backbone) -> None:
    again = build_backbone(SMALL, weights="random", seed=3)
    other = build_backbone(SMALL, weights="random", seed=4)
    assert again.weights == small.weights
    assert other.weights.sha256 != small.weights.sha256


def test_random_weights_are_said_loudly(small: Backbone) -> None:
    assert small.weights.source == "random"
    assert small.weights.text() == (f"weights: RANDOM, nothing was learned (sha256 {small.weights.sha256[:12]})")


def test_building_a_backbone_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    build_backbone(SMALL, weights="random", seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_backbone_is_frozen(small: Backbone) -> None:
    assert not any(module.training for module in small.model.modules())
    assert not any(parameter.requires_grad for parameter in small.model.parameters())


def test_random_weights_come_with_the_imagenet_preset(small: Backbone) -> None:
    assert small.preset == IMAGENET == Preset(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


@pytest.mark.parametrize("name", ["inception_v3", "fcn_resnet50", "ssdlite320_mobilenet_v3_large"])
def test_models_with_habits_of_their_own_are_built_without_a_download(offline: Path, name: str) -> None:
    built = build_backbone(name, weights="random", seed=0)
    assert built.weights.source == "random"
    assert not list(offline.iterdir())


def test_named_weights_bring_their_preset(offline: Path, small: Backbone) -> None:
    torch.save(small.model.state_dict(), offline / SMALL_FILE)
    for name in (None, "DEFAULT", "IMAGENET1K_V1"):
        found = build_backbone(SMALL, weights=name, seed=0)
        assert (found.weights.source, found.weights.sha256) == ("IMAGENET1K_V1", small.weights.sha256)
        assert found.preset == IMAGENET
        assert not any(parameter.requires_grad for parameter in found.model.parameters())


@pytest.mark.parametrize(
    ("model", "weights", "expected"),
    [
        ("resnet50", "IMAGENET1K_V2", Preset(224, 232, IMAGENET.mean, IMAGENET.std, "bilinear")),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", Preset(384, 384, IMAGENET.mean, IMAGENET.std, "bicubic")),
        ("fcn_resnet50", "DEFAULT", Preset(520, 520, IMAGENET.mean, IMAGENET.std, "bilinear")),
        ("ssd300_vgg16", "DEFAULT", Preset(224, 256, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear")),
    ],
)
def test_presets_are_those_of_the_weights(model: str, weights: str, expected: Preset) -> None:
    from torchvision.models import get_model_weights

    assert preset_of(get_model_weights(model)[weights]) == expected


def test_weights_that_cannot_be_downloaded_say_what_to_do(offline: Path) -> None:
    with pytest.raises(DataError, match=r"cannot get the weights .*IMAGENET1K_V1 from https://.*") as e:
        build_backbone(SMALL, weights=None, seed=0)
    assert f"put the file into {offline}, give a checkpoint with --weights FILE, or take --weights random" in str(
        e.value
    )
    assert e.value.exit_code == 3


def test_a_damaged_file_in_the_cache_is_refused(offline: Path) -> None:
    (offline / SMALL_FILE).write_bytes(b"not what it was")
    with pytest.raises(DataError, match="cannot get the weights"):
        build_backbone(SMALL, weights="DEFAULT", seed=0)


def test_a_checkpoint_file_is_loaded(tmp_path: Path, small: Backbone) -> None:
    file = tmp_path / "mine.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in small.model.state_dict().items()}}, file)
    found = build_backbone(SMALL, weights=str(file), seed=9)
    assert found.weights.sha256 == small.weights.sha256
    assert (found.weights.prefix, found.weights.missing) == ("state_dict.module.", ())
    assert found.preset == IMAGENET


def test_names_that_select_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r'unknown model "resnt18"; did you mean "resnet18"'):
        build_backbone("resnt18", weights="random", seed=0)
    with pytest.raises(
        UnknownNameError,
        match=r'unknown weights of resnet18 "IMAGENET1K_V3".*DEFAULT, random; or a',
    ):
        build_backbone("resnet18", weights="IMAGENET1K_V3", seed=0)
    with pytest.raises(UsageError, match=r'no such weights file: ".*mine.pth"'):
        build_backbone(SMALL, weights=str(tmp_path / "mine.pth"), seed=0)


MODULE = """
from torch import nn

def small(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
def none(): return 3
def broken(): raise OSError("no licence")
def with_arguments(width): return nn.Conv2d(3, width, 3)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "models_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "models_of_mine"


def test_a_function_of_the_users_is_a_backbone(mine: str) -> None:
    built = build_backbone(f"{mine}:small", weights=None, seed=1)
    assert (built.name, built.weights.source, built.preset) == (f"{mine}:small", "as built", IMAGENET)
    assert not built.model.training
    assert build_backbone(f"{mine}:small", weights=None, seed=1).weights == built.weights
    assert build_backbone(f"{mine}:small", weights=None, seed=2).weights != built.weights


def test_a_users_backbone_takes_a_checkpoint(mine: str, tmp_path: Path) -> None:
    built = build_backbone(f"{mine}:small", weights=None, seed=1)
    torch.save(built.model.state_dict(), tmp_path / "w.pt")
    assert build_backbone(f"{mine}:small", weights="w.pt", seed=2).weights.sha256 == built.weights.sha256


@pytest.mark.parametrize(
    ("function", "weights", "message"),
    [
        ("none", None, "returned int; expected a function that returns an nn.Module"),
        ("broken", None, "failed: OSError: no licence; it is called without arguments"),
        ("with_arguments", None, r"failed: TypeError: .*width.*; it is called without arguments"),
        ("smal", None, 'has no "smal"; it has: broken, nn, none, small'),
        ("small", "DEFAULT", 'weights "DEFAULT" are no file'),
    ],
)
def test_a_users_backbone_that_does_not_work_says_why(mine: str, function: str, weights: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_backbone(f"{mine}:{function}", weights=weights, seed=0)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed here")
def test_timm_without_timm_says_how_to_install_it() -> None:
    with pytest.raises(
        MissingExtraError, match=r'"timm:resnet18" needs a package .*; pip install "featurestream\[timm\]"'
    ):
        build_backbone("timm:resnet18", weights=None, seed=0)


def test_a_timm_model_brings_its_own_preset() -> None:
    pytest.importorskip("timm")
    built = build_backbone("timm:vit_tiny_patch16_224", weights="random", seed=0)
    assert built.preset == Preset(224, 248, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    assert probe(built.model, ["blocks.0"], 224)[0].described == "197 x 192"
    with pytest.raises(UnknownNameError, match='unknown timm model "vit_tny"'):
        build_backbone("timm:vit_tny", weights=None, seed=0)


def test_timms_weights_are_named_as_timm_names_them() -> None:
    assert weights_name("resnet50", {"architecture": "resnet50", "tag": "a1_in1k"}) == "resnet50.a1_in1k"
    assert weights_name("resnet50.a1_in1k", {"architecture": "resnet50", "tag": "a1_in1k"}) == "resnet50.a1_in1k"
    assert weights_name("mine", {}) == "mine"


def test_a_checkpoint_of_timms_is_loaded_into_its_model(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    trained = build_backbone(name, weights="random", seed=1)
    torch.save({"arch": "vit", "state_dict": trained.model.state_dict()}, tmp_path / "last.pth.tar")
    built = build_backbone(name, weights=str(tmp_path / "last.pth.tar"), seed=2)
    assert (built.weights.prefix, built.weights.missing, built.weights.sha256) == (
        "state_dict.", (), trained.weights.sha256,
    )  # fmt: skip


def test_a_model_of_videos_is_refused_when_it_meets_images() -> None:
    with pytest.raises(UsageError, match=r"cannot take images of 32 x 32 pixels: .*models of videos"):
        probe(nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)), ["0"], 32)

"""What a checkpoint holds for a model is found, loaded without running any code of the file's, and accounted for."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featurestream.errors import DataError, UsageError
from featurestream_producer.weights import find_prefix, load_weights, read_tensors, state_sha256


class Tiny(nn.Module):
    """A backbone with a classifier, in the names of ResNet."""

    def __init__(self, classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(nn.Conv2d(width, width, 1))
        self.fc = nn.Linear(width, classes)


BODY = ["bn1.bias", "bn1.num_batches_tracked", "bn1.running_mean", "bn1.running_var", "bn1.weight", "conv1.weight",
        "layer1.0.bias", "layer1.0.weight"]  # fmt: skip
HEAD = ["fc.bias", "fc.weight"]


def state(seed: int = 1, **arguments: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return Tiny(**arguments).state_dict()


def under(prefix: str, values: dict[str, Tensor], without: str = "none") -> dict[str, Tensor]:
    return {prefix + name: value for name, value in values.items() if not name.startswith(without)}


def load(tmp_path: Path, checkpoint: object, model: nn.Module | None = None) -> tuple[nn.Module, Any]:
    torch.save(checkpoint, tmp_path / "weights.pth")
    model = model or Tiny()
    return model, load_weights(model, tmp_path / "weights.pth")


def same_body(model: nn.Module, values: dict[str, Tensor]) -> bool:
    found = model.state_dict()
    return all(torch.equal(found[name], values[name]) for name in BODY)


# ---- prefixes --------------------------------------------------------------------------------------------------

GOOD, OTHER = state(1), state(2)

CHECKPOINTS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "plain": ("", lambda: GOOD),
    "DistributedDataParallel": ("module.", lambda: under("module.", GOOD)),
    "torch.compile": ("", lambda: under("_orig_mod.", GOOD)),
    "compiled inside DDP": ("module.", lambda: under("module._orig_mod.", GOOD)),
    "torchvision's reference training": ("model_ema.module.", lambda: {
        "model": OTHER, "model_ema": {**under("module.", GOOD), "n_averaged": torch.tensor(3)}, "epoch": 3,
        "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
    }),
    "MoCo v1 and v2": ("state_dict.module.encoder_q.", lambda: {"epoch": 200, "arch": "resnet50", "state_dict": {
        **under("module.encoder_q.", GOOD, "fc"), "module.encoder_q.fc.0.weight": torch.ones(4, 4),
        "module.encoder_q.fc.2.weight": torch.ones(8, 4),
        **under("module.encoder_k.", OTHER, "fc"), "module.queue": torch.ones(4, 9),
    }}),
    "MoCo v3": ("state_dict.module.base_encoder.", lambda: {"state_dict": {
        **under("module.momentum_encoder.", OTHER, "fc"), **under("module.base_encoder.", GOOD, "fc"),
        "module.predictor.0.weight": torch.ones(2, 2),
    }}),
    "DINO": ("teacher.backbone.", lambda: {
        "student": under("module.backbone.", OTHER, "fc"),
        "teacher": {**under("backbone.", GOOD, "fc"), "head.mlp.0.weight": torch.ones(2, 2)},
        "args": argparse.Namespace(arch="vit"), "epoch": 100, "loss": np.float64(3.5),
    }),
    "VISSL": ("classy_state_dict.base_model.model.trunk._feature_blocks.", lambda: {
        "classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", GOOD, "fc"), "heads": {}}}},
        "phase_idx": 99,
    }),
    "SwAV": ("module.", lambda: {**under("module.", GOOD, "fc"), "module.prototypes.weight": torch.ones(3, 4)}),
    "lightly": ("state_dict.backbone.", lambda: {"state_dict": under("backbone.", GOOD, "fc"), "hyper_parameters": {}}),
    "VISSL with a pool map": ("trunk.base_model._feature_blocks.", lambda: (
        under("trunk.base_model._feature_blocks.", GOOD, "fc"))),
    "SimCLR": ("state_dict.backbone.", lambda: {"epoch": 200, "arch": "resnet18", "state_dict": {
        **under("backbone.", GOOD, "fc"), "backbone.fc.0.weight": torch.ones(4, 4),
        "backbone.fc.2.weight": torch.ones(8, 4),
    }, "optimizer": {"state": {}}}),
    "BYOL": ("model_state_dict.online_encoder.net.", lambda: {"model_state_dict": {
        **under("target_encoder.net.", OTHER, "fc"), **under("online_encoder.net.", GOOD, "fc"),
        "online_predictor.0.weight": torch.ones(2, 2),
    }}),
    "BYOL in the names of DeepMind's": ("online_network.", lambda: {
        **under("momentum_network.", OTHER, "fc"), **under("online_network.", GOOD, "fc"),
    }),
    "Lightning": ("state_dict.model.", lambda: {
        "epoch": 9, "global_step": 90, "pytorch-lightning_version": "2.5.0", "callbacks": {}, "loops": {},
        "hyper_parameters": {"lr": 0.1, "folder": Path("data")}, "lr_schedulers": [], "optimizer_states": [],
        "state_dict": {**under("model.", GOOD), "criterion.weight": torch.ones(10)},
    }),
    "Lightning around torch.compile around DDP": ("state_dict.model.module.", lambda: {
        "state_dict": under("model._orig_mod.module.", GOOD),
    }),
    "timm": ("state_dict_ema.", lambda: {
        "epoch": 3, "arch": "tiny", "state_dict": OTHER, "state_dict_ema": GOOD, "version": 2, "metric": 81.5,
        "args": argparse.Namespace(output=Path("runs")), "optimizer": {"state": {}, "param_groups": []},
    }),
    "timm without averages": ("state_dict.", lambda: {"arch": "tiny", "state_dict": GOOD}),
    "a wrapper of ours": ("backbone.", lambda: under("backbone.", GOOD)),
    "an encoder": ("state_dict.encoder.", lambda: {"state_dict": under("encoder.", GOOD, "fc")}),
    "a name never seen before": ("net.trunk_v2.", lambda: {"net": under("trunk_v2.", GOOD, "fc")}),
}  # fmt: skip


@pytest.mark.parametrize("trainer", CHECKPOINTS)
def test_checkpoints_of_the_usual_trainers_are_understood(tmp_path: Path, trainer: str) -> None:
    prefix, build = CHECKPOINTS[trainer]
    model, report = load(tmp_path, build())
    assert report.prefix == prefix
    assert same_body(model, GOOD)
    assert [name for name in report.matched if name in BODY] == BODY
    assert set(report.missing) <= set(HEAD)


def test_the_prefix_that_fits_most_names_wins_over_a_preferred_one() -> None:
    names = ["teacher.a", "student.a", "student.b"]
    assert find_prefix(names, {"a", "b"}) == "student."
    assert find_prefix([*names, "teacher.b"], {"a", "b"}) == "teacher."
    assert find_prefix(names, {"c"}) is None
    assert find_prefix(["x.layer1.conv1.weight", "x.conv1.weight"], {"conv1.weight", "layer1.conv1.weight"}) == "x."


def test_of_copies_that_fit_alike_the_one_that_is_evaluated_wins() -> None:
    """Also where alphabet and length would choose the other one."""
    for good, other in (
        ("teacher.", "student."),
        ("z_ema.", "net."),
        ("zz_online_net.", "a_target_net."),
        ("module.encoder_q.", "module.encoder_k."),
        ("my_long_backbone.", "momentum."),
        ("teacher_backbone.", "a_backbone."),
    ):
        assert find_prefix([f"{other}a", f"{good}a"], {"a"}) == good


# ---- what does not match ---------------------------------------------------------------------------------------


def test_the_report_says_what_went_where(tmp_path: Path) -> None:
    checkpoint = under("module.", {**GOOD, "queue": torch.ones(3)}, "fc.bias")
    _, report = load(tmp_path, checkpoint)
    assert (report.matched, report.missing, report.unexpected) == (
        tuple(sorted([*BODY, "fc.weight"])),
        ("fc.bias",),
        ("queue",),
    )
    assert report.source == str(tmp_path / "weights.pth")
    assert report.text() == (
        f'weights: {report.source}: 9 matched behind "module.", 1 missing (fc.bias), 1 unexpected (queue) '
        f"(sha256 {report.sha256[:12]})"
    )


def test_a_classifier_for_other_classes_counts_as_missing(tmp_path: Path) -> None:
    model, report = load(tmp_path, state(1, classes=3))
    assert (report.matched, report.missing, report.unexpected) == (tuple(BODY), tuple(HEAD), tuple(HEAD))
    assert same_body(model, GOOD)


def test_what_was_not_loaded_is_not_a_number(tmp_path: Path) -> None:
    model, _ = load(tmp_path, under("", GOOD, "layer1"))
    values = model.state_dict()
    assert {name for name in values if values[name].isnan().any()} == {"layer1.0.bias", "layer1.0.weight"}


def test_a_missing_count_of_batches_harms_nothing(tmp_path: Path) -> None:
    model, report = load(tmp_path, {k: v for k, v in GOOD.items() if k != "bn1.num_batches_tracked"})
    assert report.missing == ("bn1.num_batches_tracked",)
    assert model.state_dict()["bn1.num_batches_tracked"] == 0


def test_a_checkpoint_in_half_precision_is_loaded_into_the_models_precision(tmp_path: Path) -> None:
    model, _ = load(
        tmp_path, {name: value.half() if value.is_floating_point() else value for name, value in GOOD.items()}
    )
    assert torch.equal(model.state_dict()["conv1.weight"], GOOD["conv1.weight"].half().float())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds nothing for this model: it has a.x; the model has conv1.weight"):
        load(tmp_path, {"a": {"x": torch.ones(2)}, "lr": 0.1})


def test_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"does not fit this model: 7 tensors have another shape: bn1.bias: 8 in the file, 4 in the model; .*"
        r"nothing is resized or cut: is this a checkpoint of another architecture\?",
    ):
        load(tmp_path, state(1, width=8))


def stages(*depths: int, bias: bool = False) -> nn.Module:
    """A network of stages, with as many layers each, in the names of ResNet."""
    model = nn.Module()
    model.conv1 = nn.Conv2d(3, 4, 3, bias=bias)
    for number, depth in enumerate(depths, start=1):
        model.add_module(f"layer{number}", nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(depth))))
    model.fc = nn.Linear(4, 10)
    return model


ANOTHER = "is a checkpoint of another architecture: "


@pytest.mark.parametrize(
    ("trained", "built", "message"),
    [
        (stages(2, 3), stages(2, 2), "the file has layer2.2 inside of what both have, the model has not"),
        (stages(2, 2), stages(2, 3), "the model has layer2.2 inside of what both have, the file has not"),
        (
            stages(2, 2, bias=True),
            stages(2, 2),
            "the file has conv1.bias inside of what both have, the model has not",
        ),
        (stages(1), stages(1, 1, 1, 1), "it has 3 of the model's 9 tensors"),
    ],
)
def test_a_checkpoint_of_another_depth_or_kind_is_refused(
    tmp_path: Path, trained: nn.Module, built: nn.Module, message: str
) -> None:
    """ResNet-34's checkpoint has everything that ResNet-18 asks for, and is another network."""
    with pytest.raises(DataError, match=f"{ANOTHER}{message}; use the model that the weights were trained with"):
        load(tmp_path, trained.state_dict(), built)


def test_a_missing_last_stage_and_heads_of_the_files_own_are_no_other_architecture(tmp_path: Path) -> None:
    checkpoint = {
        **under("", stages(2, 2).state_dict(), "fc"), "fc.0.weight": torch.ones(4, 4), "mask_token": torch.ones(4),
        "decoder.0.weight": torch.ones(4, 4),
    }  # fmt: skip
    _, report = load(tmp_path, checkpoint, stages(2, 2, 1))
    assert report.missing == ("fc.bias", "fc.weight", "layer3.0.bias", "layer3.0.weight")
    assert report.unexpected == ("decoder.0.weight", "fc.0.weight", "mask_token")


# ---- files -----------------------------------------------------------------------------------------------------


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(under("backbone.", GOOD), tmp_path / "weights.safetensors")
    model = Tiny()
    assert load_weights(model, tmp_path / "weights.safetensors").prefix == "backbone."
    assert same_body(model, GOOD)


def test_a_checkpoint_of_older_lightning_is_read_without_lightning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hyperparameters are a class of Lightning's, which is not installed where the file is read."""
    parent, module = ModuleType("pytorch_lightning"), ModuleType("pytorch_lightning.utilities.parsing")
    kind = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = kind  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for one in (parent, ModuleType("pytorch_lightning.utilities"), module):
            patch.setitem(sys.modules, one.__name__, one)
        torch.save({"state_dict": under("net.", GOOD), "hyper_parameters": kind(lr=0.1)}, tmp_path / "last.ckpt")
    model = Tiny()
    assert load_weights(model, tmp_path / "last.ckpt").prefix == "state_dict.net."
    assert same_body(model, GOOD)


class Attack:
    """Unpickling it would run a program that makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


def test_no_code_in_a_checkpoint_is_ever_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hold more than tensors: .*; loading that would run code from the file"):
        load(tmp_path, {"state_dict": GOOD, "extra": Attack(tmp_path / "trace")})
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pth", b"", "cannot read weights .*is it a complete checkpoint"),
        ("text.pth", b"I am not weights", "cannot read weights|more than tensors"),
        ("pickle.pth", pickle.dumps({"a": 1}, protocol=2), "cannot read weights|more than tensors|hold no tensor"),
        ("text.safetensors", b"I am not weights", "cannot read weights .*is it a complete safetensors file"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    torch.save(GOOD, tmp_path / "weights.pth")
    content = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match="cannot read weights"):
        read_tensors(tmp_path / "weights.pth")


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(DataError, match="hold no tensor; expected a state_dict"):
        read_tensors(tmp_path / "weights.pth")


def test_a_missing_file_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'no such weights file: ".*gone.pth"; expected .pth'):
        load_weights(Tiny(), tmp_path / "gone.pth")


# ---- the sum ---------------------------------------------------------------------------------------------------


def test_the_sum_is_that_of_names_and_values_whatever_their_order(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
        model.bias.fill_(3.0)
    # printf 'bias torch.float32 (1,)\n\0\0@@weight torch.float32 (1, 2)\n\0\0\x80?\0\0\0@' | sha256sum
    assert state_sha256(model) == "4297e6beae3ec2a06621cdd1bbef61b41b1479a53926f2be87e4462e459fa594"
    turned = nn.Module()
    turned.register_parameter("bias", model.bias)
    turned.register_parameter("weight", model.weight)
    assert state_sha256(turned) == state_sha256(model)


def test_the_sum_changes_with_a_single_bit(tmp_path: Path) -> None:
    model, report = load(tmp_path, GOOD)
    assert report.sha256 == state_sha256(model)
    with torch.no_grad():
        model.get_parameter("conv1.weight").view(-1)[5] += 1e-6
    assert state_sha256(model) != report.sha256

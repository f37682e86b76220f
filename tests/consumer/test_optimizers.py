"""All of torch.optim by name, and what a wrong name or argument is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from featurestream.errors import UnknownNameError, UsageError
from featurestream_consumer.optimizers import (
    OPTIMIZERS,
    SCHEDULERS,
    build_optimizer,
    build_scheduler,
    check_optimizer,
    check_scheduler,
    needs_closure,
)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(2, 2))


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"SparseAdam"}))
def test_every_optimiser_of_torch_is_there_in_any_case(name: str) -> None:
    for written in (name, name.lower(), name.upper()):
        assert type(build_optimizer(written, [parameter()], {"lr": 0.1})).__name__ == name


def test_the_tables_hold_what_torch_has() -> None:
    assert {"SGD", "Adam", "AdamW", "RMSprop", "LBFGS", "Adagrad", "NAdam", "RAdam"} <= set(OPTIMIZERS)
    assert {"StepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau", "LinearLR"} <= set(SCHEDULERS)
    assert "Optimizer" not in OPTIMIZERS
    assert not {"LRScheduler", "_LRScheduler"} & set(SCHEDULERS)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("adamv", {}, 'unknown optimiser "adamv"; did you mean "Adam"?'),
        ("SGD", {"momentun": 0.9}, 'takes no argument "momentun"; did you mean "momentum"? it takes: lr, momentum,'),
        ("SGD", {"lr": -1}, 'optimiser "SGD" refuses lr=-1: Invalid learning rate: -1'),
        ("SGD", {"lr": "fast"}, "optimiser \"SGD\" refuses lr='fast'"),
        ("SparseAdam", {}, "cannot be used by name; it needs sparse gradients"),
    ],
)  # fmt: skip
def test_what_an_optimiser_refuses_is_said(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_optimizer(name, args)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("CosineAnealingLR", {}, 'unknown scheduler "CosineAnealingLR"; did you mean "CosineAnnealingLR"?'),
        ("StepLR", {}, 'scheduler "StepLR" needs the argument "step_size"; it takes: step_size, gamma'),
        ("StepLR", {"step": 3}, 'scheduler "StepLR" takes no argument "step"; did you mean "step_size"?'),
        ("LambdaLR", {}, "it needs a Python function"),
        ("sequentiallr", {}, "it is made of schedulers"),
        ("ReduceLROnPlateau", {"mode": "max"}, "it is given the validation loss, which is to fall"),
    ],
)  # fmt: skip
def test_what_a_scheduler_refuses_is_said(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_scheduler(name, args)
    assert message in str(caught.value)


def test_an_unknown_optimiser_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        check_optimizer("nothing-like-it", {})


def test_a_schedulers_length_is_the_runs_unless_it_is_given() -> None:
    optimizer = build_optimizer("SGD", [parameter()], {"lr": 1.0, "momentum": 0.9})
    assert build_scheduler("CosineAnnealingLR", optimizer, {}, total_steps=70).T_max == 70
    assert build_scheduler("CosineAnnealingLR", optimizer, {"T_max": 5}, total_steps=70).T_max == 5
    assert build_scheduler("OneCycleLR", optimizer, {"max_lr": 1.0}, total_steps=70).total_steps == 70
    given = {"max_lr": 1.0, "epochs": 2, "steps_per_epoch": 3}
    assert build_scheduler("OneCycleLR", optimizer, given, total_steps=70).total_steps == 6
    with pytest.raises(UsageError, match='scheduler "CosineAnnealingLR" needs the argument "T_max"'):
        build_scheduler("CosineAnnealingLR", optimizer, {})


def test_only_lbfgs_comes_back_for_the_loss() -> None:
    closures = {name for name in OPTIMIZERS if needs_closure(OPTIMIZERS[name]([parameter()], lr=0.1))}
    assert closures == {"LBFGS"}


def test_optimisers_and_schedulers_from_the_users_module_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_optim_a.py").write_text(
        "import torch\n"
        "def slow(params, *, lr):\n    return torch.optim.SGD(params, lr=lr / 10)\n"
        "def warm(optimizer, *, steps):\n"
        "    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps))\n"
    )
    monkeypatch.chdir(tmp_path)
    optimizer = build_optimizer("my_optim_a:slow", [parameter()], {"lr": 1.0})
    assert optimizer.param_groups[0]["lr"] == 0.1
    build_scheduler("my_optim_a:warm", optimizer, {"steps": 4}, total_steps=9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    with pytest.raises(UsageError, match='optimiser "my_optim_a:slow" needs the argument "lr"'):
        check_optimizer("my_optim_a:slow", {})
    with pytest.raises(UsageError, match='scheduler "my_optim_a:warm" takes no argument "stps"'):
        check_scheduler("my_optim_a:warm", {"stps": 4})

"""Heads that train together end, bit for bit, where each of them ends alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featurestream.errors import DivergedError
from featurestream_consumer.build import build_trainer
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.group import Group, Lone, form_units, shape_key
from featurestream_consumer.optimizers import ELEMENT_WISE
from featurestream_consumer.stack import OUTPUTS, Stack, Way
from featurestream_consumer.trainer import Once, Trainer

FEATURES, CLASSES, ROWS, STEPS = 20, 5, 16, 12


def batches(count: int = STEPS, *, rows: int = ROWS, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(rows, FEATURES, generator=generator), torch.randint(0, CLASSES, (rows,), generator=generator))
        for _ in range(count)
    ]


def trainer(**settings: Any) -> Trainer:
    values = {"name": "a", "stream": "s", "taps": "t", "validate": "v", "device": "cpu", "head_args": {"hidden": 8}}
    values |= {"batch_size": ROWS} | settings
    made = build_trainer(TrainConfig(**values), in_features=FEATURES, outputs=CLASSES, total_steps=STEPS)
    if made.normalization.needs_statistics:
        made.normalization.update(3 * batches(1, rows=200, seed=9)[0][0] + 1)
    return made


def differences(one: object, other: object, place: str = "state") -> list[str]:
    """Where two states differ in a bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        return [] if same else [place]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return [found for key in keys for found in differences(one.get(key), other.get(key), f"{place}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for number, pair in pairs for found in differences(*pair, f"{place}[{number}]")]
    return [] if one == other else [f"{place}: {one!r} and {other!r}"]


def assert_same(one: Trainer, other: Trainer) -> None:
    assert differences(one.state_dict(), other.state_dict()) == []


def group_of(trainers: list[Trainer]) -> Group:
    """A group, whether it pays or not; that it is exact for these shapes is what the others rely on."""
    group = Group(trainers)
    assert group.is_stable(ROWS)
    return group


def assert_as_alone(different: list[dict[str, Any]], rows: list[tuple[Tensor, Tensor]] | None = None) -> None:
    """Train each settings alone, then all together, and compare everything that decides how they would go on."""
    rows = rows or batches()
    alone, together = [trainer(**each) for each in different], [trainer(**each) for each in different]
    group = group_of(together)
    for number, batch in enumerate(rows):
        for one in alone:
            one.step(*batch)
        assert group.step(*batch, place="", once=Once()) == {}
        if number in (3, 8):  # what a checkpoint and the end of an epoch do
            group.sync()
            for one in (*alone, *together):
                one.end_epoch(1.0)
        if number == 6:
            group.sync()
            assert [one.take_metrics() for one in together] == [one.take_metrics() for one in alone]
    group.sync()
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
        assert one.take_metrics() == other.take_metrics()
    group.dissolve()
    for one, other in zip(alone, together, strict=True):
        one.step(*rows[0])
        other.step(*rows[0])
        assert_same(one, other)  # who has left a group goes on as he would have


RATES = [0.1, 0.01, 0.1, 0.02, 0.01, 0.1]


@pytest.mark.parametrize("name", sorted(ELEMENT_WISE))
def test_heads_in_a_group_end_as_alone_with_every_element_wise_optimiser(name: str) -> None:
    assert_as_alone([{"optimizer": name, "optimizer_args": {"lr": lr}, "seed": k} for k, lr in enumerate(RATES)])


@pytest.mark.parametrize(
    "args",
    [
        {"optimizer": "SGD", "optimizer_args": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}},
        {"optimizer": "SGD", "optimizer_args": {"lr": 0.1, "momentum": 0.9, "fused": False}},
        {"optimizer": "AdamW", "optimizer_args": {"lr": 0.01, "amsgrad": True, "maximize": True}},
        {"optimizer": "RMSprop", "optimizer_args": {"lr": 0.01, "momentum": 0.5, "centered": True}},
        {"optimizer": "Adafactor"},
        {"head": "linear", "head_args": {"bias": False}, "optimizer": "Muon"},
        {"head": "linear", "head_args": {}},
        {"head_args": {"hidden": [8, 24], "activation": "gelu"}},
        {"head_args": {"hidden": 8, "activation": "tanh"}, "loss": "bce"},
        {"normalize": "standardize"},
        {"augment": "mixup", "augment_args": {"alpha": 0.5}},
        {"augment": "gaussian"},
        {"augment": "dropout", "head_args": {"hidden": 8, "dropout": 0.3}},
    ],
    ids=str,
)
def test_heads_in_a_group_end_as_alone_whatever_they_share(args: dict[str, Any]) -> None:
    assert_as_alone([{**args, "seed": seed} for seed in range(5)])


@pytest.mark.parametrize("scheduler", [
    ("StepLR", {"step_size": 3}), ("CosineAnnealingLR", {}), ("OneCycleLR", {"max_lr": 0.1, "total_steps": 30}),
    ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3}), ("ReduceLROnPlateau", {"patience": 0}),
])  # fmt: skip
def test_heads_in_a_group_keep_their_schedules(scheduler: tuple[str, dict[str, Any]]) -> None:
    settings = {"optimizer": "SGD", "scheduler": scheduler[0], "scheduler_args": scheduler[1]}
    rates = [{"lr": lr, "momentum": 0.9} for lr in (0.1, 0.1, 0.05, 0.1)]
    assert_as_alone([{**settings, "optimizer_args": rate, "seed": seed} for seed, rate in enumerate(rates)])


def test_heads_in_a_group_may_differ_in_anything_but_their_shape() -> None:
    assert_as_alone(
        [
            {"head_args": {"hidden": 8, "dropout": 0.5}, "seed": 1},
            {"head_args": {"hidden": 8}, "optimizer": "SGD", "optimizer_args": {"lr": 0.1}},
            {"head_args": {"hidden": 8, "dropout": 0.2}, "loss_args": {"label_smoothing": 0.1}, "seed": 1},
            {"head_args": {"hidden": 8, "dropout": 0.2}, "normalize": "l2", "optimizer": "Adafactor"},
            {"head_args": {"hidden": 8}, "normalize": "standardize", "loss_args": {"label_smoothing": 0.1}},
            {"head_args": {"hidden": 8}, "scheduler": "ExponentialLR", "scheduler_args": {"gamma": 0.9}, "seed": 4},
        ]
    )  # fmt: skip


def test_the_smaller_last_batch_of_a_pass_is_exact_too() -> None:
    rows = [*batches(4), *batches(1, rows=5), *batches(4, seed=1), *batches(1, rows=1)]
    assert_as_alone([{"head_args": {"hidden": 8, "dropout": 0.5}, "seed": seed} for seed in range(4)], rows)


def test_a_product_that_is_not_stable_for_some_number_of_rows_is_not_used_for_it(monkeypatch) -> None:
    monkeypatch.setattr(Group, "is_stable", lambda self, rows: rows == ROWS)
    test_the_smaller_last_batch_of_a_pass_is_exact_too()


@pytest.mark.parametrize("hidden", [8, 11], ids=["contiguous", "padded"])
def test_gradients_taken_head_by_head_are_those_that_each_head_has_alone(hidden: int) -> None:
    ways = {0: Way.HEAD_BY_HEAD, 1: Way.HEAD_BY_HEAD}
    assert_as_alone_with(ways, [{"seed": seed, "head_args": {"hidden": hidden}} for seed in range(4)])


def test_the_rest_of_a_layer_s_outputs_taken_apart_has_the_gradients_that_each_head_has_alone() -> None:
    four_left_over = {"hidden": 2 * OUTPUTS + 4}
    assert_as_alone_with({0: Way.REST_APART}, [{"seed": seed, "head_args": four_left_over} for seed in range(4)])


def assert_as_alone_with(ways: dict[int, Way], settings: Sequence[dict[str, Any]]) -> None:
    alone, together = [trainer(**each) for each in settings], [trainer(**each) for each in settings]
    group = Group(together)
    group._stack.ways[ROWS] = dict(ways)
    assert group.is_stable(ROWS)
    assert {layer: group._stack.ways[ROWS][layer] for layer in ways} == ways
    for batch in batches():
        for one in alone:
            one.step(*batch)
        group.step(*batch, place="", once=Once())
    group.sync()
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("exact", [Way.REST_APART, Way.HEAD_BY_HEAD])
def test_a_group_tries_one_way_after_another_until_the_gradients_are_exact(monkeypatch, exact: Way) -> None:
    group = Group([trainer(seed=seed) for seed in range(3)])
    scores = Stack.scores

    def slightly_off(self: Stack, *args: Any) -> Tensor:
        """Gradients of the last layer that have other bits until they are taken in the way that is to be found."""
        found = scores(self, *args)
        if self.ways.get(ROWS, {}).get(1) is not exact:
            found.register_hook(lambda gradient: gradient * (1 + 1e-6))
        return found

    monkeypatch.setattr(Stack, "scores", slightly_off)
    monkeypatch.setattr(Stack, "layers_of", lambda self, wrong: {1} if wrong[2] else set())
    assert group.is_stable(ROWS)
    assert group._stack.ways[ROWS] == {1: exact}


def test_a_group_whose_gradients_are_exact_in_no_way_is_not_stable(monkeypatch) -> None:
    group = Group([trainer(seed=seed) for seed in range(3)])
    monkeypatch.setattr(Stack, "layers_of", lambda self, wrong: {1})
    assert not group.is_stable(ROWS)


def test_a_bias_whose_gradient_differs_has_no_other_way() -> None:
    stack = Group([trainer(seed=seed) for seed in range(2)])._stack
    assert stack.layers_of([False, False, True, False]) == {1}
    assert stack.layers_of([True, False, False, True]) is None


def test_a_head_that_diverges_leaves_alone_and_the_others_do_not_notice() -> None:
    settings = [
        {"optimizer": "SGD", "optimizer_args": {"lr": lr}, "seed": seed, "head_args": {"hidden": 8, "dropout": 0.2}}
        for seed, lr in enumerate([0.1, 1e38, 0.1, 1e38, 0.05])
    ]
    alone, together = [trainer(**each) for each in settings], [trainer(**each) for each in settings]
    group = group_of(together)
    lost: dict[Trainer, DivergedError] = {}
    for batch in batches():
        lost |= group.step(*batch, place="batch 7", once=Once())
    assert set(lost) == {together[1], together[3]}
    assert "(batch 7) is" in str(lost[together[1]])
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        if number in (1, 3):
            one.step(*batches()[0])
            with pytest.raises(DivergedError) as caught:
                one.step(*batches()[1], place="batch 7")
            assert str(lost[other]) == str(caught.value)
            assert differences(one.head.state_dict(), other.head.state_dict()) == []
            assert one.step_count == other.step_count
        else:
            for batch in batches():
                one.step(*batch)
            group.sync()
            assert_same(one, other)


def test_one_more_that_leaves_takes_its_state_with_it() -> None:
    settings = [{"seed": seed, "scheduler": "CosineAnnealingLR"} for seed in range(4)]
    alone, together = [trainer(**each) for each in settings], [trainer(**each) for each in settings]
    group = group_of(together)
    for number, batch in enumerate(batches(10)):
        if number == 5:
            group.remove(together[0])
        for one in alone:
            one.step(*batch)
        group.step(*batch, place="", once=Once())
        if number >= 5:
            together[0].step(*batch)
    group.sync()
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)


def test_scores_of_a_group_are_those_that_each_has_alone() -> None:
    settings = [
        {"head_args": {"hidden": 8, "dropout": 0.5}, "seed": 0},
        {"head_args": {"hidden": 8}, "normalize": "standardize", "loss_args": {"label_smoothing": 0.2}},
        {"head_args": {"hidden": 8}, "seed": 2},
    ]
    together, alone = [trainer(**each) for each in settings], [trainer(**each) for each in settings]
    group = group_of(together)
    features, labels = batches(1)[0]
    found = group.score(features, labels, place="", once=Once())
    for one, other in zip(alone, together, strict=True):
        mine, theirs = one.score(features, labels), found[other]
        assert not isinstance(theirs, DivergedError)
        assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(mine, theirs, strict=True))


def test_scores_that_are_not_finite_are_told_for_the_head_that_has_them() -> None:
    together = [trainer(seed=seed) for seed in range(3)]
    group = group_of(together)
    with torch.no_grad():
        next(together[1].head.parameters()).fill_(math.inf)
    found = group.score(*batches(1)[0], place="validation batch 0", once=Once())
    assert str(found[together[1]]).startswith("scores of validation batch 0 are not finite after step 0")
    assert not isinstance(found[together[2]], DivergedError)


def test_heads_group_by_their_shape_and_what_cannot_be_grouped_is_alone() -> None:
    small = [trainer(seed=seed) for seed in range(3)]
    wide = [trainer(seed=seed, head_args={"hidden": 12}) for seed in range(2)]
    newton = trainer(optimizer="LBFGS")
    keys = [shape_key(one) for one in (*small, *wide, newton)]
    assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4]
    assert keys[5] is None
    assert shape_key(trainer(loss="bce")) != keys[0]
    units = form_units([*small, *wide, newton], ROWS)
    assert {one for unit in units for one in unit.trainers} == {*small, *wide, newton}
    assert isinstance(units[0], Lone)
    assert units[0].trainers == [newton]


def test_a_stack_whose_product_is_not_stable_is_not_used(monkeypatch) -> None:
    monkeypatch.setattr(Group, "is_stable", lambda self, rows: False)
    trainers = [trainer(seed=seed) for seed in range(3)]
    before = [copy.deepcopy(one.state_dict()) for one in trainers]
    units = form_units(trainers, ROWS)
    assert [type(unit) for unit in units] == [Lone, Lone, Lone]
    for one, state in zip(trainers, before, strict=True):
        assert differences(one.state_dict(), state) == []

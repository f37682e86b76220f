"""The trainer against plain torch, and against itself after a restart."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featurestream.errors import DataError, DivergedError, UsageError
from featurestream_consumer.build import build_trainer
from featurestream_consumer.checkpoint import load_newest, save_checkpoint
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.heads import build_head
from featurestream_consumer.losses import build_loss
from featurestream_consumer.optimizers import OPTIMIZERS, SCHEDULERS, build_optimizer
from featurestream_consumer.trainer import Trainer

FEATURES, CLASSES = 6, 3
SCHEDULER_ARGS: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 4},
    "MultiStepLR": {"milestones": [3, 12]},
    "ConstantLR": {},
    "LinearLR": {"total_iters": 15},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": 15},
    "CosineAnnealingLR": {},
    "CosineAnnealingWarmRestarts": {"T_0": 6},
    "OneCycleLR": {"max_lr": 0.1},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
    "ReduceLROnPlateau": {"patience": 0},
}


def batches(count: int, *, rows: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(rows, FEATURES, generator=generator),
            torch.randint(0, CLASSES, (rows,), generator=generator),
        )
        for _ in range(count)
    ]


def trainer(**settings: Any) -> Trainer:
    values = {"name": "a", "stream": "s", "taps": "t", "validate": "v", "device": "cpu", "head_args": {"hidden": 8}}
    return build_trainer(TrainConfig(**(values | settings)), in_features=FEATURES, outputs=CLASSES, total_steps=20)


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint gives back of a state."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_resumes_exactly(**settings: Any) -> None:
    rows = batches(20)
    whole, first, second = trainer(**settings), trainer(**settings), trainer(**settings)
    for number, batch in enumerate(rows):
        whole.step(*batch)
        if number % 5 == 4:
            whole.end_epoch(1.0)
    for number, batch in enumerate(rows[:10]):
        first.step(*batch)
        if number % 5 == 4:
            first.end_epoch(1.0)
    state = reloaded(first.state_dict())
    torch.manual_seed(99)  # what else happens in the process does not matter
    second.load_state_dict(state)
    for number, batch in enumerate(rows[10:]):
        second.step(*batch)
        if number % 5 == 4:
            second.end_epoch(1.0)
    assert same(whole.state_dict(), second.state_dict())
    assert whole.learning_rate == second.learning_rate
    assert whole.take_metrics() == second.take_metrics()


def test_a_step_is_plain_torchs_step() -> None:
    ours = trainer(head="linear", head_args={}, optimizer="SGD", optimizer_args={"lr": 0.1, "momentum": 0.9}, seed=3)
    head = build_head("linear", in_features=FEATURES, outputs=CLASSES, args={}, seed=3)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    for features, classes in batches(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(features), classes)
        loss.backward()
        optimizer.step()
        assert ours.step(features, classes) == pytest.approx(float(loss.detach()), rel=1e-6)
    for mine, plain in zip(ours.head.parameters(), head.parameters(), strict=True):
        assert torch.allclose(mine, plain, atol=1e-6)
    assert (ours.step_count, ours.rows_seen) == (5, 40)


def test_a_run_that_was_stopped_and_loaded_gives_the_same_weights_bit_for_bit() -> None:
    assert_resumes_exactly(
        head_args={"hidden": [16, 8], "dropout": 0.3},
        optimizer="AdamW",
        optimizer_args={"lr": 0.01, "amsgrad": True},
        scheduler="OneCycleLR",
        scheduler_args={"max_lr": 0.1},
    )


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"SparseAdam", "Muon"}))
def test_every_optimiser_resumes_exactly(name: str) -> None:
    args = {"max_iter": 3} if name == "LBFGS" else {}
    assert_resumes_exactly(optimizer=name, optimizer_args=args, head_args={"hidden": 8, "dropout": 0.2})


def test_an_optimiser_of_matrices_alone_resumes_exactly_and_refuses_a_bias() -> None:
    assert_resumes_exactly(optimizer="Muon", head="linear", head_args={"bias": False})
    with pytest.raises(UsageError, match='optimiser "Muon" refuses no arguments: Muon only supports 2D parameters'):
        trainer(optimizer="Muon")


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_resumes_exactly_or_is_refused(name: str) -> None:
    settings = {
        "optimizer": "SGD",
        "optimizer_args": {"lr": 0.1, "momentum": 0.9},
        "scheduler": name,
        "scheduler_args": SCHEDULER_ARGS.get(name, {}),
    }
    if name in SCHEDULER_ARGS:
        assert_resumes_exactly(**settings)
    else:
        with pytest.raises(UsageError, match="cannot be used by name"):
            trainer(**settings)


def test_lbfgs_gets_the_loss_anew_and_falls_faster_than_a_step_of_sgd() -> None:
    features, classes = batches(1)[0]
    newton = trainer(head="linear", head_args={}, optimizer="LBFGS", optimizer_args={"line_search_fn": "strong_wolfe"})
    plain = trainer(head="linear", head_args={}, optimizer="SGD", optimizer_args={"lr": 0.1})
    assert newton.step(features, classes) == plain.step(features, classes), "the loss before the step"
    assert newton.step(features, classes) < 0.5 * plain.step(features, classes)
    assert newton.step_count == 2


def test_a_scheduler_moves_with_every_step_and_a_plateau_with_every_epoch() -> None:
    halving = trainer(
        optimizer="SGD", optimizer_args={"lr": 0.8}, scheduler="StepLR", scheduler_args={"step_size": 2, "gamma": 0.5}
    )
    rates = []
    for batch in batches(5):
        rates.append(halving.learning_rate)
        halving.step(*batch)
    assert rates == [0.8, 0.8, 0.4, 0.4, 0.2]
    plateau = trainer(
        optimizer="SGD", optimizer_args={"lr": 0.8}, scheduler="ReduceLROnPlateau",
        scheduler_args={"patience": 0, "factor": 0.5},
    )  # fmt: skip
    plateau.step(*batches(1)[0])
    for loss, expected in ((1.0, 0.8), (0.5, 0.8), (0.6, 0.4)):
        plateau.end_epoch(loss)
        assert plateau.learning_rate == expected
    with pytest.raises(UsageError, match="ReduceLROnPlateau needs the validation loss"):
        plateau.end_epoch(None)


def test_one_step_more_than_the_schedule_has_is_refused() -> None:
    cycle = trainer(optimizer="SGD", optimizer_args={"lr": 0.1, "momentum": 0.9}, scheduler="OneCycleLR",
                    scheduler_args={"max_lr": 0.1, "total_steps": 2})  # fmt: skip
    batch = batches(1)[0]
    cycle.step(*batch)
    cycle.step(*batch)
    with pytest.raises(UsageError, match="OneCycleLR refuses step 3: Tried to step 3 times"):
        cycle.step(*batch)


def test_two_trainers_in_one_process_do_not_disturb_each_others_dropout() -> None:
    settings = {"head_args": {"hidden": 32, "dropout": 0.5}}
    alone, one, other = trainer(**settings), trainer(**settings), trainer(**settings, seed=1)
    for batch in batches(6):
        alone.step(*batch)
    for batch in batches(6):
        other.step(*batch)
        torch.rand(3)
        one.step(*batch)
        other.evaluate([(*batch, np.arange(8))])
    assert same(alone.state_dict(), one.state_dict())
    assert not same(alone.head.state_dict(), other.head.state_dict())


def test_evaluation_moves_neither_weights_nor_random_state_nor_mode() -> None:
    one = trainer(head_args={"hidden": 8, "dropout": 0.5})
    one.step(*batches(1)[0])
    before = reloaded(one.state_dict())
    outside = torch.get_rng_state()
    one.evaluate([(*batch, np.arange(8)) for batch in batches(3)])
    assert same(before, one.state_dict())
    assert torch.equal(outside, torch.get_rng_state())
    assert one.head.training


def test_evaluation_gives_scores_in_order_and_metrics_over_all_rows_whatever_the_batches() -> None:
    one = trainer()
    features, classes = batches(1, rows=24)[0]
    indices = np.arange(100, 124)
    whole = one.evaluate([(features, classes, indices)])
    parts = one.evaluate([(features[a:b], classes[a:b], indices[a:b]) for a, b in ((0, 5), (5, 6), (6, 24))])
    assert parts.indices.tolist() == list(range(100, 124))
    assert parts.labels.tolist() == classes.tolist()
    assert parts.scores.shape == (24, CLASSES)
    assert parts.scores.dtype == np.float32
    assert np.allclose(whole.scores, parts.scores, atol=1e-6)
    assert parts.metrics == pytest.approx(whole.metrics, rel=1e-6)
    assert whole.metrics["top1"] == np.mean(whole.scores.argmax(1) == classes.numpy())
    assert list(whole.metrics) == ["top1", "loss"]


def test_features_of_any_number_type_and_shape_come_as_flat_float32_rows() -> None:
    classes = np.array([0, 1])
    numbers = np.arange(12).reshape(2, 2, 3)
    losses = set()
    for features in (
        numbers.astype(np.float16),
        numbers.astype(np.uint8),
        np.frombuffer(numbers.astype(np.float32).tobytes(), dtype=np.float32).reshape(2, 6),  # not writable
        torch.from_numpy(numbers).to(torch.bfloat16),
        torch.from_numpy(numbers),
    ):
        losses.add(trainer().step(features, np.frombuffer(classes.tobytes(), dtype=np.int64)))
    assert len(losses) == 1


def test_normalisation_is_part_of_the_trainer_and_of_its_state() -> None:
    features, classes = batches(1)[0]
    far = features * 100 + 1000
    one, other = trainer(normalize="standardize"), trainer(normalize="standardize")
    one.normalization.update(far)
    first = one.step(far, classes)
    assert first < 3, "standardised features give an untrained head a loss near log 3"
    other.load_state_dict(reloaded(one.state_dict()))
    assert other.step(far, classes) == one.step(far, classes)


def test_training_metrics_are_those_since_they_were_last_taken() -> None:
    one = trainer()
    assert one.take_metrics() == {}
    losses = [one.step(*batch) for batch in batches(4)]
    taken = one.take_metrics()
    assert taken["loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert set(taken) == {"top1", "loss"}
    assert one.take_metrics() == {}


def test_a_loss_that_is_not_finite_stops_before_the_weights_move() -> None:
    one = trainer(optimizer_args={"lr": 0.25})
    one.step(*batches(1)[0])
    before = reloaded(one.head.state_dict())
    features, classes = batches(1)[0]
    features[2, 3] = math.nan
    with pytest.raises(DivergedError) as caught:
        one.step(features, classes, place="batch 17")
    assert str(caught.value) == (
        "the loss of step 2 (batch 17) is nan: training has diverged (learning rate 0.25); use a smaller learning "
        "rate (--optimizer-arg lr=...), or normalise the features (--normalize standardize)"
    )
    assert caught.value.step == 1
    assert caught.value.exit_code == 3
    assert same(before, one.head.state_dict())


def test_a_learning_rate_that_is_far_too_large_is_told_within_a_few_steps() -> None:
    one = trainer(optimizer="SGD", optimizer_args={"lr": 1e38})
    one.step(*batches(1)[0])
    with pytest.raises(DivergedError, match="the loss of step 2 is"):
        one.step(*batches(1)[0])


def test_scores_that_are_not_finite_stop_an_evaluation() -> None:
    one = trainer()
    with torch.no_grad():
        next(one.head.parameters()).fill_(math.inf)
    with pytest.raises(DivergedError, match="scores of validation batch 0 are not finite after step 0"):
        one.evaluate([(*batches(1)[0], np.arange(8))])


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(2, 5), torch.tensor([0, 1]), "rows of 5 features (batch 3), but the head takes 6"),
        (torch.zeros(0, 6), torch.tensor([], dtype=torch.int64), "a batch without rows (batch 3)"),
        (torch.tensor(3.0), torch.tensor([0]), "features without an axis of rows"),
        (torch.zeros(2, 6), None, "rows without labels (batch 3)"),
        (torch.zeros(2, 6), torch.tensor([0, 1, 2]), "2 rows (batch 3) with labels of shape (3,)"),
        (torch.zeros(2, 6), torch.tensor([0, 3]), "batch 3: row 1 of the batch has the class number 3"),
        (torch.zeros(2, 6), torch.tensor([0.0, 1.0]), "batch 3: cross_entropy needs one class number a row"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_are_told_with_their_place(features: Tensor, labels: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        trainer().step(features, labels, place="batch 3")
    assert message in str(caught.value)


def test_an_empty_validation_is_an_error() -> None:
    with pytest.raises(DataError, match="there are no rows to validate on"):
        trainer().evaluate([])


def test_a_head_that_gives_another_number_of_scores_is_told() -> None:
    head = nn.Linear(FEATURES, 4)
    one = Trainer(
        head, build_loss("cross_entropy", {}), build_optimizer("sgd", head.parameters(), {}),
        in_features=FEATURES, outputs=CLASSES,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"the head returned the shape \(8, 4\) for 8 rows; expected \(8, 3\)"):
        one.step(*batches(1)[0])


def test_a_state_of_another_head_or_optimiser_is_refused() -> None:
    for settings in ({"head_args": {"hidden": 9}}, {"optimizer": "SGD"}, {"head": "linear", "head_args": {}}):
        one = trainer(**settings)
        one.step(*batches(1)[0])
        state = reloaded(one.state_dict())
        if settings == {"optimizer": "SGD"}:
            state["optimizer"]["param_groups"][0]["params"] = [0]
        with pytest.raises(DataError, match="the saved state does not fit this experiment"):
            trainer().load_state_dict(state)


def test_a_trainer_goes_on_from_a_checkpoint_on_disk(tmp_path: Path) -> None:
    rows = batches(20)
    settings = {"head_args": {"hidden": 8, "dropout": 0.2}, "optimizer": "AdamW", "scheduler": "CosineAnnealingLR"}
    whole, first, second = (trainer(**settings) for _ in range(3))
    for batch in rows:
        whole.step(*batch)
    for number, batch in enumerate(rows[:13]):
        first.step(*batch)
        if number in (4, 9):
            save_checkpoint(tmp_path, first.step_count, {"trainer": first.state_dict()})
    found = load_newest(tmp_path)
    assert found is not None
    second.load_state_dict(found[0]["trainer"])
    for batch in rows[second.step_count :]:
        second.step(*batch)
    assert second.step_count == 20
    assert same(whole.state_dict(), second.state_dict())

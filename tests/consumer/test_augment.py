"""What training changes at features: worked by hand, drawn from the experiment's own random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from featurestream.errors import UnknownNameError, UsageError
from featurestream_consumer.augment import AUGMENTATIONS, Augmented, augmented_loss, build_augmentation
from featurestream_consumer.losses import build_loss
from featurestream_consumer.randomness import OwnRandom


def random() -> OwnRandom:
    return OwnRandom(3, torch.device("cpu"))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_random_state_gives_the_same_rows_and_the_next_draw_others(name: str) -> None:
    augment = build_augmentation(name, {})
    assert augment is not None
    rows, numbers, outside = torch.randn(16, 4), random(), torch.get_rng_state()
    first, second, again = augment(rows, numbers), augment(rows, numbers), augment(rows, random())
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, second.features)
    assert torch.equal(outside, torch.get_rng_state())


def test_gaussian_adds_noise_of_its_deviation_and_dropout_keeps_the_mean() -> None:
    rows = torch.full((400, 50), 5.0)
    noisy, dropped = (build_augmentation(*each) for each in (("gaussian", {"std": 0.5}), ("dropout", {"p": 0.25})))
    assert noisy is not None
    assert dropped is not None
    assert float(noisy(rows, random()).features.std()) == pytest.approx(0.5, rel=0.02)
    values = dropped(rows, random()).features
    assert values.unique().tolist() == [0.0, pytest.approx(5 / 0.75)]
    assert float(values.mean()) == pytest.approx(5, rel=0.02)


def test_mixup_mixes_rows_and_losses_in_the_same_share() -> None:
    augment, rows, classes = build_augmentation("mixup", {"alpha": 1.0}), torch.eye(4), torch.arange(4)
    assert augment is not None
    mixed = augment(rows, random())
    assert mixed.partner is not None
    assert 0 < mixed.share < 1
    assert torch.equal(mixed.features, mixed.share * rows + (1 - mixed.share) * rows[mixed.partner])
    loss = build_loss("cross_entropy", {})
    own, other = loss(rows, classes), loss(rows, classes[mixed.partner])
    expected = mixed.share * own + (1 - mixed.share) * other
    assert torch.equal(augmented_loss(loss, rows, classes, mixed), expected)
    assert torch.equal(augmented_loss(loss, rows, classes, None), own)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("gaussian", {"std": -1}, "std=-1 is not possible for this augmentation; expected at least 0"),
        ("dropout", {"p": 1}, "p=1 is not possible for this augmentation; expected a probability in [0, 1)"),
        ("mixup", {"alpha": 0}, "alpha=0 is not possible for this augmentation; expected above 0"),
        ("mixup", {"beta": 1}, 'augmentation "mixup" takes no argument "beta"; it takes: alpha'),
        (None, {"std": 1}, "there are arguments for an augmentation (std), but no augmentation"),
    ],
)
def test_what_an_augmentation_refuses_is_said(name: str | None, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_augmentation(name, args)
    assert message in str(caught.value)


def test_a_function_of_the_users_is_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_augment.py").write_text(
        "from featurestream_consumer.augment import Augmented\n"
        "def twice(rows, random, *, times=2):\n    return Augmented(times * rows)\n"
        "def bare(rows, random):\n    return rows\n"
    )
    monkeypatch.chdir(tmp_path)
    twice, bare = build_augmentation("own_augment:twice", {"times": 3}), build_augmentation("own_augment:bare", {})
    assert twice is not None
    assert bare is not None
    found = twice(torch.ones(1, 2), random())
    assert isinstance(found, Augmented)
    assert found.features.tolist() == [[3.0, 3.0]]
    with pytest.raises(UsageError, match=r'"own_augment:bare" returned Tensor; expected a .*Augmented'):
        bare(torch.ones(1, 2), random())
    with pytest.raises(UnknownNameError, match='did you mean "gaussian"'):
        build_augmentation("gausian", {})

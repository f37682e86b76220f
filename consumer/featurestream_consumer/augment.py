"""Feature-space augmentation by name: what training changes at the rows that a head sees, drawn anew at each step.

A function here is pure: ``(features_BD, random, **arguments) -> Augmented``; all its randomness comes from the
generators of the experiment that it is given. To add one, write it and put it into ``AUGMENTATIONS``; from outside,
``package.module:function`` with the same signature works. Validation never augments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from featurestream.errors import UsageError
from featurestream.lookup import look_up
from featurestream_consumer.arguments import call, check_arguments
from featurestream_consumer.losses import Loss
from featurestream_consumer.randomness import OwnRandom


class Augmented(NamedTuple):
    """Rows as the head is to see them.

    Attributes:
        features: float32 (rows, features).
        partner: int64 (rows,), for each row another one whose target counts too; None where only its own counts.
        share: how much the row's own target counts; the partner's counts the rest.
    """

    features: Tensor
    partner: Tensor | None = None
    share: float = 1.0


def gaussian(features_BD: Tensor, random: OwnRandom, *, std: float = 0.1) -> Augmented:
    """Add normal noise of the deviation ``std``, in the features' own unit (normalise them to make it a share)."""
    _check("std", std, std >= 0, "at least 0")
    noise_BD = torch.empty_like(features_BD).normal_(generator=random.generator)
    return Augmented(features_BD + std * noise_BD)


def dropout(features_BD: Tensor, random: OwnRandom, *, p: float = 0.1) -> Augmented:
    """Set each feature to 0 with probability ``p`` and scale the others by 1 / (1 - p).

    N. Srivastava et al., JMLR 15 (2014), https://jmlr.org/papers/v15/srivastava14a.html, on the inputs.
    """
    _check("p", p, 0 <= p < 1, "a probability in [0, 1)")
    keep_BD = torch.empty_like(features_BD).bernoulli_(1 - p, generator=random.generator)
    return Augmented(features_BD * keep_BD.div_(1 - p))


def mixup(features_BD: Tensor, random: OwnRandom, *, alpha: float = 0.2) -> Augmented:
    """Mix each row with another one of the batch, and their targets' losses; one share a batch, Beta(alpha, alpha).

    H. Zhang et al.: mixup: beyond empirical risk minimization, 2018, arXiv:1710.09412. Manifold mixup on frozen
    features: V. Verma et al., 2019, arXiv:1806.05236.
    """
    _check("alpha", alpha, alpha > 0, "above 0")
    # torch has no Beta distribution that takes a generator; NumPy's is drawn from a seed of ours.
    seed = int(torch.randint(2**63 - 1, (), generator=random.cpu))
    share = float(np.random.Generator(np.random.PCG64(seed)).beta(alpha, alpha))
    partner_B = torch.randperm(features_BD.shape[0], generator=random.cpu).to(features_BD.device)
    return Augmented(share * features_BD + (1 - share) * features_BD[partner_B], partner_B, share)


AUGMENTATIONS: Final[dict[str, Callable[..., Augmented]]] = {
    "gaussian": gaussian,
    "dropout": dropout,
    "mixup": mixup,
}


class Augmentation:
    """An augmentation with its arguments set: ``augmentation(features_BD, random) -> Augmented``."""

    def __init__(self, name: str, args: Mapping[str, Any]) -> None:
        self.name = name
        self.args = dict(args)
        self._function = look_up("augmentation", name, AUGMENTATIONS)

    def __call__(self, features_BD: Tensor, random: OwnRandom) -> Augmented:
        """Return the rows as the head is to see them. Raises UsageError for a function that returns anything else."""
        found = self._function(features_BD, random, **self.args)
        if not isinstance(found, Augmented):
            raise UsageError(
                f'augmentation "{self.name}" returned {type(found).__name__}',
                hint="expected a featurestream_consumer.augment.Augmented",
            )
        return found


def build_augmentation(name: str | None, args: Mapping[str, Any]) -> Augmentation | None:
    """Return the augmentation ``name``; None where there is none.

    Raises UsageError for an unknown name (with the nearest), an argument that it does not take, or a value that it
    refuses; one of ours is tried on a row.
    """
    if name is None:
        if args:
            raise UsageError(
                f"there are arguments for an augmentation ({', '.join(args)}), but no augmentation",
                hint=f"name one with --augment: {', '.join(AUGMENTATIONS)}",
            )
        return None
    function = look_up("augmentation", name, AUGMENTATIONS)
    if name in AUGMENTATIONS:
        call("augmentation", name, function, (torch.zeros(1, 1), OwnRandom(0, torch.device("cpu"))), args)
    else:
        check_arguments("augmentation", name, function, args, supplied=2)
    return Augmentation(name, args)


def augmented_loss(loss: Loss, scores_BC: Tensor, targets: Tensor, augmented: Augmented | None) -> Tensor:
    """Return loss_B against the rows' own targets, and their partners' where rows were mixed."""
    loss_B = loss(scores_BC, targets)
    if augmented is None or augmented.partner is None:
        return loss_B
    return augmented.share * loss_B + (1 - augmented.share) * loss(scores_BC, targets[augmented.partner])


def _check(argument: str, value: object, fits: bool, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits:
        raise UsageError(f"{argument}={value!r} is not possible for this augmentation", hint=f"expected {expected}")

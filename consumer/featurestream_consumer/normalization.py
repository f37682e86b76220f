"""What is done to features before a head sees them: nothing, unit length, or zero mean and unit deviation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Final

import torch
from torch import Tensor

from featurestream.errors import DataError, UsageError
from featurestream.lookup import look_up


class Normalization(ABC):
    """``features_BD -> features_BD``, float32, never in place.

    ``needs_statistics`` tells that :meth:`update` must see the stream's rows before the first call. The state is
    tensors only: it lies in every checkpoint and in head.safetensors, so a head never travels without it.
    """

    needs_statistics: bool = False

    @property
    def alike(self) -> Hashable:
        """What equals the same of another normalisation exactly where both do the same to features."""
        return type(self) if type(self) in (Identity, UnitLength) else id(self)

    @abstractmethod
    def __call__(self, features_BD: Tensor) -> Tensor:
        """Return the normalised features."""

    def update(self, features_BD: Tensor) -> None:  # noqa: B027 - most kinds have no statistics to take
        """Take the rows ``features_BD`` into the statistics."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics; empty where there are none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` returned. Raises DataError when it belongs to another kind."""
        if state:
            raise DataError(
                f"{type(self).__name__} normalisation has no statistics, but was given {', '.join(state)}",
                hint="the checkpoint or head file belongs to another normalisation",
            )


class Identity(Normalization):
    """Features as the stream has them."""

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Return ``features_BD``."""
        return features_BD


class UnitLength(Normalization):
    """Every row divided by its Euclidean length; a row of zeros stays zero."""

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Return rows of length 1."""
        return torch.nn.functional.normalize(features_BD, dim=1, eps=1e-12)


class Standardize(Normalization):
    """Every feature minus its mean, divided by its standard deviation, both over the rows given to :meth:`update`.

    The deviation is the population's (divided by n, as scikit-learn's StandardScaler). Means and squares are
    accumulated in float64 batch by batch: T. Chan, G. Golub, R. LeVeque: Algorithms for computing the sample
    variance, The American Statistician 37 (1983), eq. 1.5. A feature that is constant is only shifted. The first call
    fixes the statistics: an experiment's input must not change under it.
    """

    needs_statistics = True

    def __init__(self) -> None:
        self._count = 0
        self._mean_D: Tensor | None = None  # float64
        self._m2_D: Tensor | None = None  # float64: the sum of squared distances from the mean
        self._fixed: tuple[Tensor, Tensor] | None = None  # float32 mean and deviation, as they are applied

    @property
    def rows(self) -> int:
        """The number of rows in the statistics."""
        return self._count

    def update(self, features_BD: Tensor) -> None:
        """Take the rows ``features_BD`` into the statistics. Raises UsageError once they are fixed."""
        if self._fixed is not None:
            raise UsageError(
                "the statistics of standardize are fixed: features were normalised with them already",
                hint="take all rows with update() first, or make a new Standardize",
            )
        rows = features_BD.shape[0]
        if rows == 0:
            return
        features = features_BD.to(torch.float64)
        mean_D = features.mean(0)
        m2_D = (features - mean_D).square().sum(0)
        if self._mean_D is None or self._m2_D is None:
            self._count, self._mean_D, self._m2_D = rows, mean_D, m2_D
            return
        total = self._count + rows
        delta_D = mean_D - self._mean_D
        self._mean_D = self._mean_D + delta_D * (rows / total)
        self._m2_D = self._m2_D + m2_D + delta_D.square() * (self._count * rows / total)
        self._count = total

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Return (features - mean) / deviation. Raises UsageError when no row was seen."""
        mean_D, deviation_D = self._fix()
        if mean_D.device != features_BD.device:
            mean_D, deviation_D = self._fixed = (mean_D.to(features_BD.device), deviation_D.to(features_BD.device))
        return (features_BD - mean_D) / deviation_D

    def state_dict(self) -> dict[str, Tensor]:
        """Return ``mean`` and ``std`` (float32 (D,), as they are applied) and ``rows``; empty before any row."""
        if self._count == 0:
            return {}
        mean_D, deviation_D = self._fix()
        return {"mean": mean_D, "std": deviation_D, "rows": torch.tensor(self._count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` returned; the statistics are then fixed."""
        if not state:
            self.__init__()  # type: ignore[misc]  # back to "no row seen"
            return
        missing = {"mean", "std", "rows"} - set(state)
        if missing:
            raise DataError(
                f"the statistics of standardize lack {', '.join(sorted(missing))}",
                hint="the checkpoint or head file belongs to another normalisation",
            )
        self._count = int(state["rows"])
        self._fixed = (state["mean"].to(torch.float32), state["std"].to(torch.float32))
        self._mean_D = self._m2_D = None

    def _fix(self) -> tuple[Tensor, Tensor]:
        if self._fixed is None:
            if self._mean_D is None or self._m2_D is None:
                raise UsageError(
                    "standardize has no statistics yet", hint="give the stream's rows to update() before the first use"
                )
            variance_D = self._m2_D / self._count
            # Rounding leaves a constant feature a variance of this order, not exactly 0; scikit-learn's bound.
            eps = torch.finfo(torch.float64).eps
            bound_D = self._count * eps * variance_D + (self._count * self._mean_D * eps).square()
            deviation_D = torch.where(variance_D <= bound_D, 1.0, variance_D.sqrt())
            self._fixed = (self._mean_D.to(torch.float32), deviation_D.to(torch.float32))
            self._mean_D = self._m2_D = None
        return self._fixed


NORMALIZATIONS: Final[dict[str, Callable[[], Normalization]]] = {
    "none": Identity,
    "l2": UnitLength,
    "standardize": Standardize,
}


def build_normalization(name: str) -> Normalization:
    """Return a new normalisation. Raises UnknownNameError with the known ones and the nearest."""
    return look_up("normalisation", name, NORMALIZATIONS)()

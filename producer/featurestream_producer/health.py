"""Can the features be trusted? A few rows of each batch, as sums that can be added in any order; and what they mean.

Arithmetic alone: tensors and sums in, sums, facts and warnings out. The sums are exact (fractions, not floating point),
so it does not matter which worker looked at a batch, or when: the same batches give the same facts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from featurestream.health import Canary, Health, InputHealth, TapHealth
from featurestream_producer.preset import Preset
from featurestream_producer.sampling import permutation

if TYPE_CHECKING:  # `featurectl streams` shows facts without torch, which takes seconds to import
    from torch import Tensor

# What is looked at of a batch. It bounds the cost: some ten thousand numbers a tap, whatever its shape.
ROWS: Final = 16
NUMBERS: Final = 512  # of a row
INPUT_ROWS: Final = 4
INPUT_PIXELS: Final = 256  # of an image, at the same places in each channel
#: The first so many batches of a run are all looked at; afterwards one of so many in each lane.
EARLY_BATCHES: Final = 100
LATER_SHARE: Final = 8
PROBED_NUMBERS: Final = 64  # of a row, in the early batches: from them comes the separability

#: Rows that differ by less than this share of their root mean square differ by no more than float16 rounds off.
CONSTANT: Final = 1e-3
DEAD: Final = 0.99  # share of zeros
SATURATED: Final = 0.1  # share of numbers at the peak: a clip (ReLU6, a hard sigmoid) is reached, but not so often
NEAR_LIMIT: Final = 0.25  # of the largest number of the dtype
LIMITS: Final = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": 3.4028234663852886e38}
FEWEST_ROWS: Final = 8  # fewer tell nothing
#: Colours may leave [0, 1] by this: filters overshoot. A few may do so by more: noise that an augmentation adds.
OVERSHOOT: Final = 0.05
FEW_OUTSIDE: Final = 0.005
#: Somewhere in hundreds of images there is nearly black and nearly white.
LEAST_RANGE: Final = 0.6
LARGEST_SCALED: Final = 20.0  # beyond every normalisation in use; pixels from 0 to 255 are not scaled at all
#: Devices compute the same network with other roundings: float16 or TF32 against float32 make less than this.
CANARY_TOLERANCE: Final = 0.05
MEAN_TOLERANCE: Final = 0.25  # of the standard deviation, beside five standard errors


@dataclass(frozen=True, slots=True)
class Finding:
    """Something conspicuous. ``key`` is the same whenever it is found again, with other numbers in ``text``."""

    key: str
    text: str


# ---- one batch ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class TapGlance:
    """What was seen of one batch at one tap; the fields are those of :class:`TapSums`.

    ``probed``: float32 (rows, at most PROBED_NUMBERS), or None after the early batches.
    """

    rows: int
    numbers: int
    total: float
    squares: float
    within: float
    freedom: int
    zeros: int
    largest: float
    peak: float
    at_peak: int
    probed: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class InputGlance:
    """What was seen of one batch's images; triples are of red, green and blue."""

    numbers: int
    total: tuple[float, ...]
    squares: tuple[float, ...]
    least: tuple[float, ...]
    largest: tuple[float, ...]
    outside: int


@dataclass(frozen=True, eq=False, slots=True)
class Glance:
    """What was seen of one batch. ``labels``: int64 (rows,) of the rows looked at, or None."""

    inputs: InputGlance
    taps: dict[str, TapGlance]
    labels: NDArray[np.int64] | None


def look_at(
    features: Mapping[str, Tensor], inputs: InputGlance, labels: NDArray[Any] | None, views: int, *, probe: bool
) -> Glance:
    """Return what one batch looks like: its taps' features on the CPU, and the labels of its rows.

    ``probe``: it is one of the first batches, from which the separability comes.
    """
    taps = {name: look_at_features(feature, views, probe=probe) for name, feature in features.items()}
    if not probe or labels is None or labels.dtype != np.int64:
        return Glance(inputs, taps, None)
    return Glance(inputs, taps, labels[chosen_rows(len(labels), views, ROWS)])


def is_early(batch: int, first: int) -> bool:
    """Tell whether a batch is one of the first of a run that begins at batch ``first``."""
    return batch < first + EARLY_BATCHES


def is_looked_at(batch: int, first: int, lanes: int) -> bool:
    """Tell whether a batch is looked at, in a run that begins at batch ``first``; no worker's share is left out."""
    return is_early(batch, first) or batch // lanes % LATER_SHARE == 0


def chosen_rows(rows: int, views: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` rows of a batch, evenly spaced, each the first view of its sample: int64, ascending."""
    samples = rows // views
    if samples <= most:
        return np.arange(samples, dtype=np.int64) * views
    return np.arange(most, dtype=np.int64) * samples // most * views


@lru_cache(maxsize=64)
def chosen_places(size: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` places of ``size``, scattered (a stride would meet the same column of every map)."""
    if size <= most:
        return np.arange(size, dtype=np.int64)
    return np.sort(permutation(0, 0, size)[:most])


def look_at_inputs(images_BCHW: Tensor, views: int, expected: Preset | None) -> InputGlance:
    """Return what a batch of images on the CPU looks like, float32 (B, 3, H, W)."""
    rows = chosen_rows(len(images_BCHW), views, INPUT_ROWS)
    places = chosen_places(images_BCHW.shape[2] * images_BCHW.shape[3], INPUT_PIXELS)
    y, x = np.divmod(places, images_BCHW.shape[3])
    sample_3N = images_BCHW.numpy()[rows[:, None], :, y, x].astype(np.float64).reshape(-1, 3).T
    if not sample_3N.size:
        return InputGlance(0, (0.0,) * 3, (0.0,) * 3, (math.inf,) * 3, (-math.inf,) * 3, 0)
    outside = 0
    if expected is not None:
        colours_3N = sample_3N * np.array(expected.std)[:, None] + np.array(expected.mean)[:, None]
        outside = int(np.count_nonzero((colours_3N < -OVERSHOOT) | (colours_3N > 1 + OVERSHOOT)))
    sums = (sample_3N.sum(1), (sample_3N**2).sum(1), sample_3N.min(1), sample_3N.max(1))
    total, squares, least, largest = (tuple(values.tolist()) for values in sums)
    return InputGlance(sample_3N.shape[1], total, squares, least, largest, outside)


def look_at_features(feature: Tensor, views: int, *, probe: bool) -> TapGlance:
    """Return what a tap's features of a batch look like: a tensor (rows, ...) on the CPU, in the stream's dtype."""
    import torch

    flat = feature.flatten(1)
    rows = chosen_rows(len(flat), views, ROWS)
    places = chosen_places(flat.shape[1], NUMBERS)
    sample_RN = flat[torch.from_numpy(rows)[:, None], torch.from_numpy(places)].double().numpy()
    probed = sample_RN[:, :: -(-len(places) // PROBED_NUMBERS)].astype(np.float32) if probe else None
    if not sample_RN.size:
        return TapGlance(0, 0, 0.0, 0.0, 0.0, 0, 0, 0.0, 0.0, 0, probed)
    sizes = np.abs(sample_RN)
    peak = float(sizes.max())
    deviations = sample_RN - sample_RN.mean(0)
    return TapGlance(
        rows=len(rows),
        numbers=sample_RN.size,
        total=float(sample_RN.sum()),
        squares=float(np.vdot(sample_RN, sample_RN)),
        within=float(np.vdot(deviations, deviations)),
        freedom=(len(rows) - 1) * len(places),
        zeros=int(sizes.size - np.count_nonzero(sizes)),
        largest=_largest(flat),
        peak=peak,
        at_peak=int(np.count_nonzero(sizes == peak)),
        probed=probed,
    )


def _largest(values: Tensor) -> float:
    """Return the greatest absolute value of a CPU tensor without NaN, as a float."""
    import torch

    # Without their sign, the bits of floating-point numbers are in the order of the numbers: integers compare fast.
    bits, mask = (torch.int32, 0x7FFFFFFF) if values.dtype == torch.float32 else (torch.int16, 0x7FFF)
    greatest = (values.contiguous().view(bits).numpy() & mask).max()
    return float(torch.tensor(greatest.item(), dtype=bits).view(values.dtype))


# ---- many batches ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TapSums:
    """A tap's sums over batches.

    Attributes:
        rows, numbers, zeros: how many were looked at, and how many numbers were 0.
        total, squares: sums of the numbers and of their squares.
        within, freedom: the sum of squared deviations from the batch's mean, number by number; its degrees of freedom.
        largest: the greatest absolute value of all numbers.
        peak, at_peak: the greatest absolute value of the numbers looked at, and how many have it.
    """

    rows: int = 0
    numbers: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)
    within: Fraction = Fraction(0)
    freedom: int = 0
    zeros: int = 0
    largest: float = 0.0
    peak: float = 0.0
    at_peak: int = 0

    def add(self, seen: TapGlance | TapSums) -> None:
        """Add a batch, or the sums of another worker."""
        self.rows += seen.rows
        self.numbers += seen.numbers
        self.total += Fraction(seen.total)
        self.squares += Fraction(seen.squares)
        self.within += Fraction(seen.within)
        self.freedom += seen.freedom
        self.zeros += seen.zeros
        self.largest = max(self.largest, seen.largest)
        if seen.peak > self.peak:
            self.peak, self.at_peak = seen.peak, 0
        if seen.peak == self.peak:
            self.at_peak += seen.at_peak

    def facts(self, name: str, separability: float | None, probe_rows: int) -> TapHealth:
        """Return the sums as facts: means and variances."""
        mean = self.total / max(self.numbers, 1)
        return TapHealth(
            name=name,
            rows=self.rows,
            numbers=self.numbers,
            mean=float(mean),
            variance=_variance(self.squares, max(self.numbers, 1), mean),
            spread=float(self.within / self.freedom) if self.freedom else None,
            freedom=self.freedom,
            zeros=self.zeros,
            largest=self.largest,
            peak=self.peak,
            at_peak=self.at_peak,
            separability=separability,
            probe_rows=probe_rows,
        )

    @classmethod
    def of(cls, facts: TapHealth) -> TapSums:
        """Return the sums that facts were made of, to the rounding of the facts."""
        mean = Fraction(facts.mean)
        return cls(
            facts.rows, facts.numbers, mean * facts.numbers, (Fraction(facts.variance) + mean**2) * facts.numbers,
            Fraction(facts.spread or 0) * facts.freedom, facts.freedom, facts.zeros, facts.largest, facts.peak,
            facts.at_peak,
        )  # fmt: skip


@dataclass(slots=True)
class InputSums:
    """The images' sums over batches, channel by channel."""

    numbers: int = 0
    total: list[Fraction] = field(default_factory=lambda: [Fraction(0)] * 3)
    squares: list[Fraction] = field(default_factory=lambda: [Fraction(0)] * 3)
    least: list[float] = field(default_factory=lambda: [math.inf] * 3)
    largest: list[float] = field(default_factory=lambda: [-math.inf] * 3)
    outside: int = 0

    def add(self, seen: InputGlance | InputSums) -> None:
        """Add a batch, or the sums of another worker."""
        self.numbers += seen.numbers
        self.outside += seen.outside
        for channel in range(3):
            self.total[channel] += Fraction(seen.total[channel])
            self.squares[channel] += Fraction(seen.squares[channel])
            self.least[channel] = min(self.least[channel], seen.least[channel])
            self.largest[channel] = max(self.largest[channel], seen.largest[channel])

    def facts(self, expected: Preset | None) -> InputHealth:
        """Return the sums as facts; zeros where nothing was seen."""
        count = max(self.numbers, 1)
        means = [total / count for total in self.total]
        variances = [_variance(squares, count, mean) for squares, mean in zip(self.squares, means, strict=True)]
        return InputHealth(
            numbers=self.numbers,
            mean=[float(mean) for mean in means],
            std=[math.sqrt(variance) for variance in variances],
            least=self.least if self.numbers else [0.0] * 3,
            largest=self.largest if self.numbers else [0.0] * 3,
            outside=self.outside,
            expected_mean=None if expected is None else list(expected.mean),
            expected_std=None if expected is None else list(expected.std),
        )

    @classmethod
    def of(cls, facts: InputHealth) -> InputSums:
        """Return the sums that facts were made of, to the rounding of the facts."""
        if not facts.numbers:
            return cls()
        means, stds = [Fraction(mean) for mean in facts.mean], [Fraction(std) for std in facts.std]
        return cls(
            facts.numbers,
            [mean * facts.numbers for mean in means],
            [(std**2 + mean**2) * facts.numbers for std, mean in zip(stds, means, strict=True)],
            list(facts.least),
            list(facts.largest),
            facts.outside,
        )


def _variance(squares: Fraction, count: int, mean: Fraction) -> float:
    # What is added is exact, but each batch's own sums are rounded: equal numbers may come out a hair below 0.
    return max(0.0, float(squares / count - mean**2))


def separability(features_ND: NDArray[Any], labels_N: NDArray[np.int64]) -> float | None:
    """Return the variance between the classes over the variance within them, each by its degrees of freedom.

    With n rows in K classes: (sum of n_k |m_k - m|^2 / (K - 1)) / (sum of |x - m_k|^2 / (n - K)). This is the variance
    ratio of T. Calinski, J. Harabasz: A dendrite method for cluster analysis, Communications in Statistics 3 (1974)
    1-27; with one number a row, Fisher's F of the analysis of variance. About 1 where labels say nothing of the
    features. None with fewer than two classes, no class of two rows, or no variance within.
    """
    _, classes_N = np.unique(labels_N, return_inverse=True)
    count, rows = int(classes_N.max(initial=-1)) + 1, len(labels_N)
    if count < 2 or rows <= count:
        return None
    centred_ND = features_ND.astype(np.float64) - features_ND.mean(0, dtype=np.float64)
    sizes_K = np.bincount(classes_N)
    means_KD = np.zeros((count, centred_ND.shape[1]))
    np.add.at(means_KD, classes_N, centred_ND)
    means_KD /= sizes_K[:, None]
    between = float((sizes_K[:, None] * means_KD**2).sum())
    within = float(((centred_ND - means_KD[classes_N]) ** 2).sum())
    if within <= 1e-12 * (between + within):
        return None
    return (between / (count - 1)) / (within / (rows - count))


# ---- what it means --------------------------------------------------------------------------------------------


def input_warnings(seen: InputHealth) -> list[Finding]:
    """Return what is conspicuous at the images that were fed.

    Every image that was decoded, scaled to [0, 1] and normalised once as the weights want it comes back as colours in
    [0, 1] when the normalisation is taken back; and hundreds of images have nearly black and nearly white in them. Mean
    and standard deviation alone prove nothing: a data set may be dark.
    """
    if not seen.numbers:
        return []
    if seen.least == seen.largest:
        return [Finding("input constant", f"all inputs are of one colour: {_texts(seen.mean)}")]
    numbers = f"mean {_texts(seen.mean)}, std {_texts(seen.std)}, from {min(seen.least):.3g} to {max(seen.largest):.3g}"
    if seen.expected_mean is None or seen.expected_std is None:
        if max(*seen.largest, -min(seen.least)) > LARGEST_SCALED:
            return [Finding("input scale", f"the inputs are not scaled ({numbers}): does the transform divide by 255?")]
        return []
    low, high = colour_range(seen)
    wanted = (
        f"the weights want mean {_texts(seen.expected_mean)} taken off and std {_texts(seen.expected_std)} divided by"
    )
    share = seen.outside / (3 * seen.numbers)
    if share > FEW_OUTSIDE:
        return [
            Finding(
                "input range",
                f"the inputs are not normalised as the weights want it ({numbers}): taken back, {share:.1%} of them "
                f"are no colours between 0 and 1 (from {low:.3g} to {high:.3g}); {wanted}, once",
            )
        ]
    if high - low < LEAST_RANGE:
        return [
            Finding(
                "input range",
                f"the inputs are not normalised as the weights want it ({numbers}): taken back, they are colours "
                f"between {low:.2f} and {high:.2f} only, or the images have next to no contrast; {wanted}",
            )
        ]
    return []


def colour_range(seen: InputHealth) -> tuple[float, float]:
    """Return the least and largest colour, with the expected normalisation taken back: 0 and 1 where all is well."""
    mean, std = seen.expected_mean or [0.0] * 3, seen.expected_std or [1.0] * 3
    return (
        min(x * s + m for x, m, s in zip(seen.least, mean, std, strict=True)),
        max(x * s + m for x, m, s in zip(seen.largest, mean, std, strict=True)),
    )


def tap_warnings(seen: TapHealth, dtype: str) -> list[Finding]:
    """Return what is conspicuous at a tap: constant, dead, saturated, near the end of the dtype's range."""
    if seen.rows < FEWEST_ROWS:
        return []
    found = []
    name = f'tap "{seen.name}"'
    square = seen.variance + seen.mean**2
    if seen.spread is not None and seen.spread <= CONSTANT**2 * square:
        what = "every number is 0" if square == 0 else "rows of different images are the same"
        found.append(Finding(f"{name} constant", f"{name} is constant: {what}"))
    elif seen.zeros > DEAD * seen.numbers:
        found.append(Finding(f"{name} dead", f"{name} is nearly dead: {seen.zeros / seen.numbers:.1%} of it are 0"))
    elif seen.peak > 0 and seen.at_peak > SATURATED * seen.numbers:
        share = seen.at_peak / seen.numbers
        found.append(Finding(f"{name} saturated", f"{name} is saturated: {share:.1%} of it are {seen.peak:.4g}"))
    limit = LIMITS[dtype]
    if seen.largest > NEAR_LIMIT * limit:
        found.append(
            Finding(
                f"{name} range",
                f"{name} is close to the end of {dtype}: it reaches {seen.largest:.4g} of "
                f"{limit:.4g}; one image more may end the run. --dtype bfloat16 has room",
            )
        )
    return found


def canary_warnings(here: Canary, reference: Canary, whose: str) -> list[Finding]:
    """Return where a device makes something else of the fixed input than ``whose`` (a text) device did."""
    found = []
    if here.transform != reference.transform:
        found.append(
            Finding(
                "transform canary",
                f"the transform makes something else of a fixed image than {whose}: its function, or a library that it "
                "uses, is another one; rows from here on are not comparable with those",
            )
        )
    before = {tap.name: tap for tap in reference.taps}
    for tap in here.taps:
        other = before.get(tap.name)
        if other is None or tap.checksum == other.checksum:
            continue
        distance = sketch_distance(tap.sketch, other.sketch)
        if distance > CANARY_TOLERANCE:
            found.append(
                Finding(
                    f'tap "{tap.name}" canary',
                    f'tap "{tap.name}": {here.device} and {whose} disagree on a fixed input: {distance:.1%} apart; '
                    f"roundings explain {CANARY_TOLERANCE:.0%} at most",
                )
            )
    return found


def sketch_distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return |one - other| / |other|; 1 where they cannot be compared, or ``other`` is 0 and ``one`` is not."""
    if len(one) != len(other) or not one:
        return 0.0 if len(one) == len(other) else 1.0
    size = math.dist(other, [0.0] * len(other))
    distance = math.dist(one, other)
    return distance / size if size else float(distance > 0)


def device_warnings(workers: Sequence[Health]) -> list[Finding]:
    """Return where workers disagree: on the fixed input, and in the mean and variance of what they have published.

    Permutations give every worker random samples, so the means of two may differ by chance: by five standard errors
    and a quarter of the standard deviation they do not.
    """
    found: list[Finding] = []
    for other in workers[1:]:
        first = workers[0]
        found += canary_warnings(other.canary, first.canary, f"{first.device} (worker {first.worker})")
        for one, two in zip(first.taps, other.taps, strict=False):
            if one.name != two.name or min(one.rows, two.rows) < FEWEST_ROWS:
                continue
            std = math.sqrt(max(one.variance, two.variance))
            by_chance = 5 * std * math.sqrt(1 / one.rows + 1 / two.rows)
            if max(abs(one.mean - two.mean), abs(math.sqrt(one.variance) - math.sqrt(two.variance))) > (
                MEAN_TOLERANCE * std + by_chance
            ):
                found.append(
                    Finding(
                        f'tap "{one.name}" devices',
                        f'tap "{one.name}": {first.device} (worker {first.worker}) has mean {one.mean:.4g}, std '
                        f"{math.sqrt(one.variance):.4g}; {other.device} (worker {other.worker}) has {two.mean:.4g} and "
                        f"{math.sqrt(two.variance):.4g}: the devices disagree",
                    )
                )
    return found


def merged_taps(workers: Iterable[Health]) -> list[TapHealth]:
    """Return each tap's facts over all workers; separabilities are averaged by their rows."""
    sums: dict[str, TapSums] = {}
    ratios: dict[str, list[tuple[float, int]]] = {}
    for worker in workers:
        for tap in worker.taps:
            sums.setdefault(tap.name, TapSums()).add(TapSums.of(tap))
            if tap.separability is not None:
                ratios.setdefault(tap.name, []).append((tap.separability, tap.probe_rows))
    found = []
    for name, total in sums.items():
        parts = ratios.get(name, [])
        rows = sum(count for _, count in parts)
        found.append(total.facts(name, sum(ratio * count for ratio, count in parts) / rows if rows else None, rows))
    return found


def merged_inputs(workers: Sequence[Health]) -> InputHealth:
    """Return the inputs' facts over all workers, of which there is one at least."""
    sums = InputSums()
    for worker in workers:
        sums.add(InputSums.of(worker.inputs))
    first = workers[0].inputs
    known = first.expected_mean is not None and first.expected_std is not None
    update = {"expected_mean": first.expected_mean, "expected_std": first.expected_std} if known else {}
    return sums.facts(None).model_copy(update=update)


def _texts(values: Iterable[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)

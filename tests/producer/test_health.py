"""Sums that say whether features can be trusted, worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import reduce
from itertools import permutations
from operator import add

import numpy as np
import pytest
import torch
from sklearn.metrics import calinski_harabasz_score

from featurestream.health import Canary, Health, InputHealth, TapCanary, TapHealth
from featurestream_producer.health import (
    LIMITS,
    InputSums,
    TapSums,
    canary_warnings,
    chosen_places,
    chosen_rows,
    colour_range,
    device_warnings,
    input_warnings,
    is_early,
    is_looked_at,
    look_at,
    look_at_features,
    look_at_inputs,
    merged_inputs,
    merged_taps,
    separability,
    sketch_distance,
    tap_warnings,
)
from featurestream_producer.preset import IMAGENET, Preset
from featurestream_producer.taps import DTYPES

PLAIN = Preset(4, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


# ---- what is looked at -------------------------------------------------------------------------------------------


def test_rows_are_spread_over_the_batch_and_are_first_views() -> None:
    assert chosen_rows(0, 1, 4).tolist() == []
    assert chosen_rows(3, 1, 4).tolist() == [0, 1, 2]
    assert chosen_rows(10, 1, 4).tolist() == [0, 2, 5, 7]
    assert chosen_rows(20, 2, 4).tolist() == [0, 4, 10, 14]
    assert chosen_rows(6, 3, 4).tolist() == [0, 3]


def test_places_are_the_same_every_time_and_scattered_over_a_map() -> None:
    assert chosen_places(5, 8).tolist() == [0, 1, 2, 3, 4]
    places = chosen_places(512 * 28 * 28, 512)
    assert len(set(places.tolist())) == 512
    assert (np.diff(places) > 0).all()
    assert set((places % 28).tolist()) == set(range(28))  # every column of the maps


def test_the_first_hundred_batches_of_a_run_are_early() -> None:
    assert [is_early(batch, 7) for batch in (7, 106, 107)] == [True, True, False]


def test_later_one_batch_of_eight_is_looked_at_in_every_lane() -> None:
    looked = [batch for batch in range(107, 107 + 96) if is_looked_at(batch, 7, 3)]
    assert looked == [120, 121, 122, 144, 145, 146, 168, 169, 170, 192, 193, 194]
    assert all(is_looked_at(batch, 7, 3) for batch in range(7, 107))


# ---- one tap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_sums_of_a_batch(dtype: torch.dtype) -> None:
    """Rows (0, 2), (4, -4), (2, 2): sum 6, squares 44; the columns' means are 2 and 0, so within is 4+4+0 + 4+16+4."""
    seen = look_at_features(torch.tensor([[0.0, 2.0], [4.0, -4.0], [2.0, 2.0]], dtype=dtype), 1, probe=True)
    assert (seen.rows, seen.numbers, seen.total, seen.squares) == (3, 6, 6.0, 44.0)
    assert (seen.within, seen.freedom, seen.zeros) == (32.0, 4, 1)
    assert (seen.largest, seen.peak, seen.at_peak) == (4.0, 4.0, 2)
    assert seen.probed is not None
    assert seen.probed.tolist() == [[0, 2], [4, -4], [2, 2]]


def test_a_batch_without_rows_adds_nothing() -> None:
    sums = TapSums()
    sums.add(look_at_features(torch.zeros(0, 8, 2, 2, dtype=torch.float16), 1, probe=True))
    assert sums == TapSums()
    inputs = InputSums()
    inputs.add(look_at_inputs(torch.zeros(0, 3, 4, 4), 1, IMAGENET))
    assert inputs == InputSums()
    assert input_warnings(inputs.facts(IMAGENET)) == []
    facts = TapSums().facts("a", None, 0)
    assert (facts.mean, facts.variance, facts.spread) == (0.0, 0.0, None)
    assert tap_warnings(facts, "float16") == []


def test_the_largest_number_is_found_wherever_it_is() -> None:
    """Only 16 rows and 512 numbers of them are looked at; the largest is that of all."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        features = torch.zeros(100, 5000, dtype=dtype)
        features[57, 4321] = -96.0
        seen = look_at_features(features, 1, probe=False)
        assert (seen.rows, seen.numbers, seen.largest, seen.peak) == (16, 16 * 512, 96.0, 0.0)
        assert seen.probed is None


def test_facts_of_a_tap() -> None:
    sums = TapSums()
    sums.add(look_at_features(torch.tensor([[0.0, 2.0], [4.0, -4.0], [2.0, 2.0]]), 1, probe=False))
    sums.add(look_at_features(torch.tensor([[6.0, 0.0]]), 1, probe=False))
    facts = sums.facts("avgpool", 1.5, 4)
    # Eight numbers: sum 12, squares 80. The second batch has one row, so it tells nothing of the spread.
    assert (facts.rows, facts.numbers, facts.mean, facts.variance) == (4, 8, 1.5, 80 / 8 - 1.5**2)
    assert (facts.spread, facts.freedom, facts.zeros) == (8.0, 4, 2)
    assert (facts.largest, facts.peak, facts.at_peak) == (6.0, 6.0, 1)
    assert (facts.name, facts.separability, facts.probe_rows) == ("avgpool", 1.5, 4)


def numbers_of(facts: TapHealth) -> dict[str, float]:
    return facts.model_dump(exclude={"name"}, exclude_none=True)


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(7, 5, generator=generator) * 1.3**exponent for exponent in range(count)]


def test_sums_do_not_depend_on_the_order_or_on_who_added_them() -> None:
    """Exactly, not nearly: floating-point sums of these numbers differ in their last bits."""
    glances = [look_at_features(features, 1, probe=False) for features in batches(5)]
    expected = None
    for order in permutations(glances):
        alone, one, other = TapSums(), TapSums(), TapSums()
        for number, seen in enumerate(order):
            alone.add(seen)
            (one if number % 2 else other).add(seen)
        one.add(other)
        assert one == alone
        expected = expected or alone
        assert alone == expected
    floats = {reduce(add, order) for order in permutations([seen.squares for seen in glances])}
    assert len(floats) > 1


def test_facts_can_be_gone_on_with() -> None:
    glances = [look_at_features(features, 1, probe=False) for features in batches(5)]
    whole, first = TapSums(), TapSums()
    for seen in glances:
        whole.add(seen)
    for seen in glances[:2]:
        first.add(seen)
    again = TapSums.of(TapHealth.model_validate_json(first.facts("a", None, 0).model_dump_json()))
    for seen in glances[2:]:
        again.add(seen)
    expected, found = whole.facts("a", None, 0), again.facts("a", None, 0)
    assert numbers_of(found) == pytest.approx(numbers_of(expected), rel=1e-12)
    assert (found.numbers, found.zeros, found.at_peak) == (expected.numbers, expected.zeros, expected.at_peak)


# ---- inputs -----------------------------------------------------------------------------------------------------


def test_the_sums_of_images_are_taken_channel_by_channel() -> None:
    """Red is -1 and 1, green 0, blue 3: with mean and std of a half taken back that is 0 and 1, 0.5, and no colour."""
    images_BCHW = torch.zeros(1, 3, 2, 2)
    images_BCHW[0, 0] = torch.tensor([[-1.0, 1.0], [1.0, 1.0]])
    images_BCHW[0, 2] = 3.0
    seen = look_at_inputs(images_BCHW, 1, PLAIN)
    assert (seen.numbers, seen.total, seen.squares) == (4, (2.0, 0.0, 12.0), (4.0, 0.0, 36.0))
    assert (seen.least, seen.largest, seen.outside) == ((-1.0, 0.0, 3.0), (1.0, 0.0, 3.0), 4)
    assert look_at_inputs(images_BCHW, 1, None).outside == 0
    sums = InputSums()
    sums.add(seen)
    facts = sums.facts(PLAIN)
    assert (facts.mean, facts.std) == ([0.5, 0.0, 3.0], [math.sqrt(0.75), 0.0, 0.0])
    assert (facts.expected_mean, colour_range(facts)) == ([0.5, 0.5, 0.5], (0.0, 2.0))
    again = InputSums.of(facts)
    assert again.total == [Fraction(2), Fraction(0), Fraction(12)]
    assert InputSums.of(InputSums().facts(None)) == InputSums()


def test_images_that_lie_otherwise_in_memory_are_seen_alike() -> None:
    images_BCHW = torch.randn(9, 3, 6, 5)
    assert look_at_inputs(images_BCHW.to(memory_format=torch.channels_last), 1, None) == look_at_inputs(
        images_BCHW, 1, None
    )


def photographs(count: int = 64) -> torch.Tensor:
    """Colours in [0, 1] as photographs have them: from black to white, most of them in between."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 3, 16, 16, generator=generator) ** 1.5


def normalised(colours_BCHW: torch.Tensor, preset: Preset) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    return (colours_BCHW - mean) / std


def warned(images_BCHW: torch.Tensor, expected: Preset | None) -> list[str]:
    sums = InputSums()
    for part in images_BCHW.split(8):
        sums.add(look_at_inputs(part, 1, expected))
    return [warning.text for warning in input_warnings(sums.facts(expected))]


WRONG = {
    "no Normalize": lambda c: c,
    "no division by 255": lambda c: 255 * c,
    "Normalize of pixels from 0 to 255": lambda c: normalised(255 * c, IMAGENET),
    "divided by 255 twice": lambda c: normalised(c / 255, IMAGENET),
    "normalised twice": lambda c: normalised(normalised(c, IMAGENET), IMAGENET),
    "mean and std of a half": lambda c: normalised(c, PLAIN),
    "only the mean": lambda c: normalised(c, Preset(4, 4, IMAGENET.mean, (1.0, 1.0, 1.0))),
    "only the std": lambda c: normalised(c, Preset(4, 4, (0.0, 0.0, 0.0), IMAGENET.std)),
    "mean and std in the order of blue, green, red": lambda c: normalised(c.flip(1), IMAGENET).flip(1),
    "the sign turned": lambda c: -normalised(c, IMAGENET),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_normalisation_is_found(mistake: str) -> None:
    [text] = warned(WRONG[mistake](photographs()), IMAGENET)
    assert text.startswith("the inputs are not normalised as the weights want it (mean ")
    assert "the weights want mean 0.485 0.456 0.406 taken off and std 0.229 0.224 0.225 divided by" in text


def test_a_normalisation_that_is_nearly_the_right_one_cannot_be_told_from_it() -> None:
    """From -2 to 2, where ImageNet's goes from -2.1 to 2.6."""
    assert warned(2 * normalised(photographs(), PLAIN), IMAGENET) == []


@pytest.mark.parametrize("preset", [IMAGENET, PLAIN, Preset(4, 4, (0.0,) * 3, (1.0,) * 3)])
def test_a_right_normalisation_is_not_warned_about(preset: Preset) -> None:
    colours = photographs()
    assert warned(normalised(colours, preset), preset) == []
    assert warned(normalised((colours > 0.7).float(), preset), preset) == []  # ink on paper: far from mean 0 and std 1
    dark = colours**4
    assert warned(normalised(dark, preset), preset) == []
    overshot = colours.clone()
    overshot[:, :, ::16, ::16] = 1.2  # one pixel in 256
    assert warned(normalised(overshot, preset), preset) == []


def test_what_numbers_can_prove_without_known_weights_is_little() -> None:
    colours = photographs()
    assert warned(colours, None) == []
    assert warned(normalised(colours, IMAGENET), None) == []
    [text] = warned(255 * colours, None)
    assert text.startswith("the inputs are not scaled (mean ")
    [text] = warned(torch.full((8, 3, 4, 4), 0.25), None)
    assert text == "all inputs are of one colour: 0.25 0.25 0.25"


# ---- warnings of taps -----------------------------------------------------------------------------------------------


def texts_of(features: torch.Tensor) -> list[str]:
    sums = TapSums()
    for part in features.split(8):
        sums.add(look_at_features(part, 1, probe=False))
    return [
        warning.text for warning in tap_warnings(sums.facts("t", None, 0), str(features.dtype).removeprefix("torch."))
    ]


def spread_features(rows: int = 32) -> torch.Tensor:
    return torch.randn(rows, 40, generator=torch.Generator().manual_seed(5)).half()


def test_features_that_vary_are_not_warned_about() -> None:
    assert texts_of(spread_features()) == []
    assert texts_of(spread_features().relu()) == []
    assert texts_of(spread_features().clamp(0, 6)) == []
    assert texts_of(100 + spread_features()) == []


def test_a_constant_tap_is_found_although_its_numbers_differ() -> None:
    row = spread_features(1)
    assert texts_of(row.expand(32, -1)) == ['tap "t" is constant: rows of different images are the same']
    rounding = 1 + 2e-4 * spread_features().float()
    assert texts_of((row.float() * rounding).half()) == ['tap "t" is constant: rows of different images are the same']
    assert texts_of((row.float() * (1 + 20e-3 * spread_features().float())).half()) == []
    assert texts_of(torch.zeros(32, 40)) == ['tap "t" is constant: every number is 0']


def test_a_dead_and_a_saturated_tap_are_found() -> None:
    dead = torch.zeros(32, 40)
    dead[::2, 0] = 1.0  # 16 of 1,280
    assert texts_of(dead) == []
    dead[2::4, 0] = 0.0  # 8 of 1,280
    assert texts_of(dead) == ['tap "t" is nearly dead: 99.4% of it are 0']
    [text] = texts_of((3 * spread_features()).clamp(-1, 1))
    assert text.startswith('tap "t" is saturated: 7')
    assert text.endswith("% of it are 1")


def test_a_tap_near_the_end_of_its_dtype_is_found() -> None:
    features = spread_features()
    features[3, 3] = 20_000.0
    assert texts_of(features) == [
        'tap "t" is close to the end of float16: it reaches 2e+04 of 6.55e+04; one image more may end the run. '
        "--dtype bfloat16 has room"
    ]
    assert texts_of(features.float()) == []


def test_equal_numbers_that_have_no_exact_sum_have_no_variance() -> None:
    for number in (0.1, 0.7, 1 / 3):
        images_BCHW = torch.full((3, 3, 5, 7), number)
        sums, inputs = TapSums(), InputSums()
        sums.add(look_at_features(images_BCHW, 1, probe=False))
        inputs.add(look_at_inputs(images_BCHW, 1, None))
        assert sums.facts("t", None, 0).variance == pytest.approx(0.0, abs=1e-15)
        assert inputs.facts(None).std == pytest.approx([0.0] * 3, abs=1e-7)


def test_the_limits_are_those_of_the_dtypes() -> None:
    assert {name: torch.finfo(dtype).max for name, dtype in DTYPES.items()} == LIMITS


def test_a_few_rows_tell_nothing() -> None:
    assert texts_of(torch.zeros(7, 40)) == []


# ---- separability ---------------------------------------------------------------------------------------------------


def test_the_separability_of_four_numbers_by_hand() -> None:
    """Classes {0, 2} and {6, 8}: means 1, 7, overall 4; between 2*9 + 2*9 = 36 over 1; within 4 over 2: 36 / 2."""
    features = np.array([[0.0], [6.0], [2.0], [8.0]])
    assert separability(features, np.array([3, 9, 3, 9])) == 18.0


def test_the_separability_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 5, 200)
    features = (generator.standard_normal((200, 7)) + labels[:, None] * 0.3).astype(np.float32)
    assert separability(features, labels) == pytest.approx(calinski_harabasz_score(features, labels), rel=1e-6)
    order = generator.permutation(200)
    assert separability(features[order], labels[order]) == pytest.approx(separability(features, labels), rel=1e-12)


def test_labels_that_say_nothing_give_about_one() -> None:
    generator = np.random.default_rng(2)
    ratio = separability(generator.standard_normal((1600, 64)), generator.integers(0, 10, 1600))
    assert ratio == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], []])
def test_without_two_classes_or_a_second_row_of_one_there_is_no_separability(labels: list[int]) -> None:
    assert separability(np.arange(len(labels), dtype=float)[:, None], np.array(labels, dtype=np.int64)) is None


def test_constant_features_have_no_separability() -> None:
    assert separability(np.full((6, 3), 0.1), np.array([0, 0, 1, 1, 2, 2])) is None


def test_labels_are_looked_at_in_the_first_batches_where_they_are_classes() -> None:
    features = {"t": torch.zeros(40, 3)}
    inputs = look_at_inputs(torch.zeros(40, 3, 2, 2), 1, None)
    labels = np.arange(40)
    seen = look_at(features, inputs, labels, 2, probe=True)
    assert seen.labels is not None
    assert seen.labels.tolist() == chosen_rows(40, 2, 16).tolist()
    assert look_at(features, inputs, labels, 2, probe=False).labels is None
    assert look_at(features, inputs, labels.astype(np.float32), 2, probe=True).labels is None
    assert look_at(features, inputs, None, 2, probe=True).labels is None


# ---- devices --------------------------------------------------------------------------------------------------------


def canary(sketch: list[float], *, checksum: str = "a", transform: str | None = "t") -> Canary:
    return Canary(device="cpu", transform=transform, taps=[TapCanary(name="t", checksum=checksum, sketch=sketch)])


def test_the_distance_of_two_sketches_is_relative() -> None:
    assert sketch_distance([3.0, 4.0], [3.0, 4.0]) == 0.0
    assert sketch_distance([3.0, 4.5], [3.0, 4.0]) == pytest.approx(0.1)
    assert sketch_distance([1.0], [0.0]) == 1.0
    assert sketch_distance([0.0], [0.0]) == 0.0
    assert sketch_distance([], []) == 0.0
    assert sketch_distance([], [1.0]) == 1.0


def test_roundings_are_no_disagreement_and_more_is_one() -> None:
    reference = canary([3.0, 4.0])
    assert canary_warnings(canary([3.0, 4.0]), reference, "cpu") == []
    assert canary_warnings(canary([3.0, 4.2], checksum="b"), reference, "cpu") == []
    [found] = canary_warnings(canary([3.0, 4.5], checksum="b"), reference, "the first")
    assert found.text == (
        'tap "t": cpu and the first disagree on a fixed input: 10.0% apart; roundings explain 5% at most'
    )
    [found] = canary_warnings(canary([3.0, 4.0], transform="u"), reference, "the first")
    assert found.text.startswith("the transform makes something else of a fixed image than the first")


def health(worker: int, features: torch.Tensor, sketch: float = 1.0) -> Health:
    sums, inputs = TapSums(), InputSums()
    for part in features.split(16):
        sums.add(look_at_features(part, 1, probe=False))
    inputs.add(look_at_inputs(photographs(4) + worker, 1, None))
    return Health(
        worker=worker, workers=2, device="cpu", lanes=[worker], batches=1, at="2026-01-01T00:00:00Z",
        canary=canary([sketch], checksum=str(sketch)), inputs=inputs.facts(None),
        taps=[sums.facts("t", 2.0 + worker, 10 * (1 + worker))], warnings=[],
    )  # fmt: skip


def test_devices_that_differ_by_chance_agree() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        one, two = (torch.randn(16, 64, generator=generator) for _ in range(2))
        assert device_warnings([health(0, one), health(1, two)]) == []


def test_devices_that_differ_by_more_disagree() -> None:
    features = torch.randn(640, 64, generator=torch.Generator().manual_seed(1))
    [found] = device_warnings([health(0, features), health(1, features, sketch=1.2)])
    assert 'tap "t": cpu and cpu (worker 0) disagree on a fixed input: 20.0% apart' in found.text
    for other in (features + 3, features * 4):
        [found] = device_warnings([health(0, features), health(1, other)])
        assert found.text.endswith("the devices disagree")
        assert found.text.startswith('tap "t": cpu (worker 0) has mean ')


def test_the_facts_of_all_workers_are_those_of_all_batches() -> None:
    one, two = spread_features(16), spread_features(16) * 3
    workers = [health(0, one), health(1, two)]
    [both] = merged_taps(workers)
    alone = TapSums()
    for features in (one, two):
        alone.add(look_at_features(features, 1, probe=False))
    assert numbers_of(both) == pytest.approx(numbers_of(alone.facts("t", (2 * 10 + 3 * 20) / 30, 30)), rel=1e-12)
    inputs = merged_inputs(workers)
    assert inputs.numbers == 2 * 4 * 256
    assert inputs.mean == pytest.approx([(a + b) / 2 for a, b in zip(*(w.inputs.mean for w in workers), strict=True)])


def test_the_expected_normalisation_survives_merging() -> None:
    sums = InputSums()
    sums.add(look_at_inputs(photographs(4), 1, IMAGENET))
    worker = health(0, spread_features()).model_copy(update={"inputs": sums.facts(IMAGENET)})
    merged: InputHealth = merged_inputs([worker])
    assert merged.expected_mean == list(IMAGENET.mean)
    assert merged.outside == sums.outside

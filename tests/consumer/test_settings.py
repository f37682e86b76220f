"""Which settings tell runs apart, and which matter most."""

from __future__ import annotations

from featurestream_consumer.settings import by_effect, differing_settings, in_order, value_text


def test_settings_that_differ_are_found_argument_by_argument() -> None:
    one = {"name": "a", "taps": ["layer2"], "head_args": {"hidden": 8, "dropout": 0.1}, "seed": 0, "device": "cpu"}
    other = {"name": "b", "taps": ["layer2", "fc"], "head_args": {"hidden": 8}, "seed": 0, "device": "cuda"}
    assert differing_settings([one, other]) == {"tap": [["layer2"], ["layer2", "fc"]], "head_args.dropout": [0.1, None]}
    assert differing_settings([one]) == {}


def test_the_setting_whose_values_lie_furthest_apart_matters_most() -> None:
    """By hand: means 0.5 and 0.8 of tap, 0.6 and 0.7 of lr, 0.3 and 1.0 of seed, which still comes last."""
    settings = {"lr": [1, 2, 1, 2], "tap": ["x", "x", "y", "y"], "seed": [0, 1, 1, 1]}
    assert by_effect(settings, [0.3, 0.7, 0.9, 0.7]) == ["tap", "lr", "seed"]


def test_numbers_stand_by_size_and_texts_as_they_come() -> None:
    assert in_order([0.01, 0.001, 0.01, 10]) == ["0.001", "0.01", "10"]
    assert in_order(["layer3", "avgpool", "layer3"]) == ["layer3", "avgpool"]
    assert in_order([None, 0.1]) == ["none", "0.1"]


def test_values_are_texts_that_people_read() -> None:
    assert [value_text(value) for value in (["a", "b"], [64, 32], True, 1e-05, "x", None)] == [
        "a+b", "[64, 32]", "true", "1e-05", "x", "none",
    ]  # fmt: skip

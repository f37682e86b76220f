"""Errors say what to do next, carry their facts, and travel between processes."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from featurestream import errors
from featurestream.errors import (
    FeatureStreamError,
    InexactError,
    InternalError,
    MissingExtraError,
    OutsideError,
    RecordError,
    StreamMismatchError,
    UnknownNameError,
    UsageError,
    nearest,
)

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FeatureStreamError)]


def example(kind: type[FeatureStreamError]) -> FeatureStreamError:
    if kind is UnknownNameError:
        return UnknownNameError("pool", "gup", ["gap", "gmp"])
    if kind is MissingExtraError:
        return MissingExtraError("featurectl demo", "demo")
    return kind("something is wrong", hint="do this next")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_exit_code_is_that_of_the_family(kind: type[FeatureStreamError]) -> None:
    families = {UsageError: 2, OutsideError: 3, InexactError: 4, InternalError: 70, FeatureStreamError: 70}
    family = next(family for family in families if issubclass(kind, family))

    assert kind.exit_code == families[family]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_and_copying(kind: type[FeatureStreamError]) -> None:
    error = example(kind)
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(back) is kind
        assert (str(back), back.message, back.hint, back.facts) == (str(error), error.message, error.hint, error.facts)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_tree_at_the_top_of_the_module_draws_every_error(kind: type[FeatureStreamError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")


def test_the_next_step_follows_the_message() -> None:
    assert str(UsageError("no such thing", hint="list them")) == "no such thing; list them"
    assert str(UsageError("no such thing")) == "no such thing"


def test_facts_are_attributes_and_other_names_are_not() -> None:
    error = StreamMismatchError("other", differences=[("seed", "1", "2")])

    assert error.differences == [("seed", "1", "2")]
    with pytest.raises(AttributeError, match="colour"):
        _ = error.colour


def test_an_unknown_name_comes_with_the_nearest_and_the_known() -> None:
    error = UnknownNameError("pool", "gep", ["flat", "gap", "gem"], where="or package.module:function")

    assert str(error) == (
        'unknown pool "gep"; did you mean "gem"?; known: flat, gap, gem; or package.module:function'
    ) or str(error) == ('unknown pool "gep"; did you mean "gap"?; known: flat, gap, gem; or package.module:function')
    assert (error.kind, error.name, error.known) == ("pool", "gep", ["flat", "gap", "gem"])


def test_a_name_that_resembles_nothing_gets_no_suggestion() -> None:
    assert str(UnknownNameError("pool", "zzz", ["gap"])) == 'unknown pool "zzz"; known: gap'
    assert str(UnknownNameError("pool", "zzz", [])) == 'unknown pool "zzz"; there are none'


def test_a_long_list_of_known_names_is_cut_and_says_so() -> None:
    error = UnknownNameError("layer", "zzz", [f"l{number}" for number in range(30)])

    assert str(error).endswith("l22, l23, ... 6 more")
    assert isinstance(error.known, list)
    assert len(error.known) == 30


def test_a_missing_extra_says_what_to_install() -> None:
    assert str(MissingExtraError("featurectl demo", "demo")) == (
        'featurectl demo needs a package that is not installed; pip install "featurestream[demo]"'
    )


def test_a_record_error_has_no_place_until_it_is_given_one() -> None:
    error = RecordError("cut short", hint="look")
    assert (error.topic, error.lane, error.offset) == (None, None, None)

    placed = error.at("s.t", 1, 9)

    assert str(placed) == "record at s.t, lane 1, offset 9: cut short; look"
    assert (placed.topic, placed.lane, placed.offset) == ("s.t", 1, 9)
    again = pickle.loads(pickle.dumps(placed))
    assert (str(again), again.offset) == (str(placed), 9)


@pytest.mark.parametrize(
    ("name", "found"),
    [("ResNet18", "resnet18"), ("resnet81", "resnet18"), ("vit", None), ("", None), ("avgpol", "AvgPool")],
)
def test_the_nearest_name_is_found_whatever_its_case(name: str, found: str | None) -> None:
    assert nearest(name, ["resnet18", "AvgPool", "flatten"]) == found

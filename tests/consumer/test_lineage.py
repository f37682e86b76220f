"""Where forks come from, in words and as a tree."""

from __future__ import annotations

import pytest

from featurestream.errors import DataError
from featurestream_consumer.lineage import Lineage, family_tree
from tests.comparing import lineage


def test_a_run_that_was_not_forked_has_no_lineage() -> None:
    assert Lineage.of({"name": "E1"}) is None


def test_a_fork_names_its_parent_the_place_and_what_was_changed() -> None:
    found = Lineage.of({"name": "E2", "lineage": lineage("E1", 120, optimizer_args__lr=(0.1, 0.01))})
    assert str(found) == "E1 at batch 120: optimizer_args.lr 0.1 -> 0.01"
    assert found is not None
    assert (found.step, found.epoch) == (120, 12)


def test_a_place_in_the_middle_of_a_batch_and_several_changes_are_told() -> None:
    told = lineage("E1", 7, row=3, loss_args__label_smoothing=(None, 0.1), scheduler=("StepLR", None))
    assert str(Lineage.of({"name": "E2", "lineage": told})) == (
        "E1 at batch 7, row 3: loss_args.label_smoothing None -> 0.1, scheduler StepLR -> None"
    )
    assert str(Lineage.of({"name": "E2", "lineage": lineage("E1", 7)})) == "E1 at batch 7: nothing changed"


@pytest.mark.parametrize(
    "damaged", ["E1", {}, lineage("E1", 1) | {"step": None}, lineage("E1", 1) | {"changes": {"a": 1}}]
)
def test_a_damaged_lineage_is_not_the_callers_mistake(damaged: object) -> None:
    with pytest.raises(DataError, match='the lineage of run "E2" cannot be read'):
        Lineage.of({"name": "E2", "lineage": damaged})


def test_a_family_is_drawn_with_forks_of_forks_under_their_parents() -> None:
    told = {
        "E4": lineage("E2", 200, scheduler=(None, "StepLR")),
        "E3": lineage("E1", 120, seed=(0, 1)),
        "E2": lineage("E1", 60, optimizer_args__lr=(0.1, 0.01)),
        "E1": None,
        "alone": None,
    }
    assert family_tree({name: Lineage.of({"name": name, "lineage": one}) for name, one in told.items()}) == [
        "E1",
        "├── E2  forked at batch 60 (step 60): optimizer_args.lr 0.1 -> 0.01",
        "│   └── E4  forked at batch 200 (step 200): scheduler None -> StepLR",
        "└── E3  forked at batch 120 (step 120): seed 0 -> 1",
    ]


def test_a_parent_that_is_not_there_is_said_to_be_not_shown() -> None:
    fork = Lineage.of({"name": "E2", "lineage": lineage("E1", 60)})
    assert family_tree({"E2": fork}) == ["E1 (not shown)", "└── E2  forked at batch 60 (step 60): nothing changed"]
    assert family_tree({"E1": None}) == []


def test_runs_that_call_each_other_parent_do_not_hang_it() -> None:
    """A record that was edited by hand."""
    one = Lineage.of({"name": "a", "lineage": lineage("b", 1)})
    other = Lineage.of({"name": "b", "lineage": lineage("a", 1)})
    assert family_tree({"a": one, "b": other}) == []

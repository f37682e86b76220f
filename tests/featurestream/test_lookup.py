"""A name selects from a plain table, or anything of the user's by its import path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestream.errors import UnknownNameError, UsageError
from featurestream.lookup import is_import_path, load_object, look_up

TABLE = {"gap": 1, "gmp": 2}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder of the test's own, and forget what was imported from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("lookup_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("heads:build", True), ("a.b.c:d.e", True), ("gap", False), ("timm:", False), (":f", False),
        ("torchvision:CIFAR10", True), ("a b:c", False), ("a:b:c", False), ("layer2.0:gap", False), ("", False),
    ],
)  # fmt: skip
def test_an_import_path_is_a_module_a_colon_and_an_attribute(name: str, is_path: bool) -> None:
    assert is_import_path(name) is is_path


def test_a_name_of_the_table_is_found() -> None:
    assert look_up("pool", "gap", TABLE) == 1


def test_an_unknown_name_lists_the_known_and_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        look_up("pool", "gaap", TABLE)

    assert str(caught.value) == (
        'unknown pool "gaap"; did you mean "gap"?; known: gap, gmp; or package.module:function'
    )


def test_the_current_folder_is_importable(here: Path) -> None:
    (here / "lookup_mine.py").write_text("class Pools:\n    @staticmethod\n    def half(x):\n        return x / 2\n")

    assert look_up("pool", "lookup_mine:Pools.half", TABLE)(8) == 4  # type: ignore[operator]


def test_a_module_that_is_not_there_is_the_callers_mistake(here: Path) -> None:
    with pytest.raises(UsageError, match='pool "lookup_none:f": cannot import "lookup_none"') as caught:
        look_up("pool", "lookup_none:f", TABLE)

    assert isinstance(caught.value.__cause__, ImportError)


def test_an_attribute_that_is_not_there_lists_those_that_are(here: Path) -> None:
    (here / "lookup_few.py").write_text("one = 1\n_hidden = 2\n")

    with pytest.raises(UsageError, match=r'module "lookup_few" has no "two"; it has: one$'):
        load_object("lookup_few:two", kind="pool")


def test_of_many_attributes_the_first_are_listed_and_the_nearest_is_suggested(here: Path) -> None:
    (here / "lookup_many.py").write_text("".join(f"name{number:02} = 1\n" for number in range(30)) + "resize = 1\n")

    with pytest.raises(UsageError, match=r'it has: name00, .*, name23, \.\.\. 7 more; did you mean "resize"\?$'):
        load_object("lookup_many:resise", kind="transform")


def test_an_attribute_of_a_number_is_not_there_either(here: Path) -> None:
    (here / "lookup_number.py").write_text("one = 1\n")

    with pytest.raises(UsageError, match=r'has no "one\.two"; it has: .*numerator'):
        load_object("lookup_number:one.two", kind="pool")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise RuntimeError('no GPU')", "failed while it was imported: RuntimeError: no GPU"),
        ("def f(:", "failed while it was imported: SyntaxError"),
        ("import lookup_not_installed", "cannot import .*No module named 'lookup_not_installed'"),
    ],
)
def test_a_module_that_fails_is_named_with_its_error_as_the_cause(here: Path, source: str, says: str) -> None:
    (here / "lookup_broken.py").write_text(source)

    with pytest.raises(UsageError, match=says) as caught:
        load_object("lookup_broken:f", kind="head")

    assert caught.value.__cause__ is not None

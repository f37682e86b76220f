"""Pools give the numbers that one works out by hand, and refuse what they were not made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from featurestream.errors import UnknownNameError, UsageError
from featurestream_producer.pools import POOLS, find_pool

# One image, two channels of 2 x 2.
MAP = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, 0.0], [0.0, 5.0]]]])
# One image, three tokens of width 2.
TOKENS = torch.tensor([[[9.0, 8.0], [1.0, 2.0], [3.0, 6.0]]])


def pooled(name: str, output: Tensor, **arguments: object) -> list[object]:
    result: list[object] = find_pool(name, arguments)[0](output)[0].tolist()
    return result


def test_flat_keeps_all_values_in_order() -> None:
    assert pooled("flat", MAP) == [1, 2, 3, 6, -1, 0, 0, 5]
    assert pooled("flat", TOKENS) == [9, 8, 1, 2, 3, 6]


def test_gap_is_the_mean_of_a_channel() -> None:
    assert pooled("gap", MAP) == [3, 1]


def test_gmp_is_the_greatest_value_of_a_channel() -> None:
    assert pooled("gmp", MAP) == [6, 5]


def test_gem_is_the_cube_root_of_the_mean_cube() -> None:
    # (1 + 8 + 27 + 216) / 4 = 63 and 125 / 4 = 31.25: what is not positive counts as (almost) nothing.
    assert pooled("gem", MAP) == pytest.approx([63 ** (1 / 3), 31.25 ** (1 / 3)])


def test_gem_with_p_1_is_the_mean_of_positive_values() -> None:
    assert pooled("gem", MAP, p=1) == pytest.approx([3, 1.25])


def test_gem_with_a_large_p_comes_close_to_the_maximum() -> None:
    assert pooled("gem", MAP, p=30) == pytest.approx([6, 5], rel=0.05)


def test_avg_n_averages_cells() -> None:
    grid = torch.arange(16.0).view(1, 1, 4, 4)
    assert pooled("avg2", grid) == [[[2.5, 4.5], [10.5, 12.5]]]
    assert pooled("avg1", MAP) == [[[3.0]], [[1.0]]]


def test_cls_is_the_first_token() -> None:
    assert pooled("cls", TOKENS) == [9, 8]


def test_meantokens_is_the_mean_of_the_tokens_behind_the_first() -> None:
    assert pooled("meantokens", TOKENS) == [2, 4]
    assert pooled("meantokens", TOKENS, skip=2) == [3, 6]
    assert pooled("meantokens", TOKENS, skip=0) == pytest.approx([13 / 3, 16 / 3])


@pytest.mark.parametrize("name", ["gap", "gmp", "gem", "avg2"])
def test_a_channels_last_map_pools_to_the_same_once_one_says_so(name: str) -> None:
    last = torch.rand(2, 4, 4, 7)
    first = last.permute(0, 3, 1, 2).contiguous()
    torch.testing.assert_close(find_pool(name, {"channels": "last"})[0](last), find_pool(name, {})[0](first))


@pytest.mark.parametrize("name", ["gap", "gmp", "gem", "avg2"])
def test_a_channels_last_map_is_not_taken_for_another(name: str) -> None:
    with pytest.raises(UsageError, match=rf"looks like \(B, H, W, C\); say so: {name}\(channels=last\)"):
        find_pool(name, {})[0](torch.rand(2, 4, 4, 7))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("gap", (2, 5), r"gap takes maps \(B, C, H, W\), not \(B, 5\); a vector needs no pool"),
        ("gem", (2, 5, 6), r"gem takes maps \(B, C, H, W\), not \(B, 5, 6\); for tokens \(B, T, D\): cls, meantokens"),
        ("cls", (2, 5, 3, 3), r"cls takes tokens \(B, T, D\), not \(B, 5, 3, 3\); for maps .*: gap"),
        ("meantokens", (2, 5), r"meantokens takes tokens .* not \(B, 5\)"),
    ],
)
def test_a_pool_refuses_another_kind_of_output(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_pool(name, {})[0](torch.rand(shape))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gem", {"q": 1}, r'pool "gem" does not take q=1: .*; expected gem\(p=3.0, channels=first\)'),
        ("cls", {"p": 1}, r'pool "cls" does not take p=1: .*; cls takes no arguments'),
        ("avg2", {"size": 3}, r'pool "avg2" does not take size=3: .*; expected avg2\(channels=first\)'),
        ("gem", {"p": "x"}, r'pool "gem" does not take p=x; expected gem\(p=3.0, channels=first\)'),
        ("meantokens", {"skip": 1.5}, r'pool "meantokens" does not take skip=1.5; expected meantokens\(skip=1\)'),
        ("gap", {"channels": 2}, r'pool "gap" does not take channels=2; expected gap\(channels=first\)'),
    ],
)
def test_an_argument_that_a_pool_does_not_have_is_refused(
    name: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        find_pool(name, arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gem", {"p": 0}, "p = 0 is not possible; expected a number above 0"),
        ("meantokens", {"skip": 3}, "skip = 3 of 3 tokens; expected to leave at least one"),
        ("gap", {"channels": "middle"}, 'channels = "middle"; expected first or last'),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_pool(name, arguments)[0](TOKENS if name == "meantokens" else MAP)


@pytest.mark.parametrize("name", ["gpa", "avg", "avg0", "avgN", "avg-1"])
def test_an_unknown_pool_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownNameError, match="known: flat, gap, gmp, gem, avgN, cls, meantokens"):
        find_pool(name, {})


def test_arguments_that_say_what_the_default_says_are_no_arguments() -> None:
    assert find_pool("gem", {"p": 3, "channels": "first"})[1] == {}
    assert find_pool("gem", {"p": 4, "channels": "first"})[1] == {"p": 4}


def test_a_function_of_the_users_is_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pools_of_mine.py").write_text("def power(output, *, p=2):\n    return output.pow(p).sum(dim=(2, 3))\n")
    monkeypatch.chdir(tmp_path)
    assert pooled("pools_of_mine:power", MAP) == [50, 26]
    assert pooled("pools_of_mine:power", MAP, p=1) == [12, 4]


@pytest.mark.parametrize("name", ["gap", "gmp", "gem"])
def test_pooling_a_map_does_not_depend_on_where_things_are(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    map_BCHW = torch.rand(2, 3, 4, 4, generator=draw)
    moved = map_BCHW.flatten(2)[:, :, torch.randperm(16, generator=draw)].view(2, 3, 4, 4)
    torch.testing.assert_close(POOLS[name](moved), POOLS[name](map_BCHW))

"""Heads by name: shapes, seeds, and what a wrong name or argument is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from featurestream.errors import UnknownNameError, UsageError
from featurestream_consumer.heads import HEADS, build_head, check_head


@pytest.mark.parametrize("name", list(HEADS))
def test_every_head_maps_rows_of_features_to_a_score_an_output(name: str) -> None:
    head = build_head(name, in_features=12, outputs=5, args={}, seed=0)
    assert head(torch.randn(7, 12)).shape == (7, 5)


@pytest.mark.parametrize("name", list(HEADS))
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name: str) -> None:
    torch.manual_seed(1)
    first = build_head(name, in_features=6, outputs=3, args={}, seed=5)
    torch.manual_seed(2)
    again = build_head(name, in_features=6, outputs=3, args={}, seed=5)
    other = build_head(name, in_features=6, outputs=3, args={}, seed=6)
    for one, same, different in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless_threads")
def test_threads_that_build_heads_at_the_same_time_get_what_each_gets_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        head = build_head("mlp", in_features=6, outputs=3, args={"hidden": [8, 8, 8]}, seed=seed)
        return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])

    alone = [weights(seed) for seed in range(200)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(weights, range(200)))
    assert [seed for seed in range(200) if not torch.equal(alone[seed], together[seed])] == []


def test_building_a_head_does_not_move_torchs_random_state() -> None:
    before = torch.get_rng_state()
    build_head("mlp", in_features=6, outputs=3, args={}, seed=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", list(HEADS))
def test_every_head_learns_separable_classes(name: str) -> None:
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    classes = torch.tensor([0, 0, 1, 1])
    head = build_head(name, in_features=2, outputs=2, args={}, seed=0)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(features), classes)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_an_mlp_has_the_widths_dropout_and_activation_that_were_asked_for() -> None:
    head = build_head(
        "mlp", in_features=4, outputs=2, args={"hidden": [8, 3], "dropout": 0.25, "activation": "gelu"}, seed=0
    )
    assert [type(layer).__name__ for layer in head] == [
        "Linear", "GELU", "Dropout", "Linear", "GELU", "Dropout", "Linear",
    ]  # fmt: skip
    assert [tuple(p.shape) for p in head.parameters()] == [(8, 4), (8,), (3, 8), (3,), (2, 3), (2,)]
    assert list(head.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias"]


def test_an_unknown_head_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown head "linar"; did you mean "linear"\?; known: linear, mlp'):
        build_head("linar", in_features=4, outputs=2, args={}, seed=0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"hiden": 3}, 'head "mlp" takes no argument "hiden"; did you mean "hidden"?'),
        ({"zzz": 3}, 'head "mlp" takes no argument "zzz"; it takes: hidden, dropout, activation'),
        ({"hidden": 0}, 'head "mlp" cannot have hidden=0; expected one width or several'),
        ({"hidden": []}, 'head "mlp" cannot have hidden=[]'),
        ({"hidden": "wide"}, "head \"mlp\" cannot have hidden='wide'"),
        ({"hidden": True}, 'head "mlp" cannot have hidden=True'),
        ({"dropout": 1.0}, 'head "mlp" cannot have dropout=1.0; expected a probability in [0, 1)'),
        ({"dropout": "much"}, "head \"mlp\" cannot have dropout='much'"),
        ({"activation": "rellu"}, 'unknown activation "rellu"; did you mean "relu"?'),
    ],
)
def test_an_argument_that_a_head_refuses_is_named_with_what_it_takes(args: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_head("mlp", args)
    assert message in str(caught.value)


def test_a_head_of_no_outputs_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot map 4 features to 0 outputs"):
        build_head("linear", in_features=4, outputs=0, args={}, seed=0)


def test_a_head_from_the_users_module_works_like_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_heads_a.py").write_text(
        "from torch import nn\n"
        "def two(in_features, outputs, *, width):\n"
        "    return nn.Sequential(nn.Linear(in_features, width), nn.Linear(width, outputs))\n"
        "def text(in_features, outputs):\n"
        "    return 'no module'\n"
        "def frozen(in_features, outputs):\n"
        "    return nn.Flatten()\n"
    )
    monkeypatch.chdir(tmp_path)
    assert build_head("my_heads_a:two", in_features=4, outputs=2, args={"width": 3}, seed=0)[0].out_features == 3
    with pytest.raises(UsageError, match='head "my_heads_a:two" needs the argument "width"; it takes: width'):
        check_head("my_heads_a:two", {})
    with pytest.raises(UsageError, match=r'head "my_heads_a:text" returned str; expected a torch\.nn\.Module'):
        build_head("my_heads_a:text", in_features=4, outputs=2, args={}, seed=0)
    with pytest.raises(UsageError, match='head "my_heads_a:frozen" has no parameters to train'):
        build_head("my_heads_a:frozen", in_features=4, outputs=2, args={}, seed=0)

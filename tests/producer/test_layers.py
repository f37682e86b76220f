"""The table of layers says what can be tapped: names, order, calls, shapes and bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featurestream_producer.backbones import build_backbone
from featurestream_producer.layers import LayerRow, layer_table


class Zoo(nn.Module):
    """Runs ``late`` before ``early``, ``twice`` two times, ``never`` not at all; ``pair`` returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 5, 1)
        self.late = nn.AvgPool2d(2)
        self.twice = nn.MaxPool2d(2)
        self.never = nn.Identity()
        self.pair = Pair()
        self.swap = ChannelsLast()
        self.tokens = nn.Flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(self.late(x))
        self.pair(x)
        self.swap(x)
        self.tokens(x)
        return self.twice(self.twice(x))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


def test_layers_are_listed_in_the_order_in_which_they_run() -> None:
    assert layer_table(Zoo(), 16) == [
        LayerRow("late", "AvgPool2d", 1, (3, 8, 8), 2 * 3 * 64, 2 * 3),
        LayerRow("early", "Conv2d", 1, (5, 8, 8), 2 * 5 * 64, 2 * 5),
        LayerRow("pair", "Pair", 1, "tuple(Tensor(2, 5, 8, 8), NoneType)", None, None),
        LayerRow("swap", "ChannelsLast", 1, (8, 8, 5), 2 * 5 * 64, 2 * 5),
        LayerRow("tokens", "Flatten", 1, (5, 64), 2 * 5 * 64, 2 * 64),
        LayerRow("twice", "MaxPool2d", 2, "5 x 4 x 4, 5 x 2 x 2", None, None),
    ]


def test_a_residual_network_shows_the_layers_that_people_tap() -> None:
    model = build_backbone("resnet18", weights="random", seed=0).model
    rows = {row.name: row for row in layer_table(model, 64)}
    assert rows["layer2"] == LayerRow("layer2", "Sequential", 1, (128, 8, 8), 16384, 256)
    assert rows["avgpool"] == LayerRow("avgpool", "AdaptiveAvgPool2d", 1, (512, 1, 1), 1024, 1024)
    assert rows["fc"] == LayerRow("fc", "Linear", 1, (1000,), 2000, 2000)
    assert rows["layer1.0.relu"] == LayerRow("layer1.0.relu", "ReLU", 2, (64, 16, 16), 32768, 128)
    order = list(rows)
    assert (
        order.index("layer1.1.conv1") < order.index("layer1") < order.index("layer2.0.conv1") < order.index("avgpool")
    )


def test_looking_at_a_model_changes_nothing_in_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_table(model, 8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())

"""A tap is the output of the layer that it names, whatever else the model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featurestream.errors import FeatureRangeError, UnknownNameError, UsageError
from featurestream_producer.taps import TapReader, parse_tap, parse_taps


class Plus(nn.Module):
    """Adds a number and notes that it ran."""

    def __init__(self, number: float, ran: list[float]) -> None:
        super().__init__()
        self.number, self.ran = number, ran

    def forward(self, x: Tensor) -> Tensor:
        self.ran.append(self.number)
        return x + self.number


class Backwards(nn.Module):
    """Runs its layers in another order than they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[float] = []
        self.first, self.second, self.third = Plus(1, self.ran), Plus(10, self.ran), Plus(100, self.ran)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.third(self.second(x)))


class Twice(nn.Module):
    """Runs one layer twice, and has one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[float] = []
        self.plus = Plus(1, self.ran)
        self.same = self.plus
        self.halve = nn.AvgPool2d(2)
        self.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.plus(self.halve(self.plus(x)))


class Outputs(nn.Module):
    """Has a layer for every kind of output that is no tensor with a row an image."""

    class Returns(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: Tensor) -> object:
            return {
                "pair": (x, x.mean()),
                "named": {"out": x, "aux": None},
                "turned": x.transpose(0, 1),
                "number": x.mean(),
                "vector": x.mean(dim=(1, 2, 3)),
                "nothing": None,
            }[self.kind]

    def __init__(self) -> None:
        super().__init__()
        for kind in ("pair", "named", "turned", "number", "vector", "nothing"):
            setattr(self, kind, self.Returns(kind))

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            module(x)
        return x


class Overwritten(nn.Module):
    """A layer whose output the next one overwrites in place, as ReLU does in many models."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.before(x - 2))


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3, stride=2, padding=1)
    )


def reader(model: nn.Module, *taps: str, dtype: torch.dtype = torch.float32, size: int = 4) -> TapReader:
    return TapReader(model, parse_taps(taps), image_size=size, dtype=dtype, device="cpu", model_name="tiny")


def images(rows: int = 2, size: int = 4, value: float = 0.0) -> Tensor:
    return torch.full((rows, 3, size, size), value)


# ---- how a tap is written --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("avgpool", ("avgpool", None, None, {}, "avgpool")),
        ("layer2:gap", ("layer2", None, "gap", {}, "layer2")),
        ("layer3:avg2", ("layer3", None, "avg2", {}, "layer3")),
        ("layer4:gem(p=4)", ("layer4", None, "gem", {"p": 4}, "layer4")),
        ("layer4:gem(p=4)=g4", ("layer4", None, "gem", {"p": 4}, "g4")),
        ("encoder.layers.11:cls=cls11", ("encoder.layers.11", None, "cls", {}, "cls11")),
        ("relu:1", ("relu", 1, None, {}, "relu")),
        ("relu:1:gap=r", ("relu", 1, "gap", {}, "r")),
    ],
)
def test_a_tap_reads_as_layer_call_pool_and_name(text: str, expected: tuple[object, ...]) -> None:
    spec = parse_tap(text)
    assert (spec.layer, spec.call, spec.pool, spec.pool_args, spec.name) == expected
    assert spec.text == text


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" layer4 : gem( p = 4.0 ) ", "layer4:gem(p=4)"),
        ("layer4:gem(p=3)", "layer4:gem"),
        ("layer4:gem(channels=last,p=2.5)", "layer4:gem(channels=last,p=2.5)"),
        ("layer4:gem(p=2.5,channels=last)", "layer4:gem(channels=last,p=2.5)"),
        ("layer4=layer4", "layer4"),
    ],
)
def test_a_tap_has_one_spelling(text: str, normal: str) -> None:
    assert parse_tap(text).text == normal
    assert parse_tap(normal) == parse_tap(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read; expected layer"),
        (":gap", "cannot be read; expected layer"),
        ("layer2:gap:gap", r'unknown pool "gap:gap"|cannot import "gap"'),
        ("layer2:gap(p=1", "cannot be read"),
        ("layer2:gap=", 'the name "" is not possible'),
        ("layer2:gap=a/b", 'the name "a/b" is not possible; letters, digits and . _ -'),
        ("layer2:gap=manifest", 'the name "manifest" is taken by the stream\'s manifest'),
        ("layer2:gap=experiments", 'the name "experiments" is taken by the stream\'s run registry'),
        ("layer2:gem(4)", 'pool argument "4" cannot be read; expected argument=value, like p=4'),
        ("layer2:gem(p=)", 'pool argument "p=" cannot be read'),
        ("layer2:meantoken", 'unknown pool "meantoken"; did you mean "meantokens"'),
    ],
)
def test_a_tap_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_tap(text)


def test_a_pool_of_the_users_is_told_from_a_call_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pools_for_taps.py").write_text(
        "def total(output, k=1):\n    return k * output.flatten(1).sum(1, True)\n"
    )
    monkeypatch.chdir(tmp_path)
    spec = parse_tap("plus:1:pools_for_taps:total(k=2)=t")
    assert (spec.layer, spec.call, spec.pool, spec.pool_args) == ("plus", 1, "pools_for_taps:total", {"k": 2})
    features = TapReader(Twice(), [spec], image_size=4, dtype=torch.float32, device="cpu")(images())
    assert features["t"].tolist() == [[48], [48]]  # 2 x (3 channels x 2 x 2 values of 2)


def test_two_taps_of_one_name_are_refused_with_another_name_proposed() -> None:
    with pytest.raises(UsageError, match=r'2 taps have the name "a": a:gap, a:gem\(p=4\); .* like a:gem\(p=4\)=a-2'):
        parse_taps(["a:gap", "b", "a:gem(p=4)"])
    with pytest.raises(
        UsageError, match=r"2 taps have names that Kafka cannot tell apart .*: a\.b:gap, c:gap=a_b; .*=a_b-2"
    ):
        parse_taps(["a.b:gap", "c:gap=a_b"])
    with pytest.raises(UsageError, match="no tap was given"):
        parse_taps([])


# ---- what a tap gives ------------------------------------------------------------------------------------------


def test_taps_are_captured_by_name_when_layers_run_in_another_order_than_they_are_written() -> None:
    features = reader(Backwards(), "first", "second", "third")(images())
    assert {name: feature.unique().tolist() for name, feature in features.items()} == {
        "second": [10],
        "third": [110],
        "first": [111],
    }
    assert list(features) == ["first", "second", "third"]


def test_the_forward_stops_behind_the_last_tap() -> None:
    model = Backwards()
    read = reader(model, "second", "third")
    model.ran.clear()
    read(images())
    assert model.ran == [10, 100]


def test_a_layer_that_runs_twice_needs_a_number() -> None:
    with pytest.raises(
        UsageError, match=r'"plus" runs 2 times: plus:0 \(3 x 4 x 4\), plus:1 \(3 x 2 x 2\); say which, like plus:1'
    ):
        reader(Twice(), "plus:gap")
    features = reader(Twice(), "plus:0=a", "plus:1=b", "halve")(images())
    assert {name: (tuple(f.shape), f.unique().tolist()) for name, f in features.items()} == {
        "a": ((2, 3, 4, 4), [1]),
        "b": ((2, 3, 2, 2), [2]),
        "halve": ((2, 3, 2, 2), [1]),
    }


def test_a_layer_known_by_two_names_counts_all_its_calls_under_each() -> None:
    assert reader(Twice(), "same:1")(images())["same"].unique().tolist() == [2]


def test_a_number_beyond_the_calls_is_refused() -> None:
    with pytest.raises(UsageError, match="runs 2 times"):
        reader(Twice(), "plus:2")
    with pytest.raises(UsageError, match=r"runs once: halve:0 \(3 x 2 x 2\); leave the number out"):
        reader(Twice(), "halve:1")


def test_a_layer_that_never_runs_is_refused() -> None:
    with pytest.raises(UsageError, match=r'layer "unused" does not run .* featurectl layers tiny'):
        reader(Twice(), "unused")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("pair", r"gives tuple\(Tensor\(2, 3, 4, 4\), Tensor\(\)\); a tap needs one tensor with a row an image"),
        ("named", r"gives dict\(out: Tensor\(2, 3, 4, 4\), aux: NoneType\)"),
        ("turned", r"gives Tensor\(3, 2, 4, 4\) without a batch axis in front"),
        ("number", r"gives Tensor\(\) without"),
        ("vector", r"gives Tensor\(2\) without"),
        ("nothing", "gives NoneType"),
    ],
)
def test_an_output_that_is_no_batch_of_tensors_is_refused(layer: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reader(Outputs(), layer)


def test_an_unknown_layer_names_the_nearest_and_how_to_list_them() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown layer "secnd"; did you mean "second".*featurectl layers tiny'):
        reader(Backwards(), "secnd")
    with pytest.raises(UnknownNameError, match=r'unknown layer "second.deeper"'):
        reader(Backwards(), "second.deeper")


def test_a_pool_that_does_not_suit_the_output_names_the_tap() -> None:
    with pytest.raises(UsageError, match=r'tap "0:cls": pool cls takes tokens \(B, T, D\), not \(B, 4, 8, 8\)'):
        reader(convolutions(), "0:cls", size=8)


def test_a_model_that_cannot_take_images_of_this_size_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"cannot take images of 1 x 1 pixels: .*; another size is set with --image-size"
    ):
        reader(nn.Sequential(nn.Conv2d(3, 4, 3)), "0", size=1)


def test_an_output_is_taken_before_the_next_layer_overwrites_it() -> None:
    for dtype in (torch.float32, torch.float16):
        assert reader(Overwritten(), "before", dtype=dtype)(images())["before"].unique().tolist() == [-2]
        both = reader(Overwritten(), "before", "relu", dtype=dtype)(images())
        assert (both["before"].unique().tolist(), both["relu"].unique().tolist()) == ([-2], [0])


def test_shapes_are_known_before_the_first_image() -> None:
    read = reader(convolutions(), "0:gap", "1:avg2=grid", "3:flat", size=8)
    assert read.shapes == {"0": (4,), "grid": (4, 2, 2), "3": (128,)}
    features = read(torch.rand(3, 3, 8, 8))
    assert {name: tuple(f.shape[1:]) for name, f in features.items()} == read.shapes


def test_features_equal_a_plain_forward_and_are_contiguous() -> None:
    model = convolutions()
    batch = torch.rand(3, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    features = reader(model, "1", "3:gap", size=8)(batch)
    with torch.no_grad():
        normalised = model[1](model[0](batch))
        last = model[3](normalised.relu())
    assert torch.equal(features["1"], normalised)
    assert torch.equal(features["3"], last.mean(dim=(2, 3)))
    assert all(feature.is_contiguous() for feature in features.values())


def test_pooling_happens_in_float32_and_the_cast_comes_last() -> None:
    # 2049 has no float16; the mean of 2049 and 2051 is 2050, which has one.
    model = nn.Sequential(nn.Identity())
    batch = torch.tensor([2049.0, 2051.0]).view(1, 1, 1, 2).expand(1, 3, 2, 2).contiguous()
    assert reader(model, "0:gap", dtype=torch.float16, size=2)(batch)["0"].tolist() == [[2050.0] * 3]


def test_a_batch_of_no_images_gives_no_rows() -> None:
    features = reader(convolutions(), "3:gap", dtype=torch.float16, size=8)(torch.empty(0, 3, 8, 8))
    assert (tuple(features["3"].shape), features["3"].dtype) == ((0, 8), torch.float16)


def test_nothing_in_the_model_changes() -> None:
    model = convolutions().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    read = reader(model, "2:gap", size=8)
    for _ in range(3):
        read(torch.rand(4, 3, 8, 8) * 50)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_swallows_exceptions_still_stops_behind_the_last_tap() -> None:
    class Careful(Backwards):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            except Exception:  # noqa: BLE001 - the claim is about such models
                return x

    model = Careful()
    assert reader(model, "second")(images())["second"].unique().tolist() == [10]


def test_an_error_in_the_forward_leaves_no_hook_behind() -> None:
    model = convolutions()
    read = reader(model, "3", size=8)
    with pytest.raises(RuntimeError):
        read(torch.rand(2, 5, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_skips_a_batch_is_an_error() -> None:
    class Moody(Backwards):
        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) if x.sum() > 0 else super().forward(x)

    with pytest.raises(UsageError, match="the model ran without second, which ran in the probe"):
        reader(Moody(), "second", "first")(images(value=1))


def test_a_shape_that_depends_on_the_images_is_an_error() -> None:
    class Crops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.crop = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.crop(x[:, :, : 2 if x.sum() > 0 else 4])

    with pytest.raises(UsageError, match=r"gives \(2, 3, 2, 4\) for 2 images; the probe promised \(2, 3, 4, 4\)"):
        reader(Crops(), "crop")(images(value=1))


# ---- values that do not fit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [70_000.0, -70_000.0, 65_520.0])
def test_a_value_beyond_float16_is_an_error_with_advice(value: float) -> None:
    read = reader(nn.Sequential(nn.Identity(), nn.Identity()), "0=small", "1:gmp=big", dtype=torch.float16)
    batch = images()
    batch[1] = value
    with pytest.raises(
        FeatureRangeError, match="does not fit float16, whose largest is 65504; use --dtype bfloat16"
    ) as e:
        reader(nn.Sequential(nn.Identity()), "0:flat", dtype=torch.float16)(batch)
    assert (e.value.tap, e.value.value) == ("0", abs(value))
    with pytest.raises(FeatureRangeError, match=r'tap "small"'):
        read(batch)
    assert reader(nn.Sequential(nn.Identity()), "0", dtype=torch.bfloat16)(batch)["0"].isfinite().all()


def test_the_largest_float16_is_no_error() -> None:
    batch = images(value=65_519.0)
    assert reader(nn.Sequential(nn.Identity()), "0", dtype=torch.float16)(batch)["0"].unique().tolist() == [65504]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_not_a_number_never_leaves_the_reader(value: float, dtype: torch.dtype) -> None:
    batch = images()
    batch[1, 2, 3, 3] = value
    with pytest.raises(FeatureRangeError, match=r'tap "0": the backbone gives (nan|inf); look at the weights') as e:
        reader(nn.Sequential(nn.Identity()), "0:gap", dtype=dtype)(batch)
    assert e.value.tap == "0"


def test_capture_tells_only_when_it_is_asked() -> None:
    captured = reader(nn.Sequential(nn.Identity()), "0:gap", dtype=torch.float16)(images(value=1.0))
    assert captured["0"].tolist() == [[1, 1, 1]] * 2
    later = reader(nn.Sequential(nn.Identity()), "0:gap", dtype=torch.float16).capture(images(value=1e6))
    assert later.largest.tolist() == [1e6]
    with pytest.raises(FeatureRangeError):
        later.check()


def test_a_tap_on_weights_that_were_not_loaded_is_refused_at_once() -> None:
    model = convolutions()
    with torch.no_grad():
        model[3].weight.fill_(torch.nan)
    with pytest.raises(
        FeatureRangeError, match=r'"3" depends on weights that were not loaded; .* has no 3.weight: tap'
    ):
        reader(model, "2:gap", "3:gap", size=8)
    assert reader(model, "2:gap", size=8)(torch.rand(2, 3, 8, 8))["2"].isfinite().all()

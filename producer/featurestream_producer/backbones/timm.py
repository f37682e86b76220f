"""Any model of timm, by name: ``timm:vit_small_patch16_224``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featurestream.errors import DataError, MissingExtraError, UnknownNameError, UsageError
from featurestream_producer.backbones.backbone import Backbone, freeze
from featurestream_producer.preset import Preset
from featurestream_producer.randomness import seeded_globals
from featurestream_producer.weights import WeightsReport, load_weights, state_sha256


def build_timm(name: str, *, weights: str | None, seed: int) -> Backbone:
    """Return timm's model ``name`` ("resnet50.a1_in1k": timm puts its weights' name behind the model's).

    ``weights``: None or "DEFAULT" for the pretrained ones, a checkpoint file, or "random", drawn from ``seed``. The
    preset is the one that timm states for the model.

    Raises MissingExtraError without timm, UnknownNameError for a name that it does not have, DataError when weights
    cannot be had or do not fit.
    """
    try:
        import timm
        from timm.data import resolve_model_data_config
    except ImportError as error:
        raise MissingExtraError(f'the model "timm:{name}"', "timm") from error

    if not timm.is_model(name):
        raise UnknownNameError("timm model", name, timm.list_models())
    pretrained = weights in (None, "DEFAULT")
    try:
        with seeded_globals(seed):
            model = timm.create_model(name, pretrained=pretrained)
    except Exception as error:
        # The hub's client raises errors of several libraries of its own.
        raise DataError(
            f"timm cannot build {name}{' with its weights' if pretrained else ''}: {error}",
            hint="give a checkpoint file with --weights FILE, or take --weights random",
        ) from error
    if pretrained:
        report = WeightsReport(weights_name(name, model.pretrained_cfg), state_sha256(model))
    elif weights == "random":
        report = WeightsReport("random", state_sha256(model))
    else:
        report = load_weights(model, Path(str(weights)))
    return Backbone(f"timm:{name}", freeze(model), preset_of(resolve_model_data_config(model)), report)


def weights_name(name: str, config: dict[str, Any]) -> str:
    """Return which of a model's weights timm has taken: "resnet50.a1_in1k" for "resnet50"."""
    tag = config.get("tag")
    return f"{config.get('architecture') or name}.{tag}" if tag else name


def preset_of(config: dict[str, Any]) -> Preset:
    """Return timm's data configuration as a preset; UsageError for a way of cropping that we do not have."""
    size = config["input_size"][-1]
    if config["crop_mode"] not in ("center", "squash"):
        raise UsageError(
            f'these weights want the crop mode "{config["crop_mode"]}"',
            hint="known here: center, squash; another one needs a transform of your own: --transform module:function",
        )
    return Preset(
        image_size=size,
        resize_size=int(size / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop=config["crop_mode"],
    )

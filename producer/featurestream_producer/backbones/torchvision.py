"""Any model of ``torchvision.models``, by name."""

from __future__ import annotations

import inspect
import pickle
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from featurestream.errors import DataError, UnknownNameError, UsageError
from featurestream_producer.backbones.backbone import Backbone, freeze
from featurestream_producer.preset import IMAGENET, Preset
from featurestream_producer.randomness import seeded_globals
from featurestream_producer.weights import WeightsReport, load_weights, state_sha256

_FILE_SUFFIXES = frozenset({".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors"})


def build_torchvision(name: str, *, weights: str | None, seed: int) -> Backbone:
    """Return torchvision's model ``name``.

    ``weights``: a name of torchvision's for this model ("DEFAULT", "IMAGENET1K_V1"), which it downloads once into
    its cache; a checkpoint file; or "random", drawn from ``seed``. None means DEFAULT. A file or random weights come
    with the ImageNet preset.

    Raises UnknownNameError for a model or weights that torchvision does not have, DataError when weights cannot be
    had or do not fit.
    """
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise UnknownNameError("model", name, known, where="or timm:NAME, or package.module:function")
    if weights == "random":
        model = _build(name, seed)
        return Backbone(name, freeze(model), IMAGENET, WeightsReport("random", state_sha256(model)))
    choice = models.get_model_weights(name)
    wanted = weights or "DEFAULT"
    if wanted not in choice.__members__ and _names_file(wanted):
        model = _build(name, seed)
        return Backbone(name, freeze(model), IMAGENET, load_weights(model, Path(wanted)))
    if not choice.__members__:
        raise UsageError(f'torchvision has no weights for "{name}"', hint="give a checkpoint file, or --weights random")
    if wanted not in choice.__members__:
        names = [*choice.__members__, "random"]
        raise UnknownNameError(f"weights of {name}", wanted, names, where="or a checkpoint file")
    entry = choice[wanted]
    _download(entry)
    # Its own builder, not load_state_dict: with weights some models are built differently (Inception's input
    # transform, the epsilon of detection's normalisation). It reads the file that was just checked.
    model = models.get_model(name, weights=entry)
    report = WeightsReport(entry.name, state_sha256(model), matched=tuple(sorted(model.state_dict())))
    return Backbone(name, freeze(model), preset_of(entry), report)


def preset_of(entry: Any) -> Preset:
    """Return the preset that torchvision's ``entry`` of a weights enum was evaluated with.

    Segmentation weights name no crop: their square is cut at the size that they resize to. Detection weights name no
    numbers at all: these models normalise and resize inside, so they get plain values in [0, 1].
    """
    transforms = entry.transforms()
    if not hasattr(transforms, "mean"):
        return Preset(IMAGENET.image_size, IMAGENET.resize_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    resize_size = transforms.resize_size[0]
    return Preset(
        image_size=getattr(transforms, "crop_size", [resize_size])[0],
        resize_size=resize_size,
        mean=_three(transforms.mean),
        std=_three(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def _build(name: str, seed: int) -> nn.Module:
    from torchvision import models

    arguments: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        arguments["weights_backbone"] = None  # its default would download
    with seeded_globals(seed), warnings.catch_warnings():
        # Inception and GoogLeNet announce a change of their initial weights; ours have a SHA-256.
        warnings.simplefilter("ignore", FutureWarning)
        model: nn.Module = models.get_model(name, **arguments)
    return model


def _download(entry: Any) -> None:
    """Put the weights into torch's cache, and refuse a file there that holds more than tensors."""
    import torch

    try:
        entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # a URLError is an OSError
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise DataError(
            f"cannot get the weights {entry} from {entry.url}: {error}",
            hint=f"put the file into {folder}, give a checkpoint with --weights FILE, or take --weights random",
        ) from error


def _names_file(text: str) -> bool:
    return Path(text).suffix in _FILE_SUFFIXES or "/" in text or Path(text).is_file()


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue

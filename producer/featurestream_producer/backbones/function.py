"""A model of the user's: ``package.module:function``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from featurestream.errors import UsageError
from featurestream.lookup import load_object
from featurestream_producer.backbones.backbone import Backbone, freeze
from featurestream_producer.preset import IMAGENET
from featurestream_producer.randomness import seeded_globals
from featurestream_producer.weights import WeightsReport, load_weights, state_sha256


def build_function(path: str, *, weights: str | None, seed: int) -> Backbone:
    """Return the ``nn.Module`` that the function ``path`` returns; it is called without arguments.

    The global random generators are seeded from ``seed`` while it runs, so that random initial weights are the same
    every time. ``weights``: None keeps what the function built, a file is loaded into it. The preset is ImageNet's.

    Raises UsageError when the function fails, returns no module, or ``weights`` is a name.
    """
    build = load_object(path, kind="model")
    try:
        with seeded_globals(seed):
            model = build()
    except Exception as error:
        raise UsageError(
            f'model "{path}" failed: {type(error).__name__}: {error}', hint="it is called without arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f'model "{path}" returned {type(model).__name__}', hint="expected a function that returns an nn.Module"
        )
    if weights is None:
        report = WeightsReport("as built", state_sha256(model))
    elif Path(weights).is_file():
        report = load_weights(model, Path(weights))
    else:
        raise UsageError(
            f'weights "{weights}" are no file, and "{path}" has no named weights',
            hint="leave --weights out to keep what the function builds, or give a checkpoint file",
        )
    return Backbone(path, freeze(model), IMAGENET, report, preset_known=False)

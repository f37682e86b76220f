"""The models that features come from. Every kind becomes a :class:`Backbone`; each has a file here."""

from __future__ import annotations

from featurestream.lookup import is_import_path
from featurestream_producer.backbones.backbone import Backbone

__all__ = ["Backbone", "build_backbone"]


def build_backbone(name: str, *, weights: str | None, seed: int) -> Backbone:
    """Return the frozen model that ``name`` selects, on the CPU.

    - a name of torchvision's ("resnet18"): see :mod:`.torchvision`
    - ``timm:NAME``: see :mod:`.timm`
    - ``package.module:function``: see :mod:`.function`

    ``weights``: a name, a file, or "random" (drawn from ``seed``: the same seed gives the same weights); None takes the
    best that come with the model. Raises UsageError for what does not exist, DataError for weights that cannot be
    had or used.
    """
    if name.startswith("timm:"):
        from featurestream_producer.backbones.timm import build_timm

        return build_timm(name.removeprefix("timm:"), weights=weights, seed=seed)
    if is_import_path(name):
        from featurestream_producer.backbones.function import build_function

        return build_function(name, weights=weights, seed=seed)
    from featurestream_producer.backbones.torchvision import build_torchvision

    return build_torchvision(name, weights=weights, seed=seed)

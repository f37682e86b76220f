"""Whether one stream can be validated on another: the same features of other samples, with the same labels."""

from __future__ import annotations

from collections.abc import Iterable

from featurestream.errors import UsageError
from featurestream.manifest import Manifest


def check_sibling(manifest: Manifest, validation: Manifest, taps: Iterable[str]) -> None:
    """Raise UsageError where what is learnt at ``taps`` of one stream means nothing on ``validation``.

    Both need the same taps from the same weights, labels of the same kind, and the same numbers for classes.
    """
    for name in taps:
        tap, other = manifest.tap(name), validation.tap(name)
        if (tap.spec, tap.shape) != (other.spec, other.shape):
            raise UsageError(
                f'tap "{name}" is {tap.spec} {tuple(tap.shape)} in stream "{manifest.stream}", but {other.spec} '
                f'{tuple(other.shape)} in "{validation.stream}"',
                hint="validate on a stream with the same taps",
            )
    if manifest.backbone.weights_sha256 != validation.backbone.weights_sha256:
        raise UsageError(
            f'streams "{manifest.stream}" and "{validation.stream}" come from other weights '
            f"({manifest.backbone.name} {manifest.backbone.weights_sha256[:12]}, "
            f"{validation.backbone.name} {validation.backbone.weights_sha256[:12]})",
            hint="publish both with the same --model, --weights and --seed",
        )
    one, other_data = manifest.data, validation.data
    if one.label_kind != other_data.label_kind or one.label_values != other_data.label_values:
        raise UsageError(
            f'stream "{manifest.stream}" has labels of the kind "{one.label_kind}" ({one.label_values}), '
            f'"{validation.stream}" of the kind "{other_data.label_kind}" ({other_data.label_values})'
        )
    if one.classes != other_data.classes and one.classes is not None and other_data.classes is not None:
        extra = [name for name in other_data.classes if name not in one.classes]
        raise UsageError(
            f'streams "{manifest.stream}" and "{validation.stream}" number their classes differently'
            + (f": {', '.join(extra[:5])} are only in the second" if extra else ""),
            hint="both need the same classes in the same order",
        )
    if (other_data.class_count or 0) > (one.class_count or 0):
        raise UsageError(
            f'stream "{validation.stream}" has class numbers up to {(other_data.class_count or 0) - 1}, but '
            f'"{manifest.stream}" only up to {(one.class_count or 0) - 1}',
            hint="nothing can learn a class that it never sees",
        )

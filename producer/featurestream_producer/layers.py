"""What a model's layers are called, when they run and what comes out of them: facts from one probing forward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featurestream.errors import DataError, UsageError

# Two images, so that an output whose first axis is 1 (or the number of tokens) is not mistaken for a batch.
PROBE_BATCH = 2


@dataclass(frozen=True)
class LayerCall:
    """One call of one layer during a probe: ``call`` counts from 0; ``output`` is what it returned."""

    layer: str
    call: int
    output: Any

    @property
    def is_batch(self) -> bool:
        """Whether the output is a tensor with one row an image."""
        return isinstance(self.output, Tensor) and self.output.ndim > 1 and self.output.shape[0] == PROBE_BATCH

    @property
    def described(self) -> str:
        """The output in words: "512 x 7 x 7" for a batch, else types and shapes."""
        if self.is_batch:
            return " x ".join(map(str, self.output.shape[1:]))
        return _describe(self.output)


@dataclass(frozen=True)
class LayerRow:
    """One layer of :func:`layer_table`.

    ``name``: dotted path. ``type``: class name. ``calls``: how often one forward runs it. ``output_shape``: without
    the batch axis, or a text where it is no batch of tensors or differs between calls. ``bytes_map_fp16``: one sample's
    whole output in float16; ``bytes_gap_fp16``: after a global average of a map, or one token of many; both None
    where ``output_shape`` is a text.
    """

    name: str
    type: str
    calls: int
    output_shape: tuple[int, ...] | str
    bytes_map_fp16: int | None
    bytes_gap_fp16: int | None


def layer_table(model: nn.Module, image_size: int) -> list[LayerRow]:
    """Return every layer that a forward of ``model`` runs, in the order in which outputs appear.

    Layers that never run (an auxiliary head in eval mode, a container that only holds others) are not listed: there
    is nothing to read from them. Raises UsageError when the model does not take images of this size.
    """
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    calls: dict[str, list[LayerCall]] = {}
    for call in probe(model, [name for name in types if name], image_size):
        calls.setdefault(call.layer, []).append(call)
    return [_row(name, types[name], found) for name, found in calls.items()]


def probe(model: nn.Module, layers: Iterable[str], image_size: int) -> list[LayerCall]:
    """Run ``model`` once on two black images and return every call of ``layers``, in execution order.

    Outputs are detached copies, because a later in-place operation may overwrite the original. The model is left as it
    was, in eval mode. Raises UsageError when its forward fails on images of this size.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: list[LayerCall] = []
    counts: Counter[str] = Counter()

    def record(name: str, output: object) -> None:
        seen.append(LayerCall(name, counts[name], output.clone() if isinstance(output, Tensor) else output))
        counts[name] += 1

    handles = [
        modules[name].register_forward_hook(lambda _module, _args, output, name=name: record(name, output))
        for name in layers
    ]
    some = next(model.parameters(), torch.empty(0))
    images_BCHW = torch.zeros(PROBE_BATCH, 3, image_size, image_size, device=some.device)
    try:
        with torch.inference_mode():
            model.eval()(images_BCHW)
    except torch.OutOfMemoryError as error:
        raise DataError(f"no memory left for two images of {image_size} x {image_size}: {error}") from error
    except Exception as error:
        raise UsageError(
            f"the model cannot take images of {image_size} x {image_size} pixels: {type(error).__name__}: {error}",
            hint="another size is set with --image-size; models of videos or of image pairs are not supported",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _row(name: str, kind: str, calls: list[LayerCall]) -> LayerRow:
    described = list(dict.fromkeys(call.described for call in calls))
    if len(described) > 1 or not calls[0].is_batch:
        return LayerRow(name, kind, len(calls), ", ".join(described), None, None)
    shape = tuple(calls[0].output.shape[1:])
    # The width: last of tokens (T, D) and of a channels-last map (H, W, C), first of a map (C, H, W).
    last = len(shape) == 2 or (len(shape) == 3 and shape[0] == shape[1] != shape[2])
    pooled = shape[-1] if last else shape[0]
    return LayerRow(name, kind, len(calls), shape, 2 * math.prod(shape), 2 * pooled)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"Tensor({', '.join(map(str, value.shape))}) without a batch axis in front"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(_name(item) for item in value)})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}: {_name(item)}' for key, item in value.items())})"
    return type(value).__name__


def _name(value: object) -> str:
    return f"Tensor({', '.join(map(str, value.shape))})" if isinstance(value, Tensor) else type(value).__name__

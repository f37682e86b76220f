"""Taps: named outputs of a backbone, captured by name while it runs.

A tap is written ``layer[:k][:pool[(arguments)]][=name]``::

    avgpool                            the layer's output as it is
    layer2:gap                         the layer's map, averaged
    layer4:gem(p=4)                    a pool with an argument
    encoder.layers.11:cls=cls11        a name of its own (default: the layer's)
    layer1.0.relu:1:gap                the second call of a layer that runs twice
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from featurestream.errors import FeatureRangeError, InternalError, UnknownNameError, UsageError
from featurestream_producer.compiled import CompiledTrunk
from featurestream_producer.layers import LayerCall, probe
from featurestream_producer.pools import find_pool

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

_TAP = re.compile(
    r"(?P<layer>[^:=()]+?)(?::(?P<call>\d+))?(?::(?P<pool>[^=()]+?)(?:\((?P<arguments>[^()]*)\))?)?(?:=(?P<name>.*))?"
)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
#: How maps lie in memory: with the channels last, convolutions are faster on CPUs and GPUs; else as torch has them.
_MEMORY_FORMATS: Final = (torch.channels_last, torch.contiguous_format)
_RESERVED = {"manifest": "manifest", "experiments": "run registry"}  # <stream>.manifest is not a tap's topic
_FORM = "expected layer[:k][:pool[(argument=value, ...)]][=name], like layer2:gap or layer4:gem(p=4)=g4"


@dataclass(frozen=True)
class TapSpec:
    """A tap as it was asked for.

    ``layer``: dotted path of a module. ``call``: which call of a layer that runs several times, from 0; None where it
    runs once. ``pool`` and ``pool_args``: None and empty for the output as it is; arguments that say what the default
    says are left out. ``name``: the topic's second half. ``text``: the whole in its one spelling.
    """

    layer: str
    call: int | None
    pool: str | None
    pool_args: dict[str, Any] = field(hash=False)
    name: str
    text: str

    def apply(self, output: Tensor) -> Tensor:
        """Return the pooled output, in its dtype; UsageError where the pool does not suit its shape."""
        return output if self.pool is None else find_pool(self.pool, self.pool_args)[0](output)


def parse_tap(text: str) -> TapSpec:
    """Return the tap that ``text`` names.

    Raises UsageError for another form, an impossible name or arguments that the pool does not take, and
    UnknownNameError for an unknown pool. Layers are looked for by :class:`TapReader`, which knows the model.
    """
    match = _TAP.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UsageError(f'tap "{text}" cannot be read', hint=_FORM)
    layer, pool = match["layer"], match["pool"]
    call = None if match["call"] is None else int(match["call"])
    arguments = {} if pool is None else find_pool(pool, _arguments(text, match["arguments"] or ""))[1]
    name = layer if match["name"] is None else match["name"]
    if not _NAME.fullmatch(name) or name in _RESERVED:
        why = f"is taken by the stream's {_RESERVED[name]}" if name in _RESERVED else "is not possible"
        raise UsageError(
            f'tap "{text}": the name "{name}" {why}', hint="letters, digits and . _ - ; another name: layer:pool=name"
        )
    shown = layer if call is None else f"{layer}:{call}"
    if pool is not None:
        shown += f":{pool}"
        if arguments:
            shown += f"({','.join(f'{key}={value}' for key, value in arguments.items())})"
    if name != layer:
        shown += f"={name}"
    return TapSpec(layer, call, pool, arguments, name, shown)


def _topic_form(name: str) -> str:
    return name.replace(".", "_")


def parse_taps(texts: Sequence[str]) -> list[TapSpec]:
    """Return the taps in the order given; UsageError when there are none or two have one name."""
    if not texts:
        raise UsageError("no tap was given", hint=_FORM)
    specs = [parse_tap(text) for text in texts]
    # Kafka's metrics write "." as "_", so it refuses topics that differ in nothing else.
    for name, count in Counter(_topic_form(spec.name) for spec in specs).items():
        if count > 1:
            same = [spec for spec in specs if _topic_form(spec.name) == name]
            last = same[-1]
            one = len({spec.name for spec in same}) == 1
            what = f'the name "{last.name}"' if one else 'names that Kafka cannot tell apart ("." is "_" to it)'
            raise UsageError(
                f"{count} taps have {what}: {', '.join(spec.text for spec in same)}",
                hint=f"name them apart, like {last.text.removesuffix(f'={last.name}')}={last.name}-{count}",
            )
    return specs


@dataclass(frozen=True, eq=False)
class Captured:
    """The taps' features of one batch, unchecked. On a device they may still be computed: nothing has waited for it.

    ``features``: tap name to tensor (B, ...), contiguous, in the stream's dtype. ``largest``: float32 (taps,), each
    tap's greatest absolute value before the cast, NaN where any value is.
    """

    features: dict[str, Tensor]
    largest: Tensor
    advice: str

    def map(self, function: Callable[[Tensor], Tensor]) -> Captured:
        """Return the same with ``function`` of each tensor, such as a copy somewhere else."""
        features = {tap: function(feature) for tap, feature in self.features.items()}
        return replace(self, features=features, largest=function(self.largest))

    def check(self) -> dict[str, Tensor]:
        """Return the features, once none of them is NaN, infinite or too large for the dtype; waits for the device.

        Raises FeatureRangeError with the attributes ``tap`` and ``value``.
        """
        dtype = next(iter(self.features.values())).dtype
        # Rounding keeps the order of numbers, so all values fit exactly when the greatest does.
        if bool(self.largest.to(dtype).isfinite().all()):
            return self.features
        largest = self.largest.cpu()
        # A value that is no number comes first: what it did to later taps says less.
        for tap, value in zip(self.features, largest.tolist(), strict=True):
            if not math.isfinite(value):
                raise FeatureRangeError(
                    f'tap "{tap}": the backbone gives {value}', hint=self.advice, tap=tap, value=value
                )
        for tap, value, cast in zip(self.features, largest.tolist(), largest.to(dtype).tolist(), strict=True):
            if not math.isfinite(cast):
                raise FeatureRangeError(
                    f'tap "{tap}": the value {value:.6g} does not fit {_dtype_name(dtype)}, '
                    f"whose largest is {torch.finfo(dtype).max:.6g}",
                    hint="use --dtype bfloat16 or --dtype float32",
                    tap=tap,
                    value=value,
                )
        raise InternalError(f"features were found out of range and are not: {largest.tolist()}")


class TapReader:
    """A frozen backbone that gives its taps' features: images in, ``{tap name: tensor}`` out.

    ``specs``: from :func:`parse_taps`. ``image_size``: pixels a side. ``dtype``: the stream's. ``device``: where the
    model is moved, in place. ``model_name``: for error messages alone. ``autocast``: the dtype that torch's autocast
    computes convolutions and products in; None: the weights' own.

    Construction runs the model once on two black images. It raises UnknownNameError for a layer that the model does not
    have; UsageError for a layer that never runs, runs several times without ``:k``, does not give one tensor with
    a row an image, or does not suit its pool; and FeatureRangeError when a tap depends on weights that the checkpoint
    did not have.

    ``shapes``: tap name to the shape of one sample, in the order of ``specs``.
    """

    def __init__(
        self,
        model: nn.Module,
        specs: Sequence[TapSpec],
        *,
        image_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        model_name: str = "MODEL",
        autocast: torch.dtype | None = None,
    ) -> None:
        self._listing = f"list them with: featurectl layers {model_name}"
        modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
        for spec in specs:
            if spec.layer not in modules:
                raise UnknownNameError("layer", spec.layer, modules, where=self._listing)
        self._device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._dtype = dtype
        self._autocast = autocast
        self._specs = list(specs)
        self._layers = {spec.layer: modules[spec.layer] for spec in specs}
        self._wanted: dict[tuple[str, int], list[TapSpec]] = {}
        self._compiled: CompiledTrunk | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._not_loaded = _nan_names(model)
        self._advice = self._range_advice()
        self._probe(image_size)

    def compile(self, rows: int, *, backend: str = "inductor") -> None:
        """Run the model compiled by torch.compile from now on, always on ``rows`` images at once.

        A smaller batch is filled up with black images, and a larger one is split: so that all batches run the same
        kernels, and a row does not depend on which batches came before. What is compiled is compiled at the first
        batch; :meth:`capture` raises UsageError where that cannot be done. Called again, it changes nothing.
        """
        self._compiled = self._compiled or CompiledTrunk(self._model, self._layers, list(self._wanted), rows, backend)

    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return ``capture(images).check()``: the features, all of them finite; waits for the device."""
        return self.capture(images_BCHW).check()

    def capture(self, images_BCHW: Tensor) -> Captured:
        """Run the model on float32 images (B, 3, H, W) until the last tap has its value.

        Each output is pooled in float32 the moment it appears, because the next layer may overwrite it in place, and
        cast last. B may be 0. Raises UsageError when an output does not have the shape that the probe saw.
        """
        images_BCHW = images_BCHW.to(self._device, non_blocking=True)
        rows = len(images_BCHW)
        if rows == 0:
            return self._nothing()
        if self._compiled is None:
            with torch.inference_mode(), self._precision(enabled=True):
                taken = self._run(images_BCHW)
        else:
            with torch.no_grad(), self._precision(enabled=True):
                taken = {
                    spec.name: self._feature(spec, output, rows)
                    for call, output in self._compiled(images_BCHW).items()
                    for spec in self._wanted[call]
                }
        absent = [spec.text for spec in self._specs if spec.name not in taken]
        if absent:
            raise UsageError(
                f"the model ran without {', '.join(absent)}, which ran in the probe",
                hint="a tap's layer must run for every batch; tap one that does not depend on the images",
            )
        largest = torch.stack([taken[spec.name][1] for spec in self._specs])
        return Captured({spec.name: taken[spec.name][0] for spec in self._specs}, largest, self._advice)

    def _run(self, images_BCHW: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return each tap's feature and greatest absolute value, the model cut off after the last one."""
        taken: dict[str, tuple[Tensor, Tensor]] = {}
        counts: Counter[str] = Counter()

        def hook(layer: str, _module: nn.Module, _args: object, output: Tensor) -> None:
            for spec in self._wanted.get((layer, counts[layer]), ()):
                taken[spec.name] = self._feature(spec, output, len(images_BCHW))
            counts[layer] += 1
            if len(taken) == len(self._specs):
                raise _Enough

        handles = [module.register_forward_hook(partial(hook, name)) for name, module in self._layers.items()]
        try:
            self._model(images_BCHW)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return taken

    def _precision(self, *, enabled: bool) -> torch.autocast:
        """Return the block in which the model runs; not enabled: the one inside it in which features are pooled."""
        return torch.autocast(self._device.type, dtype=self._autocast, enabled=enabled and self._autocast is not None)

    def _feature(self, spec: TapSpec, output: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Return the feature in the stream's dtype, and its greatest absolute value as a float32 scalar."""
        with self._precision(enabled=False):
            pooled = _pooled(spec, output)
        expected = (rows, *self.shapes[spec.name])
        if tuple(pooled.shape) != expected:
            raise UsageError(
                f'tap "{spec.name}" gives {tuple(pooled.shape)} for {rows} images; the probe promised {expected}',
                hint="a tap's shape must not depend on the batch",
            )
        low, high = torch.aminmax(pooled)
        # Always a copy: without a pool and in float32 this is still the layer's own memory.
        feature = pooled.to(self._dtype, copy=True, memory_format=torch.contiguous_format)
        return feature, torch.maximum(high, -low)

    def _nothing(self) -> Captured:
        features = {
            name: torch.empty((0, *shape), dtype=self._dtype, device=self._device)
            for name, shape in self.shapes.items()
        }
        return Captured(features, torch.zeros(len(features), device=self._device), self._advice)

    def _probe(self, image_size: int) -> None:
        """Find every tap's call and shape, with the first order in memory that the model and its pools can take."""
        for memory_format in _MEMORY_FORMATS:
            convert_conv2d_weight_memory_format(self._model, memory_format)
            try:
                self._find_taps(image_size)
            except UsageError:  # of code that takes a map for a plain array (Tensor.view), or a mistake
                if memory_format is _MEMORY_FORMATS[-1]:
                    raise
            else:
                return

    def _find_taps(self, image_size: int) -> None:
        self._wanted, self.shapes = {}, {}
        with self._precision(enabled=True):
            calls = probe(self._model, self._layers, image_size)
        for spec in self._specs:
            chosen = _choose(spec, [call for call in calls if call.layer == spec.layer], self._listing)
            self._wanted.setdefault((spec.layer, chosen.call), []).append(spec)
            with torch.inference_mode():
                pooled = _pooled(spec, chosen.output)
            self.shapes[spec.name] = tuple(pooled.shape[1:])
            if self._not_loaded and bool(pooled.isnan().any()):
                raise FeatureRangeError(
                    f'tap "{spec.name}" depends on weights that were not loaded', hint=self._advice, tap=spec.name
                )

    def _range_advice(self) -> str:
        if self._not_loaded:
            return f"the checkpoint has no {self._not_loaded}: tap an earlier layer, or load weights that have it"
        advice = "look at the weights, and at what the transform makes of the images"
        if self._autocast == torch.float16:
            advice = f"float16 reaches no further than 65,504: use --autocast bfloat16; or {advice}"
        return advice


class _Enough(BaseException):
    """Ends a forward after the last tap. Not an Exception, so that a model's own ``except Exception`` lets it pass."""


def _choose(spec: TapSpec, calls: list[LayerCall], listing: str) -> LayerCall:
    """Return the call of the layer that the tap means, or raise UsageError."""
    if not calls:
        raise UsageError(f'layer "{spec.layer}" does not run when the model sees images', hint=listing)
    if (spec.call is None and len(calls) > 1) or (spec.call or 0) >= len(calls):
        shown = ", ".join(f"{call.layer}:{call.call} ({call.described})" for call in calls)
        times = "once" if len(calls) == 1 else f"{len(calls)} times"
        raise UsageError(
            f'tap "{spec.text}": layer "{spec.layer}" runs {times}: {shown}',
            hint=f"say which, like {spec.layer}:{len(calls) - 1}" if len(calls) > 1 else "leave the number out",
        )
    chosen = calls[spec.call or 0]
    if not chosen.is_batch:
        raise UsageError(
            f'tap "{spec.text}": layer "{spec.layer}" gives {chosen.described}',
            hint=f"a tap needs one tensor with a row an image; tap a layer inside it or behind it; {listing}",
        )
    return chosen


def _pooled(spec: TapSpec, output: Tensor) -> Tensor:
    """Return the pooled output, float32 (B, ...); UsageError where the pool does not suit it or fails."""
    try:
        pooled = spec.apply(output.float())
    except UsageError as error:
        raise UsageError(f'tap "{spec.text}": {error.message}', hint=error.hint) from error
    except torch.OutOfMemoryError:
        raise  # the batch is too large, which the caller knows how to say
    except Exception as error:
        raise UsageError(f'tap "{spec.text}": the pool failed: {type(error).__name__}: {error}') from error
    if not isinstance(pooled, Tensor) or pooled.ndim < 2 or len(pooled) != len(output):
        seen = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
        raise UsageError(
            f'tap "{spec.text}": the pool gives {seen}', hint="expected a tensor (B, ...) of two axes or more"
        )
    return pooled.float()


def _arguments(tap: str, text: str) -> dict[str, Any]:
    """Return "p=4,channels=last" as {"p": 4, "channels": "last"}."""
    arguments: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not (equals and key.isidentifier() and value):
            raise UsageError(
                f'tap "{tap}": pool argument "{part}" cannot be read', hint="expected argument=value, like p=4"
            )
        arguments[key] = _value(value)
    return arguments


def _value(text: str) -> int | float | str:
    """Return the number that ``text`` writes, a whole one as an int ("4.0" and "4" are one argument), else the text."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def _nan_names(model: nn.Module) -> str:
    """Return the first names of tensors that hold NaN (weights that a checkpoint did not have), or an empty text."""
    names = [name for name, value in model.state_dict().items() if value.is_floating_point() and value.isnan().any()]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Put a checkpoint's weights into a model, safely, and say exactly what went where.

Files are read with ``torch.load(weights_only=True)`` or safetensors: no code in a file is ever run. Names are matched
by their ends: a checkpoint is flattened to dotted names ("state_dict.module.encoder_q.layer1.0.conv1.weight"), and
the part in front of the model's own names that fits most of them is the prefix. This covers what the usual
self-supervised trainers write, without a list that ages: DDP's ``module.``, torch.compile's ``_orig_mod.``, MoCo's
``encoder_q.`` and ``base_encoder.``, DINO's ``teacher.backbone.``, BYOL's ``online_encoder.``, SimCLR's ``encoder.``,
VISSL's ``classy_state_dict.base_model.model.trunk._feature_blocks.``, Lightning's ``state_dict.model.``, timm's
``state_dict_ema.``, lightly's ``backbone.``, and whatever comes next.
"""

from __future__ import annotations

import argparse
import codecs
import hashlib
import pathlib
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from torch import Tensor, nn

from featurestream.errors import DataError, UsageError

# Where several copies of a model fit equally well, the words of their prefixes decide: averaged and teacher weights
# are the ones that DINO, timm and torchvision evaluate, and what MoCo and BYOL evaluate is not the key or target copy.
_PREFERRED = (frozenset({"teacher", "ema"}), frozenset({"q", "query", "base", "online"}))
_AVOIDED = frozenset({"student", "k", "key", "momentum", "target"})

# First parts of the names that hold a final classifier in torchvision, timm and their relatives. A backbone may come
# without it, or with one for other classes.
_CLASSIFIERS = frozenset(
    {"fc", "classifier", "classif", "head", "heads", "head_dist", "last_linear", "linear", "aux1", "aux2", "AuxLogits",
     "aux_classifier"}
)  # fmt: skip

_POSIX_PATHS = ("PosixPath", "PurePosixPath")
_LIGHTNING_MODULES = (
    "pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing", "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
)  # fmt: skip

# What training scripts pickle beside their tensors. These classes run no code of the file's while they load.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    codecs.encode,
    # Arguments hold paths, and Lightning keeps hyperparameters in a dict of its own; plain ones take their place.
    *((pathlib.PurePosixPath, f"pathlib{module}.{kind}") for module in ("", "._local") for kind in _POSIX_PATHS),
    *((dict, f"{module}.AttributeDict") for module in _LIGHTNING_MODULES),
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
    *(
        (getattr(multiarray, function), f"{module}.multiarray.{function}")
        for module in ("numpy.core", "numpy._core")
        for function in ("scalar", "_reconstruct")
    ),
]


@dataclass(frozen=True)
class WeightsReport:
    """What a backbone's weights are and where they came from.

    ``source``: a weights' name, "random", a file, or "as built". ``sha256``: over all parameters and buffers by name,
    the same however they were loaded. ``prefix``: what stood in front of the model's names in a file. ``matched``,
    ``missing``: names of the model; ``unexpected``: names of the file, behind the prefix. A missing floating-point
    tensor is filled with NaN, so that no tap that depends on it can pass for a feature.
    """

    source: str
    sha256: str
    prefix: str = ""
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the report as one line: counts, and the first names of what did not match."""
        if self.source == "random":
            return f"weights: RANDOM, nothing was learned (sha256 {self.sha256[:12]})"
        if not self.matched:
            return f"weights: {self.source} (sha256 {self.sha256[:12]})"
        parts = [f"{len(self.matched)} matched"]
        if self.prefix:
            parts[0] += f' behind "{self.prefix}"'
        parts += [
            f"{len(names)} {what} ({_first(names)})" if names else f"0 {what}"
            for what, names in (("missing", self.missing), ("unexpected", self.unexpected))
        ]
        return f"weights: {self.source}: {', '.join(parts)} (sha256 {self.sha256[:12]})"


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256 over the model's state dict, sorted by name: names, dtypes, shapes and little-endian bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        head = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n"
        digest.update(head.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_weights(model: nn.Module, file: Path) -> WeightsReport:
    """Load what ``file`` holds for ``model`` into it, in place, and report it.

    Raises UsageError when there is no such file; DataError when it cannot be read safely, when nothing in it fits, when
    a tensor has another shape than the model's, or when one of the two has layers, inside of what both have, that the
    other has not: another architecture. Only a final classifier may have another shape: it then counts as missing.
    Whole parts that one of the two does not have (a projection head, the last stage) are reported and no error.
    """
    if not file.is_file():
        raise UsageError(f'no such weights file: "{file}"', hint="expected .pth, .pt, .ckpt, .bin or .safetensors")
    return fit_weights(model, read_tensors(file), source=str(file))


def fit_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> WeightsReport:
    """Load flattened ``tensors`` (see :func:`read_tensors`) into ``model``, in place; as :func:`load_weights`."""
    wanted = model.state_dict()
    prefix = find_prefix(list(tensors), set(wanted))
    if prefix is None:
        raise DataError(
            f'"{source}" holds nothing for this model: it has {_first(tuple(tensors))}; the model has '
            f"{_first(tuple(wanted))}",
            hint="is this a checkpoint of another architecture?",
        )
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    wrong = {name for name in wanted if name in found and found[name].shape != wanted[name].shape}
    fatal = sorted(name for name in wrong if not _is_classifier(name))
    if fatal:
        shown = "; ".join(
            f"{name}: {_dims(found[name])} in the file, {_dims(wanted[name])} in the model" for name in fatal[:4]
        )
        count = "1 tensor has" if len(fatal) == 1 else f"{len(fatal)} tensors have"
        raise DataError(
            f'"{source}" does not fit this model: {count} another shape: {shown}',
            hint="nothing is resized or cut: is this a checkpoint of another architecture?",
        )
    _check_layers(model, found, source)
    matched = sorted(name for name in wanted if name in found and name not in wrong)
    missing = sorted(name for name in wanted if name not in found or name in wrong)
    with torch.no_grad():
        for name in matched:
            wanted[name].copy_(found[name])
        for name in missing:
            if wanted[name].is_floating_point():
                wanted[name].fill_(torch.nan)
    unexpected = sorted(name for name in found if name not in wanted or name in wrong)
    return WeightsReport(source, state_sha256(model), prefix, tuple(matched), tuple(missing), tuple(unexpected))


def _check_layers(model: nn.Module, found: Mapping[str, Tensor], source: str) -> None:
    """Raise DataError where file and model differ in depth or kind: ResNet-18 finds all its names in ResNet-34's."""
    learned = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    # A module with tensors counts for all that it lies in: "layer1.2.conv1" is something of "layer1.2" and "layer1".
    here, there = _parts(learned), _parts(found)
    both = here & there & modules
    strange = {
        "the file has {} inside of what both have, the model has not": {
            *(part for part in there - modules if _module_of(part) in both),
            *(
                name
                for name in found
                if name.endswith((".weight", ".bias")) and name not in learned and _module_of(name) in both
            ),
        },
        "the model has {} inside of what both have, the file has not": {
            part for part in here - there if _module_of(part) in both
        },
    }
    reasons = [
        what.format(_first(tuple(sorted(shown))))
        for what, names in strange.items()
        if (shown := {name for name in names if not _is_classifier(name)})
    ]
    body = [name for name in learned if not _is_classifier(name)]
    matched = sum(name in found for name in body)
    if 2 * matched < len(body):
        reasons.append(f"it has {matched} of the model's {len(body)} tensors")
    if reasons:
        raise DataError(
            f'"{source}" is a checkpoint of another architecture: {reasons[0]}',
            hint="use the model that the weights were trained with",
        )


def _module_of(name: str) -> str:
    """Return the path of the module that holds a tensor or a module; an empty text for the model itself."""
    return name.rpartition(".")[0]


def _parts(tensors: Iterable[str]) -> set[str]:
    """Return the modules that hold the tensors, and all that these lie in."""
    parts: set[str] = set()
    for name in tensors:
        module = _module_of(name)
        while module and module not in parts:
            parts.add(module)
            module = _module_of(module)
    return parts


def find_prefix(names: list[str], wanted: set[str]) -> str | None:
    """Return what stands in front of most of the ``wanted`` names in ``names``; None where none of them is there.

    Of equally good ones, the preferred (teacher before student, online before target), then the shortest, then the
    first by alphabet.
    """
    counts: Counter[str] = Counter()
    for name in names:
        start = 0
        while start >= 0:
            if name[start:] in wanted:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    if not counts:
        return None
    return min(counts, key=lambda prefix: (-counts[prefix], _preference(prefix), len(prefix), prefix))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return every tensor in a checkpoint under its dotted name, ``_orig_mod.`` taken out; on the CPU.

    Raises DataError when the file is damaged, of another kind, or holds objects that only running its code could make.
    """
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            loaded: Any = load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(
                f'cannot read weights "{file}": {error}', hint="is it a complete safetensors file?"
            ) from error
    else:
        try:
            with torch.serialization.safe_globals(_HARMLESS):
                loaded = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise DataError(
                f'weights "{file}" hold more than tensors: {_reason(error)}',
                hint="loading that would run code from the file; save the state_dict alone, or as safetensors",
            ) from error
        except Exception as error:  # a damaged file trips the reader anywhere
            raise DataError(
                f'cannot read weights "{file}": {_reason(error)}', hint="is it a complete checkpoint of PyTorch's?"
            ) from error
    tensors: dict[str, Tensor] = {}
    _flatten(loaded, "", tensors)
    if not tensors:
        raise DataError(f'weights "{file}" hold no tensor', hint="expected a state_dict, alone or inside a checkpoint")
    return tensors


def _flatten(value: object, name: str, out: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        out[name.replace("_orig_mod.", "")] = value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(item, f"{name}.{key}" if name else str(key), out)


def _preference(prefix: str) -> int:
    words = set(re.split(r"[._]", prefix))
    if words & _AVOIDED:
        return len(_PREFERRED) + 1
    return next((rank for rank, preferred in enumerate(_PREFERRED) if words & preferred), len(_PREFERRED))


def _is_classifier(name: str) -> bool:
    return name.split(".", 1)[0] in _CLASSIFIERS


def _dims(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _reason(error: Exception) -> str:
    # torch explains at length how to switch the protection off, which is not the advice that we give.
    text = str(error).strip()
    for mark in ("Unsupported ", "WeightsUnpickler error: "):
        if mark in text:
            text = text[text.index(mark) :].removeprefix("WeightsUnpickler error: ")
            break
    return text.split("\n")[0] or type(error).__name__

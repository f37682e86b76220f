"""A data set of torchvision's, by the name of its class: ``torchvision:CIFAR10``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from featurestream.errors import UnknownNameError, UsageError
from featurestream_producer.datasets.dataset import ImageDataset
from featurestream_producer.datasets.pairs import wrap


def open_torchvision(name: str, *, root: Path | None = None, split: str | None = None) -> ImageDataset:
    """Return the data set that class ``name`` of ``torchvision.datasets`` finds under ``root``.

    ``split`` goes to the class as its ``split``, or as ``train=True`` for "train" and ``train=False`` for "test" and
    "val"; without it the class's own default holds. Nothing is downloaded.

    Raises UnknownNameError for a name that torchvision does not have, UsageError when the data is not there.
    """
    from torchvision import datasets

    known = sorted(key for key, value in vars(datasets).items() if isinstance(value, type) and key[0].isupper())
    if name not in known:
        raise UnknownNameError("torchvision data set", name, known)
    kind = getattr(datasets, name)
    parameters = inspect.signature(kind).parameters
    arguments = {**_root_argument(name, root, parameters), **_split_argument(name, split, parameters)}
    if "download" in parameters:
        arguments["download"] = False
    try:
        found = kind(**arguments)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        raise UsageError(
            f"torchvision:{name} cannot be opened with {_shown(arguments)}: {error}",
            hint=f'nothing is downloaded here; once, by hand: python -c "from torchvision.datasets import {name}; '
            f"{name}('DATA', download=True)\", then --root DATA",
        ) from error
    prefix = f"{split}/" if split else ""
    return wrap(found, f"torchvision:{name}", prefix)


def _root_argument(name: str, root: Path | None, parameters: Any) -> dict[str, Any]:
    if "root" not in parameters:
        if root is not None:
            raise UsageError(f"torchvision:{name} takes no folder", hint="leave --root out")
        return {}
    if root is None:
        raise UsageError(f"torchvision:{name} needs the folder of its data", hint="give it with --root")
    return {"root": str(root)}


def _split_argument(name: str, split: str | None, parameters: Any) -> dict[str, Any]:
    if split is None:
        return {}
    if "split" in parameters:
        return {"split": split}
    if "train" in parameters:
        flags = {"train": True, "test": False, "val": False}
        if split not in flags:
            raise UnknownNameError(f"split of torchvision:{name}", split, flags)
        return {"train": flags[split]}
    raise UsageError(f"torchvision:{name} has no splits", hint="leave --split out")


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"

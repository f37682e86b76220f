"""A data set of the user's: ``package.module:function``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from featurestream.errors import UsageError
from featurestream.lookup import load_object
from featurestream_producer.datasets.dataset import ImageDataset
from featurestream_producer.datasets.pairs import wrap


def open_function(path: str, *, root: Path | None = None, split: str | None = None) -> ImageDataset:
    """Return what the function ``path`` returns: an ImageDataset, or a map-style data set of (PIL image, label).

    It is called with ``root`` and ``split`` as keywords, each only where given. Raises UsageError when it does not
    take them or fails.
    """
    function = load_object(path, kind="data set")
    arguments: dict[str, Any] = {}
    if root is not None:
        arguments["root"] = root
    if split is not None:
        arguments["split"] = split
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UsageError(
            f'data set "{path}" cannot be called with {", ".join(arguments) or "no arguments"}: {error}',
            hint="it gets root= and split= where these are given, and nothing else",
        ) from error
    try:
        found = function(**arguments)
    except Exception as error:
        raise UsageError(f'data set "{path}" failed: {type(error).__name__}: {error}') from error
    return found if isinstance(found, ImageDataset) else wrap(found, path)

"""Find a thing by name: in a plain table of ours, or as ``package.module:function`` of the user's."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from featurestream.errors import UnknownNameError, UsageError, names_text, nearest

T = TypeVar("T")


def is_import_path(name: str) -> bool:
    """Tell whether ``name`` reads as ``package.module:attribute`` (``my_heads:build``)."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def load_object(path: str, *, kind: str) -> Any:
    """Import what ``package.module:attribute`` names.

    The current folder counts as importable, as it does for ``python -m``. Raises UsageError when the module or the
    attribute is not there, and when the module itself fails; that error is the cause.
    """
    module_name, _, attribute = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f'{kind} "{path}": cannot import "{module_name}" ({error})',
            hint="the module must be installed, or lie in the current folder",
        ) from error
    except Exception as error:  # whatever the user's module raises while it runs is his to mend
        raise UsageError(
            f'{kind} "{path}": "{module_name}" failed while it was imported: {type(error).__name__}: {error}',
            hint=f"run: python -c 'import {module_name}'",
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            there = [name for name in dir(found) if not name.startswith("_")]
            near = nearest(part, there)
            raise UsageError(
                f'{kind} "{path}": module "{module_name}" has no "{attribute}"',
                hint=f"it has: {names_text(there)}" + (f'; did you mean "{near}"?' if near else ""),
            )
        found = getattr(found, part)
    return found


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return ``table[name]``, or what ``package.module:function`` names.

    Raises UnknownNameError with the known names and the nearest one. Call it before any device or broker is touched.
    """
    if name in table:
        return table[name]
    if is_import_path(name):
        found: T = load_object(name, kind=kind)
        return found
    raise UnknownNameError(kind, name, table, where="or package.module:function")

"""Files that a user names for results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featurestream.errors import UsageError


def check_file(path: Path, suffixes: Sequence[str], what: str) -> None:
    """Raise UsageError where a result could not be written: before the work that leads to it.

    Args:
        path: the file that the user has named.
        suffixes: what its name may end with, such as ``.csv``.
        what: what is to be written there, in one word.
    """
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f'"{path.name}" does not say what kind of {what} it is', hint=f"expected {', '.join(suffixes)}"
        )
    if not path.parent.is_dir():
        raise UsageError(f'there is no folder "{path.parent}" to write {path.name} into', hint="make it first")

"""Write a file so that it is there whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from featurestream.errors import OutsideError

#: How the names of unfinished files begin; what a killed process leaves behind is recognised by it.
TEMPORARY_PREFIX = ".unfinished-"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, safe: str) -> None:
    """Write ``path`` through ``write(file)``: readers see the old file or the new one, also after a power cut.

    A temporary file in the same folder is written and synced, renamed over ``path``, and the folder synced. ``safe``
    says what is still safe when it fails ("the checkpoint of step 120"). Raises OutsideError for a full disk, missing
    rights and the like; the temporary file is then removed.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error, safe=safe) from error


def sync_folder(folder: Path) -> None:
    """Make renames and removals in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError, *, safe: str) -> OutsideError:
    """Return the error for a file that could not be written: why, what is safe, what to do."""
    step = "free some space there" if error.errno in FULL else "make the folder writable"
    return OutsideError(
        f"cannot write {path}: {error.strerror or error}; safe: {safe}",
        hint=f"{step} and give the same command again",
        path=str(path),
    )

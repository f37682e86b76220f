"""Checkpoints: a run's whole state in one file that is there whole or not at all.

A checkpoint is what ``torch.save`` writes, named ``step-<step>.<xxh3-64 of its bytes>.pt``. The checksum in the name
becomes visible with the content, in one rename, and the file stays one that ``torch.load(path, weights_only=True)``
reads. It holds tensors, numbers, texts, lists and dicts: loading one never runs code.
"""

from __future__ import annotations

import io
import re
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import xxhash

from featurestream.errors import DataError, UsageError
from featurestream_consumer.files import TEMPORARY_PREFIX, cannot_write, write_atomically

NAME: Final = re.compile(r"step-(\d{12})\.([0-9a-f]{16})\.pt")
DAMAGED_SUFFIX: Final = ".damaged"


class CheckpointFile(NamedTuple):
    """A checkpoint by its name: the optimiser steps made, the checksum of its bytes, and where it lies."""

    step: int
    checksum: str
    path: Path


def list_checkpoints(folder: Path) -> list[CheckpointFile]:
    """Return the checkpoints in ``folder``, the newest first. Their bytes are not looked at."""
    found = [
        CheckpointFile(int(match[1]), match[2], path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := NAME.fullmatch(path.name))
    ]
    return sorted(found, key=lambda file: file.step, reverse=True)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write ``state`` as the checkpoint of ``step``, then remove all but the newest ``keep``; return its path.

    A process that is killed at any moment leaves the former checkpoints or these: nothing in between. Raises
    UsageError for a state that could not be loaded again (anything but tensors, numbers, texts, lists, tuples and
    dicts), OutsideError for a full disk or missing rights, saying which checkpoint is safe.
    """
    _refuse_foreign(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    path = folder / f"step-{step:012d}.{xxhash.xxh3_64_hexdigest(content)}.pt"
    before = list_checkpoints(folder)
    safe = f"the checkpoint of step {before[0].step} ({before[0].path.name})" if before else "nothing yet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error, safe=safe) from error
    write_atomically(path, lambda file: file.write(content), safe=safe)
    _remove_old(folder, path, keep)
    return path


def load_newest(folder: Path) -> tuple[dict[str, Any], list[str]] | None:
    """Return the newest checkpoint that is whole, on the CPU, or None where there is none at all.

    With it come notes for the user: one sentence for every newer checkpoint that is damaged. Such a file is renamed
    to ``....damaged`` and kept as evidence. Raises DataError when there are checkpoints and none is whole.
    """
    files = list_checkpoints(folder)
    notes: list[str] = []
    for number, file in enumerate(files):
        try:
            state = load_checkpoint(file.path)
        except DataError as error:
            notes.append(error.message)
            continue
        for damaged in files[:number]:
            _set_aside(damaged.path)
        if notes:
            notes.append(f"continuing from the checkpoint of step {file.step}")
        return state, notes
    if files:
        raise DataError(
            f"none of the {len(files)} checkpoints in {folder} is whole: {'; '.join(notes)}",
            hint="start the experiment anew under another --name, or remove its folder",
        )
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in ``path``, on the CPU. Raises DataError when it is not the file that was written."""
    match = NAME.fullmatch(path.name)
    if not match:
        raise DataError(f"{path} is not a checkpoint", hint="they are called step-<step>.<checksum>.pt")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"checkpoint {path.name} cannot be read: {error.strerror or error}") from error
    checksum = xxhash.xxh3_64_hexdigest(content)
    if checksum != match[2]:
        raise DataError(
            f"checkpoint {path.name} is damaged: its {len(content)} bytes have the checksum {checksum}, "
            f"not the {match[2]} they were written with"
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no set of errors for a file that it cannot load
        raise DataError(f"checkpoint {path.name} cannot be loaded: {error}") from error
    if not isinstance(state, dict):
        raise DataError(f"checkpoint {path.name} holds a {type(state).__name__}, not a state")
    return state


def _remove_old(folder: Path, newest: Path, keep: int) -> None:
    """Remove all but the newest ``keep``, others of the same step, and what killed processes left unfinished."""
    files = list_checkpoints(folder)
    same_step = [file.path for file in files if file.path.name.split(".")[0] == newest.name.split(".")[0]]
    stale = [path for path in same_step if path != newest]
    kept = [file.path for file in files if file.path not in stale][: max(keep, 1)]
    unfinished = list(folder.glob(f"{TEMPORARY_PREFIX}step-*"))
    for path in {*(file.path for file in files), *unfinished} - set(kept):
        path.unlink(missing_ok=True)


def _set_aside(path: Path) -> None:
    try:
        path.rename(path.with_name(path.name + DAMAGED_SUFFIX))
    except OSError:
        return  # a folder that cannot be written to; the file is skipped again next time


def _refuse_foreign(value: object, where: str) -> None:
    """Raise UsageError for what ``torch.load(weights_only=True)`` would refuse, before it is too late."""
    kind = type(value)
    if value is None or kind in (bool, int, float, complex, str, bytes) or isinstance(value, torch.Tensor):
        return
    if kind in (torch.Size, torch.dtype, torch.device):
        return
    if kind in (dict, OrderedDict, Counter, defaultdict):
        for key, item in value.items():  # type: ignore[attr-defined]
            _refuse_foreign(key, f"a key of {where}")
            _refuse_foreign(item, f"{where}.{key}")
        return
    if kind in (list, tuple, set):
        for number, item in enumerate(value):  # type: ignore[arg-type]
            _refuse_foreign(item, f"{where}[{number}]")
        return
    raise UsageError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold",
        hint="state_dict() must give tensors, numbers, texts, lists, tuples and dicts",
    )

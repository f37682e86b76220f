"""Run folders: what an experiment leaves behind, and the way back into it.

::

    runs/<name>/
        run.json            the record: configuration, fingerprints, start and end, versions, times, metrics, state
        metrics.jsonl       a row of metrics a line
        checkpoints/        the newest few, each a whole state
        tensorboard/        event files, where TensorBoard is installed
        head.safetensors    at the end: the head's weights
        validation.npz      at the end: index, label and scores of every validation row
        lock                held by the process that trains here
"""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from featurestream.errors import (
    DataError,
    FeatureStreamError,
    FingerprintError,
    OutsideError,
    RunMismatchError,
    UsageError,
    nearest,
)
from featurestream.position import Position
from featurestream_consumer.config import TrainConfig, differences
from featurestream_consumer.files import cannot_write, write_atomically
from featurestream_consumer.reporters.console import PLACE
from featurestream_consumer.reporters.jsonl import FILE_NAME as METRICS_NAME
from featurestream_consumer.reporters.jsonl import read_rows

if TYPE_CHECKING:
    from torch import nn

    from featurestream_consumer.normalization import Normalization

FORMAT: Final = 1
RECORD_NAME: Final = "run.json"
LOCK_NAME: Final = "lock"
PACKAGES: Final = ("featurestream", "torch", "numpy", "confluent-kafka", "safetensors", "pydantic")


class Run:
    """A run folder that this process holds; made by :func:`open_run`, closed by leaving ``with``.

    The record has these keys from the beginning: ``format``, ``name``, ``id`` (12 hexadecimal digits, which tell it
    from other runs of its name), ``state`` ("running", "stopped" or "finished"),
    ``reason``, ``config``, ``fingerprint``, ``validation_fingerprint``, ``started``, ``finished`` and ``sessions`` (one
    a process that worked on it, with library versions); ``start``, ``step``, ``epoch``, ``end``, ``metrics`` and
    ``main_metric`` come with :meth:`update` and :meth:`finish`. A fork has ``lineage`` and ``fork`` besides; see
    :mod:`featurestream_consumer.fork`.

    Leaving with an error, or without :meth:`finish`, records the run as stopped, with the reason; a killed process
    leaves it as running. Either can be resumed.

    Attributes:
        folder: the run folder.
        resumed: whether the run was there before.
    """

    def __init__(self, folder: Path, record: dict[str, Any], lock: int, *, resumed: bool) -> None:
        self.folder = folder
        self.resumed = resumed
        self._record = record
        self._lock: int | None = lock

    @property
    def record(self) -> dict[str, Any]:
        """What run.json holds: a copy, at the top level."""
        return dict(self._record)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return bool(self._record["state"] == "finished")

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        """The file of metrics."""
        return self.folder / METRICS_NAME

    @property
    def head_path(self) -> Path:
        """The file of the head's weights."""
        return self.folder / "head.safetensors"

    @property
    def validation_path(self) -> Path:
        """The file of the validation scores."""
        return self.folder / "validation.npz"

    def update(self, **facts: Any) -> None:
        """Put facts into the record and write it: JSON values, positions, paths and times."""
        self._record |= {key: _plain(value) for key, value in facts.items()}
        write_record(self.folder, self._record)

    def finish(
        self,
        *,
        step: int,
        epoch: int,
        end: Position,
        metrics: Mapping[str, float],
        main_metric: str | None,
        **facts: Any,
    ) -> None:
        """Record the run's end: optimiser steps and epochs made, the position that would be read next, the final
        validation metrics (empty without validation), and the one of them to compare by. Its head and its validation
        scores must be written before: a finished run has them.
        """
        self.update(
            step=step,
            epoch=epoch,
            end=end,
            metrics=metrics,
            main_metric=main_metric,
            **facts,
            state="finished",
            finished=_now(),
            reason=None,
        )

    def stop(self, reason: str, **facts: Any) -> None:
        """Record that the run ended before its end, and why; it can be resumed."""
        self.update(**facts, state="stopped", reason=reason)

    def last_metrics(self) -> dict[str, float]:
        """Return the metrics of the last row that was reported; empty where there was none."""
        rows = read_rows(self.metrics_path)
        return {name: value for name, value in rows[-1].items() if name not in PLACE} if rows else {}

    def write_validation(self, indices: NDArray[np.int64], labels: NDArray[Any], scores: NDArray[np.float32]) -> None:
        """Write validation.npz: ``index`` (rows,), ``label`` (rows,) or (rows, K), ``scores`` (rows, outputs)."""
        write_atomically(
            self.validation_path,
            lambda file: np.savez(file, index=indices, label=labels, scores=scores),
            safe="the run's last checkpoint",
        )

    def write_head(
        self,
        head: nn.Module,
        normalization: Normalization,
        *,
        in_features: int,
        outputs: int,
        **extra: str,
    ) -> None:
        """Write head.safetensors; see :mod:`featurestream_consumer.head_file`. ``extra`` adds texts to its metadata."""
        from featurestream_consumer.head_file import write_head

        config = self._record["config"]
        write_head(
            self.head_path,
            head,
            normalization,
            name=config["head"],
            args=config["head_args"],
            in_features=in_features,
            outputs=outputs,
            normalize=config["normalize"],
            extra={
                "stream": config["stream"],
                "taps": " ".join(config["taps"]),
                "fingerprint": self._record["fingerprint"],
                **extra,
            },
        )

    def close(self, error: BaseException | None = None) -> None:
        """Let the folder go. An unfinished run is recorded as stopped; a second call does nothing."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        try:
            if self._record["state"] == "running":
                self.stop(_reason(error))
        except OutsideError:
            if error is None:
                raise  # else the first error is the one to hear about; the record then says "running"
        finally:
            os.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)


def open_run(
    runs: Path,
    config: TrainConfig,
    fingerprint: str,
    *,
    validation_fingerprint: str | None = None,
    must_exist: bool = False,
) -> Run:
    """Return the run of ``config`` in ``runs/<name>``: a new one, an unfinished one to go on with, or a finished one.

    The folder is held until the run is closed: another process that opens it gets a UsageError that names the holder.
    The hold ends with the process, however it dies. With ``must_exist`` a new run is refused.

    Raises RunMismatchError when the folder holds a run of another configuration (with the differing fields),
    FingerprintError when the stream was another one, UsageError when the folder is somebody else's, DataError for a
    damaged record, OutsideError when the folder cannot be made.
    """
    folder = runs / config.name
    if must_exist and not (folder / RECORD_NAME).exists():
        raise UsageError(f"there is no run in {folder} to go on with", hint=_known_runs(runs, config.name))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, safe="nothing was begun") from error
    lock = hold(folder)
    try:
        return _open_held(folder, config, fingerprint, validation_fingerprint, lock)
    except BaseException:
        os.close(lock)
        raise


def _open_held(
    folder: Path, config: TrainConfig, fingerprint: str, validation_fingerprint: str | None, lock: int
) -> Run:
    if not (folder / RECORD_NAME).exists():
        refuse_foreign_folder(folder)
        run = Run(folder, {}, lock, resumed=False)
        run.update(**new_record(config, fingerprint, validation_fingerprint) | {"sessions": [_session()]})
        return run
    record = read_record(folder)
    check_run(folder, record, config, fingerprint, validation_fingerprint)
    run = Run(folder, record, lock, resumed=True)
    if not run.finished:
        identity = record.get("id") or new_id()  # run folders of earlier versions have none
        run.update(id=identity, state="running", reason=None, sessions=[*record["sessions"], _session()])
    return run


def check_run(
    folder: Path,
    record: Mapping[str, Any],
    config: TrainConfig,
    fingerprint: str,
    validation_fingerprint: str | None,
) -> None:
    """Raise unless the record in ``folder`` is of a run of this configuration on these streams.

    RunMismatchError with the differing fields, FingerprintError for another stream, DataError for a damaged record.
    """
    found = differences(config_of(record, folder), config)
    if found:
        shown = ", ".join(f"{field}: {old!r} -> {new!r}" for field, (old, new) in found.items())
        raise RunMismatchError(
            f"{folder} holds a run of another configuration ({shown})",
            hint="train under another --name, give the run's own configuration to go on with it, or remove the folder",
            differences=found,
        )
    for what, was, now in (
        ("stream", record["fingerprint"], fingerprint),
        ("validation stream", record["validation_fingerprint"], validation_fingerprint),
    ):
        if was != now:
            raise FingerprintError(
                f"the run in {folder} read a {what} with fingerprint {was}, which now is {now}",
                hint="the stream was made anew; train under another --name",
            )


def new_record(config: TrainConfig, fingerprint: str, validation_fingerprint: str | None) -> dict[str, Any]:
    """Return the record of a run that begins now, before any process has worked on it."""
    return {
        "format": FORMAT,
        "name": config.name,
        "id": new_id(),
        "state": "running",
        "reason": None,
        "config": config.record(),
        "fingerprint": fingerprint,
        "validation_fingerprint": validation_fingerprint,
        "started": _now(),
        "finished": None,
        "sessions": [],
    }


def new_id() -> str:
    """Return what tells a run from others of its name: 12 random hexadecimal digits."""
    return secrets.token_hex(6)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``folder/run.json``: JSON values, positions, paths and times. Raises OutsideError where that fails."""
    content = (json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    write_atomically(folder / RECORD_NAME, lambda file: file.write(content), safe="the run up to its last checkpoint")


def read_record(folder: Path) -> dict[str, Any]:
    """Return what ``folder/run.json`` holds, without holding the folder.

    Raises UsageError where there is none, DataError when it cannot be read or is of another format.
    """
    path = folder / RECORD_NAME
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} is not a run folder: it has no {RECORD_NAME}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="the file is damaged, or not one of ours") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        seen = record.get("format") if isinstance(record, dict) else None
        raise DataError(f"{path} has the format {seen!r}", hint=f"this version reads format {FORMAT}")
    missing = {"name", "state", "config", "fingerprint", "validation_fingerprint", "sessions"} - set(record)
    if missing:
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}", hint="the file is damaged, or not one of ours")
    return record


def config_of(record: Mapping[str, Any], folder: Path) -> TrainConfig:
    """Return the configuration in the record of ``folder``. Raises DataError when it cannot be read."""
    try:
        return TrainConfig(**record["config"])
    except (UsageError, TypeError) as error:
        raise DataError(
            f"the configuration in {folder / RECORD_NAME} cannot be read: {error}",
            hint="another version of featurestream wrote it, or it is damaged; train under another --name",
        ) from error


def hold(folder: Path) -> int:
    """Lock the folder for this process and return the lock's descriptor; the system frees it when the process ends.

    Raises UsageError that names the holder where another process has it, OutsideError where it cannot be locked.
    """
    path = folder / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise cannot_write(path, error, safe="nothing was changed") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UsageError(
                f"{folder} is in use by {holder}", hint="wait until it ends, or take another --name or --runs"
            ) from error
        raise cannot_write(path, error, safe="nothing was changed") from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n".encode(), 0)
    except OSError:  # a full disk; the lock holds all the same
        pass
    return descriptor


def refuse_foreign_folder(folder: Path) -> None:
    """Raise UsageError when a folder without a record holds anything that a killed beginning would not leave."""
    foreign = sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME and path.name[0] != ".")
    if foreign:
        raise UsageError(
            f"{folder} exists and is not a run folder: it holds {', '.join(foreign[:5])} and no {RECORD_NAME}",
            hint="train under another --name, or into another folder with --runs",
        )


def _known_runs(runs: Path, name: str) -> str:
    names = sorted(path.parent.name for path in runs.glob(f"*/{RECORD_NAME}"))
    near = nearest(name, names)
    guess = f'did you mean "{near}"? ' if near else ""
    return f"{guess}runs there: {', '.join(names[:24])}" if names else f"{runs} holds no runs"


def _session() -> dict[str, Any]:
    """Return the facts of this process: a run that was resumed has several."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "started": _now(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "platform": platform.platform(),
        "versions": versions,
    }


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "ended before its end"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, FeatureStreamError) else f"{type(error).__name__}: {error}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it; a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value

"""What a probe leaves behind, and the way back into one that was stopped.

::

    runs/probe-<stream>/
        probe.json          the record: settings, fingerprints, the range as batch numbers, at the end the result
        checkpoints/        while it reads: the sums so far with their position; gone when it has finished
        lock                held by the process that probes here
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from featurestream.closing import Closing
from featurestream.errors import DataError, FingerprintError, UsageError
from featurestream.position import Position
from featurestream_consumer.checkpoint import load_newest, save_checkpoint
from featurestream_consumer.files import cannot_write, write_atomically
from featurestream_consumer.runs import RECORD_NAME as RUN_RECORD_NAME
from featurestream_consumer.runs import hold

FORMAT: Final = 1
RECORD_NAME: Final = "probe.json"


class ProbeFolder(Closing):
    """The folder of a stream's probe, held by this process until it is closed. Use it as a context manager.

    The hold ends with the process, however it dies. ``settings`` and ``fingerprints`` are what decides the result;
    the range is decided by :meth:`begin`, once, and stands in the record as batch numbers from then on.

    Attributes:
        folder: where it is.
        notes: what the user should know of what was found there.

    Raises UsageError where another process holds the folder or it is an experiment's, FingerprintError where a stream
    that an unfinished probe of the same settings has read was made anew, DataError for a damaged record, OutsideError
    where the folder cannot be made.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], fingerprints: dict[str, str]) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))  # as the record gives them back
        self._fingerprints = fingerprints
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error, safe="nothing was begun") from error
        self._lock: int | None = hold(folder)
        try:
            self._record = self._read()
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def range(self) -> tuple[Position, int] | None:
        """Start and stop of an unfinished probe of these settings; None where there is none to go on with."""
        if self._record is None or self._record["state"] != "running" or not self._is_ours():
            return None
        return _range_of(self._record)

    def result(self, start: Position, stop: int) -> dict[str, Any] | None:
        """Return the result that a finished probe of these settings, streams and range has left, or None."""
        record = self._record
        if record is None or record["state"] != "finished" or not self._is_ours():
            return None
        if record["fingerprints"] != self._fingerprints or _range_of(record) != (start, stop):
            return None
        self._remove_states()  # which a process that was killed on its last step has left
        found: dict[str, Any] = record["result"]
        return found

    def state(self) -> dict[str, Any] | None:
        """Return the newest saved state that is whole; None where there is none. Damaged ones become :attr:`notes`."""
        try:
            found = load_newest(self._checkpoints)
        except DataError as error:  # nothing is lost that the stream does not hold
            self.notes.append(f"{error.message}; reading from the start")
            return None
        if found is None:
            return None
        self.notes += found[1]
        return found[0]

    def begin(self, start: Position, stop: int) -> None:
        """Record a new probe of this range; what was there before goes."""
        # In this order: a state must never lie beside a record that it does not belong to.
        self._remove_states()
        self._write(state="running", start=[start.batch, start.row], stop=stop, started=_now(), result=None)

    def save(self, rows: int, state: dict[str, Any]) -> None:
        """Save a state, whole or not at all; ``rows`` says how far it is."""
        save_checkpoint(self._checkpoints, rows, state)

    def finish(self, result: dict[str, Any]) -> None:
        """Record the result, then remove the states."""
        self._write(**{**(self._record or {}), "state": "finished", "finished": _now(), "result": result})
        self._remove_states()

    def close(self) -> None:
        """Let the folder go; a second call does nothing."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _is_ours(self) -> bool:
        return self._record is not None and self._record["settings"] == self._settings

    def _check(self) -> None:
        if (self.folder / RUN_RECORD_NAME).exists():
            raise UsageError(
                f"{self.folder} is the run folder of an experiment", hint="name another folder of runs with --runs"
            )
        if self._record is None or self._record["state"] != "running":
            return
        if not self._is_ours():
            differing = [key for key in self._settings if self._record["settings"].get(key) != self._settings[key]]
            self.notes.append(
                f"{self.folder} held an unfinished probe of other settings ({', '.join(differing)}): starting anew"
            )
            return
        for name, now in self._fingerprints.items():
            was = self._record["fingerprints"].get(name)
            if was != now:
                raise FingerprintError(
                    f'the unfinished probe in {self.folder} read stream "{name}" with fingerprint {was}, which now is '
                    f"{now}",
                    hint="the stream was made anew; remove the folder to probe it anew",
                )

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / RECORD_NAME
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}", hint="remove the folder to probe anew") from error
        keys = {"state", "settings", "fingerprints", "start", "stop", "result"}
        if not isinstance(record, dict) or record.get("format") != FORMAT or not keys <= set(record):
            raise DataError(
                f"{path} is no record of a probe of format {FORMAT}", hint="remove the folder to probe anew"
            )
        return record

    def _write(self, **facts: Any) -> None:
        self._record = {"format": FORMAT, "settings": self._settings, "fingerprints": self._fingerprints} | facts
        content = (json.dumps(self._record, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        write_atomically(
            self.folder / RECORD_NAME, lambda file: file.write(content), safe="the probe up to its last checkpoint"
        )

    def _remove_states(self) -> None:
        for path in self._checkpoints.glob("*") if self._checkpoints.is_dir() else ():
            path.unlink(missing_ok=True)
        if self._checkpoints.is_dir():
            self._checkpoints.rmdir()


def _range_of(record: dict[str, Any]) -> tuple[Position, int]:
    return Position(*record["start"]), record["stop"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

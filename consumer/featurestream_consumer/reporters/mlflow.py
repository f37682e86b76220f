"""Parameters, metrics and files for an MLflow tracking server: ``--mlflow URI``, or ``MLFLOW_TRACKING_URI``.

The server is named by MLflow's own variable, as its user name and password are: they belong to nobody's run record. An
experiment becomes a run of MLflow's experiment ``<stream>`` (``MLFLOW_EXPERIMENT_NAME`` names another one). A thread of
its own talks to the server: a server that is slow, or away, is told of once and stops no training.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from featurestream.errors import DataError, MissingExtraError, OutsideError, UsageError
from featurestream_consumer.files import write_atomically
from featurestream_consumer.reporters.console import PLACE
from featurestream_consumer.reporters.ending import Ending, settings_of
from featurestream_consumer.reporters.jsonl import FILE_NAME as METRICS_NAME
from featurestream_consumer.reporters.jsonl import read_rows

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

VARIABLE: Final = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE: Final = "MLFLOW_EXPERIMENT_NAME"
NOTE_NAME: Final = "mlflow.json"  # in the run folder: which of the server's runs this is
FILES: Final = ("run.json", METRICS_NAME, "head.safetensors", "validation.npz")
BATCH: Final = 500  # metrics in one request; the server's limit is 1,000
PARAMS: Final = 100  # likewise of parameters, which is its limit
PARAM_CHARACTERS: Final = 500  # the least that a server of version 2 or 3 takes
RETRY_S: Final = 10.0
LAST_WORDS_S: Final = 60.0
#: What MLflow does otherwise: seven tries, which is minutes, and word of its use to its makers.
DEFAULTS: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def named_server() -> str | None:
    """Return the tracking URI that the environment names; None where it names none."""
    return os.environ.get(VARIABLE) or None


def check_installed() -> None:
    """Raise MissingExtraError where MLflow is not installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise MissingExtraError('reporter "mlflow"', "mlflow")


class MlflowReporter:
    """Sends rows of metrics to a run of a tracking server, and at the end the run folder's files.

    A run that goes on does so on the server too: what is there already is not sent again, what is missing is. Raises
    MissingExtraError where MLflow is not installed, OutsideError where the server does not take the run.
    """

    def __init__(self, folder: Path, uri: str, *, resume_step: int | None, say: Callable[[str], None]) -> None:
        check_installed()
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._errors = (MlflowException, OSError)  # those of requests are OSErrors
        self._folder = folder
        self._say = say
        self._where = uri.replace(_login(uri), "")
        self._login = _login(uri)
        self._told = False
        self._ended = False
        try:
            self._client: MlflowClient = MlflowClient(tracking_uri=uri)
            self._run, self._sent = self._open(resume_step is not None)
        except self._errors as error:
            raise OutsideError(
                f"MLflow at {self._where} does not take the run: {self._why(error)}",
                hint="is the server running? train without --mlflow to do without",
            ) from error
        self._queue: queue.SimpleQueue[Mapping[str, Any] | Ending | None] = queue.SimpleQueue()
        if resume_step is not None:
            for row in _rows_until(folder / METRICS_NAME, resume_step):
                self._queue.put(row)
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self._thread.start()

    def report(self, row: Mapping[str, Any]) -> None:
        """Take the row; it is sent soon."""
        self._queue.put(dict(row))

    def finish(self, ending: Ending) -> None:
        """Take the end: the files are sent, and the server's run has ended."""
        self._queue.put(ending)

    def close(self) -> None:
        """Wait until everything is sent, for a minute at most."""
        if self._ended:
            return
        self._ended = True
        self._queue.put(None)
        self._thread.join(LAST_WORDS_S)
        if self._thread.is_alive():
            self._tell("it does not answer")

    def _open(self, resumed: bool) -> tuple[str, set[tuple[str, int]]]:
        """Return the server's run, and the (metric, step) that it has."""
        note = self._folder / NOTE_NAME
        known = _noted(note) if resumed else None
        if known is not None:
            try:
                held = self._client.get_run(known).data.metrics
                sent = {(key, one.step) for key in held for one in self._client.get_metric_history(known, key)}
                self._client.update_run(known, status="RUNNING")
            except self._errors:  # another server, or one that has forgotten it
                pass
            else:
                return known, sent
        settings = settings_of(self._folder)
        name = os.environ.get(EXPERIMENT_VARIABLE) or str(settings.get("stream", "featurestream"))
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        run = self._client.create_run(experiment, run_name=self._folder.name, tags={"featurestream": "experiment"})
        self._send_params(run.info.run_id, settings)
        write_atomically(
            note, lambda file: file.write(json.dumps({"run": run.info.run_id}).encode()), safe="the run as it was"
        )
        return run.info.run_id, set()

    def _send_params(self, run: str, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:PARAM_CHARACTERS]) for name, value in settings.items()]
        for first in range(0, len(params), PARAMS):
            self._client.log_batch(run, params=params[first : first + PARAMS])

    def _send_all(self) -> None:
        rows: list[Mapping[str, Any]] = []
        ending: Ending | None = None
        closed = False
        while not closed or rows:
            taken = [] if closed else self._take()
            closed = closed or None in taken
            ending = next((one for one in taken if isinstance(one, Ending)), ending)
            rows += [one for one in taken if one is not None and not isinstance(one, Ending)]
            try:
                self._send_rows(rows)
                rows = []
                if closed:
                    self._send_end(ending)
            except self._errors as error:
                self._tell(self._why(error))
                if closed:
                    return
                time.sleep(RETRY_S)

    def _take(self) -> list[Mapping[str, Any] | Ending | None]:
        """Return what has come, once something has."""
        taken = [self._queue.get()]
        while not self._queue.empty():
            taken.append(self._queue.get())
        return taken

    def _send_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        found = {
            (f"{name}/{row['kind']}", row["step"]): (float(value), round(1000 * row["time"]))
            for row in rows
            for name, value in row.items()
            if name not in PLACE and isinstance(value, (int, float)) and math.isfinite(value)
        }
        new = [
            Metric(key, value, at_ms, step)
            for (key, step), (value, at_ms) in found.items()
            if (key, step) not in self._sent
        ]
        for first in range(0, len(new), BATCH):
            part = new[first : first + BATCH]
            self._client.log_batch(self._run, metrics=part)
            self._sent |= {(one.key, one.step) for one in part}

    def _send_end(self, ending: Ending | None) -> None:
        if ending is None:
            self._client.set_terminated(self._run, "KILLED")
            return
        for name in FILES:
            if (self._folder / name).is_file():
                self._client.log_artifact(self._run, str(self._folder / name))
        self._client.set_terminated(self._run, "FINISHED" if ending.state == "finished" else "FAILED")

    def _why(self, error: BaseException) -> str:
        """Return an error's first line; MLflow's name the server with its password."""
        text = str(error).strip().partition("\n")[0]
        return text.replace(self._login, "")[:300] or type(error).__name__

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._say(f"MLflow at {self._where} does not take what is reported ({why}); training goes on")


def build(folder: Path, resume_step: int | None, say: Callable[[str], None]) -> MlflowReporter:
    """Return a reporter to the server that the environment names. Raises UsageError where it names none."""
    uri = named_server()
    if uri is None:
        raise UsageError('reporter "mlflow" needs a tracking server', hint=f"name one with --mlflow URI, or {VARIABLE}")
    return MlflowReporter(folder, uri, resume_step=resume_step, say=say)


def _noted(path: Path) -> str | None:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return run if isinstance(run, str) else None


def _rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    try:
        return [row for row in read_rows(path) if row["step"] <= step]
    except DataError:  # there is none, or the reporter whose file it is will say what is wrong with it
        return []


def _login(uri: str) -> str:
    """Return what a URI has of user and password: ``ada:secret@``, or nothing."""
    login, at, _ = urlsplit(uri).netloc.rpartition("@")
    return login + at

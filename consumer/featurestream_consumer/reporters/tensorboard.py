"""Metrics as TensorBoard scalars, and settings beside what they came to: ``tensorboard --logdir runs``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from featurestream.errors import MissingExtraError
from featurestream_consumer.files import cannot_write
from featurestream_consumer.reporters.console import PLACE
from featurestream_consumer.reporters.ending import Ending, settings_of

FOLDER_NAME: Final = "tensorboard"


class TensorBoardReporter:
    """Writes every metric of a row as a scalar ``<metric>/<kind>`` at the row's step.

    TensorBoard is told to forget what an earlier process wrote after ``resume_step`` (everything, where it is None).
    ``settings`` are shown on the HPARAMS page beside the last value of every metric, where the experiments of a sweep
    stand side by side. Raises MissingExtraError where TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, resume_step: int | None, settings: Mapping[str, Any] | None = None) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingExtraError('reporter "tensorboard"', "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._settings = dict(settings or {})
        purge = 0 if resume_step is None else resume_step + 1
        try:
            self._writer = SummaryWriter(log_dir=str(folder), purge_step=purge)
        except OSError as error:
            raise cannot_write(folder, error, safe="the run up to its last checkpoint") from error

    def report(self, row: Mapping[str, Any]) -> None:
        """Write the row's metrics. Raises OutsideError for a full disk, perhaps at a later row: a thread writes."""
        try:
            for name, value in row.items():
                if name not in PLACE and isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{name}/{row['kind']}", value, row["step"], walltime=row.get("time"))
        except OSError as error:
            raise cannot_write(self._folder, error, safe="the run up to its last checkpoint") from error

    def finish(self, ending: Ending) -> None:
        """Write the settings and which metrics they are to be compared by."""
        if ending.state != "finished" or not self._settings:
            return
        from torch.utils.tensorboard.summary import hparams

        # The metrics are scalars that are there already: their last value is what the page shows.
        kind = "validation" if ending.validated else "train"
        writer: Any = self._writer.file_writer
        try:
            for summary in hparams(  # type: ignore[no-untyped-call]
                self._settings, {f"{name}/{kind}": value for name, value in ending.metrics.items()}
            ):
                writer.add_summary(summary)
        except OSError as error:
            raise cannot_write(self._folder, error, safe="the run") from error

    def close(self) -> None:
        """Write what is held back."""
        try:
            self._writer.close()
        except OSError as error:
            raise cannot_write(self._folder, error, safe="the run up to its last checkpoint") from error


def build(folder: Path, resume_step: int | None, say: Callable[[str], None]) -> TensorBoardReporter:  # noqa: ARG001 - the shared signature
    """Return a reporter that writes event files into ``folder/tensorboard``."""
    return TensorBoardReporter(folder / FOLDER_NAME, resume_step=resume_step, settings=settings_of(folder))

"""The bare forward as anybody's script has it: in a process of its own, of which nothing was set."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import Clock, Run
from featurestream.closing import Closing
from featurestream.heap import SETTINGS


def forward(model: nn.Module, batches: Sequence[Tensor], places: Sequence[int], dtype: torch.dtype | None) -> Run:
    """Run a model on the batches at ``places``, with autocast to ``dtype``; return the images a second."""
    clock = Clock()
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        for place in places:
            model(batches[place])
    return clock.stop(sum(len(batches[place]) for place in places))


class Script(Closing):
    """A model and batches in a process of their own, which ends when this is closed."""

    def __init__(self, model: nn.Module, batches: Sequence[Tensor], dtype: torch.dtype | None, file: Path) -> None:
        torch.save((model, batches), file)
        for _, name, _ in SETTINGS:  # this process has read them
            os.environ.pop(name, None)
        self._dtype = dtype
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_open, initargs=(str(file),)
        )

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()

    def step(self, places: Sequence[int]) -> Run:
        """See :func:`forward`."""
        return self._pool.submit(_step, places, self._dtype).result()


_opened: list[tuple[nn.Module, list[Tensor]]] = []  # in the process of its own


def _open(file: str) -> None:
    _opened.append(torch.load(file, weights_only=False))
    Path(file).unlink()


def _step(places: Sequence[int], dtype: torch.dtype | None) -> Run:
    return forward(*_opened[0], places, dtype)

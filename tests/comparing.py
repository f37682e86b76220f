"""Run folders as finished runs leave them, written by hand: what comparisons and pictures are tested on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: The fingerprint of the validation stream, unless a test names another one.
SAMPLES = "f" * 32


def write_run(
    runs: Path,
    name: str,
    right: Sequence[int],
    *,
    fingerprint: str | None = SAMPLES,
    index: Sequence[int] | None = None,
    finished: bool = True,
    lineage: dict[str, Any] | None = None,
    history: Sequence[tuple[int, float]] = ((10, 0.25), (20, 0.5)),
    **settings: Any,
) -> Path:
    """Write the folder of a run that had the rows of ``right`` that are 1 right, of two classes, all of class 0.

    ``history`` are steps and top1: validation rows, and of training with 0.1 more. A run that has not finished has no
    scores, and the last of them as its result; the metrics of one without validation are of training. ``settings`` are
    more of its configuration.
    """
    folder = runs / name
    folder.mkdir(parents=True)
    top1 = sum(right) / len(right)
    record = {
        "format": 1,
        "name": name,
        "state": "finished" if finished else "stopped",
        "reason": None if finished else "interrupted",
        "config": {
            "stream": "toy", "taps": ["layer3"], "head": "mlp", "head_args": {"hidden": 8}, "loss": "cross_entropy",
            "optimizer": "Adam", "optimizer_args": {"lr": 0.1}, "start": "earliest", "seed": 0,
            "validate_stream": "toy-validation",
        } | settings,
        "fingerprint": "a" * 32,
        "validation_fingerprint": fingerprint,
        "sessions": [],
        "start": {"batch": 0, "row": 0},
    }  # fmt: skip
    if finished:
        main = None if fingerprint is None else "top1"
        record |= {"step": 20, "epoch": 2, "metrics": {"top1": top1, "loss": 1 - top1}, "main_metric": main}
    if lineage is not None:
        record["lineage"] = lineage
    (folder / "run.json").write_text(json.dumps(record))
    rows = []
    for step, value in history:
        place = {"step": step, "epoch": step // 10, "batch": step, "time": 0.0}
        rows.append({"kind": "train", **place, "top1": value + 0.1, "loss": 0.9 - value})
        if fingerprint is not None:
            rows.append({"kind": "validation", **place, "top1": value, "loss": 1 - value})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished and fingerprint is not None:
        np.savez(
            folder / "validation.npz",
            index=np.arange(len(right)) if index is None else np.array(index),
            label=np.zeros(len(right), np.int64),
            scores=np.eye(2, dtype=np.float32)[[0 if one else 1 for one in right]],
        )
    return folder


def lineage(parent: str, step: int, *, row: int = 0, **changes: tuple[Any, Any]) -> dict[str, Any]:
    """What run.json says of a fork; a batch is a step, ten are an epoch. ``a__b`` is ``a.b``."""
    return {
        "parent": parent, "folder": f"runs/{parent}", "fingerprint": "a" * 32,
        "step": step, "epoch": step // 10, "batch": step, "row": row,
        "changes": {key.replace("__", "."): list(values) for key, values in changes.items()},
    }  # fmt: skip

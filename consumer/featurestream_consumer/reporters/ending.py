"""How an experiment ended, for reporters that want to know, and the settings that it had."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

#: What the samples of a stream look like: ``pictures(stream, indices)``, int64 (samples,), gives uint8
#: (samples, side, side, 3), and raises one of our errors where the data is not at hand.
Pictures = Callable[[str, NDArray[np.int64]], NDArray[np.uint8]]

#: Settings by which runs are not compared: names, places, and what decides no weight.
NOT_SHOWN: Final = frozenset(
    {"name", "runs", "device", "checkpoint_seconds", "keep_checkpoints", "report_steps", "reporters"}
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How an experiment ended.

    Attributes:
        state: finished, or diverged.
        metrics: the final metrics; empty where it diverged.
        classes: the names of its classes, where they have any.
        pictures: what samples of its validation stream look like, where somebody can tell; see :data:`Pictures`.
        validated: whether the metrics are of a validation stream.
    """

    state: Literal["finished", "diverged"]
    metrics: Mapping[str, float]
    classes: tuple[str, ...] | None
    pictures: Callable[[NDArray[np.int64]], NDArray[np.uint8]] | None
    validated: bool = True


def settings_of(folder: Path) -> dict[str, bool | int | float | str]:
    """Return the settings in a run folder's run.json by dotted names: ``optimizer_args.lr``; none where there is none.

    Those that were not given are left out; lists are texts. It is read as it is: a reporter refuses no run.
    """
    try:
        config = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in NOT_SHOWN:
            continue
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return {
        name: value if isinstance(value, (bool, int, float, str)) else _text(value)
        for name, value in flat.items()
        if value is not None
    }


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)

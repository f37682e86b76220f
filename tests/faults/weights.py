"""What a trainer has learnt: as a checksum, and as an undisturbed run learns it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch
import xxhash

from featurestream.ports import Log
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from featurestream_consumer.trainer import Trainer


def undisturbed(fields: Mapping[str, Any], log: Log, steps: int) -> str:
    """Train up to a step and return the checksum of what was learnt; ``not-reached`` where training ends before it."""
    step, caught = Trainer.step, []

    def until(self: Trainer, *args: Any, **more: Any) -> float:
        if self.step_count == steps:
            caught.append(digest(learnt(self.state_dict())))
            raise KeyboardInterrupt
        return step(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(Trainer, "step", until)
        train(TrainConfig(**fields), log)
    return caught[0] if caught else "not-reached"


def learnt(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what does not change where an epoch ends, as a checkpoint may be of before or after that."""
    return {name: state[name] for name in ("head", "optimizer", "step", "rows")}


def digest(state: Any) -> str:
    """Return a checksum of a trainer's whole state: weights, optimiser, random numbers and counts."""
    hashed = xxhash.xxh3_64()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            hashed.update(value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                hashed.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            hashed.update(repr(value).encode())

    add(state)
    return hashed.hexdigest()

"""Several processes read what one process chose, and train on the labels of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from featurestream.errors import UsageError
from featurestream.memory import MemoryLog
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from tests.ranks import train_on_ranks
from tests.support import make_manifest, publish


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    publish(log, make_manifest("live", samples=10, lanes=2, passes=None, taps=("layer3",)), range(4))
    publish(log, make_manifest("more", samples=7, passes=1, taps=("layer3",)))
    return log


def config(runs: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "name": "E1", "stream": "live", "taps": "layer3", "head": "linear", "batch_size": 5, "epochs": 3,
        "validate_stream": "more", "when_behind": "reread", "runs": runs, "device": "cpu", "reporters": ("jsonl",),
    }  # fmt: skip
    return TrainConfig(**(settings | changes))


def test_ranks_read_what_rank_0_chose_and_train_on_the_labels_of_the_file(log: MemoryLog, tmp_path: Path) -> None:
    file = tmp_path / "parity.csv"
    file.write_text("id,label\n" + "".join(f"img/{index}.png,{'ab'[index % 2]}\n" for index in range(10)))
    alone = train(config(tmp_path / "alone", labels=file), log)
    for result in (first := train_on_ranks(2, config(tmp_path / "many", labels=file), log)):
        assert (result.steps, result.passes, result.rereads) == (6, 1, 2)
    record = json.loads((first[0].folder / "run.json").read_text())
    assert record["epoch_passes"] == [0, 0, 0, 0]
    assert record["labels"]["classes"] == ["a", "b"]
    one, other = (load_file(result.folder / "head.safetensors") for result in (alone, first[0]))
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    assert np.load(first[0].folder / "validation.npz")["label"].tolist() == [index % 2 for index in range(7)]


def test_ranks_cannot_leave_out_rows(log: MemoryLog, tmp_path: Path) -> None:
    file = tmp_path / "few.csv"
    file.write_text("id,label\nimg/1.png,0\nimg/2.png,1\n")
    with pytest.raises(UsageError, match="several processes cannot leave out rows without a label"):
        train_on_ranks(2, config(tmp_path / "runs", labels=file, unlabelled="drop"), log)
    assert not (tmp_path / "runs").exists()

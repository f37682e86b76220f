"""A fork goes on as its parent read, also where that was a choice, and may be given other labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from featurestream.errors import DataError, UnknownNameError, UsageError
from featurestream.memory import MemoryLog
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.fork import fork
from featurestream_consumer.run import train
from tests.support import append, create, make_manifest

PASS_BATCHES = 3


@pytest.fixture
def log() -> MemoryLog:
    """A stream without end, of which a pass is there."""
    log = MemoryLog()
    create(log, make_manifest("live", samples=10, batch_samples=4, passes=None, taps=("layer3",)))
    append(log, make_manifest("live", samples=10, batch_samples=4, passes=None, taps=("layer3",)), range(PASS_BATCHES))
    return log


def grow(log: MemoryLog, *passes: int) -> None:
    manifest = make_manifest("live", samples=10, batch_samples=4, passes=None, taps=("layer3",))
    append(log, manifest, (batch for one in passes for batch in range(3 * one, 3 * one + 3)))


def parent(runs: Path, log: MemoryLog, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "name": "E1", "stream": "live", "taps": "layer3", "head_args": {"hidden": 8}, "batch_size": 5, "epochs": 3,
        "runs": runs, "device": "cpu", "reporters": ("jsonl",), "when_behind": "reread", "keep_checkpoints": 9,
    }  # fmt: skip
    return train(TrainConfig(**(settings | changes)), log).folder


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def head_bytes(folder: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in load_file(folder / "head.safetensors").items()}


def test_a_fork_reads_the_passes_that_its_parent_chose_and_chooses_for_itself_after_them(log, tmp_path):
    one = parent(tmp_path, log)
    assert record_of(one)["epoch_passes"] == [0, 0, 0, 0]
    grow(log, 1, 2)
    same = fork(one, log, name="same", at="step:4")
    assert head_bytes(same.folder) == head_bytes(one), "although there are other passes now"
    longer = fork(one, log, name="longer", changes={"epochs": 6})
    assert record_of(longer.folder)["epoch_passes"] == [0, 0, 0, 0, 1, 2, 1]
    assert (longer.passes, longer.rereads) == (3, 3)
    with pytest.raises(UsageError, match='a fork cannot change "when_behind"'):
        fork(one, log, name="waiting", changes={"when_behind": "wait"})


def test_a_fork_may_have_other_labels_checked_before_its_folder_is_made(log, tmp_path):
    one = parent(tmp_path / "runs", log)
    parity = tmp_path / "parity.csv"
    parity.write_text("id,label\n" + "".join(f"img/{index}.png,{['even', 'odd'][index % 2]}\n" for index in range(9)))
    with pytest.raises(DataError, match=r"without a label in .*: 1 \(img/9.png\)"):
        fork(one, log, name="F", changes={"labels": str(parity), "epochs": 5})
    assert not (tmp_path / "runs" / "F").exists()
    settings = {"labels": str(parity), "unlabelled": "drop", "epochs": 5}
    done = fork(one, log, name="F", changes=settings)
    record = record_of(done.folder)
    assert record["labels"]["classes"] == ["even", "odd"]
    assert record["labels"]["training"] == {"samples": 10, "unlabelled": 1}
    assert done.steps == 3 * 2 + 2 * 2, "9 rows in batches of 5"
    assert fork(one, log, name="F", changes=settings).already_finished
    again = fork(tmp_path / "runs" / "F", log, name="G", changes={"epochs": 6})
    assert record_of(again.folder)["labels"] == record["labels"]
    with pytest.raises(UnknownNameError, match='setting of a fork "labels_sha256"'):
        fork(one, log, name="H", changes={"labels_sha256": "0"})

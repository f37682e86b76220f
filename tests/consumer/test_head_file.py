"""head.safetensors: plain names, everything needed to use the head, the same bytes from the same run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from featurestream.errors import DataError
from featurestream_consumer.build import build_trainer
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.head_file import read_head
from featurestream_consumer.runs import open_run
from featurestream_consumer.trainer import Trainer


def config(**values: Any) -> TrainConfig:
    base = {"name": "E1", "stream": "s", "taps": "t", "head_args": {"hidden": 5}, "normalize": "standardize"}
    return TrainConfig(**(base | {"device": "cpu"} | values))


def trained(**values: Any) -> Trainer:
    trainer = build_trainer(config(**values), in_features=4, outputs=3)
    rows = torch.arange(40.0).reshape(10, 4) * torch.tensor([1.0, 2.0, -1.0, 0.0])
    trainer.normalization.update(rows)
    for _ in range(3):
        trainer.step(rows, torch.arange(10) % 3)
    return trainer


def written(folder: Path, trainer: Trainer, **values: Any) -> Path:
    with open_run(folder, config(**values), "f1") as run:
        run.write_head(
            trainer.head, trainer.normalization, in_features=4, outputs=3, classes='["a", "b", "c"]', note="x"
        )
        return run.head_path


def test_weights_have_plain_names_and_metadata_are_texts(tmp_path: Path) -> None:
    trainer = trained()
    path = written(tmp_path, trainer)
    tensors = load_file(path)
    assert sorted(tensors) == [
        "0.bias", "0.weight", "2.bias", "2.weight", "normalization.mean", "normalization.rows", "normalization.std",
    ]  # fmt: skip
    assert torch.equal(tensors["0.weight"], trainer.head.state_dict()["0.weight"])
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {
            "classes": '["a", "b", "c"]', "fingerprint": "f1", "format": "featurestream-head-1", "head": "mlp",
            "head_args": '{"hidden": 5}', "in_features": "4", "normalize": "standardize", "note": "x", "outputs": "3",
            "stream": "s", "taps": "t",
        }  # fmt: skip


@pytest.mark.parametrize("normalize", ["none", "l2", "standardize"])
def test_a_head_read_back_gives_the_scores_that_were_validated(tmp_path: Path, normalize: str) -> None:
    trainer = trained(normalize=normalize, head_args={"hidden": 5, "dropout": 0.5})
    head = read_head(written(tmp_path, trainer, normalize=normalize, head_args={"hidden": 5, "dropout": 0.5}))
    features = np.random.default_rng(0).normal(size=(6, 2, 2)).astype(np.float16)
    scores = trainer.evaluate([(features, np.zeros(6, dtype=np.int64), np.arange(6))]).scores
    assert np.array_equal(head(features).numpy(), scores)
    assert head.metadata["fingerprint"] == "f1"


WRITER = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
import test_head_file as t
t.written(pathlib.Path(sys.argv[1]), t.trained())
"""


def test_the_same_run_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    """safetensors itself writes metadata in another order in every process."""
    sums = {hashlib.sha256(written(tmp_path / "here", trained()).read_bytes()).hexdigest()}
    for number in range(2):
        folder = tmp_path / str(number)
        subprocess.run([sys.executable, "-c", WRITER, str(folder), str(Path(__file__).parent)], check=True)
        sums.add(hashlib.sha256((folder / "E1" / "head.safetensors").read_bytes()).hexdigest())
    assert len(sums) == 1


def test_files_that_are_no_heads_are_told(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(DataError, match="cannot be read as a head"):
        read_head(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(DataError, match="cannot be read as a head"):
        read_head(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(DataError, match='is not a head that this version reads: format "None"'):
        read_head(path)


def test_a_file_whose_weights_do_not_fit_the_head_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, trained())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"0.weight": torch.zeros(5, 4)}, path, metadata=metadata)
    with pytest.raises(DataError, match='does not fit the head "mlp"'):
        read_head(path)

"""A file that would run code when it is unpickled is refused, and its code does not run."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
import xxhash

from featurestream.errors import DataError
from featurestream_consumer.checkpoint import load_checkpoint
from featurestream_producer.weights import read_tensors


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def bombs(mark: Path) -> dict[str, bytes]:
    saved = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "more": Bomb(mark)}, saved)
    return {"torch.save": saved.getvalue(), "pickle": pickle.dumps(Bomb(mark))}


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_a_bomb_is_no_checkpoint_and_no_weights(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "it ran"
    content = bombs(mark)[kind]
    checkpoint = tmp_path / f"step-000000000001.{xxhash.xxh3_64_hexdigest(content)}.pt"
    checkpoint.write_bytes(content)
    with pytest.raises(DataError, match="cannot be loaded"):
        load_checkpoint(checkpoint)
    for name in ("weights.pth", "weights.ckpt", "weights.bin", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError):
            read_tensors(tmp_path / name)
    assert not mark.exists()
    pickle.loads(bombs(mark)["pickle"])
    assert mark.exists(), "else nothing was proven"

"""Checkpoints are whole or not there, whatever happens while one is written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from featurestream.errors import DataError, OutsideError, UsageError
from featurestream_consumer import files
from featurestream_consumer.checkpoint import list_checkpoints, load_checkpoint, load_newest, save_checkpoint


def state(number: int) -> dict[str, Any]:
    return {"weights": torch.full((3,), float(number)), "position": {"batch": number, "row": 0}, "none": None}


def test_what_was_saved_comes_back_the_newest_first(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 10, state(10))
    save_checkpoint(tmp_path, 20, state(20))
    found = load_newest(tmp_path)
    assert found is not None
    loaded, notes = found
    assert loaded["position"] == {"batch": 20, "row": 0}
    assert loaded["weights"].tolist() == [20.0, 20.0, 20.0]
    assert notes == []


def test_an_empty_or_missing_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "missing") is None


def test_only_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 9, 10, 11):
        save_checkpoint(tmp_path, step, state(step), keep=3)
    assert [file.step for file in list_checkpoints(tmp_path)] == [11, 10, 9]
    save_checkpoint(tmp_path, 12, state(12))
    assert [file.step for file in list_checkpoints(tmp_path)] == [12, 11]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_saved_twice_is_there_once_with_the_later_state(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, state(1))
    save_checkpoint(tmp_path, 5, state(2))
    assert len(list_checkpoints(tmp_path)) == 1
    found = load_newest(tmp_path)
    assert found is not None
    assert found[0]["position"]["batch"] == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_newest_one_falls_back_to_the_one_before_and_says_so(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 10, state(10))
    newest = save_checkpoint(tmp_path, 20, state(20))
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncated": content[:-7], "flipped": content, "emptied": b""}[damage])
    found = load_newest(tmp_path)
    assert found is not None
    loaded, notes = found
    assert loaded["position"]["batch"] == 10
    assert len(notes) == 2
    assert notes[0].startswith(f"checkpoint {newest.name} is damaged: its ")
    assert notes[1] == "continuing from the checkpoint of step 10"
    assert newest.with_name(newest.name + ".damaged").exists(), "kept as evidence"
    again = load_newest(tmp_path)
    assert again is not None
    assert again[1] == [], "said once"
    save_checkpoint(tmp_path, 15, state(15))
    assert [file.step for file in list_checkpoints(tmp_path)] == [15, 10]


def test_only_damaged_ones_are_an_error_and_not_a_new_beginning(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step, state(step)).write_bytes(b"x")
    for _ in range(2):  # the second look must not find an empty folder
        with pytest.raises(DataError, match=r"none of the 2 checkpoints in .* is whole"):
            load_newest(tmp_path)


def test_a_process_killed_between_write_and_rename_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    """A real SIGKILL, at the very moment when the temporary file is complete and not yet renamed."""
    save_checkpoint(tmp_path, 10, state(10))
    program = (
        "import os, signal, sys, pathlib, torch\n"
        "from featurestream_consumer.checkpoint import save_checkpoint\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_checkpoint(pathlib.Path(sys.argv[1]), 20, {'weights': torch.zeros(3)})\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -9
    unfinished = [path for path in tmp_path.iterdir() if path.name.startswith(files.TEMPORARY_PREFIX)]
    assert len(unfinished) == 1
    found = load_newest(tmp_path)
    assert found is not None
    assert found[0]["position"]["batch"] == 10
    assert found[1] == [], "nothing is damaged"
    save_checkpoint(tmp_path, 30, state(30))
    assert not unfinished[0].exists(), "the next checkpoint clears what was left behind"


def test_a_full_disk_says_what_is_safe_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 10, state(10))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutsideError) as caught:
        save_checkpoint(tmp_path, 20, state(20))
    message = str(caught.value)
    assert "step-000000000020" in message
    assert "No space left on device; safe: the checkpoint of step 10 (step-000000000010." in message
    assert message.endswith("free some space there and give the same command again")
    assert caught.value.exit_code == 3
    assert len(list(tmp_path.iterdir())) == 1


def test_a_really_full_disk_gives_the_same_error() -> None:
    """/dev/full refuses every byte, as a full disk does."""
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left") as caught:
        file.write(b"x")
    error = files.cannot_write(Path("/dev/full"), caught.value, safe="the rest")
    assert str(error) == (
        "cannot write /dev/full: No space left on device; safe: the rest; free some space there and give the same "
        "command again"
    )


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutsideError, match="safe: nothing yet; make the folder writable"):
        save_checkpoint(tmp_path / "file" / "checkpoints", 1, state(1))


class Foreign:
    """Something that only pickle can hold."""


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": [1, Foreign()]}, r"state\.a\[1\] is a .*Foreign, which a checkpoint cannot hold"),
        ({"a": {"b": Path("x")}}, r"state\.a\.b is a .*Path"),
        ({Foreign(): 1}, r"a key of state is a .*Foreign"),
        ({"a": __import__("numpy").float64(1)}, r"state\.a is a numpy\.float64"),
    ],
)
def test_a_state_that_could_not_be_loaded_again_is_refused_before_it_is_written(
    tmp_path: Path, bad: dict[Any, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        save_checkpoint(tmp_path, 1, bad)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_a_file_that_torch_itself_reads(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1))
    assert torch.load(path, weights_only=True)["position"] == {"batch": 1, "row": 0}


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """Also with the right checksum: loading never unpickles more than plain values."""
    import io

    import xxhash

    buffer = io.BytesIO()
    torch.save({"a": Foreign()}, buffer)
    content = buffer.getvalue()
    path = tmp_path / f"step-000000000001.{xxhash.xxh3_64_hexdigest(content)}.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"checkpoint step-000000000001\..* cannot be loaded"):
        load_checkpoint(path)


def test_a_file_of_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a checkpoint; they are called step-<step>\.<checksum>\.pt"):
        load_checkpoint(tmp_path / "weights.pt")

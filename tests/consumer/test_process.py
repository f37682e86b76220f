"""A process that trains: its idle threads leave the cores to the producer beside it, and it keeps its memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from featurestream_consumer.spinning import spin_briefly

#: Runs a command up to the moment at which it imports torch, which reads the setting then.
UP_TO_TORCH = """
import os, resource, sys

def pages_of_a_block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 40_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            pages_of_a_block()
            print(os.environ.get("GOMP_SPINCOUNT"), pages_of_a_block() < 100, flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.argv[0] = "featurectl"
from featurectl.app import main
main()
"""
COMMANDS = {
    "train": ("train", "toy", "--tap", "avgpool", "--name", "one"),
    "sweep": ("sweep", "toy.yaml"),
    "fork": ("fork", "runs/one", "--name", "two"),
    "probe": ("probe", "toy", "--bootstrap-servers", "127.0.0.1:1"),
}


def test_a_setting_of_the_users_stays() -> None:
    for own in ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        environment = dict(own)
        spin_briefly(environment)
        assert environment == own


@pytest.mark.parametrize("command", COMMANDS)
def test_what_trains_sets_both_before_torch_is_there(command: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("stream: toy\nepochs: 1\nbase: {tap: avgpool}\ngrid: {seed: [0]}\n")
    settings = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run(
        [sys.executable, "-c", UP_TO_TORCH, *COMMANDS[command]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    keeps = platform.libc_ver()[0] == "glibc"  # other C libraries have other heaps
    assert (done.stdout, done.returncode) == (f"10000 {keeps}\n", 0), done.stderr

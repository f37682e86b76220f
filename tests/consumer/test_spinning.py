"""A trainer's threads that have nothing to do leave the cores to the producer beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurestream_consumer.spinning import spin_briefly

#: Runs a command up to the moment at which it imports torch, which reads the setting then.
UP_TO_TORCH = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
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
def test_what_trains_sets_it_before_torch_is_there(command: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text("stream: toy\nepochs: 1\nbase: {tap: avgpool}\ngrid: {seed: [0]}\n")
    settings = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run(
        [sys.executable, "-c", UP_TO_TORCH, *COMMANDS[command]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("10000\n", 0), done.stderr

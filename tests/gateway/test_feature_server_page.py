"""docs/feature-server.md: the original's workflow, each of its lines run as it stands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featurestream.cluster import Cluster
from tests.project.documents import FENCED, ROOT

PAGE = (ROOT / "docs" / "feature-server.md").read_text(encoding="utf-8")
COMMAND = f"{shlex.quote(sys.executable)} -m featurectl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with photos and a CSV of them."""
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(0)
    for name in "abcdef":
        Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"photos/{name}.png")
    lines = [f"{name}.png,{number % 2}" for number, name in enumerate("abcdef")]
    (tmp_path / "train.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    return tmp_path


@contextlib.contextmanager
def running(line: str, folder: Path, until: str) -> Iterator[str]:
    """Run a command of the page until the block ends; it begins when a line of its has come that matches ``until``."""
    command = line.replace("featurectl", COMMAND, 1)
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        told = []
        for one in process.stderr:
            told.append(one)
            if found := re.search(until, one):
                yield found[0]
                break
        else:
            raise AssertionError("".join(told))
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()


@pytest.mark.broker
@pytest.mark.timeout(280)
def test_every_line_of_the_page_runs(broker: Cluster, folder: Path) -> None:
    assert broker.embedded
    produce, serve, *rest = [(language, text.strip()) for language, text in FENCED.findall(PAGE)]
    with (
        running(produce[1], folder, r"."),
        running(f"{serve[1]} --port 0", folder, r"http://127.0.0.1:\d+") as url,
    ):
        answers: list[Any] = []
        for language, text in rest:
            here = text.replace("http://localhost:9999", url)
            if language == "python":
                out = wait_for_rows(here, folder)
                found = re.match(r"\((\d+), 512, 1, 1\) \[([01] ?){3}\] \['\w\.png' '\w\.png' '\w\.png'\] \d+\n", out)
                assert found, out
                assert int(found[1]) >= 18
            else:
                answers.append(json.loads(wait_for_answer(unwatched(here), folder)))
    data, after, recent, requested, made = answers
    assert len({(row["id"], row["batch"]) for row in data["rows"]}) == len(data["rows"]) / 3
    assert list(data["rows"][0]["features"]) == ["avgpool"]
    assert (len(after["rows"]), list(after["rows"][0]["features"])) == (5, ["layer2", "avgpool"])
    assert recent["rows"][0]["label"] in (0, 1)
    assert (requested["stream"], requested["samples"], requested["producer"]) == ("photos-requests", 2, "live")
    assert [row["id"] for row in made["rows"]] == ["b.png"] * 3 + ["a.png"] * 3


def unwatched(line: str) -> str:
    """Return what a line has watched: there is no terminal here."""
    found = re.fullmatch(r"watch -n 10 '(.*)'", line)
    return found[1] if found else line


def wait_for_answer(line: str, folder: Path) -> str:
    """Return what a line prints, once the stream is there and the answer has rows; give it some tries."""
    for _ in range(60):
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, text=True, stdout=subprocess.PIPE, check=True, timeout=60
        )
        found = json.loads(done.stdout)
        if "status" not in found and found.get("rows") != []:
            return done.stdout
        subprocess.run(["sleep", "0.5"], check=True)
    raise AssertionError(done.stdout)


def wait_for_rows(program: str, folder: Path) -> str:
    """Return what a program of the page prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, text=True, stdout=subprocess.PIPE, check=True, timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    return done.stdout

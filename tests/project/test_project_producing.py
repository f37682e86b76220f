"""The commands of docs/producing.md run, on two dozen small images, and print the lines that the page shows.

What is made small is named in ``SMALLER`` and ``ADDED``. What needs several hosts or GPUs is run elsewhere: torchrun's
command in tests/e2e/test_ranks_command.py, copies on a GPU in tests/producer/test_transfer_gpu.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import sys
import threading
from pathlib import Path

import pytest

from featurectl.app import main
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.names import tap_topic
from featurestream_producer import prepare
from tests.producing import write_images
from tests.project.documents import FENCED, ROOT

PAGE = ROOT / "docs" / "producing.md"
IMAGES = 24
SMALLER = {"resnet50": "resnet18", "--device cuda:0,cuda:1": "", "--passes 10": "--passes 4", "--lanes 16": ""}
ADDED = ("--weights", "random", "--image-size", "32", "--device", "cpu", "--workers", "0")
ENDLESS = "endless"
INTERRUPTED = 130
NUMBER = re.compile(r"\d[\d.,]*(?: ?(?:[TGMk]?B|s|min|h|d|ms)\b)?")

pytestmark = pytest.mark.broker


@pytest.fixture
def photos(broker: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", IMAGES)
    (tmp_path / "wanted.txt").write_text("a/000.png\nb/003.png\n")
    return tmp_path


def commands(section: str) -> list[tuple[list[str], list[str]]]:
    """Return the featurectl commands of a section, made small, each with the lines that the page shows under it."""
    text = PAGE.read_text(encoding="utf-8")
    text = text[text.index(f"# {section}\n") :].partition("\n## ")[0]
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    found: list[tuple[list[str], list[str]]] = []
    for language, block in FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if language in ("sh", "console") else ():
            command = line.removeprefix("$ ")
            words = shlex.split(command, comments=True) if command.startswith("featurectl ") else []
            if words:
                found.append(([*words, *(ADDED if words[1] == "produce" else ())], []))
            elif language == "console":
                found[-1][1].append(line)
    return found


def run(words: list[str]) -> tuple[int | str | None, str]:
    """Return a command's exit code, and all that it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as end:
            main()
    return end.value.code, printed.getvalue()


def lines_of(text: str) -> list[str]:
    """Return lines without their numbers, which differ from run to run."""
    return [NUMBER.sub("0", line).strip() for line in text.splitlines()]


def check(section: str) -> list[str]:
    """Run a section's commands; return their names."""
    ran = []
    for words, shown in commands(section):
        code, printed = run(words)
        assert code == 0, f"{shlex.join(words)}: {printed}"
        missing = [line for line in shown if lines_of(line)[0] not in lines_of(printed)]
        assert missing == [], f"{shlex.join(words)} printed {printed}"
        ran.append(words[1])
    return ran


def test_the_commands_run_one_after_the_other(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test, as the commands build on the stream of the first ones."""
    monkeypatch.setattr(prepare, "MEASURE_S", 0.1)
    assert check("Producing") == ["produce"] * 3
    assert check("Several devices, several hosts") == ["produce"]
    assert check("Where the time goes") == ["produce"]
    assert check("Samples that are wanted now") == ["request", "produce", "peek"]
    assert check("What it costs, before it runs") == ["produce"]


def test_an_endless_stream_goes_on_until_ctrl_c_with_the_exit_code_that_the_page_says(
    photos: Path, broker: Cluster
) -> None:
    [(words, _)] = commands("Pace")
    assert ENDLESS in words
    stream = "photos-endless"
    words[words.index("--stream") + 1] = stream
    ended = threading.Event()

    def interrupt_after_a_pass() -> None:
        with KafkaLog(broker) as log:
            source = log.source()
            topic = tap_topic(stream, "avgpool")
            while not ended.wait(0.2):
                lanes = log.topics().get(topic, 0)
                if sum(source.bounds(topic, lane).high for lane in range(lanes)) >= 1:
                    os.kill(os.getpid(), signal.SIGINT)
                    break
            source.close()

    watch = threading.Thread(target=interrupt_after_a_pass)
    watch.start()
    try:
        code, printed = run(words)
    finally:
        ended.set()
        watch.join()
    assert code == INTERRUPTED, printed
    assert "the same command goes on" in printed
    assert f"exit code {INTERRUPTED}" in PAGE.read_text(encoding="utf-8")

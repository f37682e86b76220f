"""The workflow of docs/feature-server.md, run as it stands; as a program it writes down what that printed.

``python -m tests.gateway.workflow`` writes docs/feature-server-transcript.txt.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from featurestream.broker import EmbeddedBroker
from tests.project.documents import FENCED, ROOT

PAGE = ROOT / "docs" / "feature-server.md"
TRANSCRIPT = ROOT / "docs" / "feature-server-transcript.txt"
COMMAND = f"{shlex.quote(sys.executable)} -m featurectl"
HOST = "http://localhost:9999"

LONGEST = 400  # characters of a line in the transcript
MOST = 8  # lines of an output in the transcript
CUT = " [...]"


@dataclass
class Step:
    """One block of the page, and the lines that it printed."""

    language: str
    text: str
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        """What it printed."""
        return "\n".join(self.lines)


def blocks() -> list[tuple[str, str]]:
    """Return the page's fenced blocks: (language, text)."""
    return [(language, text.strip()) for language, text in FENCED.findall(PAGE.read_text(encoding="utf-8"))]


def fill(folder: Path) -> None:
    """Write six photos and a CSV of them into a folder."""
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for name in "abcdef":
        Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"photos/{name}.png")
    lines = [f"{name}.png,{number % 2}" for number, name in enumerate("abcdef")]
    (folder / "train.csv").write_text("\n".join(["path,label", *lines]) + "\n")


def work(folder: Path) -> list[Step]:
    """Do every block of the page in a folder, on the embedded broker; return them with what they printed."""
    steps = [Step(*block) for block in blocks()]
    produce, serve, *rest = steps
    with (
        running(produce, folder, r"."),
        running(serve, folder, r"http://127.0.0.1:\d+", " --port 0") as url,
    ):
        for step in rest:
            here = step.text.replace(HOST, url)
            step.lines = (
                printed([sys.executable, "-c", here], folder)
                if step.language == "python"
                else answered(unwatched(here), folder)
            )
    serve.lines = [line.replace(url, HOST) for line in serve.lines]
    return steps


@contextmanager
def running(step: Step, folder: Path, until: str, more: str = "") -> Iterator[str]:
    """Run a command of the page while the block lasts, which begins when a line of its that matches has come."""
    command = step.text.replace("featurectl", COMMAND, 1) + more
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    begun = threading.Event()

    def read() -> None:
        for line in process.stderr or ():
            step.lines.append(line.rstrip("\n"))
            if re.search(until, line):
                begun.set()
        begun.set()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        begun.wait()
        found = re.search(until, step.output)
        assert found, step.output
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
            thread.join()
            if process.stderr is not None:
                process.stderr.close()


def unwatched(line: str) -> str:
    """Return what a line has watched: there is no terminal here."""
    found = re.fullmatch(r"watch -n 10 '(.*)'", line)
    return found[1] if found else line


def answered(line: str, folder: Path) -> list[str]:
    """Return what a line prints, once the stream is there and the answer has rows; give it some tries."""
    for _ in range(60):
        lines = printed(["bash", "-c", line], folder)
        found = json.loads("\n".join(lines))
        if "status" not in found and found.get("rows") != []:
            return lines
        subprocess.run(["sleep", "0.5"], check=True)
    raise AssertionError("\n".join(lines))


def printed(command: list[str], folder: Path) -> list[str]:
    """Return the lines that a command prints."""
    done = subprocess.run(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, check=True, timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    return done.stdout.splitlines()


def asked(language: str, text: str) -> str:
    """Return a block as it is typed into a shell."""
    return f"$ {text}" if language == "sh" else f"$ python - <<'END'\n{text}\nEND"


def transcript(steps: list[Step]) -> str:
    """Return blocks and what they printed as a shell shows them; of what is long, the beginning."""
    parts = ["Every block of docs/feature-server.md, and what it printed: python -m tests.gateway.workflow\n"]
    for step in steps:
        lines = [line if len(line) <= LONGEST else line[:LONGEST] + CUT for line in step.lines[:MOST]]
        if len(step.lines) > MOST:
            lines.append(CUT.strip())
        parts.append("\n".join([asked(step.language, step.text), *lines]) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Do the workflow on a broker of its own, and write the transcript."""
    with tempfile.TemporaryDirectory(prefix="featurestream-workflow-") as temporary:
        os.environ["FEATURESTREAM_HOME"] = f"{temporary}/home"
        os.environ.pop("FEATURESTREAM_BOOTSTRAP_SERVERS", None)
        folder = Path(temporary) / "work"
        folder.mkdir()
        fill(folder)
        broker = EmbeddedBroker(Path(temporary) / "home")
        try:
            broker.up(print)
            text = transcript(work(folder)).replace(temporary, "...")
        finally:
            broker.down()
    TRANSCRIPT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

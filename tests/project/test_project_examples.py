"""The worked examples of docs/ run: every command of ablation.md, every Python block of python.md, on small streams.

What is made small is named in ``SMALLER``, and nothing else is changed: the commands and blocks are those of the pages.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from featurectl.app import main
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.stream import FeatureStream
from featurestream_consumer import compare_runs
from tests.gateway.serving import serving
from tests.project.documents import FENCED, ROOT, fenced
from tests.support import make_manifest, publish

#: The sizes of the pages, and what the test makes of them; the streams have other names, and 60 samples each.
SMALLER = {"epochs: 20": "epochs: 2", "epochs=30": "epochs=3", "epochs=10": "epochs=2"}
TAPS = ("layer2", "layer3", "avgpool")
SHELLS = ("sh", "console")
IMAGE = re.compile(r"!\[[^]]+\]\(([^)]+)\)")


@pytest.fixture(scope="module")
def streams(broker: Cluster) -> str:
    """What the names of the pages' two streams begin with: demo- would be those of the demo's own test."""
    with KafkaLog(broker) as log:
        for name, passes, seed in (("page-train", 2, 0), ("page-validation", 1, 1)):
            publish(
                log, make_manifest(name, samples=60, batch_samples=20, passes=passes, taps=TAPS, seed=seed, classes=10)
            )
    return "page-"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands and blocks run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page(name: str, streams: str) -> str:
    """Return a page of docs/ with its streams' names and sizes replaced."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8").replace("demo-", streams)
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    return text


def commands(text: str) -> list[tuple[list[str], str]]:
    """Return the words of each featurectl command in the shell blocks of a page, with the output that it shows."""
    found: list[tuple[list[str], str]] = []
    for language, block in FENCED.findall(text):
        if language not in SHELLS:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if "featurectl " in line else []
            if words[:1] == ["featurectl"] and (language == "sh" or line.startswith("$ ")):
                found.append((words, ""))
            elif found and language == "console":
                found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def run(words: list[str]) -> str:
    """Return what a command printed; it must end with exit code 0."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0, f"{shlex.join(words)}: {err.getvalue()}"
    return out.getvalue()


def headings(printed: str) -> set[str]:
    """Return the columns of the table in an output, those among them that are said to be the same in all rows."""
    found: set[str] = set()
    for line in printed.splitlines():
        if re.match(r"(tap|run) {2,}\S", line):
            found |= set(re.split(r" {2,}", line))
        if line.startswith("the same in all: "):
            found |= {shared.split()[0] for shared in line.removeprefix("the same in all: ").split(", ")}
    return found


@pytest.mark.broker
def test_the_commands_of_the_worked_example_run_and_print_the_tables_that_it_shows(streams: str, here: Path) -> None:
    text = page("ablation.md", streams)
    (yaml,) = fenced(text, "yaml")
    (here / "ablation.yaml").write_text(yaml)
    ran = commands(text)
    assert {words[1] for words, _ in ran} == {"probe", "sweep", "compare", "fork"}
    for words, shown in ran:
        printed = run(words)
        assert headings(shown) == set() or headings(shown) <= headings(printed)
    assert len(list(here.glob("runs/ablation-*/head.safetensors"))) == 24
    for picture in IMAGE.findall(text):
        assert (here / picture).stat().st_size > 10_000, picture


@pytest.mark.broker
def test_the_python_of_the_page_runs_block_after_block(streams: str, here: Path) -> None:
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("error")
        for number, block in enumerate(fenced(page("python.md", streams), "python")):
            exec(compile(block, f"python.md, block {number}", "exec"), names)
    shown = [block.splitlines()[0] for block in fenced((ROOT / "docs" / "python.md").read_text(), "text")]
    assert printed.getvalue().splitlines()[0].startswith("batch 3 (60, 3)")
    assert shown[-1].split() == ["run", "top1", "difference", "low", "high", "p_holm"]
    assert shown[-1].split() in [line.split() for line in printed.getvalue().splitlines()]
    runs = names["runs"]
    for metric in ("top1", "loss"):  # what is compared is what the runs were validated by
        recorded = {run.name: run.metrics[metric] for run in runs}
        for pair in compare_runs(runs, metric=metric):
            assert (pair.value_a, pair.value_b) == pytest.approx((recorded[pair.a], recorded[pair.b]), rel=1e-6)
    assert (here / "comparison.png").exists()
    assert (here / "grid.png").exists()


@pytest.mark.broker
def test_the_python_over_http_runs_block_after_block_and_gets_the_same_rows(
    streams: str, here: Path, broker: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway's address is the one thing that is another here; nobody answers at the example's with a token."""
    monkeypatch.setenv("FEATURESTREAM_GATEWAY_TOKEN", "a-token-of-this-test")
    printed = io.StringIO()
    names: dict[str, Any] = {}
    with KafkaLog(broker) as log, serving(log) as served, contextlib.redirect_stdout(printed):
        text = page("http-client.md", streams).replace("http://127.0.0.1:9999", served.url)
        for number, block in enumerate(fenced(text, "python")):
            exec(compile(block, f"http-client.md, block {number}", "exec"), names)
        direct = FeatureStream("page-train", "layer3", log=log)
        direct.load_state_dict(names["state"])
        assert next(iter(direct)).position.batch == 1
    assert printed.getvalue().splitlines()[0].startswith("batch 3 (60, 3)")
    assert printed.getvalue().splitlines()[-1] == "60 rows"


def test_pictures_in_the_documents_are_small() -> None:
    pictures = sorted((ROOT / "docs").rglob("*.png"))
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > 150_000] == []

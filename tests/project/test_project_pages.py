"""The tutorial and the pages that lead on from it run, command after command, on streams that the tutorial makes.

What is made small is named in ``SMALLER``, what cannot run here in ``NOT_HERE``; nothing else is changed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from featurectl.app import main
from featurectl.samples import write_samples
from featurestream.cluster import Cluster, resolve_cluster
from featurestream.experiments import read_experiments
from featurestream.kafka import KafkaLog
from tests.conftest import guarded
from tests.project.documents import FENCED, ROOT

pytestmark = [pytest.mark.broker, pytest.mark.timeout(600)]

#: The sizes of the pages, and what the test makes of them.
SMALLER = {
    "--passes 2": "--passes 2 --batch-size 10",
    "--passes 1\n": "--passes 1 --batch-size 10\n",
    "--epochs 10": "--epochs 2",
    "--epochs 20": "--epochs 2",
}
#: Words with which a command begins that needs other hosts, a download or a program of somebody else.
NOT_HERE = ("export", "torchrun", "pip", "tensorboard")
#: The images of the tutorial that are used, for training and for validation.
IMAGES = (60, 20)
#: Pages about the streams of the demo, which are run on those of the tutorial.
PAGES = ("start-points.md", "probes.md", "pictures.md", "health.md", "late-joining.md", "reporters.md", "registry.md",
         "several-processes.md")  # fmt: skip


def page(name: str, names: Mapping[str, str]) -> str:
    """Return a page of docs/ with its sizes made small and some names replaced."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    for large, small in (SMALLER | dict(names)).items():
        text = text.replace(large, small)
    return text


def steps(text: str) -> Iterator[tuple[str, list[str] | str]]:
    """Yield what a page tells to do, in order: ("sh", the words of a command) or ("python", a block)."""
    for language, block in FENCED.findall(text):
        if language == "python":
            yield "python", block
        elif language in ("sh", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and (language == "sh" or line.startswith("$ ")):
                    yield "sh", words


def run(words: list[str]) -> str:
    """Return what a featurectl command printed; it must end with exit code 0."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0, f"{shlex.join(words)}: {err.getvalue()}"
    return out.getvalue()


def follow(text: str) -> tuple[list[str], dict[str, Any]]:
    """Do what a page says, in its order; return the words that its commands begin with, and what its Python left."""
    ran: list[str] = []
    names: dict[str, Any] = {}
    for kind, what in steps(text):
        if isinstance(what, str):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(what, "page", "exec"), names)
            ran.append(kind)
        elif what[:3] == ["python", "-m", "featurectl.samples"]:
            _few_samples(Path(what[3]))
        elif what[0] not in NOT_HERE and "http://mlflow.example:5000" not in what:
            assert what[0] == "featurectl", what
            run(what)
            ran.append(what[1])
    return ran, names


def _few_samples(folder: Path) -> None:
    samples = write_samples(folder)
    for table, count in zip((samples.train_csv, samples.validation_csv), IMAGES, strict=True):
        table.write_text("".join(table.read_text().splitlines(keepends=True)[: count + 1]))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A broker of the pages' own: they list all streams, and other tests leave some half made."""
    home = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch, guarded(home):
        patch.setenv("FEATURESTREAM_HOME", str(home))
        yield resolve_cluster()


@pytest.fixture(scope="module")
def tutorial(broker: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every step of the tutorial was taken; its streams are there afterwards."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran, _ = follow(page("tutorial.md", {}))
    assert ran == [
        "layers", "produce", "produce", "streams", "streams", "peek", "picture", "probe", "train", "train", "compare",
        "compare", "python",
    ]  # fmt: skip
    return folder


def test_the_tutorial_leaves_what_it_says(tutorial: Path, broker: Cluster) -> None:
    assert (tutorial / "runs" / "small" / "head.safetensors").is_file()
    assert (tutorial / "comparison.png").stat().st_size > 10_000
    with KafkaLog(broker) as log:
        found = read_experiments(log, "digits-train")
    assert {name: one.run.state for name, one in found.items()} == {"small": "finished", "wide": "finished"}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_says_can_be_done(name: str, tutorial: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    others = {"demo-": "digits-", "/new/train.csv": str(tutorial / "digits/train.csv"),
              "/new/images": str(tutorial / "digits"), "mlp-layer2 mlp-layer3": "small wide"}  # fmt: skip
    if name == "late-joining.md":
        _write_labels(tutorial / "digits", tmp_path)
    ran, names = follow(page(name, others))
    assert ran
    if name == "reporters.md":
        assert (tmp_path / "runs/points/tensorboard/projector/sprite.png").is_file(), "20 digits, decoded again"
        _use(names["build"], tmp_path)


def _write_labels(digits: Path, folder: Path) -> None:
    """Write the tables of late-joining.md: even or odd for every sample, and the digits of some."""
    paths = []
    for split in ("train", "validation"):
        with (digits / f"{split}.csv").open() as file:
            paths.append([(row["path"], int(row["label"])) for row in csv.DictReader(file)])
    train, validation = paths
    lines = [f"{path},{'odd' if label % 2 else 'even'}\n" for path, label in train + validation]
    (folder / "parity.csv").write_text("id,label\n" + "".join(lines))
    (folder / "few.csv").write_text("id,label\n" + "".join(f"{path},{label}\n" for path, label in train[:30]))


def _use(build: Any, folder: Path) -> None:
    reporter = build(folder, None, print)
    for step, top1 in ((1, 0.5), (2, 0.75), (3, 0.625)):
        reporter.report({"kind": "validation", "step": step, "top1": top1})
    assert (folder / "best.txt").read_text() == "0.7500 at step 2\n"

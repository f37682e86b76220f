"""docs/late-joining.md: its commands run, on small streams of the names that it uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurestream.memory import MemoryLog
from tests.featurectl.conftest import Cli
from tests.project.documents import ROOT, commands_in
from tests.support import make_manifest, publish

PAGE = ROOT / "docs" / "late-joining.md"
COMMANDS = [command.words for command in commands_in(PAGE.name, PAGE.read_text(encoding="utf-8"))]


def test_the_commands_of_the_page_do_what_it_says(
    cli: Cli, log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for the device and the number of epochs."""
    monkeypatch.chdir(tmp_path)
    publish(log, make_manifest("demo-train", samples=30, passes=2, taps=("layer3",)))
    publish(log, make_manifest("demo-validation", samples=12, passes=1, seed=9, taps=("layer3",)))
    for name, samples in (("parity", range(30)), ("few", range(1, 30))):
        lines = (f"img/{index}.png,{'odd' if index % 2 else 'even'}\n" for index in samples)
        Path(f"{name}.csv").write_text("id,label\n" + "".join(lines))
    trained = {words[words.index("--name") + 1]: words for words in COMMANDS if words[0] == "train"}
    assert list(trained) == ["late", "parity", "few"]
    for words in trained.values():
        done = cli(*words, "--device", "cpu", "--epochs", "3", "--reporter", "jsonl")
        assert done.code == 0, done.err
        assert "(2 passes, 1 re-read); " in done.out
    labels = {name: json.loads(Path(f"runs/{name}/run.json").read_text()).get("labels") for name in trained}
    assert labels["late"] is None
    assert labels["parity"]["classes"] == ["even", "odd"]
    assert labels["few"]["training"] == {"samples": 30, "unlabelled": 1}

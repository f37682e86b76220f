"""featurectl sweep: a file in; run folders, a table and an exit code out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurestream.memory import MemoryLog
from tests.featurectl.conftest import Cli
from tests.project.documents import ROOT, fenced
from tests.support import make_manifest, publish

SWEEP = """
stream: toy
validate: toy-validation
epochs: 2
base: {tap: layer3, batch_size: 8, device: cpu, reporters: jsonl, head_args: {hidden: 16}}
grid:
  optimizer_args.lr: [1e-2, 1e-3]
runs:
  - {name: plain, head: linear}
"""


@pytest.fixture
def file(log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    publish(log, make_manifest("toy", samples=30, lanes=3, passes=2))
    publish(log, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    path = tmp_path / "abl.yaml"
    path.write_text(SWEEP)
    return path


def test_a_sweep_ends_with_a_table_the_best_first_and_a_folder_each(cli: Cli, file: Path) -> None:
    done = cli("sweep", file)
    assert done.code == 0, done.err
    assert "the same in all" in done.out
    assert all(name in done.out for name in ("abl-lr0.01", "abl-lr0.001", "plain"))
    assert sorted(folder.name for folder in Path("runs").iterdir()) == ["abl-lr0.001", "abl-lr0.01", "plain"]
    assert "best of 3 is" in done.err
    assert "abl: 60/60 rows" in done.err


def test_json_is_an_object_an_experiment_in_the_files_order(cli: Cli, file: Path) -> None:
    rows = cli("sweep", file, "--json").rows
    assert [row["name"] for row in rows] == ["abl-lr0.01", "abl-lr0.001", "plain"]
    assert {(row["state"], row["steps"], row["already_finished"]) for row in rows} == {("finished", 8, False)}
    assert all(row["already_finished"] for row in cli("sweep", file, "--json").rows)


def test_a_dry_run_shows_experiments_and_groups_and_writes_nothing(cli: Cli, file: Path) -> None:
    done = cli("sweep", file, "--dry-run")
    assert done.code == 0, done.err
    assert "3 experiments: group 0 of 2 heads, 1 alone" in done.out
    assert "all of them read toy from batch 0, to batch 16" in done.out
    rows = cli("sweep", file, "--dry-run", "--json").rows
    assert [(row["name"], row["group"], row["state"]) for row in rows] == [
        ("abl-lr0.01", 0, "new"), ("abl-lr0.001", 0, "new"), ("plain", None, "new"),
    ]  # fmt: skip
    assert not Path("runs").exists()


def test_an_experiment_that_diverges_is_told_and_the_others_count(cli: Cli, file: Path) -> None:
    file.write_text(SWEEP + "  - {name: wild, optimizer: SGD, optimizer_args.lr: 1e38}\n")
    done = cli("sweep", file)
    assert done.code == 0, done.err
    assert "wild stopped before its end: the loss of step 2" in done.err, "\n" + done.err
    assert "stopped" in done.out


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (("grid", "gird"), 2, 'unknown key in the sweep file "gird"; did you mean "grid"?'),
        (("optimizer_args.lr", "optimiser_args.lr"), 2, 'setting in grid "optimiser_args.lr"; did you mean "optimizer'),
        (("  optimizer_args.lr", "  sed: [1]\n  optimizer_args.lr"), 2, 'setting in grid "sed"; did you mean "seed"?'),
        (("layer3", "layer4"), 2, 'unknown tap of stream toy "layer4"'),
        (("name: plain", "name: abl-lr0.01"), 2, 'two experiments of the sweep are called "abl-lr0.01"'),
        (("[1e-2, 1e-3]", "[]"), 2, "optimizer_args.lr in grid has no values"),
        (("epochs: 2", "from: batch:16"), 2, "nothing to read"),
        (("epochs: 2", "from: pass:1\nuntil: pass:1"), 2, "nothing to read: the range starts at batch 8 (pass:1)"),
        (("epochs: 2", "when_behind: skip"), 2, "when_behind: input should be 'wait' or 'reread', got 'skip'"),
        (("head: linear", "when_behind: reread"), 2, '"when_behind" in runs[0] cannot differ between the experiments'),
        (("head: linear", "labels: nowhere.csv"), 2, 'experiment "plain": there is no label file nowhere.csv'),
        (("head: linear", "labels_sha256: '0'"), 2, 'unknown setting in runs[0] "labels_sha256"; did you mean'),
        (("head: linear", "head: linaer"), 2, 'unknown head "linaer"; did you mean "linear"?'),
        (("stream: toy\n", "stream: [\n"), 3, "is not YAML"),
    ],
)
def test_a_bad_file_is_one_line_and_its_exit_code(
    cli: Cli, file: Path, change: tuple[str, str], code: int, message: str
) -> None:
    text = SWEEP.replace(*change)
    file.write_text(text if "[]" not in text else text.replace("  - {name: plain, head: linear}", "  []"))
    done = cli("sweep", file)
    assert (done.code, len(done.err.strip().splitlines())) == (code, 1), done.err
    assert message in done.err
    assert not Path("runs").exists()


def test_a_label_file_that_lacks_samples_is_refused_with_them_and_nothing_is_written(cli: Cli, file: Path) -> None:
    Path("few.csv").write_text("id,label\n" + "".join(f"img/{index}.png,{index % 2}\n" for index in range(28)))
    file.write_text(SWEEP.replace("head: linear", "labels: few.csv"))
    for words in (("--dry-run",), ()):
        done = cli("sweep", file, *words)
        assert done.code == 3
        assert 'samples of stream "toy" without a label in few.csv: 2 (img/28.png, img/29.png)' in done.err
        assert not Path("runs").exists()
    file.write_text(SWEEP.replace("head: linear", "labels: few.csv, unlabelled: drop"))
    done = cli("sweep", file, "--json")
    assert [(row["name"], row["steps"]) for row in done.rows] == [("abl-lr0.01", 8), ("abl-lr0.001", 8), ("plain", 8)]
    assert "whose rows are dropped: 2 of 30 (img/28.png, img/29.png)" in done.err


def test_a_sweep_that_rereads_counts_passes_and_rereads(cli: Cli, file: Path) -> None:
    file.write_text(SWEEP.replace("epochs: 2", "epochs: 3\nwhen_behind: reread"))
    done = cli("sweep", file, "--json")
    assert {(row["passes"], row["rereads"]) for row in done.rows} == {(2, 1)}


def test_a_stream_made_anew_under_a_begun_sweep_is_refused_before_any_training(
    cli: Cli, log: MemoryLog, file: Path
) -> None:
    assert cli("sweep", file).code == 0
    before = {path: path.read_bytes() for path in Path("runs").glob("*/run.json")}
    log.delete_topics(list(log.topics()))
    publish(log, make_manifest("toy", samples=30, lanes=3, passes=2, seed=5))
    publish(log, make_manifest("toy-validation", samples=12, passes=1, seed=9))
    done = cli("sweep", file)
    assert done.code == 4
    assert "read a stream with fingerprint" in done.err
    assert "train under another --name" in done.err
    assert {path: path.read_bytes() for path in Path("runs").glob("*/run.json")} == before


def test_classes_that_only_the_validation_stream_has_are_refused(cli: Cli, log: MemoryLog, file: Path) -> None:
    publish(log, make_manifest("more", classes=5))
    file.write_text(SWEEP.replace("toy-validation", "more"))
    done = cli("sweep", file)
    assert done.code == 2
    assert "class numbers up to 4" in done.err


def test_the_sweep_in_the_documents_is_24_experiments_and_runs(
    cli: Cli, log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but for the number of epochs and where it runs."""
    monkeypatch.chdir(tmp_path)
    taps = ("layer2", "layer3", "avgpool")
    publish(log, make_manifest("demo-train", samples=30, passes=1, taps=taps))
    publish(log, make_manifest("demo-validation", samples=12, passes=1, seed=9, taps=taps))
    (text,) = fenced((ROOT / "docs" / "ablation.md").read_text(encoding="utf-8"), "yaml")
    small = text.replace("epochs: 20", "epochs: 1").replace("base:\n", "base:\n  device: cpu\n  reporters: jsonl\n")
    Path("ablation.yaml").write_text(small)
    planned = cli("sweep", "ablation.yaml", "--dry-run", "--json")
    assert len(planned.rows) == 24, planned.err
    assert len({row["group"] for row in planned.rows}) == 3, "a group for each tap"
    done = cli("sweep", "ablation.yaml", "--json")
    assert done.code == 0, done.err
    assert {row["state"] for row in done.rows} == {"finished"}
    assert json.loads(Path("runs/ablation-tap_layer2-dropout0-lr0.001-seed0/run.json").read_text())["epoch"] == 1


def test_a_sweep_is_not_split_between_processes(cli: Cli, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli("sweep", file)
    assert done.code == 2
    assert "one of 2 that torchrun started, but featurectl sweep runs in one" in done.err

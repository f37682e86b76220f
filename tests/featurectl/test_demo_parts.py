"""featurectl demo: what it is going to make, before it makes it. The demo itself runs in tests/e2e."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from featurectl import demo
from featurectl.samples import Samples

SAMPLES = Samples(Path("d/train.csv"), Path("d/validation.csv"), Path("d/images"))


def plan(weights: str = "random") -> demo.DemoPlan:
    return demo.DemoPlan.of(SAMPLES, Path("d"), weights, ["--bootstrap-servers", "h:1"])


def test_both_streams_share_the_seed_that_random_weights_are_drawn_from() -> None:
    train, validation = plan().streams
    assert (train.stream, validation.stream) == ("demo-train", "demo-validation")
    assert (train.seed, train.weights, train.taps) == (validation.seed, validation.weights, validation.taps)
    assert (train.passes, train.transform) == (2, "featurectl.samples:augment")
    assert (validation.passes, validation.transform) == (1, "eval")


@pytest.mark.parametrize(
    ("weights", "suffix"), [("random", ""), ("DEFAULT", "-DEFAULT"), ("IMAGENET1K_V1", "-IMAGENET1K-V1")]
)
def test_other_weights_make_other_streams_and_runs(weights: str, suffix: str) -> None:
    made = plan(weights)
    assert [config.stream for config in made.streams] == [f"demo-train{suffix}", f"demo-validation{suffix}"]
    assert made.experiment("layer2", "earliest").name == f"mlp-layer2{suffix}"


def test_a_weights_file_is_known_by_its_content(tmp_path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"abc")
    assert demo.suffix_for(str(file)) == "-" + hashlib.sha256(b"abc").hexdigest()[:8]


def test_the_command_lines_name_the_cluster_that_was_named() -> None:
    made = plan()
    words = demo.produce_words(made.streams[0], made.cluster)
    assert words[:3] == ["featurectl", "produce", "d/train.csv"]
    assert words[-2:] == ["--bootstrap-servers", "h:1"]
    late = demo.train_words(made.experiment("avgpool", "2026-01-01T00:00:00+00:00"), made.cluster)
    assert late[late.index("--from") + 1] == "2026-01-01T00:00:00+00:00"
    assert "--from" not in demo.train_words(made.experiment("layer2", "earliest"), made.cluster)


def test_weights_that_are_not_there_are_refused_before_a_broker_is_started(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEATURESTREAM_HOME", str(tmp_path / "home"))
    outcome = cli("demo", tmp_path / "d", "--weights", "no-such.pth")
    assert outcome.code == 2
    assert outcome.err == (
        'error: no such weights file: "no-such.pth"; expected .pth, .pt, .ckpt, .bin or .safetensors\n'
    )
    assert not (tmp_path / "home").exists()


def test_what_is_not_installed_is_told_at_once(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "NEEDED_MODULES", ("no_such_module_of_ours",))
    outcome = cli("demo", tmp_path / "d")
    assert outcome.code == 2
    assert 'pip install "featurestream[producer,consumer,demo]"' in outcome.err
    assert not (tmp_path / "d").exists()

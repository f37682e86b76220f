"""``featurectl produce`` and ``featurectl layers``, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featurectl.app import app
from featurestream.cluster import Cluster
from featurestream.errors import FeatureStreamError, UnknownNameError, UsageError
from tests.producing import BACKBONE, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def small(images: Path, stream: str = "toy") -> list[str]:
    return ["produce", str(images), "--stream", stream, "--model", BACKBONE, "--tap", "2:gap=early", "--tap", "5=late",
            "--image-size", "16", "--device", "cpu", "--batch-size", "7"]  # fmt: skip


def refused(arguments: list[str]) -> FeatureStreamError:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, FeatureStreamError), result.output
    return result.exception


def test_a_plan_needs_no_broker_and_says_what_the_stream_will_cost(images: Path) -> None:
    result = CliRunner().invoke(app, [*small(images), "--passes", "3", "--retention", "12h", "--plan"])
    assert result.exit_code == 0, result.output
    assert "stream toy: 40 samples, 3 passes, float16" in result.stdout
    assert "6 batches, 12 records in 4 lanes" in result.stdout
    assert "kept for 12 h" in result.stdout
    assert "images/s on cpu (forward only)" in result.stdout


def test_a_plan_as_json_is_one_object(images: Path) -> None:
    result = CliRunner().invoke(app, [*small(images), "--passes", "endless", "--views", "2", "--plan", "--json"])
    facts = json.loads(result.stdout)
    assert (facts["passes"], facts["views"], facts["sample_bytes"]) == (None, 2, 2 * (16 + 32))
    assert [tap["name"] for tap in facts["taps"]] == ["early", "late"]
    assert facts["break_even_epochs"] >= 2


@pytest.mark.broker
def test_a_stream_is_published_and_found_finished(images: Path, broker: Cluster, unique: str) -> None:
    cluster = ["--bootstrap-servers", broker.bootstrap_servers]
    result = CliRunner().invoke(app, [*small(images, unique), *cluster, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["batches"], facts["rows"], facts["missing"], facts["finished"]) == (6, 40, 0, True)
    assert f"{unique}: 40/40 img" in result.stderr
    again = CliRunner().invoke(app, [*small(images, unique), *cluster])
    assert again.exit_code == 0
    assert f'stream "{unique}" is finished: 1 pass, 6 batches' in again.stderr
    shown = CliRunner().invoke(app, ["streams", unique, *cluster, "--json"])
    assert json.loads(shown.stdout)["complete"] is True


def test_a_mistake_is_found_before_a_broker_is_asked(images: Path) -> None:
    """Nobody listens at port 9: the mistake comes first."""
    nowhere = ["--bootstrap-servers", "127.0.0.1:9"]
    error = refused([*small(images), "--tap", "layer9", *nowhere])
    assert isinstance(error, UnknownNameError)
    assert 'unknown layer "layer9"' in str(error)
    assert refused([*small(images), "--passes", "0", *nowhere]).exit_code == 2
    assert isinstance(refused([*small(images), "--dtype", "float64", *nowhere]), UsageError)
    assert "is not a duration" in str(refused([*small(images), "--retention", "long", *nowhere]))


def test_an_unknown_model_names_the_nearest(images: Path) -> None:
    error = refused(["produce", str(images), "--stream", "toy", "--model", "resnet81", "--tap", "avgpool"])
    assert 'did you mean "resnet1' in str(error)


def test_the_help_names_every_option_of_the_design() -> None:
    shown = CliRunner().invoke(app, ["produce", "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--stream", "--model", "--weights", "--tap", "--root", "--transform", "--image-size", "--passes",
                   "--views", "--device", "--lanes", "--dtype", "--seed", "--plan", "--take-over"):  # fmt: skip
        assert option in shown


def test_layers_lists_what_can_be_tapped_in_the_order_of_the_forward() -> None:
    result = CliRunner().invoke(app, ["layers", BACKBONE, "--image-size", "16"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["layer", "type", "calls", "output", "bytes", "bytes", "pooled"]
    assert rows[1] == ["0", "Conv2d", "1", "8", "x", "7", "x", "7", "784", "16"]
    assert rows[-1] == ["5", "Flatten", "1", "16", "32", "32"]


def test_layers_as_json_is_one_object_a_layer() -> None:
    result = CliRunner().invoke(app, ["layers", BACKBONE, "--image-size", "16", "--json"])
    first = json.loads(result.stdout.splitlines()[0])
    assert first == {
        "layer": "0", "type": "Conv2d", "calls": 1, "shape": [8, 7, 7], "bytes_map": 784, "bytes_gap": 16
    }  # fmt: skip


def test_layers_of_images_without_pixels_are_refused() -> None:
    result = CliRunner().invoke(app, ["layers", BACKBONE, "--image-size", "0"])
    assert result.exit_code == 2
    assert "greater than or equal to 1" in result.stderr.replace("│", " ").replace("\n", " ")


def test_layers_of_an_unknown_model_names_the_nearest() -> None:
    assert 'did you mean "resnet1' in str(refused(["layers", "resnet81"]))

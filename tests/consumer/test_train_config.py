"""The configuration of an experiment: what it takes, refuses and compares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from featurestream.errors import UnknownNameError, UsageError
from featurestream_consumer.config import TrainConfig, differences, parse_arguments


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**({"name": "E1", "stream": "digits-train", "taps": "avgpool"} | values))


def test_three_names_are_enough() -> None:
    one = config()
    assert (one.taps, one.head, one.loss, one.optimizer, one.start) == (
        ("avgpool",), "mlp", "cross_entropy", "Adam", "earliest",
    )  # fmt: skip
    assert one.validate_stream is None


def test_short_names_of_settings_are_understood() -> None:
    one = TrainConfig(name="E1", stream="s", tap=["a", "b"], validate="v")
    assert one.taps == ("a", "b")
    assert one.validate_stream == "v"


def test_a_record_gives_back_the_same_configuration() -> None:
    one = config(optimizer_args={"betas": (0.9, 0.99)}, scheduler="StepLR", scheduler_args={"step_size": 3}, runs="x")
    assert TrainConfig(**one.record()) == one
    assert one.record()["optimizer_args"] == {"betas": [0.9, 0.99]}
    assert differences(one, TrainConfig(**one.record())) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hed": "mlp"}, 'unknown setting "hed"; did you mean "head"?; known: name, stream, taps, head,'),
        ({"epochs": 0}, '"E1": epochs (passes read, or read again): input should be greater than or equal to 1, got 0'),
        ({"batch_size": "many"}, "batch_size (rows an optimiser step, whatever the records hold): input should be a"),
        ({"seed": -1}, "seed (what weights and dropout are drawn from)"),
        ({"taps": []}, "taps (the taps to train on"),
        ({"taps": ["a", "a"]}, 'tap "a" is named twice'),
        ({"name": "../E1"}, '"../E1" cannot name an experiment'),
        ({"name": ".."}, '".." cannot name an experiment'),
        ({"name": "a/b"}, '"a/b" cannot name an experiment'),
        ({"name": ""}, '"" cannot name an experiment'),
        ({"name": "x" * 101}, "cannot name an experiment"),
        ({"stream": "digits train"}, '"digits train" cannot name a stream'),
        ({"validate": "a/b"}, '"a/b" cannot name a stream'),
        ({"head_args": {"a": Path("x")}}, "cannot be written into a run's record"),
        ({"optimizer_args": {"lr": float("nan")}}, "cannot be written into a run's record"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(**values)
    assert message in str(caught.value)


def test_an_unknown_setting_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        config(learning_rate=3)


def test_differences_name_what_decides_the_result_and_nothing_else() -> None:
    one = config(optimizer_args={"lr": 0.1, "momentum": 0.9})
    other = config(optimizer_args={"lr": 0.2}, epochs=3, device="cpu", runs="elsewhere", checkpoint_seconds=1)
    assert differences(one, other) == {
        "optimizer_args.lr": (0.1, 0.2),
        "optimizer_args.momentum": (0.9, None),
        "epochs": (10, 3),
    }
    assert differences(config(head_args={"a": None}), config()) == {"head_args.a": (None, None)}


def test_arguments_are_read_as_numbers_words_lists_and_texts() -> None:
    assert parse_arguments(
        ["lr=1e-3", "step=3", "p=.5", "a=true", "b=None", "c=relu", "d=512,128", "e=[1, 2]", "f=.9,.99", "g=x=y", "h="]
    ) == {
        "lr": 0.001, "step": 3, "p": 0.5, "a": True, "b": None, "c": "relu", "d": [512, 128], "e": [1, 2],
        "f": [0.9, 0.99], "g": "x=y", "h": "",
    }  # fmt: skip
    assert isinstance(parse_arguments(["n=3"])["n"], int)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lr"], '"lr" is not an argument; expected name=value, such as lr=0.01'),
        (["=3"], '"=3" is not an argument'),
        (["lr=1", "lr=2"], 'the argument "lr" is given twice'),
    ],
)
def test_what_is_no_argument_is_told(given: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(given)
    assert message in str(caught.value)


def test_configurations_runs_and_comparisons_need_no_torch_to_be_imported() -> None:
    """`featurectl --help` imports them and must answer at once."""
    program = (
        "import sys\n"
        "import featurestream_consumer.config, featurestream_consumer.runs, featurestream_consumer.compare\n"
        "import featurestream_consumer.plots, featurestream_consumer.reporters\n"
        "heavy = {'torch', 'matplotlib', 'pandas', 'confluent_kafka'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

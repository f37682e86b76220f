"""A configuration is checked whole before anything is read, and built into the trainer that it describes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from featurestream.errors import UsageError
from featurestream_consumer.build import build_trainer, check_config, choose_device
from featurestream_consumer.config import TrainConfig


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**({"name": "E1", "stream": "s", "taps": "t", "device": "cpu"} | values))


def test_the_defaults_are_a_configuration_that_works() -> None:
    check_config(config(device="auto"))
    trainer = build_trainer(config(), in_features=4, outputs=10)
    assert trainer.main_metric == "top1"
    assert list(trainer.metrics) == ["top1", "top5", "loss"]
    assert trainer.learning_rate == 0.001


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": "mpl"}, 'unknown head "mpl"; did you mean "mlp"?'),
        ({"head_args": {"hiden": 3}}, 'head "mlp" takes no argument "hiden"'),
        ({"loss": "mes"}, 'unknown loss "mes"; did you mean "mse"?'),
        ({"loss": "mse", "loss_args": {"a": 1}}, 'loss "mse" takes no argument "a"; it takes none'),
        ({"optimizer": "adamm"}, 'unknown optimiser "adamm"; did you mean "Adam"?'),
        ({"optimizer_args": {"lrr": 1}}, 'optimiser "Adam" takes no argument "lrr"; did you mean "lr"?'),
        ({"optimizer_args": {"lr": -1}}, 'optimiser "Adam" refuses lr=-1: Invalid learning rate: -1'),
        ({"scheduler": "steplrr"}, 'unknown scheduler "steplrr"; did you mean "StepLR"?'),
        ({"scheduler": "StepLR"}, 'scheduler "StepLR" needs the argument "step_size"'),
        ({"scheduler_args": {"gamma": 1}}, "there are arguments for a scheduler (gamma), but no scheduler"),
        ({"scheduler": "ReduceLROnPlateau"}, "ReduceLROnPlateau needs the validation loss"),
        ({"normalize": "standardise"}, 'unknown normalisation "standardise"; did you mean "standardize"?'),
        ({"metrics": "topp1"}, 'unknown metric "topp1"; did you mean "top1"?'),
        ({"reporters": "consol"}, 'unknown reporter "consol"; did you mean "console"?'),
        ({"device": "gpu"}, '"gpu" is not a device; expected auto, cpu, cuda or cuda:N'),
        ({"device": "meta"}, 'heads cannot be trained on "meta"'),
        ({"device": "cuda:99"}, 'there is no device "cuda:99": this machine has'),
    ],
)
def test_what_would_fail_later_is_told_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_config(config(**values))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_scheduler_that_needs_the_runs_length_gets_it() -> None:
    check_config(config(scheduler="CosineAnnealingLR"))
    trainer = build_trainer(config(scheduler="cosineannealinglr"), in_features=4, outputs=2, total_steps=123)
    assert trainer.scheduler is not None
    assert trainer.scheduler.state_dict()["T_max"] == 123


def test_metrics_follow_the_loss_and_the_labels_or_the_users_choice() -> None:
    sizes = {"in_features": 4, "outputs": 10}
    assert list(build_trainer(config(loss="bce"), **sizes, class_labels=False).metrics) == ["label_accuracy", "loss"]
    assert build_trainer(config(metrics=["loss", "top1"]), **sizes).main_metric == "loss"


def test_the_device_auto_is_a_gpu_where_there_is_one() -> None:
    expected = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    assert choose_device("auto") == expected

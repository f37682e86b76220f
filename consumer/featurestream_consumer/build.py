"""From a configuration to the parts it names: checked before anything is read, built once the sizes are known."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from featurestream.errors import UsageError
from featurestream_consumer.augment import build_augmentation
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.flat import FlatParameters
from featurestream_consumer.heads import HEADS, build_head, check_head
from featurestream_consumer.losses import build_loss
from featurestream_consumer.metrics import build_metrics, default_metrics
from featurestream_consumer.normalization import Normalization, build_normalization
from featurestream_consumer.optimizers import (
    build_optimizer,
    build_scheduler,
    check_optimizer,
    check_scheduler,
    find_scheduler,
    is_element_wise,
)
from featurestream_consumer.reporters import check_reporters
from featurestream_consumer.trainer import Trainer


def check_config(config: TrainConfig) -> None:
    """Raise UsageError for any name or argument that :func:`build_trainer` would refuse.

    It needs no stream and no broker: call it first.
    """
    choose_device(config.device)
    check_head(config.head, config.head_args)
    build_loss(config.loss, config.loss_args)
    check_optimizer(config.optimizer, config.optimizer_args)
    build_normalization(config.normalize)
    build_augmentation(config.augment, config.augment_args)
    build_metrics(config.metrics)
    check_reporters(config.reporters)
    _check_label_files(config)
    if config.scheduler is None:
        if config.scheduler_args:
            raise UsageError(
                f"there are arguments for a scheduler ({', '.join(config.scheduler_args)}), but no scheduler",
                hint="name one with --scheduler",
            )
        return
    check_scheduler(config.scheduler, config.scheduler_args)
    plateau = find_scheduler(config.scheduler) is torch.optim.lr_scheduler.ReduceLROnPlateau
    if plateau and config.validate_stream is None:
        raise UsageError(
            "ReduceLROnPlateau needs the validation loss, and there is no validation stream",
            hint="name one with --validate, or use another scheduler",
        )


def _check_label_files(config: TrainConfig) -> None:
    for path in (config.labels, config.validate_labels):
        if path is not None and not path.is_file():
            raise UsageError(f"there is no label file {path}", hint="expected a CSV such as id,label")
    if config.validate_labels is not None and config.validate_stream is None:
        raise UsageError("there are labels for a validation stream, but no stream", hint="name one with --validate")
    if config.unlabelled == "drop" and config.labels is None and config.validate_labels is None:
        raise UsageError("there is no label file that could lack a sample", hint="name one with --labels")


def build_trainer(
    config: TrainConfig,
    *,
    in_features: int,
    outputs: int,
    class_labels: bool = True,
    total_steps: int | None = None,
    normalization: Normalization | None = None,
) -> Trainer:
    """Return the trainer of an experiment at its beginning, on its device.

    ``in_features`` is the length of a flattened row (of all taps together), ``outputs`` what
    :func:`~featurestream_consumer.losses.outputs_for` says, ``class_labels`` whether the stream's labels are class
    numbers, ``total_steps`` the number of optimiser steps of the whole run where it is known, ``normalization`` one
    that several trainers share, made as the configuration says. Raises UsageError.
    """
    device = choose_device(config.device)
    head = build_head(
        config.head, in_features=in_features, outputs=outputs, args=config.head_args, seed=config.seed
    ).to(device)
    # Only for heads of ours: torch leaves a parameter alone that a step gave no gradient, and who knows a user's head?
    flat = FlatParameters(head) if config.head in HEADS and is_element_wise(config.optimizer) else None
    parameters = head.parameters() if flat is None else [flat.parameter]
    optimizer = build_optimizer(config.optimizer, parameters, config.optimizer_args)
    scheduler = None
    if config.scheduler is not None:
        scheduler = build_scheduler(config.scheduler, optimizer, config.scheduler_args, total_steps=total_steps)
    metrics: Iterable[str] = config.metrics or default_metrics(config.loss, outputs, class_labels=class_labels)
    return Trainer(
        head,
        build_loss(config.loss, config.loss_args),
        optimizer,
        in_features=in_features,
        outputs=outputs,
        scheduler=scheduler,
        normalization=normalization or build_normalization(config.normalize),
        metrics=metrics,
        seed=config.seed,
        augmentation=build_augmentation(config.augment, config.augment_args),
        flat=flat,
    )


def choose_device(name: str) -> torch.device:
    """Return the device ``name``; ``auto`` is the first GPU, else the CPU.

    Raises UsageError for one that torch does not know, or that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f'"{name}" is not a device', hint="expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UsageError(
                f'there is no device "{name}": this machine has {count} GPUs that torch can use',
                hint="use --device cpu" if count == 0 else f"use cuda:0 to cuda:{count - 1}",
            )
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise UsageError(f'heads cannot be trained on "{name}"', hint="expected auto, cpu, cuda or cuda:N")
    return device

"""``featurectl train``: one experiment on a stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurectl import options

if TYPE_CHECKING:
    from featurestream_consumer.experiment import Result

Arguments = list[str] | None


def train(
    *,
    stream: Annotated[str, typer.Argument(help="The stream to train on.")],
    tap: Annotated[
        list[str],
        typer.Option(metavar="TAP", help="The tap to train on; several are laid side by side in the order given."),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="The experiment's name, and its run folder's.")],
    head: Annotated[str, typer.Option(help="linear, mlp or package.module:function.")] = "mlp",
    head_arg: Annotated[Arguments, typer.Option(metavar="K=V", help="Such as hidden=512,128 or dropout=0.1.")] = None,
    loss: Annotated[str, typer.Option(help="cross_entropy, mse, bce or package.module:function.")] = "cross_entropy",
    loss_arg: Annotated[Arguments, typer.Option(metavar="K=V", help="Such as label_smoothing=0.1.")] = None,
    optimizer: Annotated[str, typer.Option(help="Any class of torch.optim, or package.module:function.")] = "Adam",
    optimizer_arg: Annotated[Arguments, typer.Option(metavar="K=V", help="Such as lr=0.01.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Any class of torch.optim.lr_scheduler, stepped each optimiser step; T_max and total_steps are the "
            "run's number of them unless given."
        ),
    ] = None,
    scheduler_arg: Annotated[Arguments, typer.Option(metavar="K=V", help="Such as T_max=500.")] = None,
    normalize: Annotated[str, typer.Option(help="What is done to features first: none, l2 or standardize.")] = "none",
    augment: Annotated[
        str | None, typer.Option(help="What training changes at features: gaussian, dropout, mixup.")
    ] = None,
    augment_arg: Annotated[Arguments, typer.Option(metavar="K=V", help="Such as std=0.1 or alpha=0.2.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes to read; where there are fewer, they are read again.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Rows an optimiser step, whatever the records hold.")] = 256,
    seed: Annotated[int, typer.Option(help="What weights and dropout are drawn from.")] = 0,
    validate: Annotated[
        str | None, typer.Option(metavar="STREAM", help="The stream to validate on after every epoch.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A CSV (id or index, label) whose labels take the place of the stream's."),
    ] = None,
    validate_labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One for the validation stream. Default: that of --labels.")
    ] = None,
    unlabelled: Annotated[
        str, typer.Option(help="error or drop: what becomes of samples that FILE does not name.")
    ] = "error",
    metric: Annotated[
        Arguments, typer.Option(metavar="NAME", help="The metric to compare by, and others. Default: by the loss.")
    ] = None,
    start: options.From = "earliest",
    until: options.Until = None,
    when_behind: Annotated[
        str, typer.Option(help="wait or reread: what an epoch does whose pass is not there yet.")
    ] = "wait",
    runs: options.Runs = Path("runs"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N; auto is the first GPU, else the CPU.")] = "auto",
    reporter: Annotated[
        Arguments,
        typer.Option(
            metavar="NAME",
            help="console, jsonl, tensorboard, projector, mlflow or package.module:function. "
            "Default: console, jsonl, tensorboard.",
        ),
    ] = None,
    mlflow: options.Mlflow = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 30.0,
    keep_checkpoints: Annotated[int, typer.Option(help="Checkpoints kept, the newest; `fork --at` needs some.")] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that is there; refuse to begin a new one.")
    ] = False,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    log_format: options.LogFormat = "text",
    metrics_port: options.MetricsPort = None,
    metrics_host: options.MetricsHost = options.DEFAULT_METRICS_HOST,
    as_json: options.Json = False,
) -> None:
    """Train one experiment. Stopped at any moment, the same command goes on where it was."""
    from featurestream_consumer.process import prepare_process

    prepare_process()
    from featurestream.logs import bind, start_logging

    start_logging(log_format, command="train", stream=stream, experiment=name)
    from featurestream_consumer.config import TrainConfig, parse_arguments

    config = TrainConfig(
        name=name,
        stream=stream,
        taps=tap,
        head=head,
        head_args=parse_arguments(head_arg or []),
        loss=loss,
        loss_args=parse_arguments(loss_arg or []),
        optimizer=optimizer,
        optimizer_args=parse_arguments(optimizer_arg or []),
        scheduler=scheduler,
        scheduler_args=parse_arguments(scheduler_arg or []),
        normalize=normalize,
        augment=augment,
        augment_args=parse_arguments(augment_arg or []),
        metrics=metric or (),
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        validate_stream=validate,
        labels=labels,
        validate_labels=validate_labels,
        unlabelled=unlabelled,
        start=start,
        stop=until,
        when_behind=when_behind,
        runs=runs,
        device=device,
        checkpoint_seconds=checkpoint_seconds,
        keep_checkpoints=keep_checkpoints,
        reporters=[*reporter, *(["mlflow"] if mlflow else [])] if reporter else (),
    )
    from featurectl.sprites import pictures_on
    from featurestream_consumer.build import check_config

    options.use_mlflow(mlflow)
    check_config(config)  # before a broker is asked for, or started
    from featurestream_consumer.ranks import join_ranks
    from featurestream_consumer.run import train as run_training

    with join_ranks(device) as ranks:
        leads = ranks is None or ranks.leads
        say = options.say if leads else lambda _: None
        try:
            rank = 0 if ranks is None else ranks.rank
            if ranks is not None:
                bind(rank=rank)
            with (
                options.open_metrics(metrics_port, metrics_host, rank=rank) as telemetry,
                options.open_log(bootstrap_servers, kafka_config) as log,
            ):
                result = run_training(
                    config,
                    log,
                    resume=resume,
                    say=say,
                    progress=leads,
                    ranks=ranks,
                    telemetry=telemetry,
                    pictures=pictures_on(log),
                )
        except KeyboardInterrupt:
            say(f"stopped; what was learnt up to the last checkpoint is in {runs / name}: the same command goes on")
            raise
    if leads:
        print_result(name, result, as_json=as_json)


def print_result(name: str, result: Result, *, as_json: bool) -> None:
    """Print what an experiment came to; nothing but its JSON for one that was finished before."""
    from featurectl.output import print_json

    if as_json:
        print_json(
            {
                "name": name,
                "folder": str(result.folder),
                "steps": result.steps,
                "passes": result.passes,
                "rereads": result.rereads,
                "metrics": result.metrics,
                "already_finished": result.already_finished,
            }
        )
    elif not result.already_finished:
        from featurestream_consumer.reporters.console import format_metric

        metrics = ", ".join(f"{key} {format_metric(key, value)}" for key, value in result.metrics.items())
        passes = f"{result.passes} {'pass' if result.passes == 1 else 'passes'}"
        again = f", {result.rereads} re-read{'s' if result.rereads > 1 else ''}" if result.rereads else ""
        typer.echo(f"{name}: {metrics} after {result.steps} steps ({passes}{again}); {result.folder}")

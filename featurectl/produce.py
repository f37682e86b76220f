"""``featurectl produce``: images in, a stream of features out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from featurectl import options

INTERRUPTED: Final = 130

DATA, MODEL, STREAM, PACE, SPEED = "Data", "Model", "Stream", "Pace", "Speed"


def produce(  # noqa: PLR0917 - Typer passes every option by its name
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="An image folder (one subfolder a class), a CSV of path,label (also .gz), torchvision:NAME or "
            "package.module:function.",
        ),
    ],
    stream: Annotated[str, typer.Option("--stream", metavar="NAME", help="The stream's name: letters, digits and -.")],
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="A torchvision model, timm:NAME or package.module:function.")
    ],
    tap: Annotated[
        list[str],
        typer.Option(
            "--tap",
            metavar="LAYER[:POOL][=NAME]",
            help="What to publish, one topic each; several are possible: layer2:gap, avgpool, layer4:gem(p=4)=g4. "
            "The layers of a model: featurectl layers MODEL.",
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A weights' name (DEFAULT, IMAGENET1K_V1), a local file, or random. Default: the model's best.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="eval (the weights' own preset; the default), train (random resized crop and flip) or "
            "package.module:function.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Pixels a side. Default: the weights' own.", rich_help_panel=MODEL),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What decodes JPEG files: simplejpeg, torchcodec or pillow. Default: the fastest that is installed.",
            rich_help_panel=DATA,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder that paths in DATA are relative to.", rich_help_panel=DATA),
    ] = None,
    path_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The CSV's column of image paths.", rich_help_panel=DATA)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The CSV's column of labels.", rich_help_panel=DATA)
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="The split, where DATA has splits.", rich_help_panel=DATA)
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Visits of every sample, in all: a larger number later extends the stream. endless goes on until "
            "Ctrl-C, while somebody reads (--idle). Default: 1, or what the stream has.",
            rich_help_panel=STREAM,
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(metavar="V", help="Augmented views of a sample in a pass. Default: 1.", rich_help_panel=STREAM),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="float16 (the default), bfloat16 or float32.", rich_help_panel=STREAM),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="What orders, augmentations and random weights are drawn from. Default: 0.",
            rich_help_panel=STREAM,
        ),
    ] = None,
    lanes: Annotated[
        int | None,
        typer.Option(
            metavar="L",
            help="Partitions of every topic, fixed for ever, at least one a device. Default: 4, or the stream's.",
            rich_help_panel=STREAM,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="R",
            help="Samples in a batch at most: as many as fit into a record, up to this. Default: 256.",
            rich_help_panel=STREAM,
        ),
    ] = None,
    retention: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long records are kept: 12h, 7d. Default: 7d.", rich_help_panel=STREAM),
    ] = None,
    retention_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="How much of a tap is kept: 500MB, 64GiB. Default: 64GiB.", rich_help_panel=STREAM
        ),
    ] = None,
    ahead: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Wait when N passes are in front of the slowest reader. Default: no bound.",
            rich_help_panel=PACE,
        ),
    ] = None,
    idle: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="While nobody reads: run, pause (go on at once when a reader comes) or stop. "
            "Default: pause where --passes is endless, else run.",
            rich_help_panel=PACE,
        ),
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Replace a live producer of this stream.", rich_help_panel=STREAM)
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="D[,D]",
            help="cuda:0, cuda:0,cuda:1, cpu: one process a device. Default: the first GPU (under torchrun that of the "
            "local rank), else the CPU.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Processes a device that load images; 0 is a thread. Default: by the CPU's cores.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    autocast: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="bfloat16 or float16: compute in it where torch's autocast does. Faster on most GPUs and some CPUs "
            "(--plan measures it); the features are others, so the fingerprint is. Default: as the weights are.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Run the model compiled by torch.compile, which takes a minute at the start. It rounds otherwise, so "
            "the fingerprint is another.",
            rich_help_panel=SPEED,
        ),
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Refuse what cannot work, measure a few batches, print bytes, records, disk, speed and from when on "
            "the stream pays, and end: nothing is published.",
        ),
    ] = False,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    log_format: options.LogFormat = "text",
    metrics_port: options.MetricsPort = None,
    metrics_host: options.MetricsHost = options.DEFAULT_METRICS_HOST,
    as_json: options.Json = False,
) -> None:
    """Run a frozen backbone over images and publish its features.

    The same command again goes on where the stream ends, after a crash as well as after Ctrl-C.
    A stream that is complete says so. Exit code 130: stopped by Ctrl-C; everything that was sent is safe.
    """
    from featurestream.heap import keep_memory

    keep_memory()  # before anything that starts threads is imported
    from featurestream.logs import start_logging

    start_logging(log_format, command="produce", stream=stream)
    from featurestream_producer.config import ProduceConfig, parse_duration_ms, parse_passes, parse_size

    given: dict[str, Any] = {
        "data": data, "stream": stream, "model": model, "taps": tuple(tap), "weights": weights,
        "transform": transform, "image_size": image_size, "root": root, "path_column": path_column,
        "label_column": label_column, "split": split, "decoder": decoder,
        "views": views, "dtype": dtype, "autocast": autocast, "seed": seed, "lanes": lanes,
        "batch_size": batch_size, "workers": workers, "ahead": ahead, "idle": idle,
        "retention_ms": None if retention is None else parse_duration_ms(retention),
        "retention_bytes": None if retention_bytes is None else parse_size(retention_bytes),
        "devices": None if device is None else tuple(part.strip() for part in device.split(",")),
    }  # fmt: skip
    # What was not given stays away: it is then taken from the stream, where that exists.
    fields = {name: value for name, value in given.items() if value is not None}
    if passes is not None:
        fields["passes"] = parse_passes(passes)
    config = ProduceConfig(**fields, compile=compiled, take_over=take_over)
    if plan:
        _print_plan(config, as_json=as_json)
    else:
        _publish(config, bootstrap_servers, kafka_config, metrics=(metrics_port, metrics_host), as_json=as_json)


def _print_plan(config: Any, *, as_json: bool) -> None:
    from featurectl.output import print_json
    from featurestream_producer.prepare import measure, prepare

    prepared = prepare(config)
    found = prepared.plan(prepared.manifest, measure(prepared))
    if as_json:
        print_json(found.facts())
    else:
        typer.echo(found.text())


def _publish(
    config: Any,
    bootstrap_servers: str | None,
    kafka_config: Path | None,
    *,
    metrics: tuple[int | None, str],
    as_json: bool,
) -> None:
    from featurectl.output import print_json
    from featurestream.logs import bind
    from featurestream.progress import Progress
    from featurestream_producer.prepare import prepare
    from featurestream_producer.run import publish

    prepared = prepare(config)  # before the broker: a mistake in the command should not have to wait for one
    if not prepared.rank.alone:
        bind(rank=prepared.rank.number)
    with (
        options.open_metrics(*metrics, rank=prepared.rank.number) as telemetry,
        options.open_log(bootstrap_servers, kafka_config) as log,
    ):
        result = publish(prepared, log, say=options.say, progress=Progress, telemetry=telemetry)
    if as_json:
        print_json(result.facts())
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)

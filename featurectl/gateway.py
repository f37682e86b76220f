"""``featurectl gateway``: streams over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from featurectl import options

if TYPE_CHECKING:
    from featurestream.experiments import Experiment
    from featurestream.ports import Log
    from featurestream_gateway.programs import Comparison, Picture, Programs


#: How a gateway's log is opened.
LOG: Final[dict[str, Any]] = {
    "client_id": "featurestream-gateway",
    # A lane reads ahead for an answer that may never be asked for: little, because there are many.
    "queue_kbytes": 1024,
    # Whoever waits for an answer is told soon that Kafka is away.
    "stall_s": 10.0,
}


def gateway(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")] = 9999,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen on; any but loopback needs a token.")
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file with the token that requests must carry, else $FEATURESTREAM_GATEWAY_TOKEN.",
        ),
    ] = None,
    stream: Annotated[
        str | None, typer.Option(metavar="STREAM", help="The stream of /data and /after where a request names none.")
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows an answer at most.", rich_help_panel="Limits")] = 100_000,
    max_mb: Annotated[
        int, typer.Option(min=1, max=1024, help="Megabytes an answer at most.", rich_help_panel="Limits")
    ] = 16,
    memory_mb: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1_048_576,
            help="Megabytes that all answers hold together while they are made and sent; others wait. Without it 8 "
            "times --max-mb.",
            rich_help_panel="Limits",
        ),
    ] = None,
    readers: Annotated[
        int, typer.Option(min=1, help="Answers that are read or sent at once.", rich_help_panel="Limits")
    ] = 16,
    listeners: Annotated[int, typer.Option(min=1, help="Live connections at once.", rich_help_panel="Limits")] = 256,
    idle: Annotated[
        float,
        typer.Option(min=1, help="Seconds in which a client may take nothing of its answer.", rich_help_panel="Limits"),
    ] = 30.0,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    log_format: options.LogFormat = "text",
) -> None:
    """Serve streams over HTTP: rows, live events, experiments and pictures.

    Ctrl-C ends it with exit code 130, SIGTERM with 0.
    """
    from featurestream.logs import Line, start_logging

    start_logging(log_format, command="gateway")
    from featurestream_gateway.serve import serve
    from featurestream_gateway.settings import GatewaySettings, read_token

    settings = GatewaySettings(
        host=host,
        port=port,
        token=read_token(token_file),
        stream=stream,
        max_rows=max_rows,
        max_bytes=max_mb * 2**20,
        memory_bytes=None if memory_mb is None else memory_mb * 2**20,
        readers=readers,
        listeners=listeners,
        idle_s=idle,
    )
    with options.open_log(bootstrap_servers, kafka_config, **LOG) as log:
        serve(settings, log, programs(), on_listening=lambda url: options.say(Line(f"gateway: {url}", url=url)))


def programs() -> Programs:
    """Return what the gateway needs of the other programs."""
    from featurectl.streams import report_stream
    from featurestream_gateway.programs import Programs

    return Programs(
        report=lambda source, stream, committed, now_ms: report_stream(source, stream, committed, now_ms=now_ms),
        picture=_picture,
        compare=_compare,
    )


def _picture(log: Log, stream: str, batch: int, row: int, view: int | None) -> Picture:
    """Return the image behind a row."""
    import io

    from featurectl.picture import show
    from featurestream_gateway.programs import Picture

    shown = show(log, stream, batch, row, view)
    png = io.BytesIO()
    shown.image.save(png, "PNG")
    return Picture(png.getvalue(), shown.facts)


def _compare(experiments: Sequence[Experiment], metric: str | None) -> Comparison:
    """Return experiments against each other."""
    import time

    from featurestream_consumer.compare import (
        compare_table,
        find_metric,
        pairs_table,
        records,
        registered_run,
        without_training_metrics,
    )
    from featurestream_gateway.programs import Comparison

    now_ms = round(time.time() * 1000)
    runs = [registered_run(one, now_ms=now_ms) for one in experiments]
    return Comparison(
        find_metric(without_training_metrics(runs), metric),
        records(compare_table(runs, metric=metric)),
        records(pairs_table(runs, metric=metric)),
    )

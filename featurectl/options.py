"""The options that many commands share, and the log that they lead to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from featurestream.kafka import KafkaLog
    from featurestream.telemetry import Telemetry

BootstrapServers = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="The Kafka cluster, else $FEATURESTREAM_BOOTSTRAP_SERVERS, else the embedded broker.",
        rich_help_panel="Cluster",
    ),
]
KafkaConfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Client properties for the cluster: security, mostly (client.properties).",
        rich_help_panel="Cluster",
    ),
]
From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="START",
        help="Where to start: earliest, latest, offset:N, batch:N, pass:N, a time (ISO 8601, or seconds since 1970), "
        "or a time ago (-15m, -1h).",
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="START", help="Where to stop, exclusive, in the words of --from.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        envvar="FEATURESTREAM_LOG_FORMAT",
        metavar="FORMAT",
        help="text (lines for people) or json (one object a line, on standard error).",
        rich_help_panel="Monitoring",
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        min=0,
        max=65535,
        metavar="N",
        help="Answer Prometheus on this port; 0 takes a free one, and says which. Ranks: N + rank.",
        rich_help_panel="Monitoring",
    ),
]
MetricsHost = Annotated[
    str,
    typer.Option(
        "--metrics-host",
        metavar="HOST",
        help="The address to answer on. There is no password: another one than loopback only on a network of your own.",
        rich_help_panel="Monitoring",
    ),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder of run folders.")]
Mlflow = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        metavar="URI",
        help="Report to this MLflow tracking server too, else to $MLFLOW_TRACKING_URI.",
    ),
]

DEFAULT_RUNS: Final = Path("runs")
DEFAULT_METRICS_HOST: Final = "127.0.0.1"


def open_log(bootstrap_servers: str | None, kafka_config: Path | None, **limits: Any) -> KafkaLog:
    """Return the log of the cluster that the options name; the caller closes it.

    ``limits`` are further arguments of :class:`~featurestream.kafka.KafkaLog`: what readers hold, how long they wait.

    Where nothing names a cluster the embedded broker is used, and standard error gets the line that says so.
    """
    from featurestream.cluster import resolve_cluster
    from featurestream.kafka import KafkaLog

    return KafkaLog(resolve_cluster(bootstrap_servers, kafka_config, say=say), **limits)


@contextmanager
def open_metrics(port: int | None, host: str, *, rank: int = 0) -> Iterator[Telemetry | None]:
    """Answer Prometheus while the block lasts, where a port is given; each rank on a port of its own."""
    if port is None:
        yield None
        return
    from featurestream.logs import Line
    from featurestream.telemetry import serve

    with serve(port + rank if port else 0, host) as telemetry:
        say(Line(f"metrics: {telemetry.url}", metrics=telemetry.url))
        yield telemetry


def use_mlflow(uri: str | None) -> None:
    """Name the tracking server that experiments report to, where one was given; MLflow must be installed then.

    It is named as MLflow's users do it, in the environment: a URI may hold a password, and no run's record should.
    """
    if uri is None:
        return
    import os

    from featurestream_consumer.reporters.mlflow import VARIABLE, check_installed

    check_installed()
    os.environ[VARIABLE] = uri


def say(line: str) -> None:
    """Tell a line on standard error: standard output is for what was asked for."""
    from featurestream import logs

    logs.say(line)

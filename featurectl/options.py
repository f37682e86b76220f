"""The options that many commands share, and the log that they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from featurestream.kafka import KafkaLog

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
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder of run folders.")]


DEFAULT_RUNS: Final = Path("runs")


def open_log(bootstrap_servers: str | None, kafka_config: Path | None) -> KafkaLog:
    """Return the log of the cluster that the options name; the caller closes it.

    Where nothing names a cluster the embedded broker is used, and standard error gets the line that says so.
    """
    from featurestream.cluster import resolve_cluster
    from featurestream.kafka import KafkaLog

    return KafkaLog(resolve_cluster(bootstrap_servers, kafka_config, say=say))


def say(line: str) -> None:
    """Tell a line on standard error: standard output is for what was asked for."""
    from featurestream import logs

    logs.say(line)

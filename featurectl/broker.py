"""``featurectl broker``: the embedded Kafka broker."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(help="The embedded Kafka broker: what commands use where no cluster is named.", no_args_is_help=True)

NOT_RUNNING = 3


@app.command()
def up() -> None:
    """Start the broker, where it does not run, and print its address."""
    from rich.console import Console

    from featurestream.broker import EmbeddedBroker
    from featurestream.broker.home import broker_home

    console = Console(stderr=True)
    broker = EmbeddedBroker(broker_home())
    before = broker.status()
    with console.status("starting Apache Kafka ..."):
        status = broker.up(lambda line: console.print(line, highlight=False))
    verb = "runs" if before.running else "started"
    console.print(
        f"Apache Kafka {status.version} {verb}: process {status.pid}, data in {status.home}",
        highlight=False,
        soft_wrap=True,
    )
    typer.echo(status.bootstrap_servers)


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell whether the broker runs, where, and with what data. Exit code 0: it runs; 3: it does not."""
    from featurestream.broker import EmbeddedBroker
    from featurestream.broker.home import broker_home

    found = EmbeddedBroker(broker_home()).status()
    if as_json:
        facts = {
            "running": found.running,
            "bootstrap_servers": found.bootstrap_servers,
            "pid": found.pid,
            "home": str(found.home),
            "version": found.version,
        }
        typer.echo(json.dumps(facts))
    elif found.running:
        typer.echo(
            f"running: Apache Kafka {found.version} at {found.bootstrap_servers} "
            f"(process {found.pid}, data in {found.home})"
        )
    else:
        typer.echo(f"not running (data in {found.home}); start it with: featurectl broker up")
    raise typer.Exit(0 if found.running else NOT_RUNNING)


@app.command()
def down() -> None:
    """Stop the broker; its data stays."""
    from featurestream.broker import EmbeddedBroker
    from featurestream.broker.home import broker_home

    home = broker_home()
    stopped = EmbeddedBroker(home).down()
    typer.echo(f"stopped (data stays in {home})" if stopped else f"was not running (data in {home})")


@app.command()
def logs(
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many lines, from the end.")] = 50,
) -> None:
    """Print the end of the broker's log."""
    from featurestream.broker import EmbeddedBroker
    from featurestream.broker.home import broker_home

    for line in EmbeddedBroker(broker_home()).logs(lines):
        typer.echo(line)

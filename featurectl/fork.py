"""``featurectl fork``: a new experiment that goes on from a checkpoint of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featurectl import options


def fork(
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder to fork; it is only read.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="The fork's name, and its run folder's.")],
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as optimizer_args.lr=0.01, scheduler=null or epochs=20."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="batch:N, the newest checkpoint that has batch N still before it; or step:N. Default: the newest.",
        ),
    ] = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", metavar="DIR", help="The folder of run folders. Default: RUN's own.")
    ] = None,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    as_json: options.Json = False,
) -> None:
    """Go on from a checkpoint of another run with something changed. The same command goes on with the fork itself."""
    from featurestream_consumer.process import prepare_process

    prepare_process()
    from featurectl.sprites import pictures_on
    from featurectl.train import print_result
    from featurestream_consumer.config import parse_arguments
    from featurestream_consumer.fork import check_fork
    from featurestream_consumer.fork import fork as run_fork
    from featurestream_consumer.ranks import refuse_ranks

    refuse_ranks("featurectl fork")
    changes = parse_arguments(change or [], dotted=True)
    folder = check_fork(run, name=name, changes=changes, at=at, runs=runs)  # before a broker is asked for, or started
    try:
        with options.open_log(bootstrap_servers, kafka_config) as log:
            result = run_fork(
                run, log, name=name, changes=changes, at=at, runs=runs, say=options.say, progress=True,
                pictures=pictures_on(log),
            )  # fmt: skip
    except KeyboardInterrupt:
        options.say(f"stopped; what was learnt up to the last checkpoint is in {folder}: the same command goes on")
        raise
    print_result(name, result, as_json=as_json)

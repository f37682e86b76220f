"""``featurectl probe``: which tap is worth training on, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurectl import options

if TYPE_CHECKING:
    from featurestream_consumer.probe_result import ProbeResult


def probe(
    *,
    stream: Annotated[str, typer.Argument(help="The stream to read.")],
    tap: Annotated[
        list[str] | None,
        typer.Option(metavar="TAP", help="Only this tap; may be given again, and the table keeps the order."),
    ] = None,
    validate: Annotated[
        str | None,
        typer.Option(metavar="STREAM", help="The stream to judge on. Without it every fifth sample is held out."),
    ] = None,
    start: options.From = "earliest",
    until: options.Until = None,
    runs: options.Runs = options.DEFAULT_RUNS,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the table too: .csv, .md or .json.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw accuracy by depth as a PNG.")] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between two saved states.")] = 30.0,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    as_json: options.Json = False,
) -> None:  # fmt: skip
    """Judge every tap by closed-form probes: ridge regression, LDA and nearest class mean, from one reading."""
    from featurestream_consumer.process import prepare_process

    prepare_process()
    from featurectl.output import print_json
    from featurestream.files import check_file
    from featurestream_consumer.compare import TABLE_SUFFIXES, write_table
    from featurestream_consumer.probe import probe as run_probe
    from featurestream_consumer.probe_plot import plot_depth

    for path, suffixes, what in ((output, TABLE_SUFFIXES, "table"), (plot, (".png",), "picture")):
        if path is not None:
            check_file(path, suffixes, what)  # before minutes of reading
    try:
        with options.open_log(bootstrap_servers, kafka_config) as log:
            result = run_probe(
                stream,
                log,
                validate=validate,
                taps=tap,
                start=start,
                stop=until,
                runs=runs,
                checkpoint_seconds=checkpoint_seconds,
                say=options.say,
                progress=True,
            )
    except KeyboardInterrupt:
        options.say("stopped: the same command goes on")
        raise
    rows = result.facts()
    if as_json:
        for row in rows:
            print_json(row)
    else:
        print_result(result)
    if output is not None:
        import pandas as pd

        write_table(pd.DataFrame(rows).drop(columns="ridge_by_lambda"), output)
        options.say(f"wrote {output}")
    if plot is not None:
        plot_depth(result, plot)
        options.say(f"wrote {plot}")


def print_result(result: ProbeResult) -> None:
    """Print what was read in one line, then a row a tap."""
    from featurectl.output import count_text, print_table

    begin = str(result.start).replace("batch", "batches", 1)
    typer.echo(
        f"{result.measure} on {count_text(result.validation_rows)} rows ({result.validation}); "
        f"fitted to {count_text(result.rows)} rows, {begin} to {result.stop - 1}, read in {result.read_s:.1f} s"
    )
    print_table(
        ["tap", ">features", ">ridge", ">lambda", ">LDA", ">nearest mean", ">solved in"],
        [
            [tap.tap, count_text(tap.features), _share(tap.best.score), f"{tap.best.penalty:g}", _share(tap.lda),
             _share(tap.ncm), f"{tap.solve_s:.2f} s"]
            for tap in result.taps
        ],
    )  # fmt: skip


def _share(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"

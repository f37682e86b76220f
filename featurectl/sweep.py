"""``featurectl sweep``: many experiments on one reading of a stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurectl import options

if TYPE_CHECKING:
    from featurestream_consumer.sweep import Outcome, SweepPlan


def sweep(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep: YAML; see docs/ablation.md.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the experiments and how they group, and stop.")
    ] = False,
    runs: options.Runs = options.DEFAULT_RUNS,
    mlflow: options.Mlflow = None,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    log_format: options.LogFormat = "text",
    metrics_port: options.MetricsPort = None,
    metrics_host: options.MetricsHost = options.DEFAULT_METRICS_HOST,
    as_json: options.Json = False,
) -> None:
    """Train many experiments on one reading. Stopped at any moment, the same command goes on where it was."""
    from featurestream_consumer.process import prepare_process

    prepare_process()
    from featurectl.sprites import pictures_on
    from featurestream.logs import bind, start_logging

    start_logging(log_format, command="sweep", sweep=file.stem)
    from featurestream_consumer.ranks import refuse_ranks
    from featurestream_consumer.sweep import check_configs, plan_sweep, run_sweep
    from featurestream_consumer.sweep_file import read_sweep

    refuse_ranks("featurectl sweep")
    options.use_mlflow(mlflow)
    configs = read_sweep(file).experiments(runs, name=file.stem)
    bind(stream=configs[0].stream)
    check_configs(configs)  # before a broker is asked for, or started
    try:
        with (
            options.open_metrics(metrics_port, metrics_host) as telemetry,
            options.open_log(bootstrap_servers, kafka_config) as log,
        ):
            plan = plan_sweep(configs, log, say=options.say)
            if dry_run:
                _print_plan(plan, as_json=as_json)
                return
            outcomes = run_sweep(
                plan, log, say=options.say, progress=file.stem, telemetry=telemetry, pictures=pictures_on(log)
            )
    except KeyboardInterrupt:
        options.say(f"stopped; what was learnt up to the last checkpoints is in {runs}: the same command goes on")
        raise
    _print_outcomes(outcomes, as_json=as_json)


def _print_plan(plan: SweepPlan, *, as_json: bool) -> None:
    from featurectl.output import print_json, print_table

    states = [
        "new" if planned.record is None else str(planned.record["state"]) for planned in plan.experiments
    ]  # fmt: skip
    if as_json:
        for planned, state in zip(plan.experiments, states, strict=True):
            print_json({"name": planned.config.name, "state": state, "group": planned.group, **planned.config.record()})
        return
    rows = []
    for planned, state in zip(plan.experiments, states, strict=True):
        config = planned.config
        rows.append(
            [
                config.name,
                state,
                "+".join(config.taps),
                _call(config.head, config.head_args),
                _call(config.optimizer, config.optimizer_args),
                str(config.epochs),
                str(config.batch_size),
                "alone" if planned.group is None else str(planned.group),
            ]
        )
    print_table(["experiment", "state", "tap", "~head", "~optimizer", ">epochs", ">batch size", "group"], rows)
    groups = ", ".join(f"group {number} of {len(members)} heads" for number, members in plan.groups.items())
    alone = sum(planned.group is None for planned in plan.experiments)
    passes = "endless" if plan.range.stop is None else f"to batch {plan.range.stop}"
    typer.echo(f"{len(rows)} experiments: {', '.join(part for part in (groups, f'{alone} alone') if part)}")
    typer.echo(f"all of them read {plan.manifest.stream} from {plan.range.start}, {passes}")


def _print_outcomes(outcomes: list[Outcome], *, as_json: bool) -> None:
    from featurectl.compare import print_comparison
    from featurectl.output import print_json
    from featurestream_consumer.compare import compare_table, load_run, records

    if as_json:
        for outcome in outcomes:
            result = outcome.result
            print_json(
                {
                    "name": outcome.config.name,
                    "folder": str(outcome.config.runs / outcome.config.name),
                    "state": "stopped" if result is None else "finished",
                    "reason": outcome.reason,
                    "steps": None if result is None else result.steps,
                    "passes": None if result is None else result.passes,
                    "rereads": None if result is None else result.rereads,
                    "metrics": None if result is None else result.metrics,
                    "already_finished": result is not None and result.already_finished,
                }
            )
        return
    found = [load_run(outcome.config.runs / outcome.config.name) for outcome in outcomes]
    print_comparison(records(compare_table(found)))
    for outcome in outcomes:
        if outcome.result is None:
            options.say(f"{outcome.config.name} stopped before its end: {outcome.reason}")


def _call(name: str, args: dict[str, object]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in args.items())})" if args else name

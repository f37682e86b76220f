"""``featurectl demo``: the whole main job on real images, in minutes, with the commands that do the same by hand."""

from __future__ import annotations

import hashlib
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from featurectl import options

if TYPE_CHECKING:
    from featurectl.samples import Samples
    from featurestream.ports import Log
    from featurestream_consumer.config import TrainConfig
    from featurestream_producer.config import ProduceConfig
    from featurestream_producer.prepare import Prepared

MODEL: Final = "resnet18"
IMAGE_SIZE: Final = 64
TRANSFORM: Final = "featurectl.samples:augment"
TAPS: Final = {"layer2": "layer2:gap", "layer3": "layer3:gap", "avgpool": "avgpool"}  # name: spec
TRAIN_PASSES: Final = 2
EPOCHS: Final = 12
BATCH_SIZE: Final = 128
LATE_TAP: Final = "avgpool"  # its experiment starts at a time: it sees the second pass only
STEPS: Final = 5
NEEDED_MODULES: Final = ("sklearn", "PIL", "torch", "torchvision", "safetensors", "matplotlib")


def demo(
    *,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where images, runs and the plot go.")] = Path("demo"),
    weights: Annotated[
        str,
        typer.Option(
            metavar="random|DEFAULT|FILE",
            help="The backbone's weights: random, torchvision's (downloaded once), or a checkpoint.",
        ),
    ] = "random",
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
) -> None:
    """Run the whole job on 1,797 digits: images, a frozen backbone, a stream on Kafka, three experiments, a table.

    Every step prints the command that does the same. Run it again: what is finished is found, not made again.
    """
    from featurestream.heap import keep_memory

    keep_memory()  # before anything that starts threads is imported
    from featurectl.samples import write_samples

    _check_installed()
    began = time.monotonic()
    with step(1, "sample images", ["python", "-m", "featurectl.samples", str(folder)]):
        samples = write_samples(folder)
        typer.echo(f"1,797 handwritten digits, 8 x 8 pixels, in {samples.images}")
    plan = DemoPlan.of(samples, folder, weights, _cluster_words(bootstrap_servers, kafka_config))
    try:
        prepared = plan.prepare()  # before the broker: weights that are not there should not have to wait for one
        with options.open_log(bootstrap_servers, kafka_config) as log:
            run_demo(plan, prepared, log)
    except KeyboardInterrupt:
        options.say("stopped; the same command goes on where it was")
        raise
    typer.echo(f"\nall of it took {time.monotonic() - began:.0f} s")
    _show_what_next(plan)


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the demo makes: two streams and three experiments.

    Other weights make other streams and runs, with a suffix: nothing is overwritten. ``cluster`` are the words that
    name the cluster on a command line.
    """

    folder: Path
    suffix: str
    streams: tuple[ProduceConfig, ProduceConfig]
    cluster: tuple[str, ...]

    @classmethod
    def of(cls, samples: Samples, folder: Path, weights: str, cluster: Sequence[str]) -> DemoPlan:
        """Return the plan for these weights."""
        from featurestream_producer.config import ProduceConfig

        suffix = suffix_for(weights)
        # One seed for both: random weights are drawn from it, and must be the same.
        common: dict[str, Any] = {
            "model": MODEL, "weights": weights, "taps": tuple(TAPS.values()), "image_size": IMAGE_SIZE, "seed": 0
        }  # fmt: skip
        train = ProduceConfig(
            data=str(samples.train_csv),
            stream=f"demo-train{suffix}",
            transform=TRANSFORM,
            passes=TRAIN_PASSES,
            **common,
        )
        validation = ProduceConfig(
            data=str(samples.validation_csv), stream=f"demo-validation{suffix}", transform="eval", passes=1, **common
        )
        return cls(folder, suffix, (train, validation), tuple(cluster))

    def prepare(self) -> tuple[Prepared, Prepared]:
        """Return both streams as the producer wants them: data, backbone and taps are there and fit."""
        from featurestream_producer.prepare import prepare

        train, validation = self.streams
        return prepare(train), prepare(validation)

    @property
    def runs(self) -> Path:
        """The folder of run folders."""
        return self.folder / "runs"

    def experiment(self, tap: str, start: str) -> TrainConfig:
        """Return the experiment on a tap."""
        from featurestream_consumer.config import TrainConfig
        from featurestream_consumer.reporters import default_reporters

        return TrainConfig(
            name=f"mlp-{tap}{'-late' if tap == LATE_TAP else ''}{self.suffix}",
            stream=self.streams[0].stream,
            taps=tap,
            head="mlp",
            normalize="standardize",
            epochs=EPOCHS,
            batch_size=BATCH_SIZE,
            validate=self.streams[1].stream,
            start=start,
            runs=self.runs,
            reporters=tuple(name for name in default_reporters() if name != "console"),  # the bar is enough
        )


def suffix_for(weights: str) -> str:
    """Return what the names of streams and runs end with: nothing for random weights, else something of the weights."""
    if weights == "random":
        return ""
    file = Path(weights)
    if file.is_file():
        return "-" + hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    return "-" + re.sub(r"[^A-Za-z0-9]+", "-", weights).strip("-")


def run_demo(plan: DemoPlan, prepared: tuple[Prepared, Prepared], log: Log) -> None:
    """Produce both streams, train the three experiments, compare them."""
    from featurectl.compare import print_comparison
    from featurestream.progress import Progress
    from featurestream_consumer.compare import compare_table, load_runs, records
    from featurestream_consumer.plots import plot_comparison
    from featurestream_consumer.reporters.console import format_metric
    from featurestream_consumer.run import train
    from featurestream_producer.run import publish

    if plan.streams[0].weights == "random":
        typer.echo(
            "\nRANDOM WEIGHTS: this backbone has learned nothing. Its features still tell digits apart; a trained one, "
            "where its weights can be downloaded: featurectl demo --weights DEFAULT"
        )
    titles = (
        f"features of the training images: {TRAIN_PASSES} augmented passes",
        "features of the validation images: one plain pass",
    )
    for number, (title, stream) in enumerate(zip(titles, prepared, strict=True), start=2):
        with step(number, title, produce_words(stream.config, plan.cluster)):
            if publish(stream, log, say=options.say, progress=Progress).interrupted:
                raise KeyboardInterrupt
    runs = []
    with step(4, "three experiments, one on each tap", None):
        typer.echo("each reads the same stream at its own pace; each could run in a terminal, or on a host, of its own")
        for tap in TAPS:
            start = _late_start(plan, log, tap) if tap == LATE_TAP else "earliest"
            experiment = plan.experiment(tap, start)
            if tap == LATE_TAP:
                typer.echo(f"this one starts at a time, when the second pass began to be appended: {start}")
            _show_command(train_words(experiment, plan.cluster))
            result = train(experiment, log, say=options.say, progress=True)
            runs.append(result.folder)
            if not result.already_finished:
                metrics = ", ".join(f"{key} {format_metric(key, value)}" for key, value in result.metrics.items())
                typer.echo(f"{experiment.name}: {metrics} on the validation stream")
    plot = plan.folder / f"comparison{plan.suffix}.png"
    with step(5, "comparison", ["featurectl", "compare", *map(str, runs), "--plot", str(plot)]):
        found = load_runs(runs)
        rows = records(compare_table(found))
        print_comparison(rows)
        plot_comparison(found, plot)
    best = rows[0]
    typer.echo(
        f"\nbest: {best['run']}, {best['top1']:.1%} of the 359 validation digits right, from features that were "
        "extracted once"
    )


def produce_words(config: ProduceConfig, cluster: Sequence[str]) -> list[str]:
    """Return the command line that produces the stream of ``config``."""
    return [
        "featurectl", "produce", config.data, "--stream", config.stream, "--model", config.model,
        "--weights", str(config.weights), *(word for tap in config.taps for word in ("--tap", tap)),
        "--transform", config.transform, "--image-size", str(config.image_size), "--passes", str(config.passes),
        *cluster,
    ]  # fmt: skip


def train_words(config: TrainConfig, cluster: Sequence[str]) -> list[str]:
    """Return the command line that trains the experiment of ``config``."""
    start = () if config.start == "earliest" else ("--from", config.start)
    return [
        "featurectl", "train", config.stream, *(word for tap in config.taps for word in ("--tap", tap)),
        "--name", config.name, "--head", config.head, "--normalize", config.normalize, "--epochs", str(config.epochs),
        "--batch-size", str(config.batch_size), "--validate", str(config.validate_stream), *start,
        "--runs", str(config.runs), *cluster,
    ]  # fmt: skip


@contextmanager
def step(number: int, title: str, words: Sequence[str] | None) -> Iterator[None]:
    """Print a step's title and the command that does the same, and at its end how long it took."""
    typer.echo(f"\n[{number}/{STEPS}] {title}")
    if words:
        _show_command(words)
    began = time.monotonic()
    yield
    typer.echo(f"({time.monotonic() - began:.1f} s)")


def _show_command(words: Sequence[str]) -> None:
    typer.secho(f"$ {shlex.join(words)}", bold=True)


def _check_installed() -> None:
    """Raise MissingExtraError now, rather than when the last step finds that it cannot draw."""
    from featurestream.errors import MissingExtraError

    if any(find_spec(module) is None for module in NEEDED_MODULES):
        raise MissingExtraError("the demo", "producer,consumer,demo")


def _cluster_words(bootstrap_servers: str | None, kafka_config: Path | None) -> list[str]:
    named = [] if bootstrap_servers is None else ["--bootstrap-servers", bootstrap_servers]
    return named if kafka_config is None else [*named, "--kafka-config", str(kafka_config)]


def _late_start(plan: DemoPlan, log: Log, tap: str) -> str:
    """Return when the first batch of the second pass was appended; or what an earlier run of the demo took for it."""
    from featurectl.output import time_json
    from featurectl.peek import look
    from featurestream.manifest_topic import require_manifest
    from featurestream_consumer.runs import RECORD_NAME, read_record

    folder = plan.runs / plan.experiment(tap, "earliest").name
    if (folder / RECORD_NAME).is_file():
        return str(read_record(folder)["config"]["start"])
    manifest = require_manifest(log, plan.streams[0].stream)
    source = log.source()
    try:
        first = next(look(source, manifest, [tap], start="pass:1", until=None, count=1))
    finally:
        source.close()
    return str(time_json(first.at.timestamp_ms))


def _show_what_next(plan: DemoPlan) -> None:
    train, validation = (config.stream for config in plan.streams)
    mine = [
        "featurectl", "train", train, "--tap", "layer3", "--name", "mine", "--head", "linear", "--from", "-1h",
        "--normalize", "standardize", "--validate", validation, "--runs", str(plan.runs), *plan.cluster,
    ]  # fmt: skip
    typer.echo(
        f"""
what was made
  {plan.folder / "images"} and two tables    the images
  streams {train}, {validation}    on the Kafka cluster, one topic a tap, for 7 days
  {plan.runs}    a folder a run: run.json, metrics.jsonl, head.safetensors, validation.npz
  {plan.folder / f"comparison{plan.suffix}.png"}    how the experiments learned

what next"""
    )
    for words, why in (
        (["featurectl", "streams", train, *plan.cluster], "what the stream holds, and who reads it"),
        (["featurectl", "peek", train, "--from", "pass:1", *plan.cluster], "look at a few records"),
        (mine, "an experiment of your own, from an hour ago on"),
        (["featurectl", "compare", str(plan.runs)], "all runs side by side"),
        (["featurectl", "layers", MODEL], "what else could be tapped"),
    ):
        typer.echo(f"  {shlex.join(words)}\n      {why}")
    typer.echo(
        f"""  in Python:
      from featurestream import FeatureStream
      for batch in FeatureStream({train!r}, "layer3", batch_size=256):
          batch.numpy(), batch.labels"""
    )

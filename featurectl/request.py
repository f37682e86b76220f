"""``featurectl request``: have samples extracted next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurectl import options

if TYPE_CHECKING:
    from featurestream.manifest_topic import StreamFacts
    from featurestream.ports import Log


def request(
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="The stream whose samples are wanted.")],
    ids: Annotated[
        Path,
        typer.Option(
            "--ids", metavar="FILE", help="A sample a line: its id, or its index in the data (a whole number)."
        ),
    ],
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    as_json: options.Json = False,
) -> None:
    """Have samples extracted next, beside the passes.

    They come on a stream of their own, STREAM-requests, which only those read who ask for it by this name. The
    producer that runs serves them between its batches; where none runs, the next one does before anything else.
    """
    import time

    from featurectl.output import print_json
    from featurectl.streams import producer_state
    from featurestream.manifest_topic import require_manifest
    from featurestream.requests import find_samples, open_requests, request_samples

    names = _read(ids)
    with options.open_log(bootstrap_servers, kafka_config) as log:
        manifest = require_manifest(log, stream)
        if manifest.kind is not None:
            from featurestream.errors import UsageError

            raise UsageError(
                f'stream "{stream}" is one of requests itself', hint="name the stream that was requested of"
            )
        wanted = list(dict.fromkeys(find_samples(log, manifest, names)))
        requests = open_requests(log, manifest)
        first, last = request_samples(log, requests, wanted)
        facts = _facts(log, stream)
        state = producer_state(facts, now_ms=round(time.time() * 1000))
    if as_json:
        print_json(
            {
                "stream": requests.stream,
                "samples": len(wanted),
                "first_batch": first,
                "last_batch": last,
                "producer": state,
            }
        )
        return
    twice = f" ({len(names) - len(wanted)} named twice)" if len(wanted) < len(names) else ""
    batches = f"batch {first}" if first == last else f"batches {first} to {last}"
    typer.echo(
        f"{len(wanted):,} sample{'s' if len(wanted) > 1 else ''} requested{twice}: {batches} of stream "
        f'{requests.stream}; read them with --from batch:{first}, or FeatureStream("{requests.stream}", '
        f'start="batch:{first}")'
    )
    if state != "live":
        options.say("no producer is running: the next one serves them first; give its command again")


def _read(path: Path) -> list[str]:
    """Return the samples that a file names, one a line; empty lines do not count."""
    from featurestream.errors import UsageError

    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="expected a text file, a sample's id a line") from error
    names = [line for line in lines if line]
    if not names:
        raise UsageError(f"{path} names no sample", hint="expected a sample's id or index a line")
    return names


def _facts(log: Log, stream: str) -> StreamFacts:
    from featurestream.manifest_topic import read_facts

    source = log.source()
    try:
        return read_facts(source, stream)
    finally:
        source.close()

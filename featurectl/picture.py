"""``featurectl picture``: the image behind a row, made again exactly as the backbone got it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from featurectl import options

if TYPE_CHECKING:
    from PIL.Image import Image

    from featurestream.manifest import Manifest
    from featurestream.ports import Log, RecordSource
    from featurestream.record import Record
    from featurestream_producer.remake import Check, Place, Remaker


#: Code of ours that a manifest may name: the demo's transform.
OUR_CODE: Final = ("featurectl.samples:augment",)


def picture(
    *,
    stream: Annotated[str, typer.Argument(help="The stream.")],
    batch: Annotated[int, typer.Option("--batch", metavar="B", min=0, help="The batch.")],
    row: Annotated[int | None, typer.Option("--row", metavar="R", min=0, help="The row in it, from 0.")] = None,
    view: Annotated[
        int | None,
        typer.Option("--view", metavar="V", min=0, help="Another view of the same sample. Default: the row's own."),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="All rows of the batch, as a contact sheet.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.png", help="Where to write it. Default: STREAM-batch-B-row-R.png."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Where the data is now. Default: where the producer found it.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the folder that the producer got as --root is now.")
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A package.module:function that the manifest names and that may be called."),
    ] = None,
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    as_json: options.Json = False,
) -> None:
    """Make the image behind a row again, check that it is what was fed, and show it beside the original.

    Data and transform must be the manifest's. The record carries checksums of a few rows' inputs; a row without one
    is vouched for by the nearest that has one.
    """
    from featurectl.output import print_facts, print_json

    file = _output(stream, batch, row, view, grid=grid, output=output)
    with options.open_log(bootstrap_servers, kafka_config) as log:
        shown = show(log, stream, batch, row, view, data=data, root=root, trusted=tuple(trust or ()))
    _write(shown.image, file)
    if as_json:
        print_json({"file": str(file), **shown.facts})
    else:
        print_facts([("picture", str(file)), *shown.lines])


class Shown:
    """A picture, what a person is told of it, and the same as JSON values."""

    def __init__(self, image: Image, lines: list[tuple[str, str]], facts: dict[str, Any]) -> None:
        self.image, self.lines, self.facts = image, lines, facts


def show(
    log: Log,
    stream: str,
    batch: int,
    row: int | None,
    view: int | None,
    *,
    data: str | None = None,
    root: Path | None = None,
    trusted: Sequence[str] = (),
) -> Shown:
    """Return the image behind a row beside the original; without a row, a contact sheet of the batch.

    ``data`` and ``root`` say where the data is now, where it has moved; ``trusted`` which code beside our own the
    manifest may name.
    """
    from featurestream.manifest_topic import read_facts, require_manifest
    from featurestream_producer.remake import Remaker, check_code, place_of, reopen_dataset

    manifest = require_manifest(log, stream)
    source = log.source()
    try:
        canary = read_facts(source, stream).canary
        record = read_batch(source, manifest, batch)
    finally:
        source.close()
    check_code(manifest, data=data, trusted=(*OUR_CODE, *trusted))
    place = None if row is None else place_of(record, row, view)
    remaker = Remaker(manifest, reopen_dataset(manifest, data=data, root=root), record, canary)
    shown = _sheet(remaker) if place is None else _pair(remaker, place)
    shown.facts = {"stream": stream, "batch": batch, "pass": record.pass_number, **shown.facts}
    return shown


def read_batch(source: RecordSource, manifest: Manifest, batch: int) -> Record:
    """Return the record of a batch at the narrowest tap: all taps have the same rows.

    Raises UsageError for a batch that is not there yet, GoneError for one that retention has deleted.
    """
    from featurectl.peek import look_at
    from featurestream.errors import UsageError
    from featurestream.names import tap_topic
    from featurestream.seek import Lanes

    narrowest = min(manifest.taps, key=lambda tap: tap.numbers)
    topic = tap_topic(manifest.stream, narrowest.name)
    lanes = Lanes(source, manifest.layout, [topic])
    there = lanes.next_missing()
    if batch >= there:
        raise UsageError(
            f'stream "{manifest.stream}" has no batch {batch}: its batches are {lanes.earliest()} to {there - 1}'
            if there
            else f'stream "{manifest.stream}" has no batch yet',
            hint=f"see what is there with: featurectl streams {manifest.stream}",
        )
    return look_at(source, lanes, topic, batch).record


def _pair(remaker: Remaker, place: Place) -> Shown:
    from featurestream_producer.pictures import draw_pair, normalisation_of, to_image

    record = remaker.record
    remade = remaker.make(place)
    check = remaker.check(place)
    mean, std, how = normalisation_of(remaker.manifest.transform, remade.fed[None])
    size = " x ".join(map(str, remade.fed.shape))
    label = "" if place.label is None else f", label {place.label}"
    views = f", view {place.view}" if record.views > 1 else ""
    where = f"{record.stream}, batch {record.batch} (pass {record.pass_number}), row {place.row}{views}"
    sample = f"{place.id} (index {place.index}){label}"
    vouched = _vouched(check, place.row)
    image = draw_pair(
        remade, to_image(remade.fed, mean, std), [where, sample, f"checksum {remade.checksum}: {vouched}"]
    )
    lines = [
        ("row", where),
        ("sample", sample),
        ("fed", f"float32 {size}, checksum {remade.checksum}"),
        ("checked", vouched),
        ("colours", how),
    ]
    facts = {
        "row": place.row, "view": place.view, "index": place.index, "id": place.id, "label": place.label,
        "shape": list(remade.fed.shape), "checksum": remade.checksum, "checked_row": check.row,
        "rows_with_checksum": list(check.carried), "colours": how,
    }  # fmt: skip
    return Shown(image, lines, facts)


def _vouched(check: Check, row: int) -> str:
    if check.row is None:
        return "not checked: the record carries no checksums; an older producer wrote it"
    if check.row == row:
        return "it is what was fed: the record carries this checksum"
    rows = ", ".join(map(str, check.carried))
    return f"row {row} has no checksum in the record (rows {rows} have); row {check.row}, the nearest, is what was fed"


def _sheet(remaker: Remaker) -> Shown:
    import torch

    from featurestream.errors import UsageError
    from featurestream_producer.pictures import draw_sheet, normalisation_of, to_image
    from featurestream_producer.remake import place_of

    record = remaker.record
    if not record.rows:
        raise UsageError(f"batch {record.batch} has no rows: none of its images could be decoded")
    remade = [remaker.make(place_of(record, row)) for row in range(record.rows)]
    carried = remaker.check(remade[0].place).carried
    mean, std, how = normalisation_of(remaker.manifest.transform, torch.stack([one.fed for one in remade]))
    title = f"{record.stream}, batch {record.batch} (pass {record.pass_number}), {record.rows} rows as they were fed"
    image = draw_sheet(
        [to_image(one.fed, mean, std) for one in remade],
        [f"{one.place.row}" if one.place.label is None else f"{one.place.row}: {one.place.label}" for one in remade],
        [one.place.row in carried for one in remade],
        title,
    )
    checked = f"rows {', '.join(map(str, carried))} are what was fed: the record carries their checksums"
    missing = [(sample.id, sample.reason) for sample in record.missing]
    lines = [("batch", title), ("checked", checked if carried else _vouched(remaker.check(remade[0].place), 0))]
    lines += [("missing", f"{name} ({reason})") for name, reason in missing]
    facts = {
        "rows": record.rows, "checked_rows": list(carried), "checksums": [one.checksum for one in remade],
        "missing": [name for name, _ in missing], "colours": how,
    }  # fmt: skip
    return Shown(image, [*lines, ("colours", how)], facts)


def _output(
    stream: str, batch: int, row: int | None, view: int | None, *, grid: bool, output: Path | None
) -> Path:  # fmt: skip
    """Return where to write; UsageError for options that do not go together."""
    from featurestream.errors import UsageError
    from featurestream.files import check_file

    if grid == (row is not None):
        raise UsageError(
            "both a row and a grid of all rows were asked for" if grid else "no row was asked for",
            hint="expected --row R, or --grid for all rows of the batch",
        )
    if grid and view is not None:
        raise UsageError("--view has no effect on a grid, which shows all views", hint="leave it out")
    if output is not None:
        check_file(output, (".png",), "picture")
    what = "grid" if row is None else f"row-{row}" + ("" if view is None else f"-view-{view}")
    return output or Path(f"{stream}-batch-{batch}-{what}.png")


def _write(image: Image, file: Path) -> None:
    from featurestream.errors import OutsideError

    try:
        image.save(file, "PNG")
    except OSError as error:
        raise OutsideError(
            f"cannot write {file}: {error.strerror or error}", hint="name a place that can be written with -o FILE.png"
        ) from error

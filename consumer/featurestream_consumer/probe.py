"""Probe a stream: one reading, and how well a linear classifier does at every tap, with no training."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import psutil
import torch
import xxhash
from numpy.typing import NDArray

from featurestream.batch import FeatureBatch
from featurestream.errors import DataError, FingerprintError, UsageError
from featurestream.manifest import Manifest
from featurestream.manifest_topic import require_manifest
from featurestream.ports import Log
from featurestream.position import Position
from featurestream.progress import Progress
from featurestream.stream import FeatureStream, Start
from featurestream_consumer.closed_form import (
    LAMBDAS,
    SHRINKAGE,
    LinearProbe,
    Moments,
    check_lambdas,
    check_shrinkage,
    lda,
    nearest_class_mean,
    ridge,
)
from featurestream_consumer.probe_folder import ProbeFolder
from featurestream_consumer.probe_result import ProbeResult, RidgeScore, TapProbe
from featurestream_consumer.sibling import check_sibling

#: Rows added up at a time: X'X of a few rows would spend its time on reading and writing the sums.
BATCH_ROWS: Final = 2048
#: Without a validation stream every fifth sample is held out, all its views and passes with it.
HELD_OUT_OF: Final = 5
HELD_OUT: Final = f"samples held out: index modulo {HELD_OUT_OF} is {HELD_OUT_OF - 1}"
WAIT_LINE_S: Final = 10.0  # how long nothing comes before the reader says so


def probe(
    stream: str,
    log: Log,
    *,
    validate: str | None = None,
    taps: str | Sequence[str] | None = None,
    start: Start = "earliest",
    stop: Start | None = None,
    lambdas: Sequence[float] = LAMBDAS,
    shrinkage: float = SHRINKAGE,
    runs: Path = Path("runs"),
    checkpoint_seconds: float = 30.0,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> ProbeResult:
    """Return how well closed-form probes do at every tap of a stream.

    The range is read once, all taps joined, and then the first pass of the validation stream. Each ridge penalty is
    judged on the validation rows, and the best is named: that score is a little better than it would be on rows that
    had no part in the choice. Stopped at any moment, also by SIGKILL, and called again with the same arguments, it goes
    on where it was and ends with the result of an undisturbed probe, bit for bit. A finished probe of the very same
    range is not made again: its result is returned.

    Args:
        stream: the stream to read.
        log: where it is.
        validate: a sibling stream to judge on. Without one, samples whose index is 4 modulo 5 are held out, and judged
            on as the first pass of the range has them.
        taps: taps by name or spec, in the order of the result; None for all, in the manifest's order.
        start: where to start, as :class:`FeatureStream` takes it.
        stop: where to stop, exclusive; None for the end of the stream, which an endless one has not.
        lambdas: penalties of ridge regression, see :func:`~featurestream_consumer.closed_form.ridge`.
        shrinkage: of the covariance, see :func:`~featurestream_consumer.closed_form.lda`.
        runs: the folder of run folders; the record goes to ``runs/probe-<stream>``.
        checkpoint_seconds: seconds between two saved states.
        say: takes lines for the user.
        progress: show a bar (plain lines where standard error is no terminal).

    Raises:
        UsageError: for taps, streams, labels and ranges that do not fit, before anything is read.
        DataError: where the rows cannot be used: a single class, or labels that their manifest does not announce.
        GoneError, HoleError, FingerprintError: the range cannot be read exactly.
    """
    lambdas, shrinkage = check_lambdas(lambdas), check_shrinkage(shrinkage)
    if not checkpoint_seconds > 0:
        raise UsageError(f"checkpoint_seconds={checkpoint_seconds}", hint="expected a number of seconds above 0")
    manifest = require_manifest(log, stream)
    validation = None if validate is None else require_manifest(log, validate)
    given = [tap.name for tap in manifest.taps] if taps is None else [taps] if isinstance(taps, str) else taps
    names = tuple(manifest.tap(name).name for name in given)
    _check(manifest, validation, names, stop, len(lambdas))
    settings = {
        "stream": stream, "validate": validate, "taps": names, "start": str(start),
        "stop": None if stop is None else str(stop), "lambdas": lambdas, "shrinkage": shrinkage,
    }  # fmt: skip
    fingerprints = {found.stream: found.fingerprint for found in (manifest, validation) if found is not None}
    with ExitStack() as stack:
        folder = stack.enter_context(ProbeFolder(runs / f"probe-{stream}", settings, fingerprints))
        going_on = folder.range
        begin, end = going_on or _resolve(stream, names, start, stop, log)
        found = folder.result(begin, end)
        if found is not None:
            say(f"{folder.folder} holds the result of this very range, which is not read again")
            return ProbeResult.from_record(found, folder.folder)
        job = _Probe(log, manifest, validation, names, begin, end, lambdas, shrinkage, checkpoint_seconds, folder, say)
        state = None if going_on is None else folder.state()
        for note in folder.notes:
            say(note)
        if going_on is None:
            folder.begin(begin, end)
        elif state is not None:
            job.load_state_dict(state)
            say(f"going on at {job.position}")
        if progress:
            stack.enter_context(job.show_progress())
        result = job.run()
        folder.finish(result.record())
        return result


def _check(
    manifest: Manifest, validation: Manifest | None, names: Sequence[str], stop: Start | None, lambdas: int
) -> None:
    """Raise UsageError for what cannot work, before anything is read."""
    data = manifest.data
    if not names or len(set(names)) < len(names):
        raise UsageError(f"taps {list(names)}: name at least one tap, and each one once")
    if data.label_kind == "none":
        raise UsageError(
            f'stream "{manifest.stream}" has no labels: there is nothing to probe for',
            hint="publish it from data with labels (a CSV with a label column, or a folder a class)",
        )
    if data.label_kind == "class" and data.class_count == 1:
        raise UsageError(
            f'stream "{manifest.stream}" has a single class: every probe would be right', hint="it takes two or more"
        )
    if manifest.passes is None and stop is None:
        raise UsageError(
            f'stream "{manifest.stream}" is endless: say where to stop',
            hint="such as --until latest, or --until pass:1",
        )
    if validation is None and data.samples < HELD_OUT_OF:
        raise UsageError(
            f'stream "{manifest.stream}" has {data.samples} samples: too few to hold every {HELD_OUT_OF}th out',
            hint="name a validation stream with --validate",
        )
    if validation is not None:
        if validation.stream == manifest.stream:
            raise UsageError(
                f'stream "{manifest.stream}" cannot be validated on itself',
                hint="name a stream of other samples, or none: then samples are held out",
            )
        check_sibling(manifest, validation, names)
    _check_memory(manifest, names, lambdas)


def _check_memory(manifest: Manifest, names: Sequence[str], lambdas: int) -> None:
    """Raise UsageError where the sums of all taps, their saved copies and the probes would not fit into memory."""
    outputs = _outputs(manifest)
    widths = {name: manifest.tap(name).numbers for name in names}
    sums = {name: Moments.bytes_of(width, outputs) for name, width in widths.items()}
    widest = max(sums, key=lambda name: sums[name])
    # Saving holds a copy; solving holds a few matrices of one tap; and each probe has weights.
    needed = 2 * sum(sums.values()) + 4 * sums[widest] + 8 * outputs * (lambdas + 2) * sum(widths.values())
    free = psutil.virtual_memory().available
    if needed > free:
        raise UsageError(
            f"probing {', '.join(names)} would take {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are "
            f'free: tap "{widest}" has {widths[widest]:,} numbers a row, whose sums alone are '
            f"{sums[widest] / 1e9:,.1f} GB",
            hint="name narrower taps with --tap, or publish it pooled (:gap)",
            tap=widest,
        )


def _outputs(manifest: Manifest) -> int:
    data = manifest.data
    return (data.class_count or 1) if data.label_kind == "class" else data.label_values


def _resolve(stream: str, names: Sequence[str], start: Start, stop: Start | None, log: Log) -> tuple[Position, int]:
    """Return the range as numbers. Raises UsageError where it is empty, GoneError where part of it is deleted."""
    with FeatureStream(stream, names, start=start, stop=stop, log=log) as found:
        if found.stop is None:
            raise UsageError(f'stream "{stream}" is endless: say where to stop', hint="such as --until latest")
        return found.start, found.stop


class _Judged(NamedTuple):
    """The probes of a tap while they are judged: right answers, or sums of squared errors, one a probe."""

    probes: list[LinearProbe]
    sums: NDArray[np.float64]
    solve_s: float


@dataclass
class _Probe:
    """A probe under way: it reads and adds up, solves, and judges."""

    log: Log
    manifest: Manifest
    validation: Manifest | None
    names: tuple[str, ...]
    start: Position
    stop: int
    lambdas: tuple[float, ...]
    shrinkage: float
    checkpoint_seconds: float
    folder: ProbeFolder
    say: Callable[[str], None]
    bar: Progress | None = None
    moments: dict[str, Moments] = field(default_factory=dict)
    read: int = 0  # rows read, held-out ones and all
    left_out: int = 0
    read_s: float = 0.0
    waiting: bool = False

    def __post_init__(self) -> None:
        self.position = self.start
        self.classes = self.manifest.data.label_kind == "class"
        for name in self.names:
            width = self.manifest.tap(name).numbers
            self.moments[name] = Moments(width, _outputs(self.manifest), class_labels=self.classes)

    def run(self) -> ProbeResult:
        self._add_up()
        judged = {name: self._solve(moments) for name, moments in self.moments.items()}
        began = time.monotonic()
        rows, total = self._judge(judged)
        if self.left_out:
            self.say(f"{self.left_out} rows were left out: a number of their label is not known")
        validation = HELD_OUT if self.validation is None else self.validation.stream
        return ProbeResult(
            stream=self.manifest.stream,
            validation=validation,
            measure="accuracy" if self.classes else "r2",
            start=self.start,
            stop=self.stop,
            rows=self.moments[self.names[0]].rows,
            validation_rows=rows,
            left_out=self.left_out,
            taps=tuple(self._tap_probe(name, judged[name], total) for name in self.names),
            read_s=round(self.read_s, 3),
            validate_s=round(time.monotonic() - began, 3),
            folder=self.folder.folder,
        )

    # ---- the sums ---------------------------------------------------------------------------------------------------

    def _add_up(self) -> None:
        """Read the rest of the range and take its rows into the sums; save them now and then with the position."""
        if self.position.batch >= self.stop:
            return
        saved_at = counted_at = time.monotonic()
        with closing(self._batches(self.manifest, self.position, Position(self.stop))) as batches:
            for batch in batches:
                self._take(batch)
                now = time.monotonic()
                self.read_s += now - counted_at
                counted_at = now
                if now - saved_at >= self.checkpoint_seconds:
                    self.folder.save(self.read, self.state_dict())
                    saved_at = time.monotonic()
        if not self.moments[self.names[0]].rows:
            raise DataError(
                f'the range of stream "{self.manifest.stream}" holds no row to fit a probe to', hint="read more of it"
            )

    def _take(self, batch: FeatureBatch) -> None:
        """Take a batch's rows into the sums, but for those that are held out."""
        chosen = None if self.validation is not None else ~_held_out(batch)
        labels, chosen = self._known_labels(batch, chosen)
        for name, moments in self.moments.items():
            try:
                moments.update(_features(batch, name, chosen), labels)
            except DataError as error:
                raise DataError(f"{batch.position}, tap {name}: {error.message}", hint=error.hint) from error
        self.position = batch.next_position
        self.read += len(batch)

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides how the reading goes on: numbers, lists and tensors."""
        return {
            "position": [self.position.batch, self.position.row],
            "read": self.read,
            "left_out": self.left_out,
            "read_s": self.read_s,
            "moments": {
                name: {
                    key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                    for key, value in moments.state_dict().items()
                }
                for name, moments in self.moments.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.position = Position(*state["position"])
        self.read, self.left_out, self.read_s = state["read"], state["left_out"], state["read_s"]
        for name, moments in self.moments.items():
            moments.load_state_dict(
                {
                    key: value.numpy() if isinstance(value, torch.Tensor) else value
                    for key, value in state["moments"][name].items()
                }
            )

    # ---- the probes -------------------------------------------------------------------------------------------------

    def _solve(self, moments: Moments) -> _Judged:
        """Return a tap's probes: nearest class mean and LDA first, where labels are classes, then ridge."""
        began = time.monotonic()
        probes: list[LinearProbe] = []
        if self.classes:
            probes += [nearest_class_mean(moments), lda(moments, shrinkage=self.shrinkage)]
        probes += ridge(moments, self.lambdas)
        return _Judged(probes, np.zeros(len(probes)), time.monotonic() - began)

    def _judge(self, judged: dict[str, _Judged]) -> tuple[int, float]:
        """Read the validation rows and judge every probe on them.

        Returns the number of rows and what the sums are to be compared with: that number, or the sum of the squared
        distances of the labels from their mean.
        """
        rows = 0
        seen: list[NDArray[Any]] = []
        with closing(self._validation_batches()) as batches:
            for batch in batches:
                labels, chosen = self._known_labels(batch, None if self.validation is not None else _held_out(batch))
                rows += len(labels)
                if not self.classes:
                    labels = labels.reshape(len(labels), -1)
                    seen.append(labels)
                for name, (probes, sums, _) in judged.items():
                    features_BD = _features(batch, name, chosen)
                    for number, found in enumerate(probes):
                        predicted = found.predict(features_BD)
                        judgement = predicted == labels if self.classes else np.square(predicted - labels)
                        sums[number] += judgement.sum()
        if not rows:
            what = "the validation stream" if self.validation is not None else "what the range holds of a pass"
            raise DataError(f"there is no row to judge probes on in {what}", hint="name another one with --validate")
        if self.classes:
            return rows, float(rows)
        labels_NK = np.concatenate(seen).astype(np.float64)
        total = float(np.square(labels_NK - labels_NK.mean(0)).sum())
        if total == 0:
            raise DataError(f"the labels of all {rows} validation rows are equal", hint="validate on other samples")
        return rows, total

    def _tap_probe(self, name: str, judged: _Judged, total: float) -> TapProbe:
        scores = [float(found / total if self.classes else 1 - found / total) for found in judged.sums]
        first = len(scores) - len(self.lambdas)
        tap = self.manifest.tap(name)
        return TapProbe(
            tap=name,
            layer=tap.layer,
            features=tap.numbers,
            ridge=tuple(
                RidgeScore(penalty, float(found.alpha or 0), score)
                for penalty, found, score in zip(
                    self.lambdas, judged.probes[first:], scores[first:], strict=True
                )
            ),
            ncm=scores[0] if self.classes else None,
            lda=scores[1] if self.classes else None,
            checksum=_checksum(self.moments[name]),
            solve_s=round(judged.solve_s, 3),
        )  # fmt: skip

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _validation_batches(self) -> Generator[FeatureBatch, None, None]:
        if self.validation is not None:
            return self._batches(self.validation, "pass:0", "pass:1")
        return self._batches(self.manifest, self.start, Position(self._held_out_stop()))

    def _held_out_stop(self) -> int:
        """Return where held-out rows end: each sample once, however many passes the range holds."""
        return min(self.stop, self.start.batch + self.manifest.layout.pass_batches)

    def _batches(self, manifest: Manifest, start: Start, stop: Start) -> Generator[FeatureBatch, None, None]:
        """Yield the range in batches of :data:`BATCH_ROWS`. Raises FingerprintError where the stream was made anew."""
        with FeatureStream(
            manifest.stream, self.names, start=start, stop=stop, batch_size=BATCH_ROWS, log=self.log, on_wait=self._wait
        ) as stream:
            if stream.manifest.fingerprint != manifest.fingerprint:
                raise FingerprintError(
                    f'stream "{manifest.stream}" had fingerprint {manifest.fingerprint} and now has '
                    f"{stream.manifest.fingerprint}",
                    hint="it was made anew while it was probed; give the command again",
                )
            for batch in stream:
                yield batch
                if self.bar is not None:
                    self.bar.advance(len(batch))

    def _known_labels(
        self, batch: FeatureBatch, chosen: NDArray[np.bool_] | None
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Return the labels of the chosen rows of which every number is known, and which rows those are (None: all)."""
        labels = batch.labels
        if labels is None:
            raise DataError(f"{batch.position} has no labels", hint="the stream is not what its manifest says")
        if labels.dtype.kind == "f":
            known = np.isfinite(labels).reshape(len(labels), -1).all(1)
            if not known.all():
                wanted = known if chosen is None else chosen & known
                self.left_out += int((len(labels) if chosen is None else chosen.sum()) - wanted.sum())
                chosen = wanted
        return (labels, None) if chosen is None else (labels[chosen], chosen)

    def _wait(self, waited_s: float) -> None:
        """Say once, in one line, why nothing goes on."""
        if waited_s >= WAIT_LINE_S and not self.waiting:
            self.say("waiting for the stream to go on; Ctrl-C stops, and the same command goes on")
        self.waiting = waited_s >= WAIT_LINE_S

    def show_progress(self) -> Progress:
        """Return the bar over both readings, not yet shown; lines for the user then go above it."""
        layout = self.manifest.layout
        total = sum(layout.rows_of(batch) for batch in range(self.start.batch, self.stop)) - self.start.row
        if self.validation is not None:
            total += self.validation.layout.samples * self.validation.layout.views
        else:
            total += sum(layout.rows_of(batch) for batch in range(self.start.batch, self._held_out_stop()))
        self.bar = Progress(f"probe {self.manifest.stream}", total, "rows", done=self.read)
        self.say = self.bar.say
        return self.bar


def _held_out(batch: FeatureBatch) -> NDArray[np.bool_]:
    """Tell of each row whether its sample is held out."""
    return np.asarray(batch.indices % HELD_OUT_OF == HELD_OUT_OF - 1)


def _features(batch: FeatureBatch, tap: str, chosen: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Return features_BD of the chosen rows."""
    features_BD = batch.numpy(tap).reshape(len(batch), -1)
    return features_BD if chosen is None else features_BD[chosen]


def _checksum(moments: Moments) -> str:
    digest = xxhash.xxh3_64()
    for value in moments.state_dict().values():
        digest.update(np.asarray(value).tobytes())
    return digest.hexdigest()

"""A probe of a stream: against scikit-learn on the same rows, exact under any death, clear about what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import r2_score
from sklearn.neighbors import NearestCentroid

from featurestream.errors import DataError, FingerprintError, GoneError, UnknownNameError, UsageError
from featurestream.manifest import BackboneFacts, Manifest, TapFacts, sealed
from featurestream.memory import MemoryLog
from featurestream_consumer import files, probe_folder
from featurestream_consumer import probe as probe_module
from featurestream_consumer.closed_form import LAMBDAS, SHRINKAGE, Moments
from featurestream_consumer.probe import probe
from featurestream_consumer.probe_folder import ProbeFolder
from featurestream_consumer.probe_result import ProbeResult
from tests.probing import SAMPLES, WIDTHS, Stream
from tests.support import create


class Killed(BaseException):
    """What no handler catches."""


def same_result(one: ProbeResult, other: ProbeResult) -> bool:
    """Tell whether two results are the same bit for bit, but for the time they took and where they lie."""

    def plain(result: ProbeResult) -> ProbeResult:
        taps = tuple(replace(tap, solve_s=0) for tap in result.taps)
        return replace(result, taps=taps, read_s=0, validate_s=0, folder=Path())

    return plain(one) == plain(other)


def expected_scores(
    fit: np.ndarray, labels: np.ndarray, unseen: np.ndarray, truth: np.ndarray, alphas: Iterable[float]
) -> tuple[list[float], float, float]:
    """What scikit-learn's ridge, nearest centroid and LDA score on the same rows."""
    fit, unseen = fit.astype(np.float64), unseen.astype(np.float64)
    ridges = [RidgeClassifier(alpha=alpha, solver="svd").fit(fit, labels) for alpha in alphas]
    ncm = NearestCentroid().fit(fit, labels)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(fit, labels)
    return (
        [float((found.predict(unseen) == truth).mean()) for found in ridges],
        float((ncm.predict(unseen) == truth).mean()),
        float((lda.predict(unseen) == truth).mean()),
    )


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are added up 16 at a time, so that a small stream takes several turns."""
    monkeypatch.setattr(probe_module, "BATCH_ROWS", 16)


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


# ---- what it finds --------------------------------------------------------------------------------------------


def test_every_tap_scores_what_scikit_learn_scores_on_the_validation_stream(log: MemoryLog, tmp_path: Path) -> None:
    train = Stream("toy", passes=2).publish(log)
    held = Stream("toy-validation", first=1000).publish(log)
    result = probe("toy", log, validate="toy-validation", runs=tmp_path)
    assert (result.measure, result.validation, result.rows, result.validation_rows) == (
        "accuracy", "toy-validation", 2 * SAMPLES, SAMPLES,
    )  # fmt: skip
    assert (result.start.batch, result.stop, result.left_out) == (0, 34, 0)
    assert [tap.tap for tap in result.taps] == ["layer1", "layer2", "fc"]
    assert [tap.layer for tap in result.taps] == ["net.layer1", "net.layer2", "net.fc"]
    for tap in result.taps:
        assert [found.penalty for found in tap.ridge] == list(LAMBDAS)
        fit = np.concatenate([train.features(tap.tap, number) for number in (0, 1)])
        ridges, ncm, lda = expected_scores(
            fit, np.tile(train.labels, 2), held.features(tap.tap), held.labels, [found.alpha for found in tap.ridge]
        )
        assert [found.score for found in tap.ridge] == ridges
        assert (tap.ncm, tap.lda) == (ncm, lda)
        assert tap.best.score == max(ridges)
    assert result.taps[0].best.score < result.taps[1].best.score


def test_without_a_validation_stream_every_fifth_sample_is_held_out(log: MemoryLog, tmp_path: Path) -> None:
    """From both passes when fitting; judged on as the first pass has them."""
    train = Stream("toy", passes=2).publish(log)
    result = probe("toy", log, runs=tmp_path)
    assert result.validation == "samples held out: index modulo 5 is 4"
    assert (result.rows, result.validation_rows) == (240, 30)
    held = np.arange(SAMPLES) % 5 == 4
    for tap in result.taps:
        fit = np.concatenate([train.features(tap.tap, number)[~held] for number in (0, 1)])
        ridges, ncm, lda = expected_scores(
            fit, np.tile(train.labels[~held], 2), train.features(tap.tap)[held], train.labels[held],
            [found.alpha for found in tap.ridge],
        )  # fmt: skip
        assert ([found.score for found in tap.ridge], tap.ncm, tap.lda) == (ridges, ncm, lda)


def test_of_equally_good_penalties_the_greatest_is_named(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy").publish(log)
    [tap] = probe("toy", log, taps="layer2", lambdas=(1e-9, 1e-8, 1e-10), runs=tmp_path).taps
    assert len({found.score for found in tap.ridge}) == 1
    assert tap.best.penalty == 1e-8


def test_taps_come_in_the_order_asked_for_by_name_or_spec(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy").publish(log)
    result = probe("toy", log, taps=["fc", "layer1"], runs=tmp_path)
    assert [tap.tap for tap in result.taps] == ["fc", "layer1"]
    assert [row["tap"] for row in result.facts()] == ["fc", "layer1"]


@pytest.mark.usefixtures("small_batches")
def test_neither_lanes_nor_batches_nor_their_order_change_a_score(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy").publish(log)
    Stream("other", batch_samples=31, lanes=5).publish(log)
    one, other = (probe(name, log, runs=tmp_path) for name in ("toy", "other"))
    for tap, twin in zip(one.taps, other.taps, strict=True):
        assert (tap.ncm, tap.lda, [found.score for found in tap.ridge]) == (
            twin.ncm, twin.lda, [found.score for found in twin.ridge],
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(SAMPLES,), (SAMPLES, 2)], ids=["values", "targets"])
def test_values_are_judged_by_the_variance_explained(log: MemoryLog, tmp_path: Path, shape: tuple[int, ...]) -> None:
    labels = (np.arange(np.prod(shape)).reshape(shape) % 3 * 10.0).astype(np.float32)
    labels[4] = labels[7] = np.nan
    train = Stream("toy", labels=labels).publish(log)
    said: list[str] = []
    result = probe("toy", log, taps="layer2", runs=tmp_path, say=said.append)
    assert (result.measure, result.left_out, result.rows, result.validation_rows) == ("r2", 2, 119, 29)
    assert said == ["2 rows were left out: a number of their label is not known"]
    known = np.isfinite(labels.reshape(SAMPLES, -1)).all(1)
    held = np.arange(SAMPLES) % 5 == 4
    features = train.features("layer2").astype(np.float64)
    [tap] = result.taps
    assert (tap.ncm, tap.lda) == (None, None)
    for found in tap.ridge:
        theirs = Ridge(alpha=found.alpha, solver="svd").fit(features[known & ~held], labels[known & ~held])
        expected = r2_score(
            labels[known & held], theirs.predict(features[known & held]), multioutput="variance_weighted"
        )
        assert found.score == pytest.approx(expected, rel=1e-6)


def test_a_range_inside_the_stream_is_read_and_no_more(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy", passes=2).publish(log)
    result = probe("toy", log, start="batch:3", stop="pass:1", runs=tmp_path)
    assert (result.start.batch, result.stop) == (3, 17)
    assert result.rows + result.validation_rows == 14 * 9 - 3  # batch 16 has 6 rows


def test_a_stream_that_is_still_being_made_is_waited_for(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "WAIT_LINE_S", 0.0)
    stream = Stream("toy")
    create(log, stream.manifest)
    stream.append(log, range(5))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        stream.append(log, range(5, 17))

    result = probe("toy", log, runs=tmp_path, say=say)
    assert result.rows + result.validation_rows == SAMPLES
    assert said == ["waiting for the stream to go on; Ctrl-C stops, and the same command goes on"]


# ---- dying ----------------------------------------------------------------------------------------------------


def dying(after: int, then: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``then``, but that it dies at the call after the ``after``-th."""
    calls = iter(range(1_000_000))

    def call(*arguments: Any, **named: Any) -> Any:
        if next(calls) >= after:
            raise Killed
        return then(*arguments, **named)

    return call


#: Where a probe may die: (what is replaced, after how many calls). Two lookups and 20 batches of three taps are made.
DEATHS = [
    *[((Moments, "update"), after) for after in range(0, 60, 7)],  # between taps of a batch, and between batches
    *[((files, "sync_folder"), after) for after in (0, 1, 5)],  # the state is there, its name not yet for certain
    *[((Path, "replace"), after) for after in (0, 1, 2, 6)],  # written, not yet renamed
    ((probe_module, "ridge"), 1),
    ((probe_module._Probe, "_judge"), 0),
    ((probe_module._Probe, "_tap_probe"), 1),
    ((ProbeFolder, "_remove_states"), 1),  # the result is recorded, the states are still there
]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("place", "after"), DEATHS, ids=[f"{place[1]}-{after}" for place, after in DEATHS])
def test_a_probe_that_died_anywhere_ends_as_if_it_had_not(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], after: int
) -> None:
    Stream("toy", passes=2).publish(log)
    whole = probe("toy", log, runs=tmp_path / "whole", checkpoint_seconds=1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(*place, dying(after, getattr(*place)))
        with pytest.raises(Killed):
            probe("toy", log, runs=tmp_path / "cut", checkpoint_seconds=1e-9)
    resumed = probe("toy", log, runs=tmp_path / "cut", checkpoint_seconds=1e-9)
    assert same_result(resumed, whole)
    assert sorted(path.name for path in (tmp_path / "cut" / "probe-toy").iterdir() if path.name[0] != ".") == [
        "lock", "probe.json",
    ]  # fmt: skip


@pytest.fixture
def stopped(log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None) -> ProbeResult:
    """A probe of "toy" that died after 7 batches of 3 taps; what it would have found."""
    Stream("toy").publish(log)
    whole = probe("toy", log, runs=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Moments, "update", dying(21, Moments.update))
        with pytest.raises(Killed):
            probe("toy", log, runs=tmp_path, checkpoint_seconds=1e-9)
    return whole


def test_a_resumed_probe_says_where_it_goes_on_and_does_not_read_again(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: ProbeResult
) -> None:
    said: list[str] = []
    updates = []
    update = Moments.update
    monkeypatch.setattr(Moments, "update", lambda *arguments: (updates.append(1), update(*arguments))[1])
    assert same_result(probe("toy", log, runs=tmp_path, say=said.append), stopped)
    assert said == ["going on at batch 12, row 4"]  # 7 times 16 rows of 9 a batch
    assert len(updates) == 3 * 3  # 38 rows are left


def test_a_damaged_state_falls_back_to_the_one_before(log: MemoryLog, tmp_path: Path, stopped: ProbeResult) -> None:
    states = sorted((tmp_path / "probe-toy" / "checkpoints").iterdir())
    states[-1].write_bytes(states[-1].read_bytes()[:-1])
    said: list[str] = []
    assert same_result(probe("toy", log, runs=tmp_path, say=said.append), stopped)
    assert "is damaged" in said[0]
    assert said[-2:] == ["continuing from the checkpoint of step 96", "going on at batch 10, row 6"]


def test_where_every_state_is_damaged_the_stream_is_read_anew(
    log: MemoryLog, tmp_path: Path, stopped: ProbeResult
) -> None:
    for path in (tmp_path / "probe-toy" / "checkpoints").iterdir():
        path.write_bytes(b"")
    said: list[str] = []
    assert same_result(probe("toy", log, runs=tmp_path, say=said.append), stopped)
    assert len(said) == 1
    assert said[0].endswith("; reading from the start")


def test_a_range_is_decided_once(log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "latest" is what was there when the probe began, also for the process that ends it."""
    monkeypatch.setattr(probe_module, "BATCH_ROWS", 16)
    stream = Stream("toy", passes=None)
    create(log, stream.manifest)
    stream.append(log, range(20))
    with monkeypatch.context() as patch:
        patch.setattr(Moments, "update", dying(9, Moments.update))
        with pytest.raises(Killed):
            probe("toy", log, stop="latest", runs=tmp_path, checkpoint_seconds=1e-9)
    stream.append(log, range(20, 40))
    assert probe("toy", log, stop="latest", runs=tmp_path).stop == 20
    assert probe("toy", log, stop="latest", runs=tmp_path).stop == 40


def test_other_settings_start_anew_and_say_so(log: MemoryLog, tmp_path: Path, stopped: ProbeResult) -> None:
    said: list[str] = []
    result = probe("toy", log, taps=["fc"], runs=tmp_path, say=said.append)
    assert said == [f"{tmp_path / 'probe-toy'} held an unfinished probe of other settings (taps): starting anew"]
    assert result.taps[0].checksum == stopped.taps[2].checksum


def test_a_stream_that_was_made_anew_is_not_read_on(tmp_path: Path, stopped: ProbeResult) -> None:
    log = MemoryLog()
    Stream("toy", seed=1).publish(log)
    with pytest.raises(FingerprintError, match=r'read stream "toy" with fingerprint \w+, which now is \w+') as error:
        probe("toy", log, runs=tmp_path)
    assert error.value.exit_code == 4


def test_a_finished_probe_is_not_read_again_until_there_is_something_new(log: MemoryLog, tmp_path: Path) -> None:
    stream = Stream("toy", passes=None)
    create(log, stream.manifest)
    stream.append(log, range(17))
    first = probe("toy", log, stop="latest", runs=tmp_path)
    said: list[str] = []
    assert probe("toy", log, stop="latest", runs=tmp_path, say=said.append) == first
    assert said == [f"{tmp_path / 'probe-toy'} holds the result of this very range, which is not read again"]
    stream.append(log, range(17, 34))
    more = probe("toy", log, stop="latest", runs=tmp_path)
    assert (more.rows, first.rows) == (240, 120)
    assert probe("toy", log, stop="latest", lambdas=(1.0,), runs=tmp_path).taps[0].best.penalty == 1.0


def test_two_processes_do_not_probe_in_one_folder(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy").publish(log)
    with (
        ProbeFolder(tmp_path / "probe-toy", {}, {}),
        pytest.raises(UsageError, match="is in use by"),
    ):
        probe("toy", log, runs=tmp_path)


def test_an_experiments_folder_is_left_alone(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy").publish(log)
    (tmp_path / "probe-toy").mkdir()
    (tmp_path / "probe-toy" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="is the run folder of an experiment"):
        probe("toy", log, runs=tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 7}', '{"format": 1, "state": "running"}'])
def test_a_damaged_record_is_named(log: MemoryLog, tmp_path: Path, content: str) -> None:
    Stream("toy").publish(log)
    (tmp_path / "probe-toy").mkdir()
    (tmp_path / "probe-toy" / probe_folder.RECORD_NAME).write_text(content)
    with pytest.raises(DataError, match=r"probe\.json .*remove the folder to probe anew"):
        probe("toy", log, runs=tmp_path)


def test_the_record_tells_what_was_done(log: MemoryLog, tmp_path: Path) -> None:
    stream = Stream("toy").publish(log)
    result = probe("toy", log, runs=tmp_path)
    record = json.loads((tmp_path / "probe-toy" / "probe.json").read_text())
    assert record["state"] == "finished"
    assert record["fingerprints"] == {"toy": stream.manifest.fingerprint}
    assert (record["start"], record["stop"]) == ([0, 0], 17)
    assert record["settings"]["lambdas"] == list(LAMBDAS)
    assert ProbeResult.from_record(record["result"], result.folder) == result


# ---- what cannot be -------------------------------------------------------------------------------------------

Changes = dict[str, Any]


def without_labels(manifest: Manifest) -> Changes:
    return {"data": manifest.data.model_copy(update={"label_kind": "none", "label_values": 0, "class_count": None})}


def of_one_class(manifest: Manifest) -> Changes:
    return {"data": manifest.data.model_copy(update={"class_count": 1})}


def of_four_samples(manifest: Manifest) -> Changes:
    return {"data": manifest.data.model_copy(update={"samples": 4})}


def too_wide(manifest: Manifest) -> Changes:
    return {"taps": [*manifest.taps, TapFacts(name="flat", spec="flat", layer="flat", shape=[512, 112, 112])]}


@pytest.mark.parametrize(
    ("changes", "arguments", "says"),
    [
        (None, {"taps": ["layer3"]}, 'unknown tap of stream toy "layer3"; did you mean "layer2"'),
        (None, {"taps": ["fc", "fc"]}, "each one once"),
        (None, {"taps": []}, "name at least one tap"),
        (None, {"start": "batch:9", "stop": "batch:9"}, "nothing to read"),
        (None, {"start": "yesterday"}, '"yesterday" is not a start point'),
        (None, {"lambdas": (0.0,)}, "lambdas"),
        (None, {"shrinkage": 0.0}, "shrinkage"),
        (None, {"checkpoint_seconds": 0}, "checkpoint_seconds"),
        (None, {"validate": "toy"}, "cannot be validated on itself"),
        (without_labels, {}, "has no labels"),
        (of_one_class, {}, "a single class"),
        (of_four_samples, {}, "4 samples: too few"),
        (lambda _: {"passes": None}, {}, "is endless: say where to stop"),
        (too_wide, {}, r"would take [\d,.]+ GB of memory.*tap \"flat\" has 6,422,528 numbers"),
    ],
)
def test_what_cannot_be_probed_is_told_before_anything_is_read(
    log: MemoryLog, tmp_path: Path, changes: Callable[[Manifest], Changes] | None, arguments: Changes, says: str
) -> None:
    """The stream holds nothing: reading it would wait for ever."""
    manifest = Stream("toy").manifest
    create(log, sealed(manifest.model_copy(update=changes(manifest))) if changes else manifest)
    with pytest.raises(UsageError, match=says) as error:
        probe("toy", log, runs=tmp_path, **arguments)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"taps": [TapFacts(name="fc", spec="fc", layer="fc", shape=[4])]}, 'unknown tap of stream other "layer1"'),
        ({"taps": [TapFacts(name=t, spec=t, layer=t, shape=[5]) for t in WIDTHS]}, r'tap "layer1" is layer1 \(6,\)'),
        ({"backbone": BackboneFacts(name="toy", weights="random", weights_sha256="1" * 64)}, "come from other weights"),
        ({"labels": np.zeros(SAMPLES, np.float32)}, 'labels of the kind "class"'),
        ({"class_count": 4}, "class numbers up to 3"),
        ({"classes": ["a", "b", "d"]}, "number their classes differently: d are only in the second"),
    ],
)
def test_a_validation_stream_that_does_not_fit_is_refused(
    log: MemoryLog, tmp_path: Path, changes: Changes, says: str
) -> None:
    def named(manifest: Manifest, **data: Any) -> Manifest:
        return sealed(manifest.model_copy(update={"data": manifest.data.model_copy(update=data)}))

    data = {key: changes[key] for key in ("class_count", "classes") if key in changes}
    other = Stream("other", first=1000, **{key: value for key, value in changes.items() if key not in data})
    create(log, named(Stream("toy").manifest, classes=["a", "b", "c"]))
    create(log, named(other.manifest, **data))
    with pytest.raises(UsageError, match=says):
        probe("toy", log, validate="other", runs=tmp_path)


def test_rows_of_a_single_class_are_told_from_a_stream_of_several(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy", labels=np.full(SAMPLES, 2)).publish(log)
    with pytest.raises(DataError, match="all 120 rows are of class 2"):
        probe("toy", log, runs=tmp_path)


def test_class_numbers_beyond_the_manifests_are_told_with_their_place(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy", labels=np.arange(SAMPLES) % 4).publish(log)
    with pytest.raises(DataError, match="batch 0, tap layer1: class numbers from 0 to 3, expected 0 to 2"):
        probe("toy", log, runs=tmp_path)


def test_equal_values_have_no_variance_to_explain(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy", labels=np.ones(SAMPLES, np.float32)).publish(log)
    with pytest.raises(DataError, match="labels of all 30 validation rows are equal"):
        probe("toy", log, runs=tmp_path)


@pytest.mark.parametrize(("stop", "says"), [("batch:1", "no row to judge"), (None, "no row to fit")])
def test_a_range_without_rows_of_both_kinds_is_told(
    log: MemoryLog, tmp_path: Path, stop: str | None, says: str
) -> None:
    """Batch 0 holds samples 0 to 3; the last batch of a stream of 5 holds sample 4, which is held out."""
    Stream("toy", labels=np.arange(5) % 3, batch_samples=4).publish(log)
    with pytest.raises(DataError, match=says):
        probe("toy", log, start="batch:1" if stop is None else "earliest", stop=stop, runs=tmp_path)


def test_what_retention_has_deleted_is_named(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy").publish(log)
    for tap in WIDTHS:
        log.delete_before(f"toy.{tap}", 0, 2)
    with pytest.raises(GoneError, match="batch 0 is gone"):
        probe("toy", log, start="batch:0", runs=tmp_path)


def test_an_unknown_stream_is_told(log: MemoryLog, tmp_path: Path) -> None:
    Stream("toy").publish(log)
    with pytest.raises(UsageError, match='did you mean "toy"'):
        probe("tuy", log, runs=tmp_path)
    with pytest.raises(UnknownNameError):
        probe("toy", log, taps="fx", runs=tmp_path)

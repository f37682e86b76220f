"""Whole runs of the producer on the in-memory log."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from featurestream.errors import (
    BrokerError,
    DataError,
    FeatureRangeError,
    StreamMismatchError,
    UnknownNameError,
    UsageError,
)
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream.memory import MemoryLog, MemorySink
from featurestream.names import tap_topic
from featurestream.ports import Headers
from featurestream.progress import Progress
from featurestream_producer.config import ProduceConfig
from featurestream_producer.prepare import measure, prepare
from featurestream_producer.run import Result, produce
from tests.producing import broken_images, config, contents, read_lanes, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def run(config: ProduceConfig, log: MemoryLog, said: list[str] | None = None) -> Result:
    return produce(config, log, say=[].append if said is None else said.append)


def facts_of(log: MemoryLog, stream: str = "toy") -> StreamFacts:
    with ManifestTopic(log, stream) as topic:
        return topic.read()


def all_contents(log: MemoryLog, stream: str = "toy") -> object:
    manifest = facts_of(log, stream).manifest
    assert manifest is not None
    return contents(log, manifest)


# ---- what a stream holds ----------------------------------------------------------------------------------------


def test_the_manifest_says_what_was_asked_for(images: Path) -> None:
    log = MemoryLog()
    result = run(config(images, "toy", seed=3, views=2), log)
    manifest = facts_of(log).manifest
    assert manifest is not None
    assert result.fingerprint == manifest.fingerprint
    assert (manifest.batch_samples, manifest.lanes, manifest.passes, manifest.views, manifest.seed) == (7, 3, 2, 2, 3)
    assert [(tap.name, tap.spec, tap.layer, tap.pool, tap.shape) for tap in manifest.taps] == [
        ("early", "2:gap", "2", "gap", [8]),
        ("late", "5", "5", None, [16]),
    ]
    assert (manifest.data.label_kind, manifest.data.class_count, manifest.data.classes) == ("class", 2, ["a", "b"])
    assert manifest.made_with["torch"] == torch.__version__.partition("+")[0]
    assert log.topics() == {"toy.manifest": 1, "toy.early": 3, "toy.late": 3}
    assert log.settings("toy.early")["retention.ms"] == str(7 * 86_400_000)


def test_a_pass_visits_every_sample_once_and_labels_are_its_folders(images: Path) -> None:
    log = MemoryLog()
    run(config(images, "toy"), log)
    manifest = facts_of(log).manifest
    assert manifest is not None
    for pass_number in (0, 1):
        records = [r for (tap, _), lane in read_lanes(log, manifest).items() if tap == "late" for r in lane]
        rows = [
            (index, name, label)
            for record in records
            if record.pass_number == pass_number
            for index, name, label in zip(record.indices, record.ids, record.labels, strict=True)  # type: ignore[arg-type]
        ]
        assert sorted(index for index, _, _ in rows) == list(range(40))
        assert all(label == "ab".index(name[0]) for _, name, label in rows)


def test_loader_processes_change_nothing(images: Path) -> None:
    log = MemoryLog()
    run(config(images, "toy"), log)
    run(config(images, "toy-2", workers=2), log)
    assert all_contents(log) == all_contents(log, "toy-2")


def test_progress_and_what_is_said(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    result = produce(config(images, "toy"), MemoryLog(), say=said.append, progress=Progress)
    assert "toy: 80/80 img" in capsys.readouterr().err
    assert said[-1].startswith("published 80 rows in 12 batches (")
    assert "waiting for Kafka" in said[-1]
    assert result.stages.forward_s > 0
    assert result.images_per_s == pytest.approx(80 / result.seconds)
    assert result.facts()["stages"]["forward_s"] == result.stages.forward_s


# ---- going on -----------------------------------------------------------------------------------------------------


def test_a_finished_stream_says_so_and_nothing_is_published(images: Path) -> None:
    log, said = MemoryLog(), []
    run(config(images, "toy"), log)
    before = all_contents(log)
    result = run(config(images, "toy"), log, said)
    assert (result.batches, result.finished) == (0, True)
    assert said == ['stream "toy" is finished: 2 passes, 12 batches']
    assert all_contents(log) == before


def test_a_finished_stream_whose_end_the_log_has_lost_is_made_whole_again(images: Path) -> None:
    log = MemoryLog()
    run(config(images, "toy"), log)
    before = all_contents(log)
    lost = [lane.records.pop() for lane in log._topics["toy.late"].lanes[1:]]
    assert [record.key for record in lost] == [b"1/10", b"1/11"]
    said: list[str] = []
    result = run(config(images, "toy"), log, said)
    assert (result.batches, result.finished) == (2, True)
    assert said[0].endswith('"toy" was complete, and the log has lost batches at its end: they are published again')
    assert all_contents(log) == before
    facts = facts_of(log)
    assert (sorted(facts.passes), facts.end is not None) == ([0, 1], True)


def test_a_finished_stream_whose_topic_is_gone_is_made_whole_again_and_one_that_retention_took_is_not(
    images: Path,
) -> None:
    log = MemoryLog()
    run(config(images, "toy"), log)
    before = all_contents(log)
    log.delete_topics(["toy.early"])
    said: list[str] = []
    assert run(config(images, "toy"), log, said).batches == 12
    assert "the log has lost" in said[0]
    assert all_contents(log) == before
    for lane in range(3):
        log.delete_before("toy.early", lane, 4)
    assert run(config(images, "toy"), log).batches == 0


def test_raising_the_passes_extends_a_finished_stream_as_if_it_had_been_asked_for_at_once(images: Path) -> None:
    log = MemoryLog()
    run(config(images, "toy"), log)
    said: list[str] = []
    result = run(config(images, "toy", passes=3), log, said)
    assert (result.batches, result.finished) == (6, True)
    assert 'stream "toy" now has 3 passes' in said
    assert 'stream "toy" goes on at batch 12 (pass 2)' in said
    facts = facts_of(log)
    assert facts.manifest is not None
    assert facts.end is not None
    assert (facts.manifest.passes, facts.end.passes, sorted(facts.passes)) == (3, 3, [0, 1, 2])
    run(config(images, "toy-2", passes=3), log)
    assert all_contents(log) == all_contents(log, "toy-2")


def test_fewer_passes_than_there_are_is_refused(images: Path) -> None:
    log = MemoryLog()
    run(config(images, "toy"), log)
    with pytest.raises(UsageError, match="cannot have 1 pass: it has begun 2 already"):
        run(config(images, "toy", passes=1), log)


def test_choices_that_were_not_given_are_the_streams_own(images: Path) -> None:
    """Lanes, batch size and passes: a later run on other devices need not repeat them."""
    log = MemoryLog()
    first = run(config(images, "toy"), log)
    fields = config(images, "toy").model_dump(exclude={"lanes", "batch_size", "passes"}, exclude_unset=True)
    result = run(ProduceConfig(**fields), log)
    assert (result.finished, result.fingerprint) == (True, first.fingerprint)


def test_another_stream_of_the_same_name_is_refused_with_the_differences(images: Path) -> None:
    log = MemoryLog()
    run(config(images, "toy"), log)
    with pytest.raises(StreamMismatchError) as refused:
        run(config(images, "toy", batch_size=5, dtype="float32"), log)
    assert [field for field, _, _ in refused.value.differences] == ["dtype", "batch_samples"]  # type: ignore[attr-defined]
    assert refused.value.exit_code == 2


def test_topics_without_a_manifest_are_left_alone(images: Path) -> None:
    log = MemoryLog()
    log.create_topic("toy.late", 3, {})
    with pytest.raises(UsageError, match=r'topic "toy\.late" exists, but there is no manifest'):
        run(config(images, "toy"), log)
    assert log.topics() == {"toy.late": 3}


def test_only_the_tap_that_lost_its_records_is_published_again(images: Path) -> None:
    """A batch may be in some taps and not in others: exactly what is missing is published."""
    log = MemoryLog()
    run(config(images, "toy", passes=1), log)
    before = all_contents(log)
    log.delete_topics(["toy.late"])
    with ManifestTopic(log, "toy") as topic:
        topic.write_end(None)
    result = run(config(images, "toy", passes=1), log)
    assert result.batches == 6
    assert all_contents(log) == before


def test_a_stream_begun_with_other_versions_goes_on_with_a_warning(images: Path) -> None:
    log, said = MemoryLog(), []
    run(config(images, "toy"), log)
    manifest = facts_of(log).manifest
    assert manifest is not None
    with ManifestTopic(log, "toy") as topic:
        topic.write_manifest(manifest.model_copy(update={"made_with": manifest.made_with | {"torch": "1.0"}}))
    run(config(images, "toy", passes=3), log, said)
    assert any(line.startswith("warning: this stream was begun with torch 1.0") for line in said)


class StoppedAfter(MemoryLog):
    """Asks the producer to stop, as Ctrl-C does, when so many records were appended."""

    def __init__(self, records: int) -> None:
        super().__init__()
        self.left = records

    def sink(self) -> MemorySink:
        return StoppingSink(self)


class StoppingSink(MemorySink):
    def append(
        self, topic: str, lane: int, *, key: bytes, value: NDArray[np.uint8] | bytes | None, headers: Headers = ()
    ) -> None:
        super().append(topic, lane, key=key, value=value, headers=headers)
        log = self._log
        assert isinstance(log, StoppedAfter)
        log.left -= not topic.endswith(".manifest")
        if log.left == 0:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_leaves_a_stream_that_goes_on_as_if_nothing_had_happened(images: Path) -> None:
    """An endless stream, stopped somewhere; then it is given an end."""
    log, said = StoppedAfter(9), []
    before = signal.getsignal(signal.SIGINT)
    result = run(config(images, "toy", passes=None), log, said)
    assert result.interrupted
    assert not result.finished
    assert "the same command goes on" in said[-1]
    assert signal.getsignal(signal.SIGINT) is before
    assert facts_of(log).end is None
    begun = -(-result.batches // 6)
    assert run(config(images, "toy", passes=begun + 1), log).finished
    run(config(images, "toy-2", passes=begun + 1), log)
    assert all_contents(log) == all_contents(log, "toy-2")


# ---- images that cannot be decoded ------------------------------------------------------------------------------


def test_an_image_that_cannot_be_decoded_is_listed_in_every_record_and_named_at_the_end(tmp_path: Path) -> None:
    log, said = MemoryLog(), []
    result = run(config(broken_images(tmp_path, [3]), "toy"), log, said)
    assert (result.rows, result.missing, result.missing_ids, result.finished) == (78, 1, ("b/003.png",), True)
    assert said[-1].startswith("warning: 1 image could not be decoded, and got no rows: b/003.png (")
    facts = facts_of(log)
    assert facts.manifest is not None
    assert [(one.samples, one.missing) for _, one in sorted(facts.passes.items())] == [(39, 1), (39, 1)]
    listed: dict[str, list[int]] = {"early": [], "late": []}
    for (tap, _), records in read_lanes(log, facts.manifest).items():
        for record in records:
            for sample in record.missing:
                assert (sample.index, sample.id) == (21, "b/003.png")
                assert "cannot identify" in sample.reason
                assert 21 not in record.indices
                listed[tap].append(record.pass_number)
    assert {tap: sorted(passes) for tap, passes in listed.items()} == {"early": [0, 1], "late": [0, 1]}


def test_a_batch_without_any_image_is_a_record_without_rows(tmp_path: Path) -> None:
    log = MemoryLog()
    result = run(config(broken_images(tmp_path, [0, 2, 3], count=4), "toy", batch_size=1, passes=1), log)
    assert (result.batches, result.rows, result.missing) == (4, 1, 3)
    manifest = facts_of(log).manifest
    assert manifest is not None
    records = [record for lane in read_lanes(log, manifest).values() for record in lane]
    assert sorted((record.tap, record.rows, len(record.missing)) for record in records) == sorted(
        (tap, rows, 1 - rows) for tap in ("early", "late") for rows in (0, 0, 0, 1)
    )


def test_no_image_at_all_is_an_error_before_a_topic_is_created(tmp_path: Path) -> None:
    log = MemoryLog()
    with pytest.raises(DataError, match=r"none of the 3 images .* can be decoded; the first: cannot decode") as refused:
        run(config(broken_images(tmp_path, range(3), count=3), "toy"), log)
    assert refused.value.exit_code == 3
    assert log.topics() == {}


def test_images_that_vanish_in_the_middle_end_the_run(tmp_path: Path) -> None:
    """Only the first sample can be decoded: after 64 others in a row that cannot, something else is wrong."""
    folder = broken_images(tmp_path, range(1, 80), count=80)
    with pytest.raises(DataError, match="samples in a row could not be decoded"):
        run(config(folder, "toy", passes=3), MemoryLog())


# ---- features that cannot be published ----------------------------------------------------------------------------


class Louder(nn.Module):
    """Gives 1, then 1,000 times more with every forward; after the fifth, NaN."""

    def __init__(self, last: float) -> None:
        super().__init__()
        self.calls = 0
        self.last = last

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        value = self.last if self.calls > 4 else 1.0
        return torch.full((len(images_BCHW), 2), value)


def overflowing() -> nn.Module:
    """The probe, the canary and two batches are fine; the third batch does not fit float16."""
    return nn.Sequential(nn.Flatten(), Louder(70_000.0))


def turning_nan() -> nn.Module:
    return nn.Sequential(nn.Flatten(), Louder(float("nan")))


def loud(images: Path, model: str, dtype: str = "float16") -> ProduceConfig:
    return config(images, "toy", model=f"tests.producer.test_produce_run:{model}", taps=("1=loud",), dtype=dtype)


@pytest.mark.parametrize("model", ["overflowing", "turning_nan"])
def test_a_feature_that_does_not_fit_ends_the_run_and_its_batch_is_not_published(images: Path, model: str) -> None:
    log = MemoryLog()
    with pytest.raises(FeatureRangeError, match='tap "loud"') as refused:
        run(loud(images, model), log)
    assert refused.value.exit_code == 3
    if model == "overflowing":
        assert "--dtype bfloat16" in str(refused.value)
    manifest = facts_of(log).manifest
    assert manifest is not None
    batches = sorted(record.batch for lane in read_lanes(log, manifest).values() for record in lane)
    assert batches == [0, 1]  # what was computed before is there
    lease = facts_of(log).lease
    assert lease is not None
    assert lease.released


def test_float32_takes_what_float16_cannot(images: Path) -> None:
    assert run(loud(images, "overflowing", "float32"), MemoryLog()).finished


# ---- a log that fails ---------------------------------------------------------------------------------------------


class FailingLog(MemoryLog):
    """Loses its disk after so many records; then nothing can be written any more."""

    def __init__(self, records: int) -> None:
        super().__init__()
        self.left = records
        self.lock = threading.Lock()

    def sink(self) -> MemorySink:
        return FailingSink(self)


class FailingSink(MemorySink):
    def append(
        self, topic: str, lane: int, *, key: bytes, value: NDArray[np.uint8] | bytes | None, headers: Headers = ()
    ) -> None:
        log = self._log
        assert isinstance(log, FailingLog)
        with log.lock:
            if log.left <= 0:
                raise BrokerError("the broker cannot write to its disk", hint="is it full?")
            log.left -= not topic.endswith(".manifest")
        super().append(topic, lane, key=key, value=value, headers=headers)


def test_a_broker_that_fails_ends_the_run_with_what_is_safe_and_how_to_go_on(images: Path) -> None:
    log = FailingLog(17)  # pass 0 (6 batches of two taps) and a part of pass 1
    with pytest.raises(BrokerError) as refused:
        run(config(images, "toy"), log)
    text = str(refused.value)
    assert refused.value.exit_code == 3
    assert text.startswith("the broker cannot write to its disk; is it full?; batches below 6 are safe")
    assert "the same command goes on" in text

    log.left = 10**6  # the disk has room again: batch 8 was written for one tap
    result = run(config(images, "toy"), log)
    assert (result.batches, result.finished) == (4, True)
    run(config(images, "toy-2"), log)
    assert all_contents(log) == all_contents(log, "toy-2")


# ---- refused before anything happens ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"data": "/no/such/folder"}, UsageError, "no such folder or file"),
        ({"model": "resnet81"}, UnknownNameError, "resnet"),
        ({"taps": ("9",)}, UnknownNameError, 'unknown layer "9"'),
        ({"taps": ("2:gip",)}, UnknownNameError, "gip"),
        ({"transform": "tarin"}, UnknownNameError, 'did you mean "train"'),
        ({"devices": ("cuda:99",)}, UnknownNameError, "known: cpu"),
        ({"devices": ("cpu", "cpu"), "lanes": 1}, UsageError, "2 devices cannot share 1 lane"),
        ({"image_size": 4096, "taps": ("2",)}, UsageError, "too large for a record"),
        ({"label_column": "label"}, UsageError, "label-column"),
    ],
)
def test_what_cannot_work_is_refused_before_a_log_is_needed(
    images: Path, changes: dict[str, object], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        prepare(config(images, "toy", **changes))


def test_several_devices_need_a_log_that_other_processes_can_reach(images: Path) -> None:
    with pytest.raises(UsageError, match="cannot be sent to a process of its own"):
        run(config(images, "toy", devices=("cpu", "cpu")), MemoryLog())


def test_lanes_are_at_least_as_many_as_devices(images: Path) -> None:
    fields = config(images, "toy", devices=("cpu",) * 6).model_dump(exclude={"lanes"}, exclude_unset=True)
    assert prepare(ProduceConfig(**fields)).manifest.lanes == 6


def test_a_plan_measures_the_forward_and_the_loading(images: Path) -> None:
    prepared = prepare(config(images, "toy"))
    speed = measure(prepared)
    assert speed.images_s > 0
    assert speed.load_images_s is not None
    assert speed.load_images_s > 0
    assert (speed.device, speed.devices) == ("cpu", 1)
    assert "images/s on cpu (forward only)" in prepared.plan(prepared.manifest, speed).text()


def test_a_record_is_found_where_the_arithmetic_says(images: Path) -> None:
    log = MemoryLog()
    run(config(images, "toy"), log)
    record = log.source().record_at(tap_topic("toy", "late"), 11 % 3, 11 // 3)
    assert record.key == b"1/11"

"""Samples that are wanted next: what is served, when, and that it is published once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from featurestream.errors import StreamMismatchError, UnknownNameError, UsageError
from featurestream.manifest import Manifest, Request, fingerprint_of
from featurestream.manifest_topic import ManifestTopic, StreamFacts
from featurestream.memory import MemoryLog
from featurestream.progress import Progress
from featurestream.requests import batches_of, find_samples, open_requests, requests_manifest
from featurestream.stream import FeatureStream
from featurestream.tensors import tensor_of
from featurestream_producer import pacer, requests
from featurestream_producer.prepare import prepare
from featurestream_producer.run import produce
from featurestream_producer.sampling import sample_seed
from tests.producing import config, contents, read_lanes, write_images
from tests.support import append, create, make_manifest, publish


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def facts_of(log: MemoryLog, stream: str) -> StreamFacts:
    with ManifestTopic(log, stream) as topic:
        return topic.read()


def manifest_of(log: MemoryLog, stream: str = "toy") -> Manifest:
    manifest = facts_of(log, stream).manifest
    assert manifest is not None
    return manifest


def ask(log: MemoryLog, name: str, samples: list[int]) -> Manifest:
    wanted = open_requests(log, manifest_of(log))
    with ManifestTopic(log, wanted.stream) as topic:
        topic.write_request(name, Request(samples=samples, host="here", at="2026-01-01T00:00:00+00:00"))
    return wanted


# ---- the stream of requests -------------------------------------------------------------------------------------


def test_requests_are_a_stream_of_one_lane_whose_passes_are_single_batches() -> None:
    ordinary = make_manifest(samples=10, batch_samples=4, lanes=2, passes=2)
    wanted = requests_manifest(ordinary)
    assert (wanted.stream, wanted.kind, wanted.lanes, wanted.passes) == ("toy-requests", "request", 1, None)
    assert (wanted.layout.pass_batches, wanted.layout.samples, wanted.data.samples) == (1, 4, 10)
    assert wanted.fingerprint != ordinary.fingerprint
    assert wanted.seed != ordinary.seed


def test_a_stream_that_is_none_of_requests_keeps_the_fingerprint_that_it_had_before_there_were_any() -> None:
    assert fingerprint_of(make_manifest()) == "ff37d4050e823e8bee205166f15ca2d4"


def test_a_batch_never_spans_two_requests() -> None:
    layout = requests_manifest(make_manifest(batch_samples=4)).layout
    asked = [Request(samples=samples, host="here", at="now") for samples in ([5, 1, 2, 3, 9], [7], [0, 8])]
    assert [batch.tolist() for batch in batches_of(asked, layout)] == [[5, 1, 2, 3], [9], [7], [0, 8]]


def test_requests_keep_what_their_stream_keeps_and_a_second_opening_changes_nothing() -> None:
    log = MemoryLog()
    create(log, make_manifest(lanes=2), **{"retention.ms": "70000000", "retention.bytes": str(2**29)})
    open_requests(log, manifest_of(log))
    open_requests(log, manifest_of(log))
    kept = log.settings("toy-requests.avgpool")
    assert (kept["retention.ms"], kept["retention.bytes"]) == ("70000000", str(2**30))


def test_another_stream_of_that_name_is_refused() -> None:
    log = MemoryLog()
    create(log, make_manifest("toy"))
    create(log, make_manifest("toy-requests"))
    with pytest.raises(StreamMismatchError, match="kind is null"):
        open_requests(log, manifest_of(log))


# ---- which samples ------------------------------------------------------------------------------------------------


def test_a_sample_is_named_by_its_id_or_by_its_index() -> None:
    log = MemoryLog()
    manifest = publish(log, make_manifest(samples=10, batch_samples=4, lanes=2, passes=2))
    assert find_samples(log, manifest, ["img/7.png", "3", "img/0.png", "img/7.png"]) == [7, 3, 0, 7]


def test_an_unknown_id_is_refused_with_the_nearest_and_an_index_beyond_the_end_with_the_number() -> None:
    log = MemoryLog()
    manifest = publish(log, make_manifest(samples=10, batch_samples=4, lanes=2, passes=2))
    with pytest.raises(UnknownNameError, match=r'unknown sample of stream toy "img/7.jpg"; did you mean "img/7.png"'):
        find_samples(log, manifest, ["img/3.png", "img/7.jpg"])
    with pytest.raises(UsageError, match="has no sample 10: it has 10"):
        find_samples(log, manifest, ["10"])


def test_an_id_cannot_be_refused_before_a_whole_pass_is_on_the_log() -> None:
    log = MemoryLog()
    manifest = make_manifest(samples=10, batch_samples=4, lanes=2, passes=2)
    create(log, manifest)
    append(log, manifest, [0, 1])
    assert find_samples(log, manifest, ["img/7.png"]) == [7]
    with pytest.raises(UsageError, match=r'"img/9.png" is not among the 8 of 10 samples whose records are on the log'):
        find_samples(log, manifest, ["img/9.png"])


def test_a_pass_that_is_whole_is_looked_through_where_the_first_one_has_lost_its_beginning() -> None:
    log = MemoryLog()
    manifest = publish(log, make_manifest(samples=10, batch_samples=4, lanes=2, passes=2))
    log.delete_before("toy.layer3", 0, 1)
    with pytest.raises(UnknownNameError):
        find_samples(log, manifest, ["img/10.png"])


# ---- serving ------------------------------------------------------------------------------------------------------


def test_a_finished_stream_serves_what_is_requested_and_holds_what_it_held(images: Path) -> None:
    log, said = MemoryLog(), list[str]()
    produce(config(images, "toy"), log, say=lambda _: None)
    before = contents(log, manifest_of(log))
    wanted = ask(log, "one", [31, 2, 17, 0, 5, 6, 7, 8])
    result = produce(config(images, "toy"), log, say=said.append)
    assert result.finished
    assert "requested: 7 rows, as batch 0 of stream toy-requests" in said
    assert "requested: 1 rows, as batch 1 of stream toy-requests" in said
    read = FeatureStream("toy-requests", "late", stop="latest", log=log).read_all()
    assert read.indices.tolist() == [31, 2, 17, 0, 5, 6, 7, 8]
    assert contents(log, manifest_of(log)) == before
    passes = facts_of(log, "toy-requests").passes
    assert [(done.kind, done.samples, done.first_batch) for done in passes.values()] == [
        ("request", 7, 0),
        ("request", 1, 1),
    ]
    assert facts_of(log, "toy").passes[0].kind is None
    # Served once: the next start finds nothing to do.
    produce(config(images, "toy"), log, say=said.append)
    assert len(contents(log, wanted)["late", 0]) == 2
    assert said[-1].startswith('stream "toy" is finished')


def test_a_requested_row_is_what_the_backbone_makes_of_the_sample_with_the_views_of_the_request(images: Path) -> None:
    log = MemoryLog()
    run = config(images, "toy", views=2, dtype="float32")
    produce(run, log, say=lambda _: None)
    wanted = ask(log, "one", [31, 2])
    produce(run, log, say=lambda _: None)
    prepared = prepare(run)
    pixels = torch.stack(
        [
            prepared.transform(prepared.dataset.load(index), sample_seed(wanted.seed, 0, index, view))
            for index in (31, 2)
            for view in (0, 1)
        ]
    )
    [record] = read_lanes(log, wanted)["late", 0]
    assert torch.equal(tensor_of(record), prepared.reader(pixels)["late"])
    assert record.ids == tuple(prepared.dataset.ids[index] for index in (31, 31, 2, 2))


class Scene(Progress):
    """Acts when the producer shows that it waits; ends it when the request was served."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__("toy", None, "img")
        self.act: Callable[[], None] | None = act
        self.said: list[str] = []

    def note(self, _text: str) -> None:
        if self.act is not None:
            self.act()
            self.act = None

    def say(self, text: str) -> None:
        self.said.append(text)
        if text.startswith("requested"):
            signal.raise_signal(signal.SIGINT)


def test_a_producer_that_waits_for_readers_serves_requests_meanwhile(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacer, "LOOK_S", 0.02)
    monkeypatch.setattr(requests, "LOOK_S", 0.02)
    log, scenes = MemoryLog(), list[Scene]()

    def show(_title: str, _total: int | None, _unit: str) -> Progress:
        scenes.append(Scene(lambda: ask(log, "one", [3]) and None))
        return scenes[0]

    result = produce(config(images, "toy", passes=None), log, say=lambda _: None, progress=show)
    assert (result.batches, result.interrupted) == (6, True)
    requested = [line for line in scenes[0].said if line.startswith("requested")]
    assert requested == ["requested: 1 rows, as batch 0 of stream toy-requests"]


def test_a_request_that_was_published_and_not_yet_recorded_is_not_published_again(images: Path) -> None:
    """As after a kill -9 between the last record and the record of the pass."""
    log = MemoryLog()
    produce(config(images, "toy"), log, say=lambda _: None)
    wanted = ask(log, "one", [3, 4])
    produce(config(images, "toy"), log, say=lambda _: None)
    forgotten = MemoryLog()
    for stream in ("toy", "toy-requests"):
        copy(log, forgotten, stream, without=b"pass/0" if stream == "toy-requests" else b"")
    produce(config(images, "toy"), forgotten, say=lambda _: None)
    assert contents(forgotten, wanted) == contents(log, wanted)
    assert sorted(facts_of(forgotten, "toy-requests").passes) == [0]


def copy(log: MemoryLog, other: MemoryLog, stream: str, *, without: bytes) -> None:
    source, sink = log.source(), other.sink()
    for topic, lanes in log.topics().items():
        if topic.partition(".")[0] != stream:
            continue
        other.create_topic(topic, lanes, log.settings(topic))
        for lane in range(lanes):
            for offset in range(source.bounds(topic, lane).high):
                record = source.record_at(topic, lane, offset)
                if not without or record.key != without:
                    sink.append(topic, lane, key=record.key or b"", value=record.value, headers=record.headers)


def test_a_sample_without_an_image_is_listed_as_missing(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "b" / "003.png").write_bytes(b"no image")
    log, said = MemoryLog(), list[str]()
    produce(config(tmp_path, "toy"), log, say=lambda _: None)
    index = find_samples(log, manifest_of(log), ["b/003.png"])
    wanted = ask(log, "one", index)
    produce(config(tmp_path, "toy"), log, say=said.append)
    [record] = read_lanes(log, wanted)["late", 0]
    assert ([sample.id for sample in record.missing], record.rows) == (["b/003.png"], 0)
    assert any("1 without an image that can be decoded" in line for line in said)
    assert np.array_equal(record.indices, [])


def test_requests_of_an_earlier_stream_of_that_name_are_refused_and_the_stream_goes_on(images: Path) -> None:
    log, said = MemoryLog(), list[str]()
    produce(config(images, "toy", seed=1), log, say=lambda _: None)
    ask(log, "one", [3])
    log.delete_topics(["toy.manifest", "toy.early", "toy.late"])
    assert produce(config(images, "toy", seed=2), log, say=said.append).finished
    assert any("requests are not served" in line and "seed" in line for line in said)


@pytest.mark.parametrize("value", [b"nothing", b'{"samples": [40], "host": "h", "at": "now"}'])
def test_a_request_that_is_none_leaves_the_stream_alone_and_is_told_of(images: Path, value: bytes) -> None:
    """40 samples: there is no sample 40. Others than featurectl may write to the topic."""
    log, said = MemoryLog(), list[str]()
    produce(config(images, "toy", passes=1), log, say=lambda _: None)
    wanted = ask(log, "one", [3])
    sink = log.sink()
    sink.append("toy-requests.manifest", 0, key=b"request/two", value=value)
    assert produce(config(images, "toy", passes=2), log, say=said.append).finished
    assert any(line.startswith("warning: requests are not served: ") for line in said)
    assert contents(log, wanted)["late", 0] == []

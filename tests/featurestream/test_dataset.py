"""A stream is a torch IterableDataset, and its order does not depend on the number of workers."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from featurestream.dataset import StreamDataset
from featurestream.errors import UsageError
from featurestream.kafka import KafkaLog
from featurestream.memory import MemoryLog
from featurestream.stream import FeatureStream
from tests.support import make_manifest, publish

WHOLE = [*range(10), 9, *range(9)]


def labels_of(loader) -> list[int]:
    return [int(label) for _, labels in loader for label in labels]


def test_without_workers_a_loader_gives_the_streams_batches_as_tensors():
    log = MemoryLog()
    publish(log, make_manifest())
    loader = DataLoader(StreamDataset(FeatureStream("toy", "layer3", log=log, batch_size=5)), batch_size=None)
    features, labels = next(iter(loader))
    assert features.dtype == torch.float32
    assert features.shape == (5, 2)
    assert labels.tolist() == [0, 1, 2, 0, 1]


def test_several_taps_come_as_a_dict():
    log = MemoryLog()
    publish(log, make_manifest())
    features, _ = next(iter(StreamDataset(FeatureStream("toy", log=log))))
    assert {name: tuple(tensor.shape) for name, tensor in features.items()} == {"layer3": (4, 2), "avgpool": (4, 3)}


class Worker:
    """What torch tells a worker process about itself."""

    def __init__(self, number: int, count: int) -> None:
        self.id = number
        self.num_workers = count


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_workers_shares_taken_in_turn_are_the_stream(monkeypatch, count):
    log = MemoryLog()
    publish(log, make_manifest(lanes=4))
    shares = []
    for number in range(count):
        monkeypatch.setattr("featurestream.dataset.get_worker_info", lambda number=number: Worker(number, count))
        shares.append([labels.tolist() for _, labels in StreamDataset(FeatureStream("toy", "layer3", log=log))])
    taken = [share[turn] for turn in range(6) for share in shares if turn < len(share)]
    assert [label for labels in taken for label in labels] == [index % 3 for index in WHOLE]


def test_regrouping_in_several_workers_is_refused(monkeypatch):
    log = MemoryLog()
    publish(log, make_manifest())
    dataset = StreamDataset(FeatureStream("toy", "layer3", log=log, batch_size=5))
    monkeypatch.setattr("featurestream.dataset.get_worker_info", lambda: Worker(0, 2))
    with pytest.raises(UsageError, match="batch_size=5 with 2 workers"):
        next(iter(dataset))


@pytest.mark.broker
def test_worker_processes_connect_by_themselves_and_keep_the_streams_order(broker, unique):
    with KafkaLog(broker) as log:
        publish(log, make_manifest(unique, lanes=4))
    stream = FeatureStream(unique, "layer3", bootstrap_servers=broker.bootstrap_servers)
    loader = DataLoader(StreamDataset(stream), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert labels_of(loader) == [index % 3 for index in WHOLE]

"""Which devices compute."""

from __future__ import annotations

import pytest

from featurestream.errors import UnknownNameError
from featurestream_producer.devices import find_devices, known_devices, loader_workers
from featurestream_producer.ranks import Rank


def test_the_cpu_is_always_there_and_may_be_named_twice() -> None:
    assert known_devices()[0] == "cpu"
    assert find_devices(["cpu", "cpu"]) == ("cpu", "cpu")


def test_auto_is_one_device() -> None:
    assert find_devices(["auto"]) == tuple((known_devices()[1:] or ["cpu"])[:1])


def test_an_unknown_device_lists_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown device "cuda:99".*known: cpu'):
        find_devices(["cuda:99"])


def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestream_producer.devices.known_devices", lambda: ["cpu", "cuda:0", "cuda:1"])


def test_each_local_rank_gets_a_gpu_of_its_own_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch)
    first, second = (Rank(2 + local, 4, local, 2, "run") for local in (0, 1))
    names = ["auto", "cuda", "cuda:1", "cpu"]
    assert find_devices(names, first) == ("cuda:0", "cuda:0", "cuda:1", "cpu")
    assert find_devices(names, second) == ("cuda:1", "cuda:1", "cuda:1", "cpu")
    assert find_devices(["auto"]) == ("cuda:0",)


def test_more_local_ranks_than_gpus_is_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch)
    with pytest.raises(UnknownNameError, match=r'unknown device "cuda:2 \(local rank 2\)".*known: cpu, cuda:0, cuda:1'):
        find_devices(["auto"], Rank(2, 3, 2, 3, "run"))


@pytest.mark.parametrize(
    ("device", "devices", "cores", "workers"),
    [
        ("cpu", 1, 2, 0),
        ("cpu", 1, 16, 4),
        ("cpu", 2, 16, 2),
        ("cuda:0", 1, 16, 8),
        ("cuda:0", 8, 16, 2),
        ("cuda:0", 8, 4, 1),
    ],
)
def test_loader_processes_follow_the_cores(device: str, devices: int, cores: int, workers: int) -> None:
    assert loader_workers(device, devices, cores) == workers

"""Which devices compute."""

from __future__ import annotations

import pytest

from featurestream.errors import UnknownNameError, UsageError
from featurestream_producer.devices import find_devices, known_devices, loader_workers


def test_the_cpu_is_always_there_and_may_be_named_twice() -> None:
    assert known_devices()[0] == "cpu"
    assert find_devices(["cpu", "cpu"], {}) == ("cpu", "cpu")


def test_auto_is_one_device() -> None:
    assert find_devices(["auto"], {}) == tuple((known_devices()[1:] or ["cpu"])[:1])


def test_an_unknown_device_lists_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match=r'unknown device "cuda:99".*known: cpu'):
        find_devices(["cuda:99"], {})


def test_a_process_of_torchrun_is_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"one of 2 that torchrun started.*without torchrun"):
        find_devices(["cpu"], {"RANK": "0", "WORLD_SIZE": "2"})
    assert find_devices(["cpu"], {"RANK": "0", "WORLD_SIZE": "1"}) == ("cpu",)


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

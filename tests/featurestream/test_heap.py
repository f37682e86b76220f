"""What one batch leaves behind is there for the next one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from featurestream.heap import children_keep_memory, keep_memory

#: Takes and frees 100 MB some times, as a forward does, and tells how many pages the system gave for the last time.
AGAIN = """
import resource, threading
from featurestream.heap import keep_memory
{kept}
import torch

def take():
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        torch.ones(25_000_000)
        found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

found = []
torch.set_num_threads(1)
thread = threading.Thread(target=take)
thread.start()
thread.join()
print(found[-1])
"""


def pages_of_the_last_time(kept: str = "") -> int:
    return int(subprocess.check_output([sys.executable, "-c", AGAIN.format(kept=kept)], text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
def test_a_thread_gets_the_pages_of_the_batch_before_and_without_it_new_ones() -> None:
    assert pages_of_the_last_time("keep_memory()") < 100
    assert pages_of_the_last_time() > 10_000  # of 24,414
    with children_keep_memory():
        assert pages_of_the_last_time() < 100


def test_what_children_are_started_with_is_gone_afterwards_and_what_the_user_has_set_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    before = dict(os.environ)
    with children_keep_memory():
        assert os.environ.items() - before.items() == {
            ("MALLOC_MMAP_MAX_", "0"),
            ("MALLOC_TRIM_THRESHOLD_", "2147483647"),
        }
    assert dict(os.environ) == before


def test_it_can_be_called_again_and_anywhere() -> None:
    keep_memory()
    keep_memory()

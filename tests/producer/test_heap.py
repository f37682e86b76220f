"""What one batch leaves behind is there for the next one."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from featurestream_producer.heap import keep_memory

#: Takes and frees 100 MB, as a forward does, and tells how many pages the system gave for the second time.
TWICE = """
import resource, threading
import torch
from featurestream_producer.heap import keep_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    torch.ones(25_000_000)
    found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

def twice():
    pages()
    pages()

found = []
torch.set_num_threads(1)
{kept}
thread = threading.Thread(target=twice)
thread.start()
thread.join()
print(found[1])
"""


def pages_of_the_second_time(kept: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", TWICE.format(kept=kept)], text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other heaps")
def test_a_thread_gets_the_pages_of_the_batch_before_and_without_it_new_ones() -> None:
    assert pages_of_the_second_time("keep_memory()") < 100
    assert pages_of_the_second_time("") > 10_000  # of 24,414


def test_it_can_be_called_again_and_anywhere() -> None:
    keep_memory()
    keep_memory()

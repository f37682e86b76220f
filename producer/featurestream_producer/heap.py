"""The C library's heap: what one batch leaves behind is there for the next one."""

from __future__ import annotations

import ctypes
from typing import Final

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
NEVER: Final = 2**31 - 1  # bytes that would have to be free at the heap's end: an int's largest number


def keep_memory() -> None:
    """Have this process keep what it frees, and its threads share one heap, where the C library is glibc.

    A forward on the CPU takes and frees hundreds of MB a batch. glibc gives large blocks back to the system and asks
    for them again, and a thread's own heap holds none above 64 MB: the system then clears the same pages for every
    batch, which is 10 to 15 % of the time of a ResNet or a ViT. What the process takes at most stays the same. It has
    to be called before there are threads: those that have a heap of their own keep it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
        mallopt(M_ARENA_MAX, 1)

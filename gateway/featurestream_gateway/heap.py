"""The C library's heap: what answers leave behind goes back to the system."""

from __future__ import annotations

import ctypes
from typing import Final

M_MMAP_THRESHOLD: Final = -3  # malloc.h
LARGE_BYTES: Final = 128 * 1024  # glibc's own threshold, before it raises it


def return_large_blocks() -> None:
    """Have large blocks of memory returned to the system as soon as they are free, where the C library is glibc.

    It maps each of them at first, but raises the size from which it does so with every one that is freed (to 32 MiB);
    then records and answers come from the heaps of many threads, and what is free in between stays taken: twice the
    memory after some large answers. A threshold that is set stays.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)

"""Run somebody else's random code reproducibly: seed the global generators, and put them back afterwards."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), NumPy and Python for the length of a ``with`` block.

    The states from before come back at its end, also after an exception. The generators belong to the process, so a
    second thread waits until the first one has left.

    ``torch.manual_seed`` is not used: it would seed the CUDA devices too, and before CUDA has started it formats a
    stack trace on every call.
    """
    with _ONE_AT_A_TIME:
        torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.default_generator.manual_seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        random.seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(torch_state)
            np.random.set_state(numpy_state)
            random.setstate(python_state)

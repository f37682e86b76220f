"""Run somebody else's random code reproducibly: seed the global generators, and put them back afterwards."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

_ONE_AT_A_TIME = threading.Lock()


class _Scope(threading.local):
    """The innermost :func:`kept_globals` block of a thread; empty until the states were kept in it."""

    kept: ExitStack | None = None
    used = False


_scope = _Scope()


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), NumPy and Python for the length of a ``with`` block.

    The states from before come back at its end, also after an exception. The generators belong to the process, so a
    second thread waits until the first one has left.

    ``torch.manual_seed`` is not used: it would seed the CUDA devices too, and before CUDA has started it formats a
    stack trace on every call.
    """
    with ExitStack() as own:
        if _scope.kept is None:
            own.enter_context(_saved())
        elif not _scope.used:
            _scope.kept.enter_context(_saved())
            _scope.used = True
        torch.default_generator.manual_seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        random.seed(seed)
        yield


@contextmanager
def kept_globals() -> Iterator[None]:
    """Let the states come back once, at the end of this block, instead of after each :func:`seeded_globals` in it.

    For many of these one after the other: to take NumPy's state and to put it back takes 0.1 ms. Nothing else
    may draw from the global generators inside.
    """
    with ExitStack() as stack:
        _scope.kept, _scope.used = stack, False
        try:
            yield
        finally:
            _scope.kept = None


@contextmanager
def _saved() -> Iterator[None]:
    with _ONE_AT_A_TIME:
        torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
        try:
            yield
        finally:
            torch.set_rng_state(torch_state)
            np.random.set_state(numpy_state)
            random.setstate(python_state)

"""Random numbers that belong to one experiment, whatever else its process does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import xxhash
from torch import Tensor


class OwnRandom:
    """One experiment's random numbers: generators of its own, lent to torch's global ones while its head runs.

    Dropout draws from the global generator, and so may any layer of a user's head. Each experiment swaps the state of
    its own in, so its masks are the same alone, beside sixty others, and after a restart. The swap costs about 5
    microseconds on the CPU. Nothing else in the process may draw from torch's global generator meanwhile. Code that
    takes a generator draws the same numbers from :attr:`generator` without a swap.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.cpu = torch.Generator()
        self._cuda = torch.Generator(device) if device.type == "cuda" else None
        self._device = device
        self.begin_at(seed)

    def begin_at(self, *numbers: int) -> None:
        """Begin anew at a place that the numbers alone decide: the seed, and whatever else tells it from others."""
        # Not the seed itself: the head's weights were drawn with that.
        start = xxhash.xxh3_64_intdigest("/".join(["training", *map(str, numbers)]).encode())
        self.cpu.manual_seed(start)
        if self._cuda is not None:
            self._cuda.manual_seed(start)

    @property
    def generator(self) -> torch.Generator:
        """The generator of the head's device."""
        return self.cpu if self._cuda is None else self._cuda

    @contextmanager
    def lent(self, *, keep: bool = True) -> Iterator[None]:
        """Make this the global random state for the block, and the former one again after it.

        With ``keep`` the numbers drawn are used up; without, the next block draws the same ones again (evaluation
        must not change what training draws). Inside the block, draw from the global generators only.
        """
        outside_cpu = torch.get_rng_state()
        torch.set_rng_state(self.cpu.get_state())
        outside_cuda = torch.cuda.get_rng_state(self._device) if self._cuda is not None else None
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda.get_state(), self._device)
        try:
            yield
            if keep:
                self.cpu.set_state(torch.get_rng_state())
                if self._cuda is not None:
                    self._cuda.set_state(torch.cuda.get_rng_state(self._device))
        finally:
            torch.set_rng_state(outside_cpu)
            if outside_cuda is not None:
                torch.cuda.set_rng_state(outside_cuda, self._device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of each generator as bytes."""
        state = {"cpu": self.cpu.get_state()}
        return state if self._cuda is None else {**state, "cuda": self._cuda.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state_dict` returned; a run that moves to CUDA starts that generator from its seed."""
        self.cpu.set_state(state["cpu"].cpu())
        if self._cuda is not None and "cuda" in state:
            self._cuda.set_state(state["cuda"].cpu())

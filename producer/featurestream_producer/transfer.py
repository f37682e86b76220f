"""Images to a device and features back, while the device computes.

The CPU computes where images and features lie: nothing is carried. On CUDA the thread that feeds the device only gives
orders, and a batch's features are waited for by whoever sends them::

    images --copy--> pinned memory --stream in--> device --the forward--> features --stream out--> pinned memory

Each stream's order follows from events, and memory that two streams use is given back when both are done with it
(``Tensor.record_stream``). Pinned memory comes from torch's cache of it, which hands a buffer out again only when the
copies that used it have ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from featurestream_producer.taps import Captured

#: Batches that the device may have been given and not finished: one that it computes, the next ones ready behind it.
AHEAD: Final = 2


@dataclass(frozen=True, eq=False, slots=True)
class Coming:
    """Features on their way to the host. ``wait`` returns them on the CPU, unchecked, when they are there."""

    wait: Callable[[], Captured]


class Transfer(Protocol):
    """Carries one worker's batches; one thread at a time uses it, and another may wait for what comes."""

    def bring(self, images_BCHW: Tensor) -> Tensor:
        """Return images on the device, which are the caller's to compute with; it leaves ``images_BCHW`` alone.

        Waits while the device has :data:`AHEAD` batches before this one.
        """

    def fetch(self, captured: Captured) -> Coming:
        """Have features carried to the host; does not wait for them where the device computes by itself."""


def open_transfer(device: str) -> Transfer:
    """Return what carries batches to a torch device."""
    return CudaTransfer(device) if torch.device(device).type == "cuda" else PlainTransfer(device)


class PlainTransfer:
    """For the CPU, and for devices whose copies are waited for."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def bring(self, images_BCHW: Tensor) -> Tensor:
        """Return the images on the device: on the CPU the same tensor."""
        return images_BCHW.to(self._device)

    def fetch(self, captured: Captured) -> Coming:
        """Return the features, on the host already."""
        here = captured.map(Tensor.cpu)
        return Coming(lambda: here)


class CudaTransfer:
    """For a CUDA device: copies in both directions go on while it computes."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._in = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._out = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._computed: deque[torch.cuda.Event] = deque()  # of the batches that the device may still work at

    def bring(self, images_BCHW: Tensor) -> Tensor:
        """Return the images on the device, to be used on its current stream."""
        while len(self._computed) >= AHEAD:
            self._computed.popleft().synchronize()
        pinned = images_BCHW.pin_memory()
        forward = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._in):
            images = pinned.to(self._device, non_blocking=True)
        forward.wait_stream(self._in)
        images.record_stream(forward)
        return images

    def fetch(self, captured: Captured) -> Coming:
        """Have the features copied as soon as they are computed."""
        forward = torch.cuda.current_stream(self._device)
        self._computed.append(_event(forward))
        self._out.wait_stream(forward)
        with torch.cuda.stream(self._out):
            here = captured.map(self._to_host)
        arrived = _event(self._out)

        def wait() -> Captured:
            arrived.synchronize()
            return here

        return Coming(wait)

    def _to_host(self, tensor: Tensor) -> Tensor:
        tensor.record_stream(self._out)
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return pinned.copy_(tensor, non_blocking=True)


def _event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """Return an event that is there when the stream has done what it has been given; waiting for it takes no core."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event

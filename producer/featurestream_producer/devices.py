"""Which devices compute, by the names that the user gives, and what is asked of them all."""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from typing import Final

import torch

from featurestream.errors import UnknownNameError
from featurestream_producer.ranks import ALONE, Rank

AUTO = "auto"
#: Intel's MKL, which multiplies float32 matrices for torch on x86, rounds by the number of its threads unless this is
#: set: then a worker that shares the cores with others gives the bits that one alone gives. No cost was measured.
MKL_SETTING: Final = ("MKL_CBWR", "AUTO,STRICT")


def find_devices(names: Sequence[str], rank: Rank = ALONE) -> tuple[str, ...]:
    """Return the torch devices that ``names`` select, with their numbers: ``cuda`` becomes ``cuda:0``.

    ``auto`` is the first GPU, or the CPU where there is none; a name without a number is that of the rank on its host:
    local rank 1 gets ``cuda:1`` for ``cuda`` as well as for ``auto``. A device that is named twice gets two workers.
    Raises UnknownNameError with the devices that there are, before any of them is touched.
    """
    known = known_devices()
    found = []
    for name in names:
        chosen = (known[1:] or known)[0].partition(":")[0] if name == AUTO else name
        if chosen in ("cuda", "xpu", "mps") and f"{chosen}:0" in known:
            chosen += f":{rank.local}"
        if chosen not in known:
            shown = name if chosen == name or rank.alone else f"{chosen} (local rank {rank.local})"
            raise UnknownNameError("device", shown, known, where=f"or {AUTO}")
        found.append(chosen)
    return tuple(found)


def fix_rounding(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have products of matrices on the CPU not depend on the number of threads, here and in processes started later.

    MKL reads the setting when it multiplies for the first time; what the user has set stays.
    """
    name, value = MKL_SETTING
    environment.setdefault(name, value)


def known_devices() -> list[str]:
    """Return the devices of this machine that torch can use: the CPU first."""
    found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps:0")
    if hasattr(torch, "xpu"):
        found += [f"xpu:{number}" for number in range(torch.xpu.device_count())]
    return found


def device_title(device: str) -> str:
    """Return what a device is called by its maker; ``cpu`` for the CPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device.partition(":")[0]


def loader_workers(device: str, devices: int, cores: int) -> int:
    """Return how many loader processes a device gets where nobody says.

    A GPU is fast enough to need all cores for decoding. On the CPU the forward takes the cores, and is so much slower
    than decoding that a thread mostly keeps up; with many cores a few processes do it.
    """
    if device == "cpu":
        return cores // (4 * devices)
    return max(1, min(8, cores // devices))

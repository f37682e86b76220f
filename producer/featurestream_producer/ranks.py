"""Which of several producers this one is, by the environment variables that torchrun sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from featurestream.errors import UsageError

RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"
LOCAL_RANK, LOCAL_WORLD_SIZE = "LOCAL_RANK", "LOCAL_WORLD_SIZE"
RUN_ID: Final = "TORCHELASTIC_RUN_ID"
UNNAMED_RUN: Final = "none"  # what torchrun itself calls a run that nobody has named


@dataclass(frozen=True, slots=True)
class Rank:
    """One of ``size`` producers that publish one stream together, each with lanes of its own.

    Ranks never talk to each other: rank r owns the lanes l with l mod ``size`` = r, and all else is on the log.

    Attributes:
        number, size: this rank, and how many there are, over all hosts.
        local, local_size: the same among the ranks of this host.
        run: what tells this run of ``size`` ranks from another one.
    """

    number: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1
    run: str | None = None

    def __str__(self) -> str:
        return f"rank {self.number} of {self.size}"

    @property
    def alone(self) -> bool:
        """Whether one producer publishes the whole stream."""
        return self.size == 1

    def lanes(self, lanes: int) -> tuple[int, ...]:
        """Return this rank's lanes of a stream that has ``lanes``."""
        return tuple(range(self.number, lanes, self.size))


ALONE: Final = Rank()


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """Return the rank that torchrun's environment variables give; one producer alone where they are not set.

    ``RANK`` and ``WORLD_SIZE`` are needed, ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE`` default to one rank a host. Raises
    UsageError where they do not fit each other.
    """
    size = _number(environment, WORLD_SIZE, 1)
    if size == 1:
        return ALONE
    if size < 1 or RANK not in environment:
        raise UsageError(
            f"the environment says {WORLD_SIZE}={environment[WORLD_SIZE]}, but not which rank this is"
            if size > 1
            else f"the environment says {WORLD_SIZE}={environment[WORLD_SIZE]}",
            hint=f"torchrun sets {RANK} and {WORLD_SIZE}; without it, unset {WORLD_SIZE} or set both",
        )
    number = _number(environment, RANK, 0)
    local, local_size = _number(environment, LOCAL_RANK, 0), _number(environment, LOCAL_WORLD_SIZE, 1)
    for name, value, end in ((RANK, number, size), (LOCAL_RANK, local, local_size)):
        if not 0 <= value < end:
            raise UsageError(
                f"the environment says {name}={value}, of {end}", hint=f"expected 0 to {end - 1}; torchrun sets it"
            )
    return Rank(number, size, local, local_size, environment.get(RUN_ID) or UNNAMED_RUN)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(
            f'the environment variable {name} is "{text}", not a number', hint="torchrun sets it; or unset it"
        ) from error

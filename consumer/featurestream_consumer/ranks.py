"""The processes that train one experiment together, as torchrun starts them, and what they tell each other.

Torchrun tells each process in its environment who it is: ``RANK`` of ``WORLD_SIZE``, ``LOCAL_RANK`` on its host, and
where they meet, ``MASTER_ADDR`` and ``MASTER_PORT``. Where ``WORLD_SIZE`` is not set, or 1, nothing here is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from featurestream.errors import DivergedError, FeatureStreamError, OutsideError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")

#: How long a rank waits for the others. One that has died is known at once, because its connections end; this is for
#: a host that has gone without a word. Ranks that wait for the stream say so meanwhile (see RankRecords.wait).
TIMEOUT: Final = timedelta(minutes=30)


def is_one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether this process is one of several that torchrun started."""
    return environment.get("WORLD_SIZE", "1") != "1"


def refuse_ranks(what: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError where torchrun started this process as one of several: ``what`` runs in one."""
    if is_one_of_several(environment):
        raise UsageError(
            f"this process is one of {environment['WORLD_SIZE']} that torchrun started, but {what} runs in one",
            hint="start it without torchrun; only featurectl train splits its work between processes",
        )


@contextmanager
def join_ranks(device: str = "auto", environment: Mapping[str, str] = os.environ) -> Iterator[Ranks | None]:
    """Meet the other processes that torchrun started, for the length of the block; None where this one is alone.

    ``device`` is the one that was asked for. Raises UsageError for an environment that is not torchrun's or a device
    that cannot be shared out, OutsideError where the others do not come.
    """
    if not is_one_of_several(environment):
        yield None
        return
    with Ranks(device, environment) as ranks:
        yield ranks


class AllInterrupted(KeyboardInterrupt):
    """One rank was told to end, and all of them have heard it."""


class Ranks:
    """The processes that train one experiment together: a torch.distributed process group.

    Every method but the constructor is a meeting: it ends when all ranks have called it, in the same order. What is on
    the CPU goes through gloo, what is on GPUs through nccl. A meeting that a rank does not come to, because it has
    died, is an OutsideError on the others. Errors of ours that leave the block say which rank they are from.

    Attributes:
        rank: this process's number, from 0. Rank 0 leads: it alone writes the run folder.
        count: how many there are.
        device: the torch device of this process.
    """

    def __init__(self, device: str = "auto", environment: Mapping[str, str] = os.environ) -> None:
        self.rank = _number(environment, "RANK")
        self.count = _number(environment, "WORLD_SIZE")
        if not self.rank < self.count:
            raise UsageError(
                f"RANK={self.rank} with WORLD_SIZE={self.count}: there is no such rank", hint="start it with torchrun"
            )
        self.device = _device_of(device, _number(environment, "LOCAL_RANK"))
        address, port = environment.get("MASTER_ADDR"), _number(environment, "MASTER_PORT")
        if not address:
            raise UsageError(f"WORLD_SIZE is {self.count}, but MASTER_ADDR is not set", hint="start it with torchrun")
        if not 0 < port < 65536:
            raise UsageError(
                f"MASTER_PORT is {port}, and no process can meet another there",
                hint="torchrun --standalone finds a free port",
            )
        self._address = f"{address}:{port}"

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def __enter__(self) -> Self:
        import torch
        from torch import distributed

        gpu = self.device.startswith("cuda")
        if gpu:
            torch.cuda.set_device(torch.device(self.device))
        try:
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if gpu else "gloo",
                init_method="env://",
                rank=self.rank,
                world_size=self.count,
                timeout=TIMEOUT,
            )
        except (RuntimeError, ValueError) as error:
            raise OutsideError(
                f"rank {self.rank} did not find the other {self.count - 1} processes at {self._address}: {error}",
                hint="each host must reach that address; GLOO_SOCKET_IFNAME names the network interface to use",
            ) from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from torch import distributed

        if error is None or isinstance(error, (DivergedError, AllInterrupted)):
            # All ranks come here, and none may close its connections while another still reads from them.
            with suppress(RuntimeError):
                distributed.barrier()
        if isinstance(error, FeatureStreamError):
            error.message = f"rank {self.rank} of {self.count}: {error.message}"
        # What ends the connections: the others must not wait for a rank that has failed.
        distributed.destroy_process_group()

    def share(self, value: T) -> T:
        """Return rank 0's value; what the others give does not count. It is pickled."""
        from torch import distributed

        values: list[Any] = [value]
        with self._meeting():
            distributed.broadcast_object_list(values, src=0, device=_cpu())
        shared: T = values[0]
        return shared

    def gather(self, value: T) -> list[T] | None:
        """Return every rank's value in the order of ranks on rank 0, None on the others. They are pickled."""
        from torch import distributed

        values: list[Any] | None = [None] * self.count if self.leads else None
        with self._meeting():
            distributed.gather_object(value, values, dst=0)
        return values

    def largest(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each place (n,) the largest number that a rank has there."""
        import torch
        from torch import distributed

        tensor = torch.from_numpy(numbers.copy())
        with self._meeting():
            distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
        return tensor.numpy()

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum over the ranks: the same bits on each of them."""
        from torch import distributed

        with self._meeting():
            distributed.all_reduce(tensor)

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors
            raise OutsideError(
                "another process of this experiment has ended",
                hint="its own lines say why; the same command goes on from the last checkpoint",
            ) from error


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise UsageError(
            f"WORLD_SIZE is {environment.get('WORLD_SIZE')}, but {name} is {text!r}, not a number",
            hint="start it with torchrun, or unset WORLD_SIZE",
        )
    return int(text)


def _device_of(name: str, local_rank: int) -> str:
    """Return this process's device: the GPU of its number on the host, or the CPU."""
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if name not in ("auto", "cuda"):
        raise UsageError(
            f'several processes cannot share the device "{name}"',
            hint="each takes the GPU of its LOCAL_RANK with --device auto or cuda; or use --device cpu",
        )
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"the process with LOCAL_RANK={local_rank} has no GPU: this machine has {torch.cuda.device_count()}",
            hint="start as many processes as there are GPUs (torchrun --nproc-per-node), or use --device cpu",
        )
    return f"cuda:{local_rank}"

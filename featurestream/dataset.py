"""A stream as a torch IterableDataset, with any number of DataLoader workers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import IterableDataset, get_worker_info

from featurestream.errors import UsageError

if TYPE_CHECKING:
    import torch

    from featurestream.stream import FeatureStream

Item = tuple["torch.Tensor | dict[str, torch.Tensor]", "torch.Tensor | None"]


class StreamDataset(IterableDataset[Item]):
    """The batches of a :class:`FeatureStream` as (features, labels) tensors.

    ::

        loader = DataLoader(StreamDataset(FeatureStream("digits-train", "avgpool")), batch_size=None, num_workers=2)

    Features are (rows, *shape) in the stream's dtype, or a dict of them by tap where several are read; labels are
    (rows,) or (rows, K), or None. Give DataLoader ``batch_size=None``: the stream makes the batches.

    Each of W workers reads every W-th batch, and a DataLoader takes from its workers in turn: the order is the stream's
    whatever W is. A ``batch_size`` of the stream would regroup each worker's share by itself, so with workers it is
    refused. Worker processes connect by themselves: no live client crosses a fork.
    """

    def __init__(self, stream: FeatureStream) -> None:
        super().__init__()
        self.stream = stream

    def __iter__(self) -> Iterator[Item]:
        """Yield (features, labels)."""
        import torch

        worker = get_worker_info()
        stream = self.stream
        if worker is not None and worker.num_workers > 1:
            if stream.batch_size is not None:
                raise UsageError(
                    f"batch_size={stream.batch_size} with {worker.num_workers} workers would make each worker regroup "
                    "its own share, in another order for every number of workers",
                    hint="leave the stream's batch_size out, or use one worker",
                )
            index, count = stream.shard
            stream = copy.copy(stream)
            stream.shard = (index + count * worker.id, count * worker.num_workers)
        for batch in stream:
            features = {name: tap.tensor() for name, tap in batch.taps.items()}
            labels = None if batch.labels is None else torch.from_numpy(batch.labels)
            yield (next(iter(features.values())) if len(features) == 1 else features), labels

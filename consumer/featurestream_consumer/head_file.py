"""head.safetensors: a trained head with everything that is needed to use it again.

The weights stand under the names that the module gives them (``0.weight``), statistics of the normalisation under
``normalization.mean``, ``normalization.std`` and ``normalization.rows``; the metadata are texts: ``format``, ``head``,
``head_args`` (JSON), ``in_features``, ``outputs``, ``normalize``, and what the caller adds (``classes``,
``fingerprint``, ...). The same run gives the same bytes: nothing in the file depends on when it was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from featurestream.errors import DataError, UsageError
from featurestream_consumer.features import as_features
from featurestream_consumer.files import write_atomically
from featurestream_consumer.heads import build_head
from featurestream_consumer.normalization import Normalization, build_normalization

FORMAT: Final = "featurestream-head-1"
PREFIX: Final = "normalization."
REQUIRED: Final = ("head", "head_args", "in_features", "outputs", "normalize")


@dataclass(frozen=True, slots=True, eq=False)
class TrainedHead:
    """A head from a file: call it with a stream's features, as they come, and get scores.

    ``metadata`` holds the file's texts.
    """

    head: nn.Module
    normalization: Normalization
    metadata: dict[str, str]

    @torch.inference_mode()
    def __call__(self, features: NDArray[Any] | Tensor) -> Tensor:
        """Return scores_BC float32 for ``features`` (rows, *shape), normalised as in training, without dropout."""
        device = next(self.head.parameters()).device
        scores: Tensor = self.head(self.normalization(as_features(features, device)))
        return scores


def write_head(
    path: Path,
    head: nn.Module,
    normalization: Normalization,
    *,
    name: str,
    args: Mapping[str, Any],
    in_features: int,
    outputs: int,
    normalize: str,
    extra: Mapping[str, str],
) -> None:
    """Write ``path``, whole or not at all. Raises UsageError where two names collide, OutsideError for a full disk."""
    tensors = {key: _plain(tensor) for key, tensor in head.state_dict().items()}
    for key, tensor in normalization.state_dict().items():
        if PREFIX + key in tensors:
            raise UsageError(f'the head has a weight called "{PREFIX}{key}", which names a statistic', hint="rename it")
        tensors[PREFIX + key] = _plain(tensor)
    metadata = {
        **extra,
        "format": FORMAT,
        "head": name,
        "head_args": json.dumps(dict(args), sort_keys=True),
        "in_features": str(in_features),
        "outputs": str(outputs),
        "normalize": normalize,
    }
    content = _with_sorted_metadata(save(tensors, metadata=metadata))
    write_atomically(path, lambda file: file.write(content), safe="the run's last checkpoint")


def read_head(path: Path) -> TrainedHead:
    """Return the head in ``path``, on the CPU, in evaluation mode.

    Raises DataError for a file that is not one of ours or is damaged, UsageError where the head's code
    (``package.module:function``) cannot be found.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a file, not a dict
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read as a head: {error}", hint="expected a run's head.safetensors"
        ) from error
    missing = [key for key in REQUIRED if key not in metadata]
    if missing or metadata.get("format") != FORMAT:
        raise DataError(
            f'{path} is not a head that this version reads: format "{metadata.get("format")}"',
            hint=f'expected "{FORMAT}" with {", ".join(REQUIRED)}',
        )
    head = build_head(
        metadata["head"],
        in_features=int(metadata["in_features"]),
        outputs=int(metadata["outputs"]),
        args=json.loads(metadata["head_args"]),
        seed=0,
    )
    normalization = build_normalization(metadata["normalize"])
    try:
        head.load_state_dict({key: tensor for key, tensor in tensors.items() if not key.startswith(PREFIX)})
    except RuntimeError as error:
        raise DataError(
            f'{path} does not fit the head "{metadata["head"]}": {error}', hint="the head's code has changed since"
        ) from error
    normalization.load_state_dict(
        {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items() if key.startswith(PREFIX)}
    )
    return TrainedHead(head.eval(), normalization, metadata)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()  # cloned: safetensors refuses tensors that share memory


def _with_sorted_metadata(content: bytes) -> bytes:
    """Return the same file with its metadata in order: safetensors writes them in another order in every process."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors to start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[8 + size :]

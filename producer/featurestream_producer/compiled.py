"""A model that torch.compile has compiled, up to the outputs of a few layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from featurestream.errors import FeatureStreamError, UsageError

Call = tuple[str, int]  # a layer, and which of its calls


class CompiledTrunk:
    """The outputs of some calls of layers, by kernels that are made once, for ``rows`` images, and run on nothing else.

    ``layers``: the modules by their names. ``backend``: one of torch.compile's. What comes after the last output is not
    computed: nothing uses it. The model keeps hooks that note the outputs; it is compiled for one trunk only.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call], rows: int, backend: str
    ) -> None:
        self._rows = rows
        self._calls = list(calls)
        self._ran = False
        # Without dynamic shapes: kernels for any number of rows round otherwise than those for one number.
        self._function: Any = torch.compile(_Trunk(model, layers, self._calls), backend=backend, dynamic=False)

    def __call__(self, images_BCHW: Tensor) -> dict[Call, Tensor]:
        """Return each call's output on images of any number; not in inference mode, whose tensors are of another kind.

        Raises UsageError where the model cannot be compiled, or not once for all batches.
        """
        parts = [self._run(part) for part in torch.split(images_BCHW, self._rows)]
        if len(parts) == 1:
            return dict(zip(self._calls, parts[0], strict=True))
        return {call: torch.cat([part[place] for part in parts]) for place, call in enumerate(self._calls)}

    def _run(self, images_BCHW: Tensor) -> list[Tensor]:
        rows = len(images_BCHW)
        filled = pad(images_BCHW, (0,) * 7 + (self._rows - rows,)) if rows < self._rows else images_BCHW
        try:
            # Other kernels for some of the batches would be other last bits: rather none.
            with torch.compiler.set_stance("fail_on_recompile" if self._ran else "default"):
                outputs: list[Tensor] = self._function(filled)
        except (FeatureStreamError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self._ran and "recompile" not in str(error):
                raise  # what was compiled has failed, as any model may
            raise UsageError(
                f"the model cannot be compiled{' once for all batches' if self._ran else ''}: "
                f"{type(error).__name__}: {' '.join(str(error).splitlines()[:2])}",
                hint="leave --compile out; on the CPU it needs a C++ compiler",
            ) from error
        self._ran = True
        return [output[:rows] for output in outputs]


class _Trunk(nn.Module):
    """The model as a function from images to the outputs of some calls, in order."""

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call]) -> None:
        super().__init__()
        self.model = model
        self.calls = list(calls)
        self.counts: Counter[str] = Counter()
        self.taken: dict[Call, Tensor] = {}
        for name, module in layers.items():
            module.register_forward_hook(partial(self._note, name))

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        self.counts, self.taken = Counter(), {}
        self.model(images_BCHW)
        return [self.taken[call] for call in self.calls]

    def _note(self, layer: str, _module: nn.Module, _args: object, output: Tensor) -> None:
        call = (layer, self.counts[layer])
        if call in self.calls:
            self.taken[call] = output.clone()  # the next layer may overwrite it in place
        self.counts[layer] += 1

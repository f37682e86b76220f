"""From a layer's output to the feature that is published: pure functions on a batch, float32 in and out.

Axes: B batch, C channels, H and W of a map, T tokens, D width of a token. A built-in pool takes one kind of output
and refuses the others, because the mean over the wrong axes looks like any other feature:

======================  ==============  ====================  ===============================================
pool                    takes           gives                 what it does
======================  ==============  ====================  ===============================================
``flat``                any (B, ...)    (B, product of rest)  the values in C order
``gap``                 (B, C, H, W)    (B, C)                global average
``gmp``                 (B, C, H, W)    (B, C)                global maximum
``gem(p=3)``            (B, C, H, W)    (B, C)                generalised mean
``avgN``                (B, C, H, W)    (B, C, N, N)          adaptive average, ``avg2``: N = 2
``cls``                 (B, T, D)       (B, D)                the first token
``meantokens(skip=1)``  (B, T, D)       (B, D)                the mean of the tokens after the first ``skip``
======================  ==============  ====================  ===============================================

Images are square here, so a map whose last two axes differ while axes 1 and 2 agree is channels-last (B, H, W, C), as
Swin transformers have it. It is refused with the advice to say so: ``gap(channels=last)``; ``gmp``, ``gem`` and
``avgN`` take the same argument. ``package.module:function`` is called as ``function(output, **arguments)``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from featurestream.errors import UnknownNameError, UsageError
from featurestream.lookup import is_import_path, load_object

_AVG = re.compile(r"avg([1-9]\d*)")
_EPS = 1e-6  # below it gem's power has no gradient and no meaning; the value of the reference implementation


def flat(output: Tensor) -> Tensor:
    """Return (B, product of the other axes), in C order."""
    return output.flatten(1)


def gap(output: Tensor, *, channels: str = "first") -> Tensor:
    """Return the global average (B, C) of a map (B, C, H, W)."""
    return _map("gap", output, channels).mean(dim=(2, 3))


def gmp(output: Tensor, *, channels: str = "first") -> Tensor:
    """Return the global maximum (B, C) of a map (B, C, H, W)."""
    return _map("gmp", output, channels).amax(dim=(2, 3))


def gem(output: Tensor, *, p: float = 3.0, channels: str = "first") -> Tensor:
    """Return the generalised mean (B, C) of a map (B, C, H, W): mean(max(x, 1e-6) ** p) ** (1 / p).

    p = 1 is the average and p -> infinity the maximum (Radenovic, Tolias, Chum, "Fine-tuning CNN image retrieval with
    no human annotation", TPAMI 2018). Negative values count as 1e-6. UsageError unless p > 0.
    """
    if not p > 0:
        raise UsageError(f"pool gem: p = {p} is not possible", hint="expected a number above 0")
    return _map("gem", output, channels).clamp(min=_EPS).pow(p).mean(dim=(2, 3)).pow(1 / p)


def avg(output: Tensor, *, size: int, channels: str = "first") -> Tensor:
    """Return the adaptive average (B, C, size, size) of a map (B, C, H, W)."""
    return adaptive_avg_pool2d(_map(f"avg{size}", output, channels), size)


def cls(output: Tensor) -> Tensor:
    """Return the first token (B, D) of (B, T, D): a vision transformer's class token."""
    return _tokens("cls", output)[:, 0]


def meantokens(output: Tensor, *, skip: int = 1) -> Tensor:
    """Return the mean (B, D) of the tokens skip, skip + 1, ... of (B, T, D).

    ``skip`` leaves out what is no patch: 1 class token by default, 0 where there is none, 5 for a class token and four
    registers. UsageError when no token is left.
    """
    tokens_BTD = _tokens("meantokens", output)
    if not 0 <= skip < tokens_BTD.shape[1]:
        raise UsageError(
            f"pool meantokens: skip = {skip} of {tokens_BTD.shape[1]} tokens", hint="expected to leave at least one"
        )
    return tokens_BTD[:, skip:].mean(dim=1)


POOLS: dict[str, Callable[..., Tensor]] = {
    "flat": flat,
    "gap": gap,
    "gmp": gmp,
    "gem": gem,
    "avgN": avg,
    "cls": cls,
    "meantokens": meantokens,
}


def find_pool(name: str, arguments: Mapping[str, Any]) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """Return the pool as a function of one batch, and the arguments that differ from its defaults.

    ``name`` is a key of POOLS ("avg2" for ``avgN``) or ``package.module:function``. Raises UnknownNameError for another
    name, UsageError for arguments that the pool does not take.
    """
    sized = _AVG.fullmatch(name)
    fixed: dict[str, Any] = {}
    function: Callable[..., Tensor]
    if sized:
        function, fixed = avg, {"size": int(sized[1])}
    elif name in POOLS and name != "avgN":
        function = POOLS[name]
    elif is_import_path(name):
        function = load_object(name, kind="pool")
    else:
        raise UnknownNameError("pool", name, POOLS, where="avgN means avg1, avg2, ...; or package.module:function")
    given = _own_arguments(name, function, arguments, fixed)
    return lambda output: function(output, **fixed, **arguments), given


def _own_arguments(
    name: str, function: Callable[..., Tensor], arguments: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments without those that say what the default says; UsageError where one is not taken."""
    try:
        signature = inspect.signature(function)
        signature.bind(None, **fixed, **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f'pool "{name}" does not take {_shown(arguments)}: {error}', hint=_form(name, fixed)
        ) from error
    parameters = signature.parameters
    if name in POOLS or fixed:
        for key, value in arguments.items():
            kind = type(parameters[key].default)
            if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
                raise UsageError(f'pool "{name}" does not take {key}={value}', hint=_form(name, fixed))
    return {
        key: value
        for key, value in sorted(arguments.items())
        if key not in parameters or parameters[key].default != value
    }


def _form(name: str, fixed: Mapping[str, Any]) -> str | None:
    """Return how a built-in pool's arguments are written, with their defaults."""
    if name not in POOLS and not fixed:
        return None
    function = avg if fixed else POOLS[name]
    options = [
        f"{key}={item.default}"
        for key, item in inspect.signature(function).parameters.items()
        if item.kind is item.KEYWORD_ONLY and key not in fixed
    ]
    return f"expected {name}({', '.join(options)})" if options else f"{name} takes no arguments"


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items()) or "no arguments"


def _map(pool: str, output: Tensor, channels: str) -> Tensor:
    """Return ``output`` as (B, C, H, W), or raise UsageError."""
    if channels not in ("first", "last"):
        raise UsageError(f'pool {pool}: channels = "{channels}"', hint="expected first or last")
    if output.ndim != 4:
        advice = {2: "a vector needs no pool", 3: "for tokens (B, T, D): cls, meantokens"}.get(output.ndim, "use flat")
        raise UsageError(f"pool {pool} takes maps (B, C, H, W), not {_shape(output)}", hint=advice)
    if channels == "last":
        return output.permute(0, 3, 1, 2)
    if output.shape[1] == output.shape[2] != output.shape[3]:
        raise UsageError(
            f"pool {pool} takes maps (B, C, H, W); {_shape(output)} looks like (B, H, W, C)",
            hint=f"say so: {pool}(channels=last)",
        )
    return output


def _tokens(pool: str, output: Tensor) -> Tensor:
    if output.ndim != 3:
        advice = {2: "a vector needs no pool", 4: "for maps (B, C, H, W): gap, gmp, gem, avgN"}
        raise UsageError(
            f"pool {pool} takes tokens (B, T, D), not {_shape(output)}", hint=advice.get(output.ndim, "use flat")
        )
    return output


def _shape(output: Tensor) -> str:
    return f"(B, {', '.join(map(str, output.shape[1:]))})"

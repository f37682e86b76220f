"""Call what a name selected with the arguments that the user gave, and say clearly what does not fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from featurestream.errors import FeatureStreamError, UsageError, nearest

T = TypeVar("T")

#: What a function raises when it dislikes an argument; anything else is a bug in it and keeps its traceback.
REFUSALS = (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError, LookupError, AttributeError)


def accepted_arguments(function: Callable[..., Any], supplied: int) -> dict[str, inspect.Parameter] | None:
    """Return the arguments that a user may give ``function`` by name, or None where it takes any.

    The first ``supplied`` parameters are filled by us and are not the user's to give.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        parameter.name: parameter
        for number, parameter in enumerate(parameters)
        if parameter.kind in named and (number >= supplied or parameter.kind is parameter.KEYWORD_ONLY)
    }


def check_arguments(
    kind: str, name: str, function: Callable[..., Any], given: Mapping[str, Any], *, supplied: int
) -> None:
    """Raise UsageError when an argument is not one that ``function`` takes, or one that it needs is not there.

    ``kind`` and ``name`` are what the user wrote ("head", "mlp"); the message lists the arguments that are accepted.
    """
    accepted = accepted_arguments(function, supplied)
    if accepted is None:
        return
    takes = f"it takes: {', '.join(accepted)}" if accepted else "it takes none"
    for argument in given:
        if argument not in accepted:
            near = nearest(argument, accepted)
            hint = f'did you mean "{near}"? {takes}' if near else takes
            raise UsageError(
                f'{kind} "{name}" takes no argument "{argument}"', hint=hint, argument=argument, known=list(accepted)
            )
    for argument, parameter in accepted.items():
        if parameter.default is parameter.empty and argument not in given:
            raise UsageError(
                f'{kind} "{name}" needs the argument "{argument}"', hint=takes, argument=argument, known=list(accepted)
            )


def call(
    kind: str,
    name: str,
    function: Callable[..., T],
    supplied: Sequence[Any],
    given: Mapping[str, Any],
    *,
    shown: Mapping[str, Any] | None = None,
) -> T:
    """Return ``function(*supplied, **given)`` after :func:`check_arguments`.

    A refusal of the function itself (a learning rate below zero) becomes a UsageError with the function's words, and
    the arguments ``shown``, which are those given unless we added some.
    """
    check_arguments(kind, name, function, given, supplied=len(supplied))
    try:
        return function(*supplied, **given)
    except FeatureStreamError:
        raise
    except REFUSALS as error:
        listed = given if shown is None else shown
        text = ", ".join(f"{key}={value!r}" for key, value in listed.items()) or "no arguments"
        raise UsageError(f'{kind} "{name}" refuses {text}: {error}') from error

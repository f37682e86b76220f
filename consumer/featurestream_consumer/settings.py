"""Which settings tell runs apart, and which of them matter most."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from featurestream_consumer.config import NOT_DECIDING

#: What a setting of arguments is called in a record: ``optimizer_args.lr`` is one argument.
ARGUMENTS = "_args"
NAMELESS = frozenset({"name", *NOT_DECIDING})


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all of ``configs`` (as run.json holds them), a value a run.

    Arguments are settings of their own: ``optimizer_args.lr``; one that a run does not have is None. What has no
    part in a run's result (its name, its folder, its device) is left out.
    """
    flat = [_flat(config) for config in configs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    found = {key: [settings.get(key) for settings in flat] for key in keys}
    return {key: values for key, values in found.items() if len({value_text(value) for value in values}) > 1}


def by_effect(settings: Mapping[str, Sequence[Any]], results: Sequence[float]) -> list[str]:
    """Return the settings by how much they matter, the most first; a seed after all others.

    What a setting does is how far apart the mean results of its values are: the greatest less the least.
    """

    def effect(key: str) -> float:
        by_value: dict[str, list[float]] = {}
        for value, result in zip(settings[key], results, strict=True):
            by_value.setdefault(value_text(value), []).append(result)
        means = [sum(group) / len(group) for group in by_value.values()]
        return max(means) - min(means)

    return sorted(settings, key=lambda key: (key == "seed", -effect(key), key))


def in_order(values: Sequence[Any]) -> list[str]:
    """Return the distinct values as texts: numbers by size, anything else in the order in which they come."""
    distinct = {value_text(value): value for value in values}
    if all(isinstance(value, (int, float)) for value in distinct.values()):
        return sorted(distinct, key=lambda text: distinct[text])
    return list(distinct)


def value_text(value: Any) -> str:
    """Return a setting's value as people read it: ``layer2+layer3`` for a list of texts, else as JSON has it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return "+".join(value)
    return "none" if value is None else json.dumps(value)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in NAMELESS:
            continue
        if key.endswith(ARGUMENTS) and isinstance(value, Mapping):
            flat |= {f"{key}.{argument}": inner for argument, inner in value.items()}
        else:
            flat["tap" if key == "taps" else key] = value
    return flat

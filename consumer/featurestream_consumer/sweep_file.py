"""A sweep as people write it: a YAML file with a stream, what all experiments share, and where they differ.

::

    stream: demo-train
    validate: demo-test
    epochs: 20
    base:
      tap: avgpool
      optimizer: AdamW
    grid:                       # every combination is an experiment
      optimizer_args.lr: [0.001, 0.01]
      seed: [0, 1, 2]
    runs:                       # and each of these is one
      - {name: plain, head: linear}

``base``, ``grid`` and ``runs`` take the settings of :class:`TrainConfig`; ``optimizer_args.lr`` names one argument.
A name that differs from the base's (``head``, ``loss``, ``optimizer``, ``scheduler``, ``augment``) drops the base's
arguments for it: those of an mlp mean nothing to a linear head.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import xxhash
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from featurestream.errors import DataError, UnknownNameError, UsageError
from featurestream.names import check_stream_name
from featurestream_consumer.config import FOUND, TrainConfig

#: What all experiments of a sweep share, because they share one reading, and the folder that a command names.
SHARED: Final = ("stream", "validate_stream", "start", "stop", "when_behind", "runs")
#: Settings that are a name with arguments: ``head`` and ``head_args``.
NAMED: Final = ("head", "loss", "optimizer", "scheduler", "augment")
SETTINGS: Final = tuple(name for name in TrainConfig.model_fields if name not in (*SHARED, *FOUND))
#: Keys of the file with two spellings: the second, and the first.
SPELLINGS: Final = {"passes": "epochs", "validate_stream": "validate"}
LONGEST_NAME: Final = 100


class SweepFile(BaseModel):
    """What a sweep file says. Raises UsageError for an unknown key (with the nearest) or a value that cannot be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stream: str = Field(description="the stream to train on")
    validate_stream: str | None = Field(
        default=None, validation_alias=AliasChoices("validate", "validate_stream"),
        description="the stream to validate on after every epoch",
    )  # fmt: skip
    start: str = Field(default="earliest", validation_alias="from", description="where to start reading")
    stop: str | None = Field(default=None, validation_alias="until", description="where to stop reading")
    epochs: int | None = Field(
        default=None, ge=1, validation_alias=AliasChoices("epochs", "passes"), description="passes read, or read again"
    )
    when_behind: Literal["wait", "reread"] = Field(
        default="wait", description="what an epoch does whose pass is not there yet"
    )
    base: dict[str, Any] = Field(default_factory=dict, description="settings of all; its name begins theirs")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="settings, each with a list of values")
    runs: list[dict[str, Any]] = Field(default_factory=list, description="experiments, each with its settings")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _as_usage_error(error) from error

    @field_validator("start", "stop", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        # YAML reads 2026-01-31T12:00:00Z as a time and 1769860800 as a number.
        if value is None or isinstance(value, str):
            return value
        return value.isoformat() if hasattr(value, "isoformat") else str(value)

    @field_validator("stream", "validate_stream")
    @classmethod
    def _stream_named(cls, value: str | None) -> str | None:
        return None if value is None else check_stream_name(value)

    def experiments(self, runs: Path, *, name: str) -> list[TrainConfig]:
        """Return the experiments in order: the grid's, its last key running fastest, then those of ``runs``.

        Their run folders lie in ``runs``; ``name`` begins the names of those that have none, unless ``base`` has one.
        Raises UsageError for a setting that there is not (with the nearest), a value that cannot be, no experiment at
        all, or two of one name.
        """
        base = _flat(self.base, "base")
        prefix = str(base.pop("name", name))
        _refuse_name(self.grid)
        points = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        listed = [_flat(point, "grid") for point in points] if self.grid else []
        listed += [_flat(entry, f"runs[{number}]") for number, entry in enumerate(self.runs)]
        if not listed:
            empty = [key for key, values in self.grid.items() if not values]
            why = f": {empty[0]} in grid has no values" if empty else ""
            raise UsageError(
                f"the sweep has no experiments{why}",
                hint="give grid (settings, each with a list of values), runs (a list of settings), or both",
            )
        varying = [key for key, values in _flat(self.grid, "grid").items() if len(values) > 1]
        configs: dict[str, TrainConfig] = {}
        for number, settings in enumerate(listed):
            keys = varying if number < len(points) and self.grid else list(settings)
            own = str(settings.pop("name", "") or experiment_name(prefix, {key: settings[key] for key in keys}))
            if own in configs:
                raise UsageError(
                    f'two experiments of the sweep are called "{own}"',
                    hint="give each run a name of its own, and each value in a grid once",
                )
            configs[own] = TrainConfig(
                **({} if self.epochs is None else {"epochs": self.epochs}) | merged(base, settings),
                name=own,
                stream=self.stream,
                validate_stream=self.validate_stream,
                start=self.start,
                stop=self.stop,
                when_behind=self.when_behind,
                runs=runs,
            )
        return list(configs.values())


def read_sweep(path: Path) -> SweepFile:
    """Return what the file says.

    Raises UsageError where there is no such file or it says what cannot be, DataError where it is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}", hint="name a sweep file; see docs/ablation.md") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise UsageError(
            f"{path} holds {'nothing' if content is None else type(content).__name__}",
            hint="a sweep file has the keys stream, base, grid, runs and so on; see docs/ablation.md",
        )
    return SweepFile(**{str(key): value for key, value in content.items()})


def parse_yaml(text: str, place: str) -> Any:
    """Return what YAML says. ``1e-3`` is a number, as in YAML 1.2; a key that is there twice is refused.

    Raises DataError with ``place`` and the line for what is not YAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise UsageError(
                        f'{place}, line {key.start_mark.line + 1}: the key "{key.value}" is there twice',
                        hint="YAML would quietly take the last one",
                    )
                seen.add(key.value)
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    # PyYAML follows YAML 1.1, for which 1e-3 is a text: the learning rate that everybody writes.
    number = re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise DataError(f"{place} is not YAML: {' '.join(str(error).split())}") from error


def experiment_name(prefix: str, settings: Mapping[str, Any]) -> str:
    """Return a name that says how an experiment differs: ``ablation-lr0.01-hidden64x64``.

    Keys are shortened to their last part where that is clear. What a folder's name cannot have becomes ``_``; a name
    that would be too long is cut, and a checksum of all of it put in its place.
    """
    short = ["tap" if key == "taps" else key.rpartition(".")[2] for key in settings]
    parts = [prefix]
    for key, brief in zip(settings, short, strict=True):
        label = brief if short.count(brief) == 1 else key
        text = _value_text(settings[key])
        parts.append(f"{label}{'' if text[:1].isdigit() else '_'}{text}")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{xxhash.xxh32_hexdigest(name.encode())}"


def _value_text(value: object) -> str:
    if isinstance(value, list):
        return "x".join(map(_value_text, value))
    if isinstance(value, dict):
        return "-".join(f"{key}_{_value_text(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _refuse_name(grid: Mapping[str, Sequence[Any]]) -> None:
    if "name" in grid:
        raise UsageError("a grid cannot vary the name: its experiments are named by what they vary", hint="use runs")


def _flat(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings under the names that TrainConfig has. Raises UsageError for one that it has not."""
    known = [*SETTINGS, "tap"]
    for key in settings:
        if key in SHARED or key in ("validate", "from", "until"):
            raise UsageError(
                f'"{key}" in {where} cannot differ between the experiments of a sweep',
                hint="all of them share one reading: give it at the top of the file, or --runs on the command line",
            )
        field, dot, argument = str(key).partition(".")
        if field not in known or (dot and (not argument or not field.endswith("_args"))):
            dotted = [f"{name}_args.{argument}" for name in NAMED] if dot else []
            raise UnknownNameError(
                f"setting in {where}", str(key), [*known, *dotted],
                where="arguments follow what takes them: optimizer_args.lr, head_args.hidden",
            )  # fmt: skip
    return {"taps" if key == "tap" else str(key): value for key, value in settings.items()}


def merged(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings over the base's, arguments one by one where they are named one by one.

    A name that differs from the base's drops the base's arguments for it.
    """
    found: dict[str, Any] = {}
    for source in (base, settings):
        for name in NAMED:
            if name in source and found.get(name, TrainConfig.model_fields[name].default) != source[name]:
                found.pop(f"{name}_args", None)
        for key, value in _whole_first(source):
            field, dot, argument = key.partition(".")
            if dot:
                before = found.get(field) or {}
                # What is no mapping of arguments stays as it is: TrainConfig refuses it.
                found[field] = {**before, argument: value} if isinstance(before, dict) else before
            else:
                found[field] = value
    return found


def _whole_first(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from sorted(settings.items(), key=lambda item: "." in item[0])


def _as_usage_error(error: ValidationError) -> UsageError:
    shown = {"validate_stream": "validate", "start": "from", "stop": "until"}
    known = [shown.get(name, name) for name in SweepFile.model_fields]
    problems: list[str] = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden" and place in SPELLINGS:
            return UsageError(
                f'the sweep file gives "{SPELLINGS[place]}" and "{place}", which say the same', hint="give one of them"
            )
        if problem["type"] == "extra_forbidden":
            return UnknownNameError("key in the sweep file", place, known)
        seen = "" if problem["type"] == "missing" else f", got {problem['input']!r}"
        problems.append(f"{place}: {problem['msg'][0].lower()}{problem['msg'][1:]}{seen}")
    return UsageError(f"the sweep file: {'; '.join(problems)}", hint="see docs/ablation.md")

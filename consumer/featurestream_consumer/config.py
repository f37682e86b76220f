"""What an experiment is asked to do: one frozen model, built once at the edge."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from featurestream.errors import UnknownNameError, UsageError
from featurestream.names import check_stream_name

EXPERIMENT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: What decides where and how a run happens, but neither its weights nor what its record means.
NOT_DECIDING: Final = frozenset(
    {"runs", "device", "checkpoint_seconds", "keep_checkpoints", "report_steps", "reporters", "labels",
     "validate_labels"}
)  # fmt: skip
#: What is found out, not chosen: where label files lie decides nothing, what they hold does.
FOUND: Final = ("labels_sha256", "validate_labels_sha256")


class TrainConfig(BaseModel):
    """One experiment: a head, a loss, an optimiser, a schedule, a start and a budget.

    Raises UsageError: for a key that is not one of these (with the nearest), a value that cannot be, or a name that
    cannot be a folder's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="the experiment's name, and its run folder's: letters, digits, '.', '_' and '-'")
    stream: str = Field(description="the stream to train on")
    taps: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        validation_alias=AliasChoices("taps", "tap"),
        description="the taps to train on; features of several are laid side by side in this order",
    )
    head: str = Field(default="mlp", description="a head by name, or package.module:function")
    head_args: dict[str, Any] = Field(default_factory=dict, description="the head's arguments")
    loss: str = Field(default="cross_entropy", description="a loss by name, or package.module:function")
    loss_args: dict[str, Any] = Field(default_factory=dict, description="the loss's arguments")
    optimizer: str = Field(default="Adam", description="a class of torch.optim, or package.module:function")
    optimizer_args: dict[str, Any] = Field(default_factory=dict, description="the optimiser's arguments")
    scheduler: str | None = Field(
        default=None,
        description="a class of torch.optim.lr_scheduler, stepped every optimiser step, or package.module:function",
    )
    scheduler_args: dict[str, Any] = Field(default_factory=dict, description="the scheduler's arguments")
    normalize: str = Field(default="none", description="what is done to features first: none, l2 or standardize")
    augment: str | None = Field(
        default=None,
        description="what training changes at features: gaussian, dropout, mixup, or package.module:function",
    )
    augment_args: dict[str, Any] = Field(default_factory=dict, description="the augmentation's arguments")
    metrics: tuple[str, ...] = Field(
        default=(), description="metrics by name, the one to compare runs by first; none: those that fit the loss"
    )
    epochs: int = Field(default=10, ge=1, description="passes read, or read again")
    batch_size: int = Field(default=256, ge=1, description="rows an optimiser step, whatever the records hold")
    seed: int = Field(default=0, ge=0, lt=2**63, description="what weights and dropout are drawn from")
    validate_stream: str | None = Field(
        default=None,
        validation_alias=AliasChoices("validate_stream", "validate"),
        description="the stream to validate on after every epoch",
    )
    labels: Path | None = Field(
        default=None, description="a CSV whose labels take the place of the streams': id or index, and label"
    )
    validate_labels: Path | None = Field(
        default=None, description="one for the validation stream alone; None: that of labels"
    )
    unlabelled: Literal["error", "drop"] = Field(
        default="error", description="what becomes of samples that a label file does not name"
    )
    labels_sha256: str | None = Field(default=None, description="SHA-256 of the file of labels; found out")
    validate_labels_sha256: str | None = Field(default=None, description="SHA-256 of validate_labels; found out")
    start: str = Field(default="earliest", description="where to start reading")
    stop: str | None = Field(default=None, description="where to stop reading; None: the end of the stream")
    when_behind: Literal["wait", "reread"] = Field(
        default="wait",
        description="what an epoch does whose pass is not there yet: wait for it, or reread one that is there",
    )
    runs: Path = Field(default=Path("runs"), description="the folder of run folders")
    device: str = Field(default="auto", description="a torch device; auto: the first GPU, else the CPU")
    checkpoint_seconds: float = Field(default=30.0, gt=0, description="seconds between two checkpoints")
    keep_checkpoints: int = Field(
        default=2, ge=1, description="checkpoints kept, the newest ones: to fall back to, and to fork from"
    )
    report_steps: int = Field(default=50, ge=1, description="optimiser steps between two rows of training metrics")
    reporters: tuple[str, ...] = Field(
        default=(),
        description="where metrics go: console, jsonl, tensorboard, projector, mlflow; none: the first three, and "
        "mlflow where a server is named",
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _as_usage_error(error, values) from error

    @field_validator("taps", "metrics", "reporters", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("head_args", "loss_args", "optimizer_args", "scheduler_args", "augment_args", mode="after")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        # What comes back from run.json must equal what went in: no tuples, no NumPy numbers.
        try:
            plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"the arguments {value!r} cannot be written into a run's record: {error}",
                hint="use numbers, texts, true, false, null and lists of them",
            ) from error
        return plain

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        return check_experiment_name(value)

    @field_validator("stream", "validate_stream")
    @classmethod
    def _stream_named(cls, value: str | None) -> str | None:
        return None if value is None else check_stream_name(value)

    @field_validator("taps")
    @classmethod
    def _taps_differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, tap in enumerate(value):
            if tap in value[:number]:
                raise UsageError(f'tap "{tap}" is named twice', hint="name each tap once")
        return value

    def record(self) -> dict[str, Any]:
        """Return the configuration as run.json holds it: JSON values, every field, defaults included."""
        return self.model_dump(mode="json")


def check_experiment_name(name: str) -> str:
    """Return ``name`` if it can name an experiment, its run folder and its consumer group, else raise UsageError."""
    if not EXPERIMENT_NAME.fullmatch(name):
        raise UsageError(
            f'"{name}" cannot name an experiment',
            hint='a name is 1 to 100 letters, digits, ".", "_" and "-", and begins with a letter or digit; '
            "the folder it lies in is given with --runs",
        )
    return name


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return what decides a run's result and is not the same in both: ``{"optimizer_args.lr": (0.1, 0.01)}``.

    A value that one of them lacks is None.
    """
    one, other = old.record(), new.record()
    found: dict[str, tuple[Any, Any]] = {}
    for field in one:
        if field in NOT_DECIDING or one[field] == other[field]:
            continue
        if isinstance(one[field], dict):
            for key in sorted({*one[field], *other[field]}):
                before, after = one[field].get(key), other[field].get(key)
                if before != after or (key in one[field]) != (key in other[field]):
                    found[f"{field}.{key}"] = (before, after)
        else:
            found[field] = (one[field], other[field])
    return found


def parse_arguments(assignments: Iterable[str], *, dotted: bool = False) -> dict[str, Any]:
    """Return the arguments that ``key=value`` texts name: ``["lr=1e-3", "hidden=512,128"]``.

    A value is JSON (``0.1``, ``true``, ``null``, ``[1, 2]``), Python's ``True``, ``False`` or ``None``, several of
    those with commas between them (a list), or else a text. With ``dotted`` a key may have dots
    (``optimizer_args.lr=1e-3``). Raises UsageError for one without ``=``, or a key given twice.
    """
    arguments: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not (key.replace(".", "_") if dotted else key).isidentifier():
            example = "optimizer_args.lr=0.01" if dotted else "lr=0.01"
            raise UsageError(f'"{assignment}" is not an argument', hint=f"expected name=value, such as {example}")
        if key in arguments:
            raise UsageError(f'the argument "{key}" is given twice', hint="give it once; a list has commas: 512,128")
        arguments[key] = parse_value(text)
    return arguments


def parse_value(text: str) -> Any:
    """Return what a text on the command line stands for; see :func:`parse_arguments`."""
    words: Mapping[str, Any] = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text, parse_constant=str)
    except ValueError:
        pass
    try:
        return float(text) if re.fullmatch(r"[-+]?\.?\d[\d._]*(?:[eE][-+]?\d+)?", text) else _parse_list(text)
    except ValueError:
        return text


def _parse_list(text: str) -> Any:
    parts = text.split(",")
    return [parse_value(part.strip()) for part in parts if part.strip()] if len(parts) > 1 else text


def _as_usage_error(error: ValidationError, values: Mapping[str, Any]) -> UsageError:
    known = list(TrainConfig.model_fields)
    problems: list[str] = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            return UnknownNameError("setting", place, known)
        field = "taps" if place == "tap" else place
        about = TrainConfig.model_fields.get(field.split(".")[0])
        seen = "" if problem["type"] == "missing" else f", got {problem['input']!r}"
        meaning = f" ({about.description})" if about is not None and about.description else ""
        problems.append(f"{place}{meaning}: {problem['msg'][0].lower()}{problem['msg'][1:]}{seen}")
    name = values.get("name")
    return UsageError(f'experiment "{name}": ' + "; ".join(problems) if name else "; ".join(problems))

"""What a long command tells while it runs, on standard error: lines for people, or JSON objects for machines.

Everything goes one way: what commands say and what any module gives to Python's logging ends at one handler. A
:class:`Line` is a text for people that carries its facts along; people get the text, machines both::

    say(Line("E1: step 120, epoch 2: train loss 0.21", experiment="E1", step=120, epoch=2, loss=0.21))

    E1: step 120, epoch 2: train loss 0.21
    {"time": "2026-11-22T10:05:14.031Z", "level": "info", "event": "E1: step 120, ...", "experiment": "E1", ...}
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

from featurestream.errors import FeatureStreamError, UnknownNameError

FORMATS: Final = ("text", "json")
#: A line that begins so is one of level "warning".
WARNING: Final = "warning: "

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_lines = logging.getLogger("featurestream.lines")


class Line(str):
    """A line for people, with its facts for machines: ``Line("goes on at batch 5", batch=5)``.

    Attributes:
        facts: by name; plain values that JSON can hold.
    """

    facts: dict[str, Any]

    def __new__(cls, text: str, /, **facts: Any) -> Line:
        """Return the text with its facts."""
        line = super().__new__(cls, text)
        line.facts = facts
        return line


class StandardError(logging.Handler):
    """Writes records to standard error as it is at that moment. An error in writing is raised to whoever logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record on a line of its own."""
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """Return a text with its control characters as escapes: what comes from a topic must not steer a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        return printable(super().formatMessage(record))


_TEXT: Final = _Text("%(message)s")
_handler: Final = StandardError()
_handler.setFormatter(_TEXT)
_lines.addHandler(_handler)
_lines.setLevel(logging.INFO)
_lines.propagate = False
_context: dict[str, Any] = {}


def say(line: str) -> None:
    """Tell a line: a warning where it begins with :data:`WARNING`; the facts of a :class:`Line` go with it."""
    level = logging.WARNING if line.startswith(WARNING) else logging.INFO
    if is_json():
        line = _without_prefix(line)
    _lines.log(level, "%s", line, extra={"facts": getattr(line, "facts", {})})


def fail(error: Exception, exit_code: int, *, with_traceback: bool) -> None:
    """Tell of the error that ends the program, with its facts; a bug of ours with its traceback."""
    facts: dict[str, Any] = {"error": type(error).__name__, "exit_code": exit_code}
    if isinstance(error, FeatureStreamError):
        facts |= {"hint": error.hint, **error.facts}
    message = error.message if isinstance(error, FeatureStreamError) else str(error)
    _lines.error("%s", message, extra={"facts": facts}, exc_info=error if with_traceback else None)


def start_logging(log_format: str, **context: Any) -> None:
    """Write all that follows in a format, ``text`` or ``json``; ``context`` stands in every JSON object.

    Raises UnknownNameError for another format.
    """
    if log_format not in FORMATS:
        raise UnknownNameError("log format", log_format, FORMATS)
    _context.clear()
    bind(**context)
    _handler.setFormatter(_json_formatter() if log_format == "json" else _TEXT)
    # What libraries log comes the same way; in text as it would without this, by Python's handler of last resort.
    logging.basicConfig(level=logging.WARNING, handlers=[_handler])
    logging.captureWarnings(log_format == "json")


def bind(**context: Any) -> None:
    """Have further facts stand in every JSON object from now on: which stream, which experiment."""
    _context.update(context)


def is_json() -> bool:
    """Tell whether lines are written as JSON."""
    return _handler.formatter is not _TEXT


def _without_prefix(line: str) -> str:
    return Line(line.removeprefix(WARNING), **getattr(line, "facts", {}))


def _json_formatter() -> logging.Formatter:
    # Here: its import takes longer than `featurectl --help` may.
    from structlog.processors import ExceptionRenderer, JSONRenderer, TimeStamper
    from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name

    return ProcessorFormatter(
        foreign_pre_chain=[
            TimeStamper(fmt="iso", utc=True, key="time"),
            add_log_level,
            add_logger_name,
            ExtraAdder(),
            ExceptionRenderer(),
        ],
        processors=[ProcessorFormatter.remove_processors_meta, _arrange, JSONRenderer(ensure_ascii=False, default=str)],
    )


def _arrange(_logger: object, _method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an object in the order that people scan them, with the context and the line's facts."""
    rest = dict(fields)
    facts = rest.pop("facts", {})
    first = {name: rest.pop(name) for name in ("time", "level", "event")}
    plain: dict[str, Any] = _finite({**first, **_context, **facts, **rest})
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

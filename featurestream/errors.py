"""Every error that leaves this project.

::

    FeatureStreamError
    ├── UsageError                 yours: fix the call                                  exit code 2
    │   ├── UnknownNameError           a name that selects nothing; lists the known, suggests the nearest
    │   ├── StreamNotFoundError        no such stream on this cluster
    │   ├── StreamMismatchError        the stream exists, with another fingerprint
    │   ├── StreamBusyError            another producer holds the stream's lease
    │   ├── RunMismatchError           the run folder belongs to another configuration
    │   └── MissingExtraError          an optional dependency is not installed
    ├── OutsideError               theirs: something outside failed                     exit code 3
    │   ├── BrokerError                the broker cannot be reached, started or written to
    │   ├── RecordError                bytes on a topic that are not what they should be
    │   ├── DataError                  images, labels or weights that cannot be used
    │   ├── FeatureRangeError          a feature that does not fit the stream's dtype, or is not a number
    │   └── DivergedError              training whose loss or scores are no longer finite
    ├── InexactError               the stream cannot be read exactly                    exit code 4
    │   ├── GoneError                  retention has deleted what was asked for
    │   ├── HoleError                  a batch that must be there is not
    │   └── FingerprintError           a record or a run belongs to another stream
    └── InternalError              ours: a bug                                          exit code 70

A message says what was wrong, the value that was seen, what was expected and what to do next. The same facts are
attributes of the exception, for programs. The command line prints one line for all but the last family.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar


class FeatureStreamError(Exception):
    """The base of all our errors: a message, what to do next, and the facts as attributes.

    ``hint`` is the next step as a sentence fragment ("list them with: featurectl layers resnet18"); ``facts``
    become attributes of the exception.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str | None = None, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def __getattr__(self, name: str) -> object:
        # Only called when normal lookup fails. `facts` itself may be missing while an exception is unpickled.
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from worker processes to the process that reports them.
        return (_rebuild, (type(self), self.message, self.hint, self.facts))


def _rebuild(
    kind: type[FeatureStreamError], message: str, hint: str | None, facts: dict[str, object]
) -> FeatureStreamError:
    error = kind.__new__(kind)
    FeatureStreamError.__init__(error, message, hint=hint, **facts)
    return error


# ---- yours ----------------------------------------------------------------------------------------------------


class UsageError(FeatureStreamError):
    """The caller's mistake: an argument, an option or a file that he named."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that selects nothing.

    ``kind`` is what it should have named ("pool"), ``name`` what was given, ``known`` what there is; ``where`` tells
    how to list or extend the choice and is optional.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> None:
        known = list(known)
        near = nearest(name, known)
        parts = [f'did you mean "{near}"?'] if near else []
        parts.append(f"known: {names_text(known)}" if known else "there are none")
        if where:
            parts.append(where)
        super().__init__(f'unknown {kind} "{name}"', hint="; ".join(parts), kind=kind, name=name, known=known)


class StreamNotFoundError(UsageError):
    """No stream of this name on the cluster."""


class StreamMismatchError(UsageError):
    """A stream of this name exists and is another stream; ``differences`` lists the fields with both values."""


class StreamBusyError(UsageError):
    """Another live producer holds the stream's lease."""


class RunMismatchError(UsageError):
    """The run folder holds a run of another configuration; ``differences`` lists the fields with both values."""


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs a package that is not installed", hint=f'pip install "featurestream[{extra}]"', extra=extra
        )


# ---- theirs ---------------------------------------------------------------------------------------------------


class OutsideError(FeatureStreamError):
    """Something outside this program failed: a broker, a file system, data that came from elsewhere."""

    exit_code = 3


class BrokerError(OutsideError):
    """The broker cannot be reached, started, read from or written to."""


class RecordError(OutsideError):
    """Bytes on a topic that are not what the wire format says.

    ``topic``, ``lane`` and ``offset`` are None until the reader that knows the place adds them with :meth:`at`.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, topic: str | None = None, lane: int | None = None,
        offset: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, hint=hint, topic=topic, lane=lane, offset=offset)

    def at(self, topic: str, lane: int, offset: int) -> RecordError:
        """Return the same error with its place in front of the message."""
        place = f"record at {topic}, lane {lane}, offset {offset}: "
        return RecordError(place + self.message, hint=self.hint, topic=topic, lane=lane, offset=offset)


class DataError(OutsideError):
    """Images, labels, weights or files that cannot be used as they are."""


class FeatureRangeError(OutsideError):
    """A feature that is not a number, or does not fit the stream's dtype; ``tap`` names where."""


class DivergedError(OutsideError):
    """Training whose loss or scores are no longer finite; ``step`` is the number of optimiser steps made."""


# ---- the stream cannot be read exactly ------------------------------------------------------------------------


class InexactError(FeatureStreamError):
    """What was asked for cannot be read exactly; nothing was skipped in silence."""

    exit_code = 4


class GoneError(InexactError):
    """Retention has deleted part of the range; ``first_left`` is the first batch that every lane still holds."""


class HoleError(InexactError):
    """A lane goes from one batch to a later one than the next; ``batch`` is the one that is missing."""


class FingerprintError(InexactError):
    """A record, a run or a stream belongs to another fingerprint than the one expected."""


# ---- ours -----------------------------------------------------------------------------------------------------


class InternalError(FeatureStreamError):
    """A state that cannot be: a bug in featurestream."""


def names_text(names: Sequence[str]) -> str:
    """Return the names as a list in a sentence; of many the first 24, and how many there are beside them."""
    shown = names if len(names) <= 24 else [*names[:24], f"... {len(names) - 24} more"]
    return ", ".join(shown)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that looks most like ``name``, or None where nothing comes close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None

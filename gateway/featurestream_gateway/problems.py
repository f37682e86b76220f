"""Errors as HTTP answers: a status, and a problem (RFC 9457) that says what to do next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from featurestream.errors import (
    BrokerError,
    DataError,
    FeatureStreamError,
    FingerprintError,
    GoneError,
    HoleError,
    MissingExtraError,
    OutsideError,
    StreamNotFoundError,
    UsageError,
)

MEDIA_TYPE: Final = "application/problem+json"
URN: Final = "urn:featurestream:problem:"
AGAIN_S: Final = 5  # when a client that was sent away may ask again

#: Every kind of problem: its status and title.
KINDS: Final[dict[str, tuple[int, str]]] = {
    "bad-request": (422, "The request is not what it should be"),
    "unauthorized": (401, "A token is needed"),
    "stream-not-found": (404, "Stream not found"),
    "experiment-not-found": (404, "Experiment not found"),
    "not-found": (404, "There is no such path"),
    "method-not-allowed": (405, "The path does not take this method"),
    "other-stream": (409, "The cursor belongs to something else"),
    "ambiguous-name": (409, "Several streams have this name"),
    "gone": (410, "Retention has deleted part of the range"),
    "too-large": (413, "Too large"),
    "wrong-host": (421, "Not a name of this gateway"),
    "data-not-here": (424, "The images cannot be used"),
    "busy": (429, "All readers are taken"),
    "internal": (500, "A bug in featurestream"),
    "not-installed": (501, "Something is not installed here"),
    "bad-record": (502, "The stream cannot be read exactly"),
    "kafka-unavailable": (503, "Kafka does not answer"),
    "ending": (503, "The gateway is ending"),
}

_KIND_OF: Final[Sequence[tuple[type[FeatureStreamError], str]]] = (
    (StreamNotFoundError, "stream-not-found"),
    (MissingExtraError, "not-installed"),
    (UsageError, "bad-request"),
    (BrokerError, "kafka-unavailable"),
    (GoneError, "gone"),
    (HoleError, "bad-record"),
    (FingerprintError, "bad-record"),
    (DataError, "data-not-here"),
    (OutsideError, "bad-record"),
)


class RefusedError(UsageError):
    """A request that is refused for a reason of HTTP's own; ``problem`` is a key of :data:`KINDS`."""

    def __init__(self, problem: str, message: str, *, hint: str | None = None, **facts: object) -> None:
        super().__init__(message, hint=hint, **facts)
        self.problem = problem


class TooLargeError(RefusedError):
    """More than an answer or a request may have."""

    def __init__(self, message: str, *, hint: str | None = None, **facts: object) -> None:
        super().__init__("too-large", message, hint=hint, **facts)


def kind_of(error: Exception) -> str:
    """Return the key of :data:`KINDS` that an error is answered with."""
    if isinstance(error, RefusedError):
        return error.problem
    return next((kind for family, kind in _KIND_OF if isinstance(error, family)), "internal")


def problem_of(error: Exception) -> dict[str, Any]:
    """Return an error as the keys of a problem. What a bug says stays in the gateway's log."""
    kind = kind_of(error)
    if not isinstance(error, FeatureStreamError) or kind == "internal":
        return problem(
            "internal", "the gateway has failed to answer", hint="its log has the traceback; please report it"
        )
    return problem(kind, error.message, hint=error.hint, **{key: error.facts[key] for key in error.facts})


def problem(kind: str, detail: str, /, *, hint: str | None = None, **facts: Any) -> dict[str, Any]:
    """Return the keys of a problem of a kind."""
    status, title = KINDS[kind]
    found: dict[str, Any] = {"type": URN + kind, "title": title, "status": status, "detail": detail}
    if hint:
        found["hint"] = hint
    return found | {key: value for key, value in facts.items() if key not in found and value is not None}


class ProblemResponse(Response):
    """A problem as an answer."""

    media_type = MEDIA_TYPE

    def __init__(self, found: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        status = found["status"]
        more = dict(headers or {})
        if status in (429, 503):
            more["Retry-After"] = str(AGAIN_S)
        if status == 401:
            more["WWW-Authenticate"] = "Bearer"
        super().__init__(json.dumps(found, ensure_ascii=False, default=str), status, more)


def response_of(error: Exception) -> ProblemResponse:
    """Return the answer for an error."""
    return ProblemResponse(problem_of(error))


async def answer_error(_request: Request, error: Exception) -> Response:
    """Answer an error of ours (an exception handler of the application)."""
    return response_of(error)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses: a path or a method that there is not, a body that is no JSON."""
    status = getattr(error, "status_code", 500)
    headers = getattr(error, "headers", None)
    if status == 404:
        found = problem("not-found", f'there is no path "{request.url.path}"', hint="see /openapi.json")
    elif status == 405:
        allowed = (headers or {}).get("Allow", "")
        found = problem(
            "method-not-allowed", f'"{request.url.path}" does not take {request.method}', hint=f"expected {allowed}"
        )
    else:
        found = problem("bad-request", str(getattr(error, "detail", "it cannot be read")), hint="see /openapi.json")
    return ProblemResponse(found, headers)


async def answer_bad_parameters(_request: Request, error: Exception) -> Response:
    """Answer parameters or a body that do not validate: the first one in words, all as facts."""
    errors: Sequence[Any] = getattr(error, "errors", list)()
    found = [
        {"where": ".".join(map(str, one["loc"])), "what": one["msg"], "given": _shown(one.get("input"))}
        for one in errors
    ]
    first = found[0] if found else {"where": "request", "what": "not valid", "given": None}
    given = "" if first["given"] is None else f", got {first['given']}"
    return ProblemResponse(
        problem("bad-request", f"{first['where']}: {first['what']}{given}", hint="see /openapi.json", errors=found)
    )


def _shown(value: object) -> str | None:
    if value is None:
        return None
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

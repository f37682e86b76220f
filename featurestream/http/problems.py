"""What a gateway answers when it refuses, as the error that it is (docs/http-api.md lists its problems)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from featurestream.errors import (
    BrokerError,
    DataError,
    FeatureStreamError,
    GoneError,
    OutsideError,
    RecordError,
    StreamNotFoundError,
    UsageError,
)
from featurestream.ports import Bounds

MEDIA_TYPE: Final = "application/problem+json"
URN: Final = "urn:featurestream:problem:"

_ERRORS: Final[dict[str, type[FeatureStreamError]]] = {
    "stream-not-found": StreamNotFoundError,
    "gone": GoneError,
    "data-not-here": DataError,
    "bad-record": OutsideError,
    "busy": BrokerError,
    "internal": BrokerError,
    "kafka-unavailable": BrokerError,
    "ending": BrokerError,
}
_OWN_KEYS: Final = ("type", "title", "status", "detail", "hint", "instance")
_PLACE: Final = ("topic", "lane", "offset")


def error_of(address: str, status: int, media_type: str, body: bytes) -> FeatureStreamError:
    """Return the error of an answer that is none with what was asked for.

    A problem becomes the error that the gateway met, with its facts. What is no problem comes from something between
    here and the gateway, or from a server that is no gateway: BrokerError from 500 on, else UsageError.
    """
    found = _problem(media_type, body)
    if found is None:
        what = f"{address} answered {status}, and is no gateway"
        if status >= 500:
            return BrokerError(f"{what}, or what stands before it failed", hint="see its log")
        return UsageError(what, hint="give the address that featurectl gateway prints")
    kind = str(found["type"]).removeprefix(URN)
    message, hint = str(found.get("detail")), found.get("hint")
    facts = {key: value for key, value in found.items() if key not in _OWN_KEYS}
    if isinstance(facts.get("bounds"), list):
        facts["bounds"] = Bounds(*facts["bounds"])
    if kind == "unauthorized":
        hint = f"give the gateway's token: HttpLog({address!r}, token=...)"
    if kind == "bad-record" and facts.get("offset") is not None:
        place = {key: facts.get(key) for key in _PLACE}
        return RecordError(message, hint=hint, **place)
    error = _ERRORS.get(kind, BrokerError if status >= 500 and kind != "not-installed" else UsageError)
    return error(message, hint=hint, **facts)


def _problem(media_type: str, body: bytes) -> Mapping[str, Any] | None:
    if media_type.partition(";")[0].strip() != MEDIA_TYPE:
        return None
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) and str(found.get("type")).startswith(URN) else None

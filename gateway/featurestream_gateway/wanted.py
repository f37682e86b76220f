"""What requests ask the gateway to do, between parameters and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from featurestream.errors import UsageError
from featurestream.position import Position
from featurestream.requests import find_samples, open_requests, request_samples
from featurestream_gateway.cursor import Cursor
from featurestream_gateway.gateway import Gateway


def current(request: Request) -> Gateway:
    """Return the gateway that a request came to."""
    found: Gateway = request.app.state.gateway
    return found


def send_requests(gateway: Gateway, stream: str, names: Sequence[int | str]) -> dict[str, Any]:
    """Have samples of a stream extracted next; return where they will stand, as JSON values.

    Raises UsageError for samples that there are not, and for a stream of requests.
    """
    manifest = gateway.catalogue.manifest(stream)
    if manifest.kind is not None:
        raise UsageError(f'stream "{stream}" is one of requests itself', hint="name the stream that was requested of")
    indices = find_samples(gateway.log, manifest, [str(name) for name in names])
    requests = open_requests(gateway.log, manifest)
    wanted = list(dict.fromkeys(indices))
    first, last = request_samples(gateway.log, requests, wanted)
    taps = tuple(tap.name for tap in requests.taps)
    return {
        "stream": requests.stream,
        "samples": len(wanted),
        "first_batch": first,
        "last_batch": last,
        "next": Cursor(requests.stream, requests.fingerprint, taps, Position(first), None).text(),
    }

"""Answers as they are sent: JSON, and the rows of a range with the headers that say what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from featurestream_gateway.formats import MEDIA_TYPES, Bytes, Format, json_bytes, place_text
from featurestream_gateway.ranges import Piece
from featurestream_gateway.turns import Turn

#: A client that stops reading holds this much, and what the kernel holds, beside the answer itself.
SLICE_BYTES: Final = 256 * 1024


class JsonAnswer(JSONResponse):
    """JSON values as an answer."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body."""
        return json_bytes(content)


class PartsAnswer(Response):
    """A body in parts, sent in slices, each part forgotten when it is sent.

    The turn that was taken for the answer holds what is left of it, and ends when it is sent, or cannot be.
    """

    def __init__(self, parts: Sequence[Bytes], media_type: str, headers: Mapping[str, str], turn: Turn) -> None:
        super().__init__(None, 200, headers, media_type)
        self._left = sum(map(len, parts))
        self.headers["Content-Length"] = str(self._left)
        self._parts = list(reversed(parts))
        self._turn = turn
        turn.keep(self._left)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the answer."""
        with self._turn:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            parts = self._parts
            while parts:
                part = memoryview(parts.pop())
                for first in range(0, len(part), SLICE_BYTES):
                    more = bool(parts) or first + SLICE_BYTES < len(part)
                    slice_ = bytes(part[first : first + SLICE_BYTES])
                    await send({"type": "http.response.body", "body": slice_, "more_body": more})
                self._left -= len(part)
                self._turn.keep(self._left)


def piece_headers(piece: Piece, form: Format, request: Request) -> dict[str, str]:
    """Return the headers of an answer with rows."""
    wanted = piece.range
    headers = {
        "Featurestream-Stream": wanted.manifest.stream,
        "Featurestream-Fingerprint": wanted.manifest.fingerprint,
        "Featurestream-Taps": ",".join(wanted.taps),
        "Featurestream-From": place_text(wanted.begin),
        "Featurestream-Until": place_text(piece.until),
        "Featurestream-Rows": str(piece.rows),
        "Featurestream-More": piece.more,
        "Cache-Control": "no-store",
        "Vary": "Accept",
    }
    if piece.next is not None:
        headers["Featurestream-Next"] = piece.next
        kept = [(name, value) for name, value in request.query_params.multi_items() if name in ("n", "wait", "stream")]
        query = urlencode([("cursor", piece.next), *kept, ("format", form)])
        headers["Link"] = f'<{quote(request.url.path)}?{query}>; rel="next"'
    return headers


def piece_answer(piece: Piece, parts: Sequence[Bytes], form: Format, request: Request, turn: Turn) -> PartsAnswer:
    """Return the answer with the rows of a piece."""
    return PartsAnswer(parts, MEDIA_TYPES[form], piece_headers(piece, form, request), turn)

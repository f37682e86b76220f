"""The page: files of this package, the same for everybody; whatever they show they ask the API for."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

FOLDER: Final = Path(__file__).parent / "page"
FIRST: Final = "index.html"
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    "": "text/plain; charset=utf-8",  # the licence of what is not ours
}
#: Scripts and styles are these files and nothing else: what a record or a name holds can never run. Trusted types take
#: every way to turn text into HTML away from our own scripts too.
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # pictures are fetched with the token, which an address could not carry
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked for again: a new version shows at once
}


@cache
def page_files() -> dict[str, tuple[str, bytes, str]]:
    """Return the page's files by their path below ``/page/``: media type, content, and the tag that tells versions."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(FOLDER).as_posix()] = (MEDIA_TYPES[path.suffix], content, tag)
    return found


@router.get("/")
async def first(request: Request) -> Response:
    """The page."""
    return _answer(FIRST, request)


@router.get("/page/{name:path}")
async def file(name: str, request: Request) -> Response:
    """One of its files."""
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    """Return a file; only the names that are there count, so that no path leads out of the folder."""
    if name not in page_files():
        raise HTTPException(404)
    media_type, content, tag = page_files()[name]
    headers = HEADERS | {"ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)

"""What stands before every request: who may ask, how long he may take, how much he may send; and what is counted."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurestream_gateway.connections import Connections
from featurestream_gateway.meters import Meters
from featurestream_gateway.problems import ProblemResponse, RefusedError, TooLargeError, response_of
from featurestream_gateway.settings import BODY_BYTES, GatewaySettings, is_loopback

log = logging.getLogger("featurestream.gateway")

OPEN_PATHS: Final = ("/", "/healthz", "/readyz")  # whoever watches over the process needs no secret
PAGE: Final = "/page/"  # the page's own files, which say nothing about any stream


class _GoneClientError(Exception):
    """The client has gone, or was cut off."""


class Guard:
    """An ASGI application before another one."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, connections: Connections, meters: Meters) -> None:
        self._app = app
        self._settings = settings
        self._connections = connections
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status, sent, whole = 0, 0, False
        connection = self._connections.of(scope)

        async def counted(message: Message) -> None:
            nonlocal status, sent, whole
            if message["type"] == "http.response.start":
                status = message["status"]
            if connection is not None and connection.is_closing():
                raise _GoneClientError  # the server would take the rest, and throw it away
            await self._send(scope, send, message)
            sent += len(message.get("body", b""))
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._answer(scope, receive, counted)
        except Exception as error:
            if _tells_of_leaving(error):
                status = status or 499
                await self._part(scope, receive)
                return
            log.exception("a request was not answered: %s %s", scope["method"], scope["path"])
            if not status:
                await response_of(RuntimeError())(scope, receive, counted)
            elif not whole:
                self._connections.cut(scope)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._meters.answered(path, status, sent, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            self._check_host(headers)
            refused = self._check_token(scope["path"], headers)
            if refused is None:
                receive = await self._body(scope, headers, receive)
        except RefusedError as error:
            refused = response_of(error)
        await (self._app if refused is None else refused)(scope, receive, send)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        if self._settings.token is not None:
            return
        given = headers.get(b"host", b"").decode("latin-1")
        name = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]
        if name and not is_loopback(name):
            raise RefusedError(
                "wrong-host",
                f'the request is for "{given[:100]}", which is no name of this machine\'s own',
                hint="ask http://127.0.0.1, or have the gateway started with a token",
            )

    def _check_token(self, path: str, headers: dict[bytes, bytes]) -> ProblemResponse | None:
        token = self._settings.token
        if token is None or path in OPEN_PATHS or path.startswith(PAGE):
            return None
        given = headers.get(b"authorization")
        if token.is_in(given):
            return None
        what = "there is no token" if given is None else "the token is not the gateway's, or cannot be read"
        return response_of(RefusedError("unauthorized", what, hint="send the header Authorization: Bearer TOKEN"))

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Take a request's body, as much as one may have; return what gives it on."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS", "DELETE"):
            return receive
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > BODY_BYTES:
            raise _body_too_large()
        parts: list[bytes] = []
        taken, more = 0, True
        while more:
            try:
                async with asyncio.timeout(self._settings.idle_s):
                    message = await receive()
            except TimeoutError:
                self._connections.cut(scope)
                raise _GoneClientError from None
            if message["type"] == "http.disconnect":
                raise _GoneClientError
            parts.append(message.get("body", b""))
            taken += len(parts[-1])
            more = message.get("more_body", False)
            if taken > BODY_BYTES:
                raise _body_too_large()
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def given() -> Message:
            return whole.pop() if whole else await receive()

        return given

    async def _send(self, scope: Scope, send: Send, message: Message) -> None:
        try:
            async with asyncio.timeout(self._settings.idle_s):
                await send(message)
        except TimeoutError:
            self._connections.cut(scope)  # else what the client does not take would stay in memory
            raise _GoneClientError from None

    async def _part(self, scope: Scope, receive: Receive) -> None:
        """Return when the server knows too that the client has gone: else it would complain of half an answer."""
        if self._connections.of(scope) is not None:
            self._connections.cut(scope)
            while (await receive())["type"] != "http.disconnect":
                pass


def _tells_of_leaving(error: BaseException) -> bool:
    """Tell whether an error says only that the client has gone; the framework's tasks say so to each other."""
    if isinstance(error, BaseExceptionGroup):
        return all(_tells_of_leaving(one) for one in error.exceptions)
    return isinstance(error, _GoneClientError | anyio.BrokenResourceError)


def _body_too_large() -> TooLargeError:
    facts: dict[str, Any] = {"max_bytes": BODY_BYTES}
    return TooLargeError(
        f"the request's body is larger than {BODY_BYTES:,} bytes", hint="ask in several requests", **facts
    )

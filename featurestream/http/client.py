"""One connection to a gateway, kept open from one question to the next."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from featurestream.errors import BrokerError, FeatureStreamError, UsageError
from featurestream.http.problems import error_of

ANSWER_S: Final = 30.0  # without a byte for so long a connection counts as lost
CONNECT_S: Final = 10.0
PASSING: Final = frozenset({429, 502, 503, 504})  # what may be otherwise when it is asked again


class NoAnswerError(BrokerError):
    """No answer this time, or one that asks for patience: what was asked may be asked again.

    ``contact`` tells whether anybody answered.
    """

    @property
    def contact(self) -> bool:
        """Whether anybody answered."""
        return bool(self.facts.get("status"))


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where a gateway is, and the token that it wants. The token shows itself nowhere."""

    url: str
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            port_is_bad = parts.port == 0
        except ValueError:
            port_is_bad = True
        if parts.scheme not in ("http", "https") or not parts.hostname or port_is_bad or parts.query or parts.fragment:
            raise UsageError(
                f'"{self.url}" is not the address of a gateway', hint="expected http://HOST:PORT, or https://"
            )
        if parts.username is not None:
            raise UsageError("an address with a name or a password in it is refused", hint="give the token as token=")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise UsageError("the token has characters that no header can hold", hint="give it as it is in its file")


class Client:
    """Asks a gateway, one question at a time; for one thread, but for :meth:`abort`. Connects on the first question."""

    def __init__(self, gateway: Gateway) -> None:
        parts = urlsplit(gateway.url)
        self.address = gateway.url.rstrip("/")
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {gateway.token}"} if gateway.token else {}
        self._aborted = False
        host, port = parts.hostname or "", parts.port
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_S, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=CONNECT_S)

    def get(self, path: Sequence[str], query: Mapping[str, int | str], *, wait_s: float = 0.0) -> bytes:
        """Return the body of the answer for a path, given in parts.

        ``wait_s``: how long the gateway may wait before it answers, as the parameter ``wait``. Raises NoAnswerError
        where asking again may help, else the error that the gateway's problem is.
        """
        asked: dict[str, object] = {**query, **({"wait": wait_s} if wait_s else {})}
        target = f"{self._prefix}/v1/" + "/".join(quote(part, safe="") for part in path)
        target += f"?{urlencode(asked)}" if asked else ""
        kept = self._connection.sock is not None
        try:
            status, headers, body = self._ask(target, ANSWER_S + wait_s)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not kept:
                raise self._no_answer(error) from error
            try:  # the gateway closes connections that are idle: then a new one is as good
                status, headers, body = self._ask(target, ANSWER_S + wait_s)
            except (OSError, http.client.HTTPException) as again:
                self.close()
                raise self._no_answer(again) from again
        if status == 200:
            return body
        found = error_of(self.address, status, headers.get("Content-Type") or "", body)
        raise _passing(found, status) if status in PASSING and isinstance(found, BrokerError) else found

    def get_json(self, path: Sequence[str], query: Mapping[str, int | str]) -> Any:
        """Return the JSON of the answer for a path."""
        body = self.get(path, query)
        try:
            return json.loads(body)
        except ValueError as error:
            raise UsageError(
                f"{self.address} did not answer with JSON", hint="give the address that featurectl gateway prints"
            ) from error

    def abort(self) -> None:
        """End the question that another thread waits for, if there is one, and take no more of them."""
        self._aborted = True
        held = self._connection.sock
        if held is not None:
            with suppress(OSError):  # it has ended by itself
                held.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next question opens a new one."""
        self._connection.close()

    def _ask(self, target: str, limit_s: float) -> tuple[int, Message, bytes]:
        connection = self._connection
        if connection.sock is None:
            connection.connect()
        held: socket.socket | None = connection.sock
        if held is None or self._aborted:
            raise http.client.HTTPException("closed")
        held.settimeout(limit_s)
        connection.request("GET", target, headers=self._headers)
        answer = connection.getresponse()
        if answer.length is None and not answer.chunked:
            # http.client takes headers that were cut off as whole ones: then the end of the body cannot be told either.
            raise http.client.HTTPException("an answer that was cut off, or does not tell its length")
        return answer.status, answer.headers, answer.read()

    def _no_answer(self, error: Exception) -> FeatureStreamError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return UsageError(
                f"the certificate of {self.address} is not trusted: {error.verify_message}",
                hint="name the file of its authority in SSL_CERT_FILE",
            )
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return NoAnswerError(
            f"no answer from the gateway at {self.address} ({reason})",
            hint="is it running? start one with: featurectl gateway",
        )


def _passing(found: BrokerError, status: int) -> NoAnswerError:
    return NoAnswerError(found.message, hint=found.hint, **{**found.facts, "status": status})

"""What a gateway is told when it starts."""

from __future__ import annotations

import hmac
import ipaddress
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from featurestream.errors import UsageError

TOKEN_VARIABLE: Final = "FEATURESTREAM_GATEWAY_TOKEN"
TOKEN_LEAST: Final = 16  # characters: fewer could be guessed over a network
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")

DEFAULT_PORT: Final = 9999  # the original feature server's
DEFAULT_ROWS: Final = 100_000
DEFAULT_MB: Final = 16
ANSWERS: Final = 8  # of the largest size that fit into the memory for all, where none is named
DEFAULT_READERS: Final = 16
DEFAULT_LISTENERS: Final = 256
DEFAULT_IDLE_S: Final = 30.0

BODY_BYTES: Final = 4 * 2**20  # of a request: 50,000 ids of 80 bytes
TURN_S: Final = 5.0  # how long a request waits for its turn
ENDING_S: Final = 2.0  # what answers may take once the gateway ends


class Token:
    """A secret that every request must carry. It shows itself nowhere."""

    def __init__(self, text: str) -> None:
        self._text = text.encode()

    def __repr__(self) -> str:
        return "Token(...)"

    def is_in(self, authorization: bytes | None) -> bool:
        """Tell whether the value of an Authorization header is this token's; takes as long for any other one."""
        scheme, _, given = (authorization or b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._text)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Where a gateway listens, whom it answers, and the limits that no client can exceed.

    Attributes:
        host: the address to listen on.
        port: 0 takes any that is free.
        token: what requests must carry; None where it listens on loopback alone.
        stream: the stream of ``/data`` and ``/after`` where a request names none.
        max_rows: rows an answer.
        max_bytes: bytes an answer.
        memory_bytes: what all answers may hold together while they are made and sent; None: eight times ``max_bytes``.
        readers: answers that are read or sent at once.
        listeners: live connections.
        idle_s: seconds in which a client may take nothing of its answer, or send nothing of its request.
        turn_s: seconds for which a request waits for a reader that is free.

    Raises UsageError for limits below 1, for less memory than twice ``max_bytes`` (making an answer takes that), and
    for another address than loopback without a token.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: Token | None = None
    stream: str | None = None
    max_rows: int = DEFAULT_ROWS
    max_bytes: int = DEFAULT_MB * 2**20
    memory_bytes: int | None = None
    readers: int = DEFAULT_READERS
    listeners: int = DEFAULT_LISTENERS
    idle_s: float = DEFAULT_IDLE_S
    turn_s: float = TURN_S

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_bytes", "readers", "listeners"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of the gateway is {getattr(self, name)}, expected at least 1")
        if self.memory < 2 * self.max_bytes:
            raise UsageError(
                f"all answers together may hold {self.memory / 2**20:g} MiB, but one of {self.max_bytes / 2**20:g} MiB "
                "takes twice that while it is made",
                hint="give a greater --memory-mb, or a smaller --max-mb",
            )
        if not self.idle_s > 0:
            raise UsageError(f"idle_s of the gateway is {self.idle_s}, expected more than 0 seconds")
        if not self.is_local and self.token is None:
            raise UsageError(
                f"to listen on {self.host}, where others can reach it, the gateway needs a token",
                hint=f"give --token-file FILE or set {TOKEN_VARIABLE}; "
                "python3 -c 'import secrets; print(secrets.token_urlsafe())' makes one",
            )

    @property
    def memory(self) -> int:
        """Bytes that all answers may hold together."""
        return ANSWERS * self.max_bytes if self.memory_bytes is None else self.memory_bytes

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the gateway."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Tell whether a host's name is this machine's own."""
    if host.lower() in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(file: Path | None) -> Token | None:
    """Return the token of a file, or of the environment; None where neither is given.

    Raises UsageError for a file that others may read, one that cannot be read, and a token that is too short.
    """
    if file is None:
        text, source = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if not text:
            return None
    else:
        text, source = _read(file), str(file)
    text = text.strip()
    if len(text) < TOKEN_LEAST or not text.isascii() or any(letter.isspace() for letter in text):
        raise UsageError(
            f"the token in {source} has {len(text)} characters, or some that no header can hold",
            hint=f"expected {TOKEN_LEAST} or more, as python3 -c 'import secrets; print(secrets.token_hex())' prints",
        )
    return Token(text)


def _read(file: Path) -> str:
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the token in {file}: {getattr(error, 'strerror', None) or 'not text'}"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{file} holds a token and can be read by others", hint=f"chmod 600 {file}")
    return text

"""What a broker's port speaks: asked with a few bytes, where the client was hung up on and nothing tells it why.

A listener that wants TLS or a login closes the connection of whoever comes without, with no word of the reason. This
asks as the client should have: with or without TLS, then for the ways to log in (Kafka's ApiVersions and SaslHandshake
requests). It sends no password and checks no certificate: the answer only goes into an error message.
"""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress
from typing import Final

ANSWER_S: Final = 1.0
_LONGEST: Final = 65_536  # an answer takes some hundred bytes; another program's may claim anything
_NO_CLIENT_ID: Final = -1
_API_VERSIONS: Final = struct.pack(">hhih", 18, 0, 1, _NO_CLIENT_ID)
#: A mechanism that no broker has: one that wants a login lists those that it has, another refuses the question.
_HANDSHAKE: Final = struct.pack(">hhih", 17, 1, 2, _NO_CLIENT_ID) + struct.pack(">h", 1) + b"?"
_UNSUPPORTED_SASL_MECHANISM: Final = 33


def spoken_protocol(bootstrap_servers: str) -> str | None:
    """Return the ``security.protocol`` that the first server that answers expects; None where none can tell."""
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if not port.isdigit():
            continue
        for tls in (False, True):
            # A server that is not Kafka may answer anything: then this tells nothing.
            with suppress(OSError, struct.error):
                login = _wants_login(host.strip("[]"), int(port), tls=tls)
                return ("SASL_" if login else "") + ("SSL" if tls else "PLAINTEXT")
    return None


def _wants_login(host: str, port: int, *, tls: bool) -> bool:
    """Return whether a port wants a login. Raises OSError where it does not speak Kafka, with or without TLS."""
    with socket.create_connection((host, port), ANSWER_S) as plain:
        if not tls:
            return _ask(plain)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with context.wrap_socket(plain, server_hostname=host) as wrapped:
            return _ask(wrapped)


def _ask(connection: socket.socket) -> bool:
    _exchange(connection, _API_VERSIONS)
    _, code = struct.unpack_from(">ih", _exchange(connection, _HANDSHAKE))
    return bool(code == _UNSUPPORTED_SASL_MECHANISM)


def _exchange(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(struct.pack(">i", len(request)) + request)
    (length,) = struct.unpack(">i", _receive(connection, 4))
    if not 0 < length <= _LONGEST:
        raise OSError(f"an answer of {length} bytes is none of Kafka's")
    return _receive(connection, length)


def _receive(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            raise OSError("the connection was closed")
        received += part
    return received

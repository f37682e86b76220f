"""Two ports on loopback for the embedded broker: one for clients, one for its controller."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from featurestream.broker.config import HOST
from featurestream.errors import BrokerError

# Below the ports that systems hand out to outgoing connections (from 32768 on Linux, 49152 elsewhere). A port from
# there can be in use by any client when the broker starts again, and a client that tries it can connect to itself.
FIRST, COUNT = 20000, 10000


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this port of loopback now."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        # As Java's servers do: connections of the last run that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def is_open(port: int) -> bool:
    """Tell whether something accepts connections on this port of loopback now."""
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def read_ports(properties: str) -> tuple[int, int] | None:
    """Return the client port and the controller port in the text of a server.properties, None where it has none."""
    found = re.search(r"^listeners=PLAINTEXT://[^:]+:(\d+),CONTROLLER://[^:]+:(\d+)$", properties, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def choose_ports(home: Path, remembered: tuple[int, int] | None) -> tuple[int, int]:
    """Return two free ports: the remembered ones where they are free, else others.

    The first choice depends on ``home``, so that two homes hardly ever want the same.
    """
    start = int.from_bytes(hashlib.sha256(str(home).encode()).digest()[:4], "big") % COUNT
    candidates = (FIRST + (start + step) % COUNT for step in range(COUNT))
    fresh = _free_ports(port for port in candidates if port not in (remembered or ()))
    if remembered is None:
        return next(fresh), next(fresh)
    broker, controller = (port if is_free(port) else next(fresh) for port in remembered)
    return broker, controller


def _free_ports(candidates: Iterator[int]) -> Iterator[int]:
    for port in candidates:
        if is_free(port):
            yield port
    raise BrokerError(
        f"no free port between {FIRST} and {FIRST + COUNT - 1} on {HOST}", hint="end what uses them, then start again"
    )

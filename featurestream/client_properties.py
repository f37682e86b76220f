"""Where a client's properties come from: a file that only its owner may read, and the environment.

A secret is never an argument of a command, where every user of the machine can see it.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from featurestream.errors import UsageError
from featurestream.properties import parse_properties

#: ``FEATURESTREAM_KAFKA_SASL_PASSWORD`` is ``sasl.password``.
PREFIX: Final = "FEATURESTREAM_KAFKA_"

_SECRET: Final = re.compile(r"password|secret|jaas\.config|oauthbearer\.config|key\.pem|keystore\.key")


def is_secret(key: str) -> bool:
    """Tell whether a property's value must not be seen by others."""
    return _SECRET.search(key) is not None


def read_properties(path: Path) -> dict[str, str]:
    """Return the properties in a file.

    Raises UsageError where it cannot be read, and where it holds a secret, or names a private key, that others than its
    owner may read.
    """
    try:
        found = parse_properties(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the Kafka settings in {path}: {_reason(error)}",
            hint="a text file is expected, with lines like security.protocol=SASL_SSL",
        ) from error
    secret = next((key for key, value in found.items() if value and is_secret(key)), None)
    if secret is not None:
        _check_private(path, f"holds {secret}")
    key_file = Path(found.get("ssl.key.location", ""))
    if key_file.is_file():
        _check_private(key_file, f"is the private key that {path} names")
    return found


def environment_properties(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the properties that the environment holds (see :data:`PREFIX`); empty ones count as none."""
    return {
        name.removeprefix(PREFIX).lower().replace("_", "."): value
        for name, value in environment.items()
        if name.startswith(PREFIX) and value
    }


def variable_of(key: str) -> str:
    """Return the environment variable that holds a property."""
    return PREFIX + key.upper().replace(".", "_")


def _check_private(path: Path, why: str) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise UsageError(
            f"{path} {why}, and others may read it: its mode is {mode:04o}", hint=f"chmod 600 {path}", mode=mode
        )


def _reason(error: OSError | UnicodeDecodeError) -> str:
    # What cannot be decoded is a part of the file, and may be of a password.
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"

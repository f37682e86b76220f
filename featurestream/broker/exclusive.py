"""One process at a time: a lock on a file that ends with its holder, however that ends."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestream.errors import BrokerError

POLL_S = 0.05


@contextmanager
def exclusive(path: Path, *, what: str, timeout_s: float) -> Iterator[None]:
    """Hold the lock file ``path`` (made where it is missing) for the length of the block.

    The kernel drops the lock when its holder dies, so a lock file that is left behind means nothing. Raises
    BrokerError when another process still holds it after ``timeout_s`` seconds, and when the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise folder_error(path.parent, error) from error
    with file:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                    raise folder_error(path.parent, error) from error
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"another process has been {what} for more than {timeout_s:.0f} s",
                        hint=f"it holds {path}; wait for it, or end it, and try again",
                        path=path,
                    ) from error
                time.sleep(POLL_S)
        yield


def folder_error(folder: Path, error: OSError) -> BrokerError:
    """Return the error to raise when ``folder`` cannot be written: full, not ours, or not a folder."""
    return BrokerError(
        f"cannot write in {folder}: {error.strerror or error}",
        hint="make room or correct its permissions, or name another folder with FEATURESTREAM_HOME (the broker's "
        "data) or XDG_CACHE_HOME (its jars)",
        folder=folder,
    )

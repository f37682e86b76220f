"""The command ``featurectl``, and the same as ``python -m featurectl``."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn


def main() -> NoReturn:
    """Run ``featurectl`` and end the process as soon as everything that is registered for its end has run.

    Python would then take down every module, object by object: with torch that is most of a second after each command.
    """
    code = 1

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed, by whoever read it or by us: `run` has told of it
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # before anything else registers: the last to be registered is the first to run
    from featurectl.app import main as run

    try:
        run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    main()

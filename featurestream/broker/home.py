"""Where the embedded broker of this environment keeps its data."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import platformdirs


def broker_home() -> Path:
    """Return the folder that holds the embedded broker's data, ports and log; it need not exist yet.

    ``FEATURESTREAM_HOME`` where that is set. Else a folder in the user's data folder, named after the Python
    environment that runs: two users, or two checkouts with an environment each, have a broker each.
    """
    named = os.environ.get("FEATURESTREAM_HOME")
    if named:
        return Path(named).expanduser().absolute()
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    return platformdirs.user_data_path("featurestream") / f"broker-{environment}"

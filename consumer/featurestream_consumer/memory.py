"""What does not fit into this machine's memory, refused before any of it is taken.

How many outputs and features there are comes from a topic: a manifest may claim any number of classes.
"""

from __future__ import annotations

import psutil

from featurestream.errors import UsageError


def check_memory(what: str, needed: int) -> None:
    """Raise UsageError where ``what`` takes more than this machine's memory; ``needed`` is in bytes."""
    memory = psutil.virtual_memory().total
    if needed > memory:
        raise UsageError(
            f"{what} would take {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB",
            hint="does the stream have so many classes and features? see featurectl streams STREAM",
        )

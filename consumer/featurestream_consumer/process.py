"""What a process that trains sets for itself. Call it before torch is imported."""

from __future__ import annotations

from featurestream.heap import keep_memory
from featurestream_consumer.spinning import spin_briefly


def prepare_process() -> None:
    """Have threads that wait sleep soon, and what one record or step leaves behind be there for the next one."""
    spin_briefly()
    keep_memory()

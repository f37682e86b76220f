"""What reading has come to so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ReadCounts:
    """The accounts of one or several readers, one after the other.

    Attributes:
        batches: read, of all taps together.
        rows: read.
        bytes: of the records' values.
        duplicates: records that were dropped, because their batch had been read.
        refused: records that were not what they should be.
        waited_s: seconds of waiting for the log.
    """

    batches: int = 0
    rows: int = 0
    bytes: int = 0
    duplicates: int = 0
    refused: int = 0
    waited_s: float = 0.0

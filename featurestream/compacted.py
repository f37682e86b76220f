"""Reading a compacted topic up to where it ends now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from featurestream.errors import RecordError
from featurestream.ports import LaneReader, LogRecord

READ_TIMEOUT_S: Final = 10.0


def records_until(high: int, reader: LaneReader, topic: str, offset: int) -> Iterator[LogRecord]:
    """Yield what lane 0 of a topic holds from ``offset``, where ``reader`` stands, to the record before ``high``.

    Raises RecordError where nothing comes for 10 s.
    """
    # The last offsets of a compacted topic are never compacted away, so the record before `high` always comes.
    while offset < high:
        record = reader.poll(READ_TIMEOUT_S)
        if record is None:
            raise RecordError(
                f"nothing came within {READ_TIMEOUT_S:.0f} s",
                hint="is the broker overloaded? try again",
                topic=topic,
                lane=0,
                offset=offset,
            )
        yield record
        offset = record.offset + 1

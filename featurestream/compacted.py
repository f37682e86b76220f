"""Reading a compacted topic up to where it ends now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from featurestream.errors import GoneError, RecordError
from featurestream.ports import LaneReader, LogRecord, RecordSource

READ_TIMEOUT_S: Final = 10.0
QUIET_S: Final = 0.25  # after so long a look tells whether anything can come


def records_until(high: int, reader: LaneReader, source: RecordSource, topic: str, offset: int) -> Iterator[LogRecord]:
    """Yield what lane 0 of a topic holds from ``offset``, where ``reader`` stands, to the record before ``high``.

    ``source`` is where the reader is from. Raises RecordError where nothing comes for 10 s.
    """
    # The last offsets of a compacted topic are never compacted away, so the record before `high` nearly always comes.
    quiet_s = 0.0
    while offset < high:
        record = reader.poll(QUIET_S)
        if record is not None:
            yield record
            offset, quiet_s = record.offset + 1, 0.0
            continue
        quiet_s += QUIET_S
        if _is_end(source, topic, offset):
            return
        if quiet_s >= READ_TIMEOUT_S:
            raise RecordError(
                f"nothing came within {READ_TIMEOUT_S:.0f} s",
                hint="is the broker overloaded? try again",
                topic=topic,
                lane=0,
                offset=offset,
            )


def _is_end(source: RecordSource, topic: str, offset: int) -> bool:
    """Return whether nothing but the markers of transactions stands from an offset on: another program's."""
    try:
        source.record_at(topic, 0, offset)
    except GoneError:
        return True
    return False

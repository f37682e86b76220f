"""What every log says of a place that it does not hold."""

from __future__ import annotations

from featurestream.errors import GoneError, StreamNotFoundError
from featurestream.ports import Bounds


def no_lane(topic: str, lane: int) -> StreamNotFoundError:
    """Return the error for a topic or a lane that is not there."""
    return StreamNotFoundError(
        f'there is no topic "{topic}" with a lane {lane}',
        hint="list the streams with: featurectl streams",
        topic=topic,
        lane=lane,
    )


def no_offset(topic: str, lane: int, offset: int, bounds: Bounds | None) -> GoneError:
    """Return the error for an offset that was deleted or lies beyond the end; ``bounds`` None: nobody could tell."""
    if bounds is None:
        hint = None
    elif bounds.low == bounds.high:
        hint = f"the lane is empty, what comes next has offset {bounds.high}"
    else:
        hint = f"the lane holds offsets {bounds.low} to {bounds.high - 1}"
    return GoneError(
        f"{topic}, lane {lane} has no record at offset {offset}",
        hint=hint,
        topic=topic,
        lane=lane,
        offset=offset,
        bounds=bounds,
    )

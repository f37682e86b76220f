"""The settings of our topics: always explicit, never a broker's defaults."""

from __future__ import annotations

from typing import Final

DAY_MS: Final = 24 * 3600 * 1000
DEFAULT_RETENTION_MS: Final = 7 * DAY_MS
DEFAULT_RETENTION_BYTES: Final = 64 * 2**30  # a tap, over all its lanes
SEGMENT_BYTES: Final = 256 * 2**20
SMALLEST_SEGMENT_BYTES: Final = 2**20  # Kafka 4's lower bound


def tap_topic_settings(*, retention_ms: int, retention_bytes: int, lanes: int) -> dict[str, str]:
    """Return the settings of a tap's topic.

    ``retention_bytes`` is for the whole tap; Kafka counts it by lane. Kafka deletes whole segments, so a segment is at
    most an eighth of what a lane may hold. Time stamps are the broker's (LogAppendTime): time is then monotonic in a
    lane, and no producer's clock can keep records for ever or delete them at once.
    """
    lane_bytes = max(retention_bytes // lanes, SMALLEST_SEGMENT_BYTES)
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(retention_ms),
        "retention.bytes": str(lane_bytes),
        "segment.bytes": str(min(SEGMENT_BYTES, max(lane_bytes // 8, SMALLEST_SEGMENT_BYTES))),
        "segment.ms": str(min(3600 * 1000, max(retention_ms // 8, 60_000))),
        "message.timestamp.type": "LogAppendTime",
        "compression.type": "producer",
        "unclean.leader.election.enable": "false",
    }


def experiments_topic_settings() -> dict[str, str]:
    """Return the settings of a run registry: compacted soon, because a running experiment is written every second.

    Nothing expires: what a finished run came to stays until it is forgotten. A tombstone stays a day, so that whoever
    follows the topic and looks once a day sees it.
    """
    return {
        "cleanup.policy": "compact",
        "segment.bytes": str(8 * 2**20),
        "segment.ms": "600000",
        "min.cleanable.dirty.ratio": "0.1",
        "max.compaction.lag.ms": "3600000",
        "delete.retention.ms": str(DAY_MS),
        "max.message.bytes": "1048588",
        "message.timestamp.type": "LogAppendTime",
        "compression.type": "producer",
        "unclean.leader.election.enable": "false",
    }


def manifest_topic_settings() -> dict[str, str]:
    """Return the settings of a manifest's topic: compacted soon, because heartbeats would fill it slowly."""
    return {
        "cleanup.policy": "compact",
        "segment.bytes": str(SMALLEST_SEGMENT_BYTES),
        "segment.ms": "600000",
        "min.cleanable.dirty.ratio": "0.1",
        "message.timestamp.type": "LogAppendTime",
        "compression.type": "producer",
        "unclean.leader.election.enable": "false",
    }

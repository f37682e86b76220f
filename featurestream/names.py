"""Names on the cluster: streams, topics, keys and reader groups."""

from __future__ import annotations

import re
from typing import Final

from featurestream.errors import UsageError

STREAM_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
TAP_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MANIFEST_TAP: Final = "manifest"  # `<stream>.manifest` is the manifest's topic
EXPERIMENTS_TAP: Final = "experiments"  # `<stream>.experiments` is the topic of the run registry
TAKEN_TAPS: Final = (MANIFEST_TAP, EXPERIMENTS_TAP)  # topics of a stream that are not a tap's
GROUP_PREFIX: Final = "featurestream."


def check_stream_name(name: str) -> str:
    """Return ``name`` if it can name a stream, else raise UsageError."""
    if not STREAM_NAME.fullmatch(name):
        raise UsageError(
            f'"{name}" cannot name a stream',
            hint="a stream's name is 1 to 100 letters, digits and -, such as digits-train",
        )
    return name


def check_tap_name(name: str) -> str:
    """Return ``name`` if it can name a tap, else raise UsageError."""
    if not TAP_NAME.fullmatch(name) or name in TAKEN_TAPS:
        raise UsageError(
            f'"{name}" cannot name a tap',
            hint='a tap\'s name is 1 to 100 letters, digits, ".", "_" and "-", and neither "manifest" nor '
            '"experiments"; '
            "give one with layer:pool=name",
        )
    return name


def tap_topic(stream: str, tap: str) -> str:
    """Return the topic of a tap: ``digits-train.layer2``."""
    return f"{stream}.{tap}"


def manifest_topic(stream: str) -> str:
    """Return the topic of a stream's manifest: ``digits-train.manifest``."""
    return f"{stream}.{MANIFEST_TAP}"


def experiments_topic(stream: str) -> str:
    """Return the topic of a stream's run registry: ``digits-train.experiments``."""
    return f"{stream}.{EXPERIMENTS_TAP}"


def requests_stream(stream: str) -> str:
    """Return the name of the stream that holds what is requested of ``stream``: ``digits-train-requests``."""
    return f"{stream}-requests"


def stream_of_manifest_topic(topic: str) -> str | None:
    """Return the stream whose manifest ``topic`` holds, or None for any other topic."""
    stream, dot, tap = topic.partition(".")
    return stream if dot and tap == MANIFEST_TAP and STREAM_NAME.fullmatch(stream) else None


def record_key(pass_number: int, batch: int) -> bytes:
    """Return a record's key, readable text: ``b"0/17"``."""
    return b"%d/%d" % (pass_number, batch)


def reader_group(stream: str, experiment: str) -> str:
    """Return the consumer group under which an experiment shows its lag: ``featurestream.digits-train.E1``."""
    return f"{GROUP_PREFIX}{stream}.{experiment}"


def parse_reader_group(group: str) -> tuple[str, str] | None:
    """Return (stream, experiment) of one of our consumer groups, or None for any other group."""
    if not group.startswith(GROUP_PREFIX):
        return None
    stream, dot, experiment = group.removeprefix(GROUP_PREFIX).partition(".")
    return (stream, experiment) if dot and experiment and STREAM_NAME.fullmatch(stream) else None

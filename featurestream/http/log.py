"""A log that is read through a gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from featurestream.errors import UsageError
from featurestream.http.client import Gateway
from featurestream.http.source import STALL_S, HttpSource

LANE_QUEUE_KBYTES: Final = 8192


class HttpLog:
    """The streams behind a gateway, to be read as those on Kafka are.

    ::

        from featurestream import FeatureStream
        from featurestream.http import HttpLog

        log = HttpLog("http://127.0.0.1:9999")
        for batch in FeatureStream("digits-train", "avgpool", start="-1h", log=log):
            ...

    It is the reading half of a :class:`~featurestream.ports.Log`: records come as they stand on Kafka, and what
    FeatureStream checks there (order, holes, duplicates, fingerprints, checksums) it checks here. A connection that is
    lost is opened again, and reading goes on where it stopped. The other half, everything that would write, raises
    UsageError: a reader without Kafka cannot make itself known to producers (``reader=``). Nothing is connected before
    it is needed, and the object may go to other processes.

    Args:
        url: the gateway's address, ``http://HOST:PORT`` or ``https://``.
        token: what it was started with, where it was.
        queue_kbytes: bound of what is read ahead, for each lane and tap.
        stall_s: seconds of waiting without an answer after which BrokerError is raised.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        queue_kbytes: int = LANE_QUEUE_KBYTES,
        stall_s: float = STALL_S,
    ) -> None:
        self._gateway = Gateway(url, token)
        self._queue_kbytes = queue_kbytes
        self._stall_s = stall_s

    def __repr__(self) -> str:
        return f"HttpLog({self._gateway.url!r})"

    def source(self) -> HttpSource:
        """Return a new source; the caller closes it."""
        return HttpSource(self._gateway, queue_kbytes=self._queue_kbytes, stall_s=self._stall_s)

    def topics(self) -> dict[str, int]:
        """Return the topics of all streams, with their numbers of lanes."""
        source = self.source()
        try:
            return source.topics()
        finally:
            source.close()

    def sink(self) -> NoReturn:
        """Raise UsageError: nothing is written through a gateway."""
        raise self._read_only("published")

    def create_topic(self, topic: str, lanes: int, settings: Mapping[str, str]) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: nothing is written through a gateway."""
        raise self._read_only(f'created ("{topic}")')

    def delete_topics(self, topics: Sequence[str]) -> NoReturn:
        """Raise UsageError: nothing is written through a gateway."""
        raise self._read_only(f"deleted ({', '.join(topics)})")

    def settings(self, topic: str) -> NoReturn:
        """Raise UsageError: a gateway does not tell the settings of topics."""
        raise self._read_only(f'told of the settings of "{topic}"')

    def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> NoReturn:  # noqa: ARG002
        """Raise UsageError: a reader behind a gateway does not show its position."""
        raise self._read_only("committed, so no reader can make itself known (leave reader= out)")

    def committed_positions(self) -> NoReturn:
        """Raise UsageError: what readers have committed is at ``/v1/experiments``."""
        raise self._read_only("told of what readers have committed")

    def committed_notes(self, prefix: str) -> NoReturn:  # noqa: ARG002
        """Raise UsageError: what readers have committed is at ``/v1/experiments``."""
        raise self._read_only("told of what readers have committed")

    def _read_only(self, what: str) -> UsageError:
        return UsageError(
            f"through the gateway at {self._gateway.url} nothing is {what}: it only reads streams",
            hint="where Kafka can be reached, use it: bootstrap_servers=..., or KafkaLog",
        )

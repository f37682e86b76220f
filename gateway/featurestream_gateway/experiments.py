"""Who reads a stream, as Kafka shows it: positions, lag, and whether they live."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featurestream.errors import FeatureStreamError, nearest
from featurestream.manifest import Manifest
from featurestream.names import GROUP_PREFIX, parse_reader_group, tap_topic
from featurestream.position import Position
from featurestream.reader_lease import Attendance
from featurestream.seek import Lanes, batch_of
from featurestream_gateway.catalogue import Catalogue, rows_before
from featurestream_gateway.formats import place_json
from featurestream_gateway.problems import RefusedError
from featurestream_gateway.programs import Committed


@dataclass(frozen=True, slots=True)
class Experiment:
    """A reader's place as it last committed it, and how far it is behind what is complete."""

    name: str
    stream: str
    live: bool
    position: Position | None
    lag_batches: int | None
    lag_rows: int | None

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "name": self.name,
            "stream": self.stream,
            "live": self.live,
            "position": None if self.position is None else place_json(self.position),
            "lag_batches": self.lag_batches,
            "lag_rows": self.lag_rows,
            "state": None,
            "record": None,
        }


class Experiments:
    """The experiments of a log. It remembers when notes changed, which is what tells that a reader lives."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._attendance: dict[str, Attendance] = {}

    def look(self, committed: Committed, now: float) -> list[Experiment]:
        """Return all experiments by stream and name.

        ``committed``: what groups have; ``now``: seconds since the epoch. Those of streams that cannot be read are left
        out: the list of streams says why.
        """
        notes = self._catalogue.log.committed_notes(GROUP_PREFIX)
        by_stream: dict[str, dict[str, Mapping[tuple[str, int], int]]] = {}
        for group, places in committed.items():
            name = parse_reader_group(group)
            if name is not None and places:
                by_stream.setdefault(name[0], {})[name[1]] = places
        found: list[Experiment] = []
        for stream, readers in sorted(by_stream.items()):
            try:
                found += self._of_stream(stream, readers, self._live(stream, notes, now))
            except FeatureStreamError:
                continue
        return found

    def _live(self, stream: str, notes: Mapping[str, set[str]], now: float) -> dict[str, int]:
        with self._lock:
            attendance = self._attendance.setdefault(stream, Attendance(stream))
            return {reader.name: reader.batch for reader in attendance.look(notes, now)}

    def _of_stream(
        self, stream: str, readers: Mapping[str, Mapping[tuple[str, int], int]], live: Mapping[str, int]
    ) -> Iterable[Experiment]:
        manifest = self._catalogue.manifest(stream)
        taps = tuple(tap.name for tap in manifest.taps)
        there = self._catalogue.edges(manifest, taps).next_missing
        lanes = self._catalogue.lanes(manifest, taps)
        for name, places in sorted(readers.items()):
            batch = live[name] if name in live else next_batch(lanes, manifest, places)
            if batch is None:
                yield Experiment(name, stream, name in live, None, None, None)
                continue
            behind = max(rows_before(manifest.layout, there) - rows_before(manifest.layout, batch), 0)
            yield Experiment(name, stream, name in live, Position(batch), max(there - batch, 0), behind)


def next_batch(lanes: Lanes, manifest: Manifest, places: Mapping[tuple[str, int], int]) -> int | None:
    """Return the batch that a reader which has committed these offsets reads next; None where they say nothing."""
    topics = {tap_topic(manifest.stream, tap.name) for tap in manifest.taps}
    found = []
    for (topic, lane), offset in places.items():
        if topic not in topics or lane >= manifest.layout.lanes:
            continue
        low, high = lanes.source.bounds(topic, lane)
        if offset < high:
            found.append(batch_of(lanes.source.record_at(topic, lane, max(offset, low))))
        else:
            greatest = lanes.greatest(topic, lane, None)
            found.append(lanes.first_left(topic, lane) if greatest is None else greatest + manifest.layout.lanes)
    return min(found, default=None)


def choose(experiments: Iterable[Experiment], name: str, stream: str | None) -> Experiment:
    """Return the one experiment of a name; raise RefusedError where there is none, or one on several streams."""
    everybody = list(experiments)
    found = [one for one in everybody if one.name == name and stream in (None, one.stream)]
    if not found:
        known = sorted({one.name for one in everybody})
        near = nearest(name, known)
        raise RefusedError(
            "experiment-not-found",
            f'there is no experiment "{name}"' + (f' on stream "{stream}"' if stream else ""),
            hint=(f'did you mean "{near}"? ' if near else "") + "see /v1/experiments",
            known=known[:24],
        )
    if len(found) > 1:
        streams = [one.stream for one in found]
        raise RefusedError(
            "ambiguous-name",
            f'"{name}" is an experiment on {len(found)} streams',
            hint=f"say which one: stream={streams[0]}",
            streams=streams,
        )
    return found[0]

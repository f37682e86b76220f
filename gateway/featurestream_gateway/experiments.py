"""The experiments of a log: what its run registries say, and readers that only Kafka knows, by what they committed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from featurestream import experiments as registry
from featurestream.errors import FeatureStreamError, nearest
from featurestream.layout import Layout
from featurestream.manifest import Manifest
from featurestream.manifest_topic import list_streams
from featurestream.names import GROUP_PREFIX, experiments_topic, parse_reader_group, tap_topic
from featurestream.position import Position
from featurestream.reader_lease import Attendance
from featurestream.seek import Lanes, batch_of
from featurestream_gateway.catalogue import Catalogue, rows_before
from featurestream_gateway.formats import place_json
from featurestream_gateway.problems import RefusedError, problem_of
from featurestream_gateway.programs import Committed

Groups = Mapping[str, Mapping[tuple[str, int], int]]  # reader -> (topic, lane) -> next offset

FOLLOWED_S: Final = 60.0  # how long a registry is followed for nobody


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment's place, and how far it is behind what is complete; ``run`` is what its registry says."""

    name: str
    stream: str
    live: bool
    position: Position | None
    lag_batches: int | None
    lag_rows: int | None
    state: str | None = None
    run: registry.Experiment | None = None

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values, without its rows of metrics."""
        return {
            "name": self.name,
            "stream": self.stream,
            "live": self.live,
            "position": None if self.position is None else place_json(self.position),
            "lag_batches": self.lag_batches,
            "lag_rows": self.lag_rows,
            "state": self.state,
            "record": None if self.run is None else self.run.run.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class Known:
    """All experiments, by stream and name, and why those of some streams are not known."""

    experiments: Sequence[Experiment]
    errors: Mapping[str, FeatureStreamError]

    def facts(self, stream: str | None = None) -> dict[str, Any]:
        """Return them as JSON values; those of one stream where it is named."""
        return {
            "experiments": [one.facts() for one in self.experiments if stream in (None, one.stream)],
            "problems": [
                {"stream": name} | problem_of(error) for name, error in self.errors.items() if stream in (None, name)
            ],
        }


class Experiments:
    """The experiments of a log. It follows registries and remembers when notes changed, which tells who lives."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._attendance: dict[str, Attendance] = {}
        self._followers: dict[str, registry.ExperimentsFollower] = {}
        self._looked_at = 0.0

    def look(self, committed: Committed, now: float) -> Known:
        """Return all experiments. ``committed``: what groups have committed; ``now``: seconds since the epoch."""
        log = self._catalogue.log
        notes = log.committed_notes(GROUP_PREFIX)
        groups: dict[str, dict[str, Mapping[tuple[str, int], int]]] = {}
        for group, places in committed.items():
            name = parse_reader_group(group)
            if name is not None and places:
                groups.setdefault(name[0], {})[name[1]] = places
        found: list[Experiment] = []
        errors: dict[str, FeatureStreamError] = {}
        with self._lock:
            self._looked_at = now
            topics = log.topics()
            for stream in list_streams(log):
                followed = experiments_topic(stream) in topics
                if not followed and stream not in groups:
                    continue
                try:
                    attendance = self._attendance.setdefault(stream, Attendance(stream))
                    live = {reader.name: reader.batch for reader in attendance.look(notes, now)}
                    runs = list(self._follow(stream).look().values()) if followed else []
                    found += self._of_stream(stream, runs, groups.get(stream, {}), live, now)
                except FeatureStreamError as error:
                    errors[stream] = error
        return Known(found, errors)

    def reap(self, now: float) -> None:
        """Follow no registry for nobody."""
        with self._lock:
            if now - self._looked_at > FOLLOWED_S:
                self._close()

    def close(self) -> None:
        """Release all connections."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        followers, self._followers = self._followers, {}
        for follower in followers.values():
            follower.close()

    def _follow(self, stream: str) -> registry.ExperimentsFollower:
        if stream not in self._followers:
            self._followers[stream] = registry.ExperimentsFollower(self._catalogue.log, stream)
        return self._followers[stream]

    def _of_stream(
        self, stream: str, runs: Iterable[registry.Experiment], groups: Groups, live: Mapping[str, int], now: float
    ) -> Iterator[Experiment]:
        manifest = self._catalogue.manifest(stream)
        layout = manifest.layout
        taps = tuple(tap.name for tap in manifest.taps)
        there = self._catalogue.edges(manifest, taps).next_missing
        names = set()
        for run in runs:
            names.add(run.run.name)
            at = Position(run.run.position.batch, run.run.position.row)
            state = run.state_at(round(now * 1000))
            lag = run.lag(there)
            behind = None if lag is None else _rows_between(layout, at, at.batch + lag)
            yield Experiment(run.label, stream, state == "running", at, lag, behind, state, run)
        lanes = self._catalogue.lanes(manifest, taps)
        for name, places in sorted(groups.items()):
            if name in names:
                continue
            batch = live[name] if name in live else next_batch(lanes, manifest, places)
            if batch is None:
                yield Experiment(name, stream, name in live, None, None, None)
                continue
            lag = max(there - batch, 0)
            behind = _rows_between(layout, Position(batch), batch + lag)
            yield Experiment(name, stream, name in live, Position(batch), lag, behind)


def _rows_between(layout: Layout, at: Position, batch: int) -> int:
    return max(rows_before(layout, batch) - rows_before(layout, at.batch) - at.row, 0)


def next_batch(lanes: Lanes, manifest: Manifest, places: Mapping[tuple[str, int], int]) -> int | None:
    """Return the batch that a reader which has committed these offsets reads next; None where they say nothing."""
    topics = {tap_topic(manifest.stream, tap.name) for tap in manifest.taps}
    known = {
        place: offset for place, offset in places.items() if place[0] in topics and place[1] < manifest.layout.lanes
    }
    found = []
    for place, (low, high) in lanes.source.all_bounds(list(known)).items():
        standing = lanes.record_from(place, max(known[place], low)) if known[place] < high else None
        if standing is not None:
            found.append(batch_of(standing))
        else:
            greatest = lanes.greatest(*place, None)
            found.append(lanes.first_left(*place) if greatest is None else greatest + manifest.layout.lanes)
    return min(found, default=None)


def choose(experiments: Sequence[Experiment], name: str, stream: str | None) -> Experiment:
    """Return the one experiment of a name; raise RefusedError where there is none, or one on several streams."""
    found = [one for one in experiments if one.name == name and stream in (None, one.stream)]
    if not found:
        known = sorted({one.name for one in experiments})
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

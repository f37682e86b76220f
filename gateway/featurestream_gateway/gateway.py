"""A gateway: what it reads from, what it remembers for a moment, and how much it does at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from starlette.requests import Request

from featurestream.errors import StreamNotFoundError, UsageError, names_text
from featurestream.experiments import find_experiment
from featurestream.manifest_topic import list_streams
from featurestream.ports import Log
from featurestream.telemetry import GATEWAY_HELD, GATEWAY_LANES, GATEWAY_LISTENERS, GATEWAY_READERS
from featurestream_gateway.answers import PartsAnswer, piece_answer
from featurestream_gateway.catalogue import Catalogue, Edges
from featurestream_gateway.experiments import Experiments, Known
from featurestream_gateway.formats import Bytes, Format, encode, room_of, size_of
from featurestream_gateway.lane_readings import LaneReadings
from featurestream_gateway.looks import Looks
from featurestream_gateway.meters import Meters
from featurestream_gateway.overview import Rates, Streams, look_at_streams
from featurestream_gateway.problems import RefusedError
from featurestream_gateway.programs import Committed, Comparison, Programs, Report
from featurestream_gateway.ranges import Piece, Range
from featurestream_gateway.readings import Limit, Readings, is_short
from featurestream_gateway.settings import GatewaySettings
from featurestream_gateway.turns import Turn, Turns
from featurestream_gateway.workers import Workers

WORKERS: Final = 8  # threads that wait for Kafka: more would only wait for Python's lock
LANE_BYTES: Final = 2 * 2**20  # of an open lane: a megabyte that was read ahead, and one that is being fetched
REPORT_S: Final = 1.0  # how old what is shown of streams and experiments may be
EDGE_S: Final = 0.25  # how often the end of a stream is looked at for those who wait there
COMPARISON_S: Final = 60.0  # a comparison of experiments that have said nothing new
REAP_S: Final = 5.0


class Gateway:
    """One gateway on one log. Made inside the event loop that serves it; ``log`` stays the caller's."""

    def __init__(self, settings: GatewaySettings, log: Log, programs: Programs, meters: Meters) -> None:
        self.settings = settings
        self.programs = programs
        self.meters = meters
        self.ending = asyncio.Event()
        self.workers = Workers(WORKERS)
        self.looks = Looks(self.workers)
        self.catalogue = Catalogue(log)
        self.readings = Readings(self.catalogue)
        self.lanes = LaneReadings(log)
        self.readers = Turns(settings.readers, "readers", wait_s=settings.turn_s, most_bytes=settings.memory)
        self.listeners = Turns(settings.listeners, "live connections", wait_s=0.05)
        self._experiments = Experiments(self.catalogue)
        self._rates = Rates()
        meters.watch(GATEWAY_READERS, lambda: self.readers.taken)
        meters.watch(GATEWAY_HELD, lambda: self.readers.held_bytes)
        meters.watch(GATEWAY_LISTENERS, lambda: self.listeners.taken)
        meters.watch(GATEWAY_LANES, lambda: self.readings.idle_lanes + self.lanes.idle_lanes)

    @property
    def log(self) -> Log:
        """The log that is read."""
        return self.catalogue.log

    def end(self) -> None:
        """Let everything that waits know that the gateway ends."""
        self.ending.set()

    async def housekeeping(self) -> None:
        """Close what nobody uses any more, until the gateway ends."""
        while not self.ending.is_set():
            await self.workers.run(self._reap)
            try:
                async with asyncio.timeout(REAP_S):
                    await self.ending.wait()
            except TimeoutError:
                continue

    def close(self) -> None:
        """Release all connections."""
        self.readings.stop()
        self.lanes.stop()
        self._experiments.close()
        self.catalogue.close()

    def _reap(self) -> None:
        self.readings.reap()
        self.lanes.reap()
        self._experiments.reap(time.time())

    # ---- streams and experiments ------------------------------------------------------------------------------------

    async def committed(self) -> Committed:
        """Return what all groups of the log have committed."""
        return await self.looks.get("committed", self.log.committed_positions, max_age_s=REPORT_S)

    async def streams(self) -> Streams:
        """Return all streams."""
        committed = await self.committed()
        return await self.looks.get(
            "streams", lambda: look_at_streams(self.catalogue, self.programs, committed), max_age_s=REPORT_S
        )

    async def stream(self, name: str) -> Report:
        """Return one stream's report. Raises StreamNotFoundError with the streams that there are."""
        committed = await self.committed()

        def look() -> Report:
            self.catalogue.manifest(name)
            source = self.log.source()
            try:
                return self.programs.report(source, name, committed, round(time.time() * 1000))
            finally:
                source.close()

        return await self.looks.get(("stream", name), look, max_age_s=REPORT_S)

    async def experiments(self) -> Known:
        """Return all experiments."""
        committed = await self.committed()
        return await self.looks.get(
            "experiments", lambda: self._experiments.look(committed, time.time()), max_age_s=REPORT_S
        )

    async def compare(self, stream: str, names: Sequence[str], metric: str | None) -> Comparison:
        """Return experiments of a stream's run registry against each other; without names all of them.

        Raises UnknownNameError for an experiment that there is not, UsageError where none has ever joined.
        """
        known = await self.experiments()
        if stream in known.errors:
            raise known.errors[stream]
        runs = {one.name: one.run for one in known.experiments if one.stream == stream and one.run is not None}
        if not runs:
            await self.workers.run(lambda: self.catalogue.manifest(stream))
            raise UsageError(
                f'no experiment has ever joined the run registry of stream "{stream}"',
                hint="every featurectl train and sweep does by itself",
            )
        chosen = [find_experiment(runs, stream, name) for name in dict.fromkeys(names or runs)]
        key = ("compare", stream, metric, tuple((one.label, one.run.updated_at) for one in chosen))
        return await self.looks.get(key, lambda: self.programs.compare(chosen, metric), max_age_s=COMPARISON_S)

    async def overview(self) -> dict[str, Any]:
        """Return streams with their rates, and experiments, as JSON values."""
        streams, experiments = await self.streams(), await self.experiments()

        def rates() -> list[dict[str, Any]]:
            now = time.monotonic()
            summaries = streams.summaries()
            return [
                one | self._rates.look(one, self.catalogue.manifest(one["stream"]).layout, now) for one in summaries
            ]

        return {
            "streams": await self.looks.get("rates", rates, max_age_s=REPORT_S),
            "problems": streams.problems(),
            "experiments": experiments.facts()["experiments"],
        }

    async def default_stream(self, named: str | None) -> str:
        """Return the stream of a request that need not name one: the one it names, the gateway's, or the only one."""
        chosen = named or self.settings.stream
        if chosen is not None:
            return chosen
        known = await self.looks.get("names", lambda: list_streams(self.log), max_age_s=REPORT_S)
        if len(known) == 1:
            return known[0]
        if not known:
            raise StreamNotFoundError("there is no stream yet", hint="make one with featurectl produce")
        raise UsageError(
            f"there are {len(known)} streams, and none was named",
            hint=f"add stream=S, or start the gateway with --stream S; there are: {names_text(known)}",
        )

    # ---- rows -------------------------------------------------------------------------------------------------------

    async def read(
        self, wanted: Range, form: Format, turn: Turn, *, rows: int | None = None
    ) -> tuple[Piece, list[Bytes]]:
        """Return what is complete of a range, as much as one answer may hold, and its body; wait for room first."""
        settings = self.settings
        size = size_of(form, wanted.manifest, wanted.taps)
        limit = Limit(rows or settings.max_rows, settings.max_bytes, exact=rows is not None, size=size)
        room = room_of(form, wanted, limit.rows, limit.bytes)
        if not is_short(wanted, limit):
            room += wanted.manifest.layout.lanes * len(wanted.taps) * LANE_BYTES
        await turn.hold(room)

        def read() -> tuple[Piece, list[Bytes]]:
            piece = self.readings.read(wanted, limit)
            return piece, encode(form, piece)

        piece, parts = await self.workers.run(read)
        self.meters.rows(wanted.manifest.stream, form, piece.rows)
        return piece, parts

    async def answer(
        self, find: Callable[[], Range], form: Format, request: Request, *, rows: int | None = None, wait_s: float = 0.0
    ) -> PartsAnswer:
        """Return the answer with the rows of the range that ``find`` (called in a worker's thread) returns.

        Where it has none yet, they are waited for as long as ``wait_s`` seconds.
        """
        turn = await self.readers.take()
        try:
            wanted = await self.workers.run(find)
            piece, parts = await self.read(wanted, form, turn, rows=rows)
            if wait_s and piece.more == "later" and not piece.rows:
                turn.end()  # who waits reads nothing
                try:
                    async with asyncio.timeout(wait_s):
                        await self.beyond(wanted, piece.until.batch)
                except TimeoutError:
                    pass
                turn = await self.readers.take()
                piece, parts = await self.read(wanted, form, turn, rows=rows)
            return piece_answer(piece, parts, form, request, turn)
        except BaseException:
            turn.end()
            raise

    async def beyond(self, wanted: Range, batch: int) -> Edges:
        """Return how far a range's stream goes, once a batch of it is complete.

        Raises RefusedError (ending) when the gateway ends.
        """
        ending = asyncio.create_task(self.ending.wait())
        try:
            while True:
                look = asyncio.create_task(
                    self.looks.get(
                        ("edges", wanted.manifest.fingerprint, wanted.manifest.stream, wanted.taps),
                        lambda: self.catalogue.edges(wanted.manifest, wanted.taps),
                        max_age_s=EDGE_S,
                    )
                )
                await asyncio.wait({look, ending}, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    look.cancel()
                    raise RefusedError("ending", "the gateway is ending", hint="go on with the cursor when it is back")
                edges = look.result()
                if edges.next_missing > batch:
                    return edges
                await asyncio.wait({ending}, timeout=EDGE_S)
        finally:
            ending.cancel()

    def ready(self) -> None:
        """Raise BrokerError where Kafka does not answer."""
        self.log.topics()


def split_taps(given: Sequence[str]) -> list[str]:
    """Return the taps of a parameter that may be repeated, and hold several separated by commas."""
    return [name for text in given for name in text.split(",") if name]

"""What a user sees while a reader waits for a producer."""

from __future__ import annotations

from collections.abc import Callable

from featurestream.logs import Line
from featurestream.manifest_topic import read_facts
from featurestream.ports import Log

SHOWN_S = 1.0  # how long nothing comes before the progress bar shows it
LINE_S = 10.0  # ... and before a line says why


class Waiting:
    """Shows that nothing comes, and says once, in one line, why.

    Args:
        log: where the streams are.
        say: takes the line.
        note: takes what stands on the progress bar meanwhile.
    """

    def __init__(self, log: Log, say: Callable[[str], None], note: Callable[[str], None] = lambda _: None) -> None:
        self._log = log
        self._say = say
        self._note = note
        self._said = False

    def on(self, stream: str) -> Callable[[float], None]:
        """Return what a reader of ``stream`` calls with the seconds that it has waited."""
        return lambda waited_s: self._show(stream, waited_s)

    def _show(self, stream: str, waited_s: float) -> None:
        if waited_s >= SHOWN_S:
            self._note(f"waiting for the producer, {waited_s:.0f} s")
        if waited_s < LINE_S:
            self._said = False
            return
        if self._said:
            return
        self._said = True
        source = self._log.source()
        try:
            lease = read_facts(source, stream).lease
        finally:
            source.close()
        producer = "no producer is running" if lease is None or lease.released else f"producer on {lease.host}"
        line = f"waiting for stream {stream} to go on ({producer}); Ctrl-C stops and keeps what was learnt"
        self._say(Line(line, stream=stream, waited_s=round(waited_s, 1)))

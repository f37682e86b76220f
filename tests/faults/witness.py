"""What the oracle is handed beside the log: what was sent and acknowledged, and what readers have got."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestream.batch import FeatureBatch
from featurestream.ports import Headers, Log, RecordSink, RecordSource
from tests.faults.oracle import Files, content_of, labels_of, parse_value


class Lines:
    """A file of lines that are whole however this process ends; made empty where it is not there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, *words: object) -> None:
        """Add one line."""
        os.write(self._file, (" ".join(str(word) for word in words) + "\n").encode())

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class WitnessedSink:
    """A sink that writes down what it was given before it appends, and what is acknowledged after each flush."""

    def __init__(self, sink: RecordSink, folder: Path) -> None:
        self._sink = sink
        self._sent, self._acked = Lines(folder / "sent.txt"), Lines(folder / "acked.txt")
        self._waiting: list[tuple[str, int]] = []

    def append(
        self, topic: str, lane: int, *, key: bytes, value: NDArray[np.uint8] | bytes | None, headers: Headers = ()
    ) -> None:
        if not topic.endswith(".manifest"):
            tap, batch, content = described(bytes(value if value is not None else b""))
            self._sent.write(tap, batch, content)
            self._waiting.append((tap, batch))
        self._sink.append(topic, lane, key=key, value=value, headers=headers)

    @property
    def queued(self) -> int:
        return self._sink.queued

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._sink.flush()
        for tap, batch in waiting:
            self._acked.write(tap, batch)

    def close(self) -> None:
        self._sink.close()
        self._sent.close()
        self._acked.close()


class AroundLog:
    """A log with something round its sinks: everything else is the log's own."""

    def __init__(self, log: Log) -> None:
        self.inner = log

    def sink(self) -> RecordSink:
        return self.inner.sink()

    def source(self) -> RecordSource:
        return self.inner.source()

    def topics(self) -> dict[str, int]:
        return self.inner.topics()

    def create_topic(self, topic: str, lanes: int, settings: Mapping[str, str]) -> None:
        self.inner.create_topic(topic, lanes, settings)

    def delete_topics(self, topics: Sequence[str]) -> None:
        self.inner.delete_topics(topics)

    def settings(self, topic: str) -> dict[str, str]:
        return self.inner.settings(topic)

    def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> None:
        self.inner.commit_positions(group, offsets, note)

    def committed_positions(self) -> dict[str, dict[tuple[str, int], int]]:
        return self.inner.committed_positions()

    def committed_notes(self, prefix: str) -> dict[str, set[str]]:
        return self.inner.committed_notes(prefix)


class WitnessedLog(AroundLog):
    """A log whose sinks are witnessed: ``sent.txt`` and ``acked.txt`` in ``folder``. It can be sent to a process."""

    def __init__(self, log: Log, folder: Path) -> None:
        super().__init__(log)
        self.folder = folder

    @property
    def files(self) -> Files:
        """What the oracle is handed of it."""
        return Files(sent=self.folder / "sent.txt", acked=self.folder / "acked.txt")

    def sink(self) -> WitnessedSink:
        return WitnessedSink(self.inner.sink(), self.folder)


def described(value: bytes) -> tuple[str, int, str]:
    """Return the tap, batch and content of a record's value."""
    header, payload = parse_value(value)
    _, content = content_of(
        tap=header["tap"], batch=header["batch"], pass_number=header["pass"], views=header["views"],
        indices=np.array(header["indices"], np.int64), ids=header["ids"], labels=labels_of(header),
        missing=header["missing"], dtype=header["dtype"], shape=header["shape"], payload=payload,
    )  # fmt: skip
    return header["tap"], header["batch"], content


def contents(batch: FeatureBatch, views: int = 1) -> Iterator[tuple[int, str, str]]:
    """Yield (batch, tap, content) of what a reader has got, for each tap; the batch must be whole."""
    for tap, rows in batch.taps.items():
        _, content = content_of(
            tap=tap, batch=batch.position.batch, pass_number=batch.pass_number, views=views, indices=batch.indices,
            ids=batch.ids, labels=batch.labels, missing=[(one.index, one.id, one.reason) for one in batch.missing],
            dtype=rows.dtype, shape=rows.shape, payload=rows.payload.tobytes(),
        )  # fmt: skip
        yield batch.position.batch, tap, content


def write_yielded(path: Path, batches: Iterable[FeatureBatch], views: int = 1) -> Path:
    """Write down what a reader yields, batch by batch; return the file."""
    lines = Lines(path)
    try:
        for batch in batches:
            for words in contents(batch, views):
                lines.write(*words)
    finally:
        lines.close()
    return path


def write_lines(path: Path, lines: Iterable[Iterable[Any]]) -> Path:
    """Write a file of lines of words; return it."""
    path.write_text("".join(" ".join(str(word) for word in words) + "\n" for words in lines))
    return path

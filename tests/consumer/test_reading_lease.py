"""While an experiment trains, its group says that it lives, where it reads and what it needs; afterwards no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from featurestream.memory import MemoryLog
from featurestream.names import reader_group
from featurestream.reader_lease import ReaderNote
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.run import train
from tests.support import append, make_manifest, publish

E1 = reader_group("toy", "E1")


class Noted(MemoryLog):
    """Keeps every note, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def commit_positions(self, group: str, offsets: Mapping[tuple[str, int], int], note: str = "") -> None:
        super().commit_positions(group, offsets, note)
        self.notes.append(note)


def trained(log: Noted, runs: Path, **changes: object) -> list[ReaderNote]:
    """Return the notes of a run of E1, each once."""
    publish(log, make_manifest(samples=12, batch_samples=4, lanes=2, passes=2))
    fields = {"stream": "toy", "taps": ("avgpool",), "name": "E1", "epochs": 2, "batch_size": 4, "reporters": ()}
    train(TrainConfig(**fields | {"runs": runs} | changes), log)
    found = [ReaderNote.model_validate_json(note) for note in log.notes if note]
    return list({(note.batch, note.needs): note for note in found}.values())


def places(notes: list[ReaderNote]) -> list[tuple[int, int]]:
    return [(note.batch, note.needs) for note in notes]


def test_an_experiment_shows_the_batch_that_it_reads_and_the_one_that_it_needs(tmp_path: Path) -> None:
    """Two epochs of 3 batches. A checkpoint is due at the end of each, so a restart would go on at its beginning."""
    log = Noted()
    notes = trained(log, tmp_path)
    assert places(notes)[0] == (0, 0)
    assert {note.taps for note in notes} == {("avgpool",)}
    assert all(needs <= batch for batch, needs in places(notes))
    assert max(batch for batch, _ in places(notes)) >= 3
    assert log.committed_notes(E1) == {E1: set()}


def test_a_range_that_is_read_again_is_needed_from_its_start_until_its_last_reading(tmp_path: Path) -> None:
    """Four epochs over two passes: what is read in the second epoch is not all that is needed."""
    notes = trained(Noted(), tmp_path, epochs=4)
    assert {needs for batch, needs in places(notes) if 3 <= batch < 6} >= {0}
    assert places(notes)[0] == (0, 0)


def test_a_finished_experiment_that_is_asked_for_again_holds_no_lease(tmp_path: Path) -> None:
    log = Noted()
    trained(log, tmp_path)
    log.notes.clear()
    fields = {"stream": "toy", "taps": ("avgpool",), "name": "E1", "epochs": 2, "batch_size": 4, "reporters": ()}
    assert train(TrainConfig(**fields, runs=tmp_path), log).already_finished
    assert log.notes == []


def test_an_experiment_warns_before_retention_deletes_what_it_reads_next(tmp_path: Path) -> None:
    """All on the log came in 1970 and is kept for an hour. The last pass only comes once the warning was said."""
    log, said = MemoryLog(lambda: 0.0), list[str]()
    manifest = publish(log, make_manifest(samples=12, batch_samples=4, lanes=2, passes=2), range(3))

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("warning: E1 has not read batch"):
            append(log, manifest, range(3, 6))

    fields = {"stream": "toy", "taps": ("avgpool",), "name": "E1", "epochs": 2, "batch_size": 4, "reporters": ()}
    train(TrainConfig(**fields, runs=tmp_path), log, say=say)
    assert sum("it will be deleted; let the reader go on, or keep more" in line for line in said) == 1

"""What a long command shows of itself."""

from __future__ import annotations

import io

import pytest

from featurestream.progress import Progress


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_once_then_every_five_seconds_and_at_the_end() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress("digits", 100, "img", stream=out, clock=clock) as progress:
        for now, count in ((101.0, 10), (102.0, 10), (105.9, 10), (106.0, 10), (108.0, 20)):
            clock.now = now
            progress.advance(count, rate="3 MB/s")
        clock.now = 110.0
    assert out.getvalue().splitlines() == [
        "digits: 10/100 img, 10 img/s, 3 MB/s (10%), 0:00:09 left",
        "digits: 40/100 img, 7 img/s, 3 MB/s (40%), 0:00:09 left",
        "digits: 60/100 img, 6 img/s, 3 MB/s (60%), 0:00:07 left",
    ]


def test_what_was_done_before_counts_in_the_share_and_not_in_the_speed() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress("digits", 100, "img", done=60, stream=out, clock=clock) as progress:
        clock.now += 2
        progress.advance(10)
    assert out.getvalue() == "digits: 70/100 img, 5 img/s (70%), 0:00:06 left\n"


def test_a_line_that_was_written_is_not_written_again_at_the_end() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress("digits", None, "img", stream=out, clock=clock) as progress:
        clock.now += 2
        progress.advance(4)
    assert out.getvalue() == "digits: 4 img, 2 img/s\n"


def test_nothing_is_shown_where_nothing_was_counted() -> None:
    out = io.StringIO()
    with Progress("digits", 5, "img", stream=out):
        pass
    assert out.getvalue() == ""


def test_numbers_are_shown_after_their_names_and_texts_as_they_are() -> None:
    clock, out = Clock(), io.StringIO()
    with Progress("E1", None, "rows", stream=out, clock=clock) as progress:
        clock.now += 1
        progress.advance(1, loss=0.312345, rate="38 MB/s")
    assert out.getvalue() == "E1: 1 rows, 1 rows/s, loss 0.3123, 38 MB/s\n"


def test_the_last_line_comes_also_when_the_work_fails() -> None:
    clock, out = Clock(), io.StringIO()

    def work() -> None:
        with Progress("E1", None, "rows", stream=out, clock=clock) as progress:
            clock.now += 1
            progress.advance(1)
            progress.advance(1)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        work()
    assert out.getvalue().splitlines()[-1] == "E1: 2 rows, 2 rows/s"


def test_a_note_stands_beside_the_count_until_it_goes_on_and_only_on_a_terminal(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for out in (Terminal(), io.StringIO()):
        with Progress("E1", 100, "rows", stream=out, clock=Clock()) as progress:
            progress.advance(50, loss=0.5)
            progress.note("waiting for the producer, 7 s")
        assert ("50/100 rows, 0 rows/s, waiting for the producer, 7 s" in out.getvalue()) is out.isatty()


def test_a_terminal_gets_a_bar_with_the_count_and_lines_said_stay_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    clock, out = Clock(), Terminal()
    with Progress("digits", 100, "img", stream=out, clock=clock) as progress:
        clock.now += 1
        progress.advance(50, rate="3 MB/s")
        progress.say("one image [of many] could not be decoded")
    shown = out.getvalue()
    assert "50/100 img, 50 img/s, 3 MB/s" in shown
    assert "one image [of many] could not be decoded" in shown
    assert "━" in shown


def test_a_terminals_bar_begins_where_the_run_before_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    clock, out = Clock(), Terminal()
    with Progress("digits", 100, "img", done=60, stream=out, clock=clock) as progress:
        for _ in range(2):
            clock.now += 1
            progress.advance(10)
    shown = out.getvalue()
    assert "80/100 img, 10 img/s" in shown
    assert "0:00:02" in shown, "twenty are left"

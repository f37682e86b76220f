"""What a command tells while it runs, for people and for machines."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from featurestream.errors import GoneError, UnknownNameError
from featurestream.logs import Line, bind, fail, is_json, say, start_logging
from featurestream.progress import Progress


@pytest.fixture(autouse=True)
def back_to_text() -> Iterator[None]:
    yield
    start_logging("text")


def objects(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_people_get_the_line_and_nothing_else(capsys) -> None:
    say("a plain line, 100 % of it")
    say(Line("warning: with facts", batch=7))
    assert capsys.readouterr().err == "a plain line, 100 % of it\nwarning: with facts\n"


def test_machines_get_one_object_a_line_with_time_level_event_context_and_facts(capsys) -> None:
    start_logging("json", command="produce", stream="digits")
    say(Line("goes on at batch 5", batch=5))
    say("warning: the disk is nearly full")
    first, second = objects(capsys)
    assert list(first)[:5] == ["time", "level", "event", "command", "stream"]
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "level": "info", "event": "goes on at batch 5", "command": "produce", "stream": "digits", "batch": 5,
        "logger": "featurestream.lines",
    }  # fmt: skip
    assert (second["level"], second["event"]) == ("warning", "the disk is nearly full")


def test_a_lines_own_facts_stand_before_the_contexts(capsys) -> None:
    """A sweep's lines are of one experiment each."""
    start_logging("json", stream="digits")
    bind(experiment="sweep")
    say(Line("stopped", experiment="E7"))
    (one,) = objects(capsys)
    assert (one["stream"], one["experiment"]) == ("digits", "E7")


def test_what_modules_log_and_what_python_warns_of_come_the_same_way(capsys) -> None:
    root = logging.getLogger()
    handler = logging.getLogger("featurestream.lines").handlers[0]
    root.addHandler(handler)
    try:
        start_logging("json", stream="digits")
        logging.getLogger("some.library").warning("%d files", 3, extra={"folder": "x"})
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
    finally:
        root.removeHandler(handler)
    ours, pythons = objects(capsys)
    assert (ours["level"], ours["event"], ours["folder"]) == ("warning", "3 files", "x")
    assert ours["logger"] == "some.library"
    assert "DeprecationWarning: old" in pythons["event"]


def test_numbers_that_are_not_finite_become_null_because_json_has_none(capsys) -> None:
    start_logging("json")
    say(Line("diverged", loss=float("nan"), stages={"a": float("inf")}))
    (one,) = objects(capsys)
    assert (one["loss"], one["stages"]) == (None, {"a": None})


def test_an_error_tells_its_hint_its_facts_and_the_exit_code(capsys) -> None:
    start_logging("json", command="train")
    fail(GoneError("batch 3 is gone", hint="start at earliest", first_left=9), 4, with_traceback=False)
    (one,) = objects(capsys)
    assert (one["level"], one["event"], one["error"]) == ("error", "batch 3 is gone", "GoneError")
    assert (one["hint"], one["first_left"], one["exit_code"]) == ("start at earliest", 9, 4)
    assert "exception" not in one


def test_a_bug_of_ours_carries_its_traceback_in_the_same_line(capsys) -> None:
    start_logging("json")
    try:
        raise ZeroDivisionError("a planted bug")
    except ZeroDivisionError as error:
        fail(error, 70, with_traceback=True)
    (one,) = objects(capsys)
    assert one["exit_code"] == 70
    assert one["exception"].splitlines()[-1] == "ZeroDivisionError: a planted bug"


def test_progress_becomes_objects_with_its_counts(capsys) -> None:
    start_logging("json", stream="digits")
    with Progress("digits", 100, "img") as progress:
        progress.advance(40, rate="3 MB/s", loss=0.5)
        progress.say("a line beside it")
    first, second = objects(capsys)
    assert (first["progress"], first["done"], first["total"], first["unit"]) == ("digits", 40, 100, "img")
    assert (first["loss"], first["rate"]) == (0.5, "3 MB/s")
    assert second["event"] == "a line beside it"


def test_a_format_that_there_is_not_is_refused_with_the_two_that_there_are(capsys) -> None:
    with pytest.raises(UnknownNameError, match=r"jsno.*did you mean.*json"):
        start_logging("jsno")
    assert not is_json()


def test_a_text_is_a_line_whatever_its_facts_are_called() -> None:
    line = Line("one", text="two", cls="three")
    assert line == "one"
    assert line.facts == {"text": "two", "cls": "three"}

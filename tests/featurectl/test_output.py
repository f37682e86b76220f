"""How commands print: tables that scripts can cut, JSON that every parser takes."""

from __future__ import annotations

import io
import json
import re
import sys
from datetime import datetime

import numpy as np
import pytest

from featurectl.output import count_text, print_facts, print_json, print_table, span_text, time_json, time_text


def test_a_table_in_a_pipe_has_one_line_a_row_whatever_its_length(capsys) -> None:
    print_table(["name", ">count"], [["a", "1"], ["b" * 300, "1,000"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name" + " " * 298 + "count", "a" + " " * 305 + "1", "b" * 300 + "  1,000"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, names: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table as a terminal of that width gets them, without colours."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(names, rows)
    monkeypatch.undo()
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in terminal.getvalue().splitlines()]


def test_on_a_terminal_only_texts_are_broken_into_lines_and_between_words(monkeypatch) -> None:
    rows = [["2026-01-01 12:00:00", "some words that are longer than there is room for"]]
    assert on_a_terminal(48, monkeypatch, ["when", "~what"], rows) == [
        "when                 what",
        "2026-01-01 12:00:00  some words that are longer",
        "                     than there is room for",
    ]


def test_on_a_terminal_that_is_too_narrow_each_row_is_a_list(monkeypatch) -> None:
    rows = [["demo-train", "12"], ["demo-validation", "2"]]
    assert on_a_terminal(15, monkeypatch, ["stream", ">batches"], rows) == [
        "stream   demo-train",
        "batches  12",
        "",
        "stream   demo-validation",
        "batches  2",
    ]


def test_a_span_names_its_second_day_only_where_that_is_another() -> None:
    day = [round(datetime(2026, 1, day, 12, 30).timestamp() * 1000) for day in (1, 2)]
    assert span_text(day[0], day[0] + 60_000) == "2026-01-01 12:30 to 12:31"
    assert span_text(*day) == "2026-01-01 12:30 to 2026-01-02 12:30"
    assert span_text(None, None) == "-"


def test_what_looks_like_markup_is_printed_as_it_is(capsys) -> None:
    print_table(["tap"], [["layer2[bold]"], ["[/x]"]])
    assert capsys.readouterr().out == "tap\nlayer2[bold]\n[/x]\n"


def test_facts_stand_under_each_other(capsys) -> None:
    print_facts([("a", "1"), ("long name", "2"), ("empty", "")])
    assert capsys.readouterr().out == "a          1\nlong name  2\nempty\n"


def test_json_is_one_line_in_the_order_given_and_numbers_that_are_none_are_null(capsys) -> None:
    print_json({"b": float("nan"), "a": [1, float("inf")], "text": "é\n"})
    assert capsys.readouterr().out == '{"b": null, "a": [1, null], "text": "é\\n"}\n'


@pytest.mark.parametrize("milliseconds", [0, 1_700_000_000_123])
def test_times_are_local_for_people_and_utc_for_programs(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert datetime.fromisoformat(time_text(milliseconds)).timestamp() == int(seconds)
    assert datetime.fromisoformat(str(time_json(milliseconds))).timestamp() == seconds
    assert str(time_json(milliseconds)).endswith("+00:00")


def test_a_moment_that_is_not_known_is_a_dash_or_null() -> None:
    assert (time_text(None), time_json(None)) == ("-", None)


def test_thousands_stand_apart() -> None:
    assert [count_text(n) for n in (0, 999, 1797, 1234567)] == ["0", "999", "1,797", "1,234,567"]


def test_numbers_of_numpy_are_refused_rather_than_printed_as_text() -> None:
    with pytest.raises(TypeError):
        print_json({"a": np.float32(1)})
    assert json.loads('{"a": 1}') == {"a": 1}

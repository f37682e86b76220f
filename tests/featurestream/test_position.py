"""Places in a stream: positions in order, and every form of a start point with the moment that it means."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestream.errors import UsageError
from featurestream.position import Position, StartPoint, parse_start

NOW = 1_769_860_800.25  # 2026-01-31T12:00:00.25Z


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be five hours behind Greenwich in winter, whatever zones this machine knows."""
    monkeypatch.setenv("TZ", "EST+5EDT,M3.2.0,M11.1.0")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_positions_are_in_the_order_of_the_stream() -> None:
    places = [Position(2), Position(1, 7), Position(1), Position(0, 9)]

    assert sorted(places) == [Position(0, 9), Position(1), Position(1, 7), Position(2)]
    assert (str(Position(3)), str(Position(3, 5))) == ("batch 3", "batch 3, row 5")


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("earliest", StartPoint("earliest")),
        ("latest", StartPoint("latest")),
        ("offset:0", StartPoint("offset", 0)),
        ("batch:17", StartPoint("batch", 17)),
        ("pass:2", StartPoint("pass", 2)),
        ("batch:007", StartPoint("batch", 7)),
        ("2026-01-31T12:00Z", StartPoint("time", 1_769_860_800_000)),
        ("2026-01-31T12:00:00.250+00:00", StartPoint("time", 1_769_860_800_250)),
        ("2026-01-31 13:30+01:30", StartPoint("time", 1_769_860_800_000)),
        ("1769860800", StartPoint("time", 1_769_860_800_000)),
        ("1769860800.125", StartPoint("time", 1_769_860_800_125)),
        ("0", StartPoint("time", 0)),
        ("-30s", StartPoint("time", 1_769_860_770_250)),
        ("-15m", StartPoint("time", 1_769_859_900_250)),
        ("-1h", StartPoint("time", 1_769_857_200_250)),
        ("-1.5h", StartPoint("time", 1_769_855_400_250)),
        ("-2d", StartPoint("time", 1_769_688_000_250)),
        ("-0s", StartPoint("time", 1_769_860_800_250)),
        (1_769_860_800, StartPoint("time", 1_769_860_800_000)),
        (1_769_860_800.5, StartPoint("time", 1_769_860_800_500)),
        (np.int64(1_769_860_800), StartPoint("time", 1_769_860_800_000)),
        (np.float32(0.5), StartPoint("time", 500)),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), StartPoint("time", 1_769_860_800_000)),
        (datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2))), StartPoint("time", 1_769_860_800_000)),
        (pd.Timestamp("2026-01-31T12:00Z"), StartPoint("time", 1_769_860_800_000)),
        (Position(4, 2), StartPoint("position", 4, 2)),
        (StartPoint("batch", 5), StartPoint("batch", 5)),
    ],
    ids=repr,
)  # fmt: skip
def test_a_start_point_means(text: str | float | datetime | Position | StartPoint, point: StartPoint) -> None:
    assert parse_start(text, now=NOW) == point


@pytest.mark.usefixtures("new_york")
@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-01-31T07:00", 1_769_860_800_000),  # noon in Greenwich
        ("2026-01-31", 1_769_835_600_000),  # midnight here is five o'clock there
        ("20260131", 1_769_835_600_000),  # eight digits are a date, not seconds in the year 1970
        ("2026-07-31T08:00", 1_785_499_200_000),  # four hours behind in summer
        (datetime(2026, 1, 31, 7), 1_769_860_800_000),
    ],
)
def test_a_time_without_a_zone_is_local(text: str | datetime, milliseconds: int) -> None:
    assert parse_start(text, now=NOW) == StartPoint("time", milliseconds)


@pytest.mark.parametrize(
    "text",
    [
        "", "soon", "Earliest", "offset", "offset:", "offset:-1", "offset:1.0", "batch:x", "pass:٣", "row:3",
        "batch:1234567890123456789", "-1", "-1w", "-h", "1h", "--1h", "-1h30m", "1e9", "nan", "inf", "2026-13-01",
        "2026-01-31T25:00", "1969-12-31T23:59:59Z", "9999-12-31T23:59Z", "0001-01-01T00:00", "-99999d", "9" * 400,
        "-" + "9" * 400 + "d", -1, -1.0, float("nan"), float("inf"), 10**18, 10**9999, True, None, b"earliest", [1],
        np.datetime64("2026-01-31"), datetime(1, 1, 1), datetime(9999, 12, 31), datetime(1969, 1, 1, tzinfo=UTC),
    ],
    ids=lambda value: f"{value:.20}" if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_anything_else_is_refused_with_the_forms_that_there_are(text: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse_start(text, now=NOW)  # type: ignore[arg-type]

    assert "such as" in str(caught.value) or "expected earliest, latest, offset:N, batch:N, pass:N" in str(caught.value)


def test_start_points_read_as_they_are_typed() -> None:
    assert [str(StartPoint("earliest")), str(StartPoint("latest"))] == ["earliest", "latest"]
    assert [str(StartPoint(kind, 7)) for kind in ("offset", "batch", "pass")] == ["offset:7", "batch:7", "pass:7"]
    assert str(StartPoint("position", 4, 2)) == "batch 4, row 2"


@pytest.mark.usefixtures("new_york")
def test_a_time_shows_the_local_clock_with_its_zone() -> None:
    assert str(StartPoint("time", 1_769_860_800_250)) == "2026-01-31T07:00:00.250-05:00"


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    point=st.builds(StartPoint, st.sampled_from(["offset", "batch", "pass"]), st.integers(0, 10**18 - 1))
    | st.builds(StartPoint, st.just("time"), st.integers(0, 253_370_764_799_999))
    | st.sampled_from([StartPoint("earliest"), StartPoint("latest")])
)
def test_what_is_shown_can_be_typed_again(point: StartPoint) -> None:
    assert parse_start(str(point), now=NOW) == point

"""How near a batch is to being deleted, worked out by hand."""

from __future__ import annotations

from featurestream.reader_lease import LiveReader
from featurestream.retention import ENDLESS, Retention, Risk, risk_of


def reader(name: str, batch: int, needs: int | None = None) -> LiveReader:
    return LiveReader(name, batch, batch if needs is None else needs, ("avgpool",))


KEPT = {"avgpool": Retention(keep_ms=1000, keep_bytes=10_000, batch_bytes=100.0)}


def risk(at: LiveReader, *, end: int, came_ms: int, now_ms: int = 5000) -> Risk | None:
    return risk_of(at, KEPT, next_batch=end, appended_ms={"avgpool": came_ms}, now_ms=now_ms)


def test_the_risk_is_the_greater_of_the_bytes_that_came_since_and_the_time_that_has_passed() -> None:
    """Batches 20 to 99 are 80 x 100 of 10,000 bytes; it came 300 of 1,000 ms ago, or 900."""
    assert risk(reader("E1", 20), end=100, came_ms=4700) == Risk("E1", 20, "avgpool", 0.8, "bytes")
    assert risk(reader("E1", 20), end=100, came_ms=4100) == Risk("E1", 20, "avgpool", 0.9, "time")


def test_the_risk_is_at_what_a_reader_needs_not_at_what_it_reads_next() -> None:
    """After a crash it goes on at its last checkpoint."""
    found = risk(reader("E1", 95, needs=10), end=100, came_ms=5000)
    assert found == Risk("E1", 10, "avgpool", 0.9, "bytes")
    assert found is not None
    assert "E1 has not read batch 10 of tap avgpool, and 90% of the bytes" in found.text()


def test_a_reader_that_waits_for_the_next_batch_is_at_no_risk() -> None:
    assert risk(reader("E1", 100), end=100, came_ms=0) is None


def test_a_tap_that_is_not_the_streams_has_no_retention() -> None:
    assert risk_of(LiveReader("E1", 0, 0, ("other",)), KEPT, next_batch=5, appended_ms={}, now_ms=0) is None


def test_a_topics_settings_keep_bytes_by_lane_and_minus_one_is_without_end() -> None:
    assert Retention.of({"retention.ms": "5000", "retention.bytes": "100"}, 3, 7.0) == Retention(5000, 300, 7.0)
    assert Retention.of({"retention.ms": "-1", "retention.bytes": "-1"}, 3, 7.0) == Retention(ENDLESS, ENDLESS, 7.0)

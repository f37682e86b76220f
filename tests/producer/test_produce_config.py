"""What can be asked of the producer, and what is refused at once."""

from __future__ import annotations

import pickle

import pytest

from featurestream.errors import UsageError
from featurestream_producer.config import (
    ProduceConfig,
    parse_duration_ms,
    parse_passes,
    parse_size,
    retention_text,
)

FIELDS = {"data": "photos", "stream": "photos", "model": "resnet18", "taps": ["avgpool"]}


def test_what_was_given_is_known_apart_from_defaults() -> None:
    config = ProduceConfig(**FIELDS, lanes=4)
    assert config.given("lanes")
    assert not config.given("passes")
    assert (config.passes, config.taps) == (1, ("avgpool",))
    assert pickle.loads(pickle.dumps(config)).given("lanes")


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("stream", "photos train", "cannot name a stream"),
        ("taps", [], "taps"),
        ("dtype", "float64", "dtype"),
        ("passes", 0, "passes"),
        ("lanes", 0, "lanes"),
        ("seed", -1, "seed"),
        ("batch_size", 0, "batch_size"),
        ("colour", "blue", "colour"),
    ],
)
def test_a_wrong_field_is_one_error_that_names_it(field: str, value: object, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        ProduceConfig(**FIELDS | {field: value})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UsageError, match=r"model: field required.*a torchvision model"):
        ProduceConfig(data="photos", stream="photos", taps=["avgpool"])


@pytest.mark.parametrize(
    ("text", "milliseconds"), [("90s", 90_000), ("30m", 1_800_000), ("12h", 43_200_000), ("1.5d", 129_600_000)]
)
def test_durations(text: str, milliseconds: int) -> None:
    assert parse_duration_ms(text) == milliseconds


@pytest.mark.parametrize("text", ["7", "7 days", "", "-1h", "h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration_ms(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1000", 1000),
        ("500MB", 500_000_000),
        ("64GiB", 68_719_476_736),
        ("1e9", 10**9),
        ("1.5 kB", 1500),
        ("2T", 2 * 10**12),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "much", "1.2.3GB", "5iB", "-1MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_passes_are_a_number_or_endless() -> None:
    assert parse_passes("12") == 12
    assert parse_passes("endless") is None
    for text in ("0", "-1", "many", "1.5"):
        with pytest.raises(UsageError, match="is not a number of passes"):
            parse_passes(text)


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(604_800_000, "7 d"), (5_400_000, "1.5 h"), (90_000, "1.5 min"), (500, "0.5 s")]
)
def test_retentions_read_as_people_write_them(milliseconds: int, text: str) -> None:
    assert retention_text(milliseconds) == text

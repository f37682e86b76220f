"""Names on the cluster: what may be one, and that a topic or a group leads back to what it was made of."""

from __future__ import annotations

import re

import pytest

from featurestream.errors import UsageError
from featurestream.names import (
    check_stream_name,
    check_tap_name,
    manifest_topic,
    parse_reader_group,
    reader_group,
    record_key,
    stream_of_manifest_topic,
    tap_topic,
)

KAFKA_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@pytest.mark.parametrize("name", ["a", "digits-train", "0", "A" * 100, "x-"])
def test_letters_digits_and_dashes_name_a_stream(name: str) -> None:
    assert check_stream_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a.b", "a_b", "a b", "a/b", "..", "é", "٣", "a\n", "A" * 101])
def test_nothing_else_names_a_stream(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a stream; a stream's name is 1 to 100 letters, digits and -"):
        check_stream_name(name)


@pytest.mark.parametrize("name", ["avgpool", "layer2.0.conv1", "x_1", "manifest2", "a.manifest", "t" * 100])
def test_letters_digits_dots_underscores_and_dashes_name_a_tap(name: str) -> None:
    assert check_tap_name(name) == name


@pytest.mark.parametrize("name", ["", "manifest", ".a", "_a", "a:b", "a b", "a/b", "é", "a\n", "t" * 101])
def test_nothing_else_and_not_manifest_names_a_tap(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a tap"):
        check_tap_name(name)


def test_topics_are_the_stream_a_dot_and_the_tap() -> None:
    assert tap_topic("digits-train", "layer2.0") == "digits-train.layer2.0"
    assert manifest_topic("digits-train") == "digits-train.manifest"


def test_the_longest_names_make_topics_that_kafka_takes() -> None:
    assert KAFKA_TOPIC.fullmatch(tap_topic("s" * 100, "t" * 100))


@pytest.mark.parametrize(
    ("topic", "stream"),
    [
        ("digits-train.manifest", "digits-train"),
        ("digits-train.layer2", None),
        ("digits-train.layer2.manifest", None),
        ("digits-train.manifest.copy", None),
        ("digits-train", None),
        (".manifest", None),
        ("manifest", None),
        ("other_app.manifest", None),
        ("__consumer_offsets", None),
    ],
)
def test_only_a_manifests_topic_names_a_stream(topic: str, stream: str | None) -> None:
    assert stream_of_manifest_topic(topic) == stream


def test_no_tap_can_take_the_manifests_topic() -> None:
    for tap in ("a.manifest", "manifest.a", "manifest-"):
        assert stream_of_manifest_topic(tap_topic("digits-train", check_tap_name(tap))) is None


def test_a_records_key_is_readable_text() -> None:
    assert record_key(0, 17) == b"0/17"
    assert record_key(2**53 - 1, 2**53 - 1) == b"9007199254740991/9007199254740991"


@pytest.mark.parametrize("experiment", ["E1", "lr-0.1", "a.b.c", "mlp 512"])
def test_a_readers_group_leads_back_to_stream_and_experiment(experiment: str) -> None:
    group = reader_group("digits-train", experiment)

    assert group == f"featurestream.digits-train.{experiment}"
    assert parse_reader_group(group) == ("digits-train", experiment)


@pytest.mark.parametrize("group", ["", "featurestream.", "featurestream.a.", "featurestream..E", "console-1"])
def test_other_groups_are_nobodys(group: str) -> None:
    assert parse_reader_group(group) is None

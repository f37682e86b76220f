"""featurectl peek: records as they stand on the log."""

from __future__ import annotations

import numpy as np
import pytest

from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from tests.support import append, create, make_manifest, publish


def test_a_record_is_shown_with_its_place_rows_and_statistics(cli, log) -> None:
    publish(log, make_manifest("toy"))
    [facts] = cli("peek", "toy", "--tap", "layer3", "--from", "batch:4", "-n", "1", "--json").rows
    # Batch 4 is the second of pass 1, whose order is 9, 0, 1, ...: samples 3 to 6. Feature k is 1000 + 10 i + k.
    features = np.array([[1030, 1031], [1040, 1041], [1050, 1051], [1060, 1061]])
    assert facts.pop("mean") == pytest.approx(1045.5)
    assert facts.pop("std") == pytest.approx(features.std())
    assert facts.pop("appended_at").endswith("+00:00")
    assert facts.pop("value_bytes") > 32
    assert facts == {
        "batch": 4,
        "pass": 1,
        "tap": "layer3",
        "lane": 0,
        "offset": 2,
        "extracted_at": "2023-11-14T22:13:20.000+00:00",
        "rows": 4,
        "missing": 0,
        "dtype": "float32",
        "shape": [2],
        "min": 1030.0,
        "max": 1061.0,
        "first_ids": ["img/3.png", "img/4.png", "img/5.png", "img/6.png"],
        "first_labels": [0, 1, 2, 0],
    }


def test_without_a_tap_every_taps_record_is_shown_batch_after_batch(cli, log) -> None:
    publish(log, make_manifest("toy"))
    rows = cli("peek", "toy", "-n", "2", "--json").rows
    assert [(row["batch"], row["tap"]) for row in rows] == [
        (0, "layer3"), (0, "avgpool"), (1, "layer3"), (1, "avgpool")
    ]  # fmt: skip
    lines = cli("peek", "toy", "-n", "2").out.splitlines()
    assert len(lines) == 5
    assert lines[1].endswith("img/0.png=0, img/1.png=1, img/2.png=2, img/3.png=0")


def test_until_ends_before_the_batch_that_it_names(cli, log) -> None:
    publish(log, make_manifest("toy"))
    rows = cli("peek", "toy", "--tap", "layer3", "--from", "pass:1", "--until", "batch:5", "-n", "9", "--json").rows
    assert [row["batch"] for row in rows] == [3, 4]


def test_a_duplicate_is_passed_over(cli, log) -> None:
    manifest = make_manifest("toy")
    create(log, manifest)
    append(log, manifest, [0, 1, 2, 0, 2, 3, 4, 5])
    rows = cli("peek", "toy", "--tap", "layer3", "--from", "batch:4", "-n", "1", "--json").rows
    assert [(row["batch"], row["offset"]) for row in rows] == [(4, 4)]


def test_a_stream_that_holds_nothing_says_so(cli, log) -> None:
    create(log, make_manifest("toy"))
    outcome = cli("peek", "toy")
    assert outcome.code == 2
    assert outcome.err == (
        "error: nothing to show: earliest is batch 0, and the range ends before batch 0; "
        "see what is there with: featurectl streams toy\n"
    )


def test_what_is_gone_is_named_with_what_is_left(cli, log) -> None:
    publish(log, make_manifest("toy"))
    for tap in ("layer3", "avgpool"):
        log.delete_before(f"toy.{tap}", 0, 2)
    outcome = cli("peek", "toy", "--from", "batch:0")
    assert outcome.code == 4
    assert outcome.err.startswith("error: batch 0 is gone: ")
    assert "what is left begins at batch:3" in outcome.err


def test_a_hole_is_named(cli, log) -> None:
    manifest = make_manifest("toy")
    create(log, manifest)
    append(log, manifest, [0, 1, 3, 4, 5])
    outcome = cli("peek", "toy", "--from", "batch:2", "-n", "1")
    assert outcome.code == 4
    assert "batch 2 is missing from toy.layer3, lane 0" in outcome.err


def test_an_unknown_tap_lists_the_known(cli, log) -> None:
    publish(log, make_manifest("toy"))
    outcome = cli("peek", "toy", "--tap", "layer")
    assert outcome.code == 2
    assert 'unknown tap of stream toy "layer"; did you mean "layer3"?; known: layer3, avgpool' in outcome.err


def test_an_unknown_stream_is_the_callers_mistake(cli, log) -> None:
    outcome = cli("peek", "toy")
    assert outcome.code == 2
    assert "there are none yet: make one with featurectl produce" in outcome.err


def test_a_start_that_is_none_lists_the_forms(cli, log) -> None:
    publish(log, make_manifest("toy"))
    outcome = cli("peek", "toy", "--from", "yesterday")
    assert outcome.code == 2
    assert outcome.err.startswith('error: "yesterday" is not a start point; expected earliest, latest, offset:N, ')


def test_no_batches_at_all_is_a_usage_error(cli, log) -> None:
    assert cli("peek", "toy", "-n", "0").code == 2


@pytest.mark.broker
def test_records_on_kafka_are_shown(cli, broker: Cluster, unique: str) -> None:
    with KafkaLog(broker) as log:
        publish(log, make_manifest(unique))
    rows = cli("peek", unique, "--from", "batch:4", "--json").rows
    assert [(row["batch"], row["tap"], row["lane"], row["offset"]) for row in rows] == [
        (4, "layer3", 0, 2), (4, "avgpool", 0, 2), (5, "layer3", 1, 2), (5, "avgpool", 1, 2)
    ]  # fmt: skip

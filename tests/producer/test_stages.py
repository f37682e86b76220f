"""Where a device's time went, in words."""

from __future__ import annotations

import pytest

from featurestream_producer.stages import RecentStages, Stages, mean


def test_the_shares_are_of_the_device_threads_time_and_the_senders_own_is_beside_it() -> None:
    stages = Stages(data_s=1.0, forward_s=8.0, send_s=1.0, sending_s=5.0)
    assert stages.thread_s == 10.0
    assert stages.text() == "waiting for images 10%, computing 80%, waiting for Kafka 10%"
    slower = Stages(data_s=0.0, forward_s=3.0, send_s=0.0, ahead_s=1.0)
    assert slower.text() == (
        "waiting for images 0%, computing 75%, waiting for Kafka 0%, waiting for slower devices 25%"
    )


@pytest.mark.parametrize(
    ("stages", "brief"),
    [
        (Stages(), ""),
        (Stages(forward_s=2.0), "computing 100%"),
        (Stages(data_s=1.0, forward_s=8.0, send_s=0.04, ahead_s=0.96), "images 10%, computing 80%, others 10%"),
        (Stages(forward_s=1.0, send_s=3.0), "computing 25%, Kafka 75%"),
    ],
)
def test_in_brief_what_is_next_to_nothing_is_left_out(stages: Stages, brief: str) -> None:
    assert stages.brief() == brief


def test_no_time_has_no_shares() -> None:
    assert Stages(sending_s=1.0).text() == ""


def test_several_workers_are_shown_by_their_mean() -> None:
    assert mean([Stages(1.0, 2.0, 3.0, 4.0, 5.0), Stages(3.0, 2.0, 1.0, 0.0, 1.0)]) == Stages(2.0, 2.0, 2.0, 2.0, 3.0)
    assert mean([]) == Stages()


def test_the_live_line_forgets_what_was_long_ago() -> None:
    """Ten seconds of waiting for images, then thirty of computing."""
    recent = RecentStages()
    for seconds in range(1, 11):
        recent.see(0, Stages(data_s=float(seconds)))
    assert recent.mean().brief() == "images 100%"
    for seconds in range(1, 31):
        recent.see(0, Stages(data_s=10.0, forward_s=float(seconds)))
    assert recent.mean().brief() == "computing 100%"
    recent.see(1, Stages(send_s=10.0))
    assert recent.mean().brief() == "computing 50%, Kafka 50%"

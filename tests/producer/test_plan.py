"""What a stream will cost, worked out by hand."""

from __future__ import annotations

import pytest

from featurestream.errors import UsageError
from featurestream.layout import Layout
from featurestream.manifest import TapFacts
from featurestream.wire import RECORD_LIMIT, record_bytes_bound
from featurestream_producer.plan import (
    Plan,
    Speed,
    TapPlan,
    choose_batch_samples,
    duration_text,
    plan_of,
    size_text,
)
from tests.support import make_manifest

# 1,000 samples of 2 views in batches of 100; ids of 8 bytes: a row takes 1,000 + 8 + 12 bytes, a record 600 more.
PLAN = Plan(
    stream="photos",
    layout=Layout(samples=1000, batch_samples=100, lanes=4, views=2),
    passes=3,
    dtype="float16",
    taps=(TapPlan("small", "layer1:gap", (100,), 200), TapPlan("large", "layer4", (500,), 1000)),
    mean_id_bytes=8.0,
    record_bytes=250_000,
    retention_ms=7 * 86_400_000,
    retention_bytes=10**9,
    speed=Speed(500.0, "cpu", 2),
)
SMALL_PASS = 2000 * 220 + 10 * 600  # 446,000
LARGE_PASS = 2000 * 1020 + 10 * 600  # 2,046,000


def changed(**changes: object) -> Plan:
    fields = {name: getattr(PLAN, name) for name in PLAN.__slots__}
    return Plan(**fields | changes)


def test_bytes_add_up() -> None:
    assert PLAN.sample_bytes == 2 * 1200
    assert [PLAN.tap_pass_bytes(tap) for tap in PLAN.taps] == [SMALL_PASS, LARGE_PASS]
    assert PLAN.pass_bytes == 2_492_000
    assert PLAN.disk_bytes == 3 * 2_492_000


def test_disk_is_what_retention_keeps_where_that_is_less() -> None:
    assert changed(retention_bytes=2_000_000).disk_bytes == 3 * SMALL_PASS + 2_000_000
    assert changed(passes=None).disk_bytes == 2 * 10**9


def test_speed_counts_all_devices() -> None:
    assert PLAN.images_s == 1000.0
    assert PLAN.pass_s == 2.0
    facts = PLAN.facts()
    assert facts["bytes_per_s"] == 1_246_000
    assert facts["pass_records"] == 20


def test_reading_pays_once_more_epochs_are_read_than_passes_are_made() -> None:
    """Three passes of 2 s; an epoch that reads costs 2,046,000 bytes at 1 GB/s, 2 ms: 3 * 2 / 1.998 = 3.003."""
    assert PLAN.break_even() == 4
    assert changed(passes=1).break_even() == 2
    assert changed(passes=None).break_even() == 2


def test_reading_never_pays_where_it_takes_as_long_as_computing() -> None:
    fast = changed(speed=Speed(1_000_000.0, "H200", 1))  # a pass in 2 ms
    assert fast.break_even() is None
    assert "never" in fast.text()


def test_on_a_gpu_the_slower_of_loading_and_forward_counts_and_on_the_cpu_both() -> None:
    """2,000 images: 2 s of forward at 1,000 a second; 4 s of loading at 4 x 125, 0.5 s at 4 x 1,000."""
    gpu = changed(speed=Speed(500.0, "H200", 2, load_images_s=125.0, loaders=4))
    assert (gpu.pass_s, gpu.images_s) == (4.0, 500.0)
    assert changed(speed=Speed(500.0, "H200", 2, load_images_s=1000.0, loaders=4)).pass_s == 2.0
    cpu = changed(speed=Speed(500.0, "cpu", 2, load_images_s=125.0, loaders=4))
    assert cpu.pass_s == 6.0
    assert "125 images/s loading a core (on 4 cores, which the forward takes too); together 333 images/s" in cpu.text()


@pytest.mark.parametrize("passes", [1, 3, 40, None])
@pytest.mark.parametrize("images_s", [500.0, 3000.0, 480_000.0])
def test_the_break_even_is_the_first_number_of_epochs_for_which_the_stream_costs_less(
    passes: int | None, images_s: float
) -> None:
    plan = changed(passes=passes, speed=Speed(images_s, "H200", 2))
    epochs = plan.break_even()
    assert epochs is not None
    for count, pays in ((epochs - 1, False), (epochs, True)):
        recompute_s, stream_s = plan.recompute_s(count), plan.stream_s(count)
        assert recompute_s is not None
        assert stream_s is not None
        assert (recompute_s > stream_s) is pays


def test_the_costs_are_stated_with_what_is_assumed() -> None:
    """100 epochs of 2 s, against 3 passes of 2 s and 100 readings of 2.046 ms: 200 s against 6.2 s."""
    text = PLAN.text()
    assert "recomputing takes 2 s an epoch; the stream takes 3 x 2 s once, and 0.002 s an epoch" in text
    assert "(assumed: 1 GB/s of the widest tap)" in text
    assert "10 experiments of 10 epochs: 3.33 min recomputed, 6.2 s from the stream" in text


def test_a_plan_without_a_measurement_has_no_speed() -> None:
    bare = changed(speed=None)
    assert (bare.images_s, bare.pass_s, bare.break_even()) == (None, None, None)
    assert "speed" not in bare.text()


def test_what_retention_will_delete_is_warned_of() -> None:
    assert PLAN.warnings() == []
    one_pass = changed(retention_bytes=2_000_000).warnings()
    assert len(one_pass) == 1
    assert "a pass of tap large takes 2.05 MB, but only 2 MB of a tap are kept" in one_pass[0]
    all_passes = changed(retention_bytes=3_000_000).warnings()
    assert len(all_passes) == 1
    assert "3 passes of tap large take 6.14 MB" in all_passes[0]


def test_the_text_says_the_numbers() -> None:
    text = PLAN.text()
    for fact in ("1,000 samples x 2 views, 3 passes, float16", "1 kB a row, 2.05 MB a pass", "100 samples",
                 "10 batches, 20 records in 4 lanes, 2.49 MB", "7.48 MB at most", "7 d", "500 images/s on cpu x 2",
                 "1.25 MB/s, 2 s a pass", "from 4 epochs"):  # fmt: skip
        assert fact in text


def test_a_plan_of_a_manifest_takes_its_numbers() -> None:
    plan = plan_of(make_manifest(), ["a.png", "äö.png"], retention_ms=60_000, retention_bytes=2**30)
    assert plan.taps == (TapPlan("layer3", "layer3", (2,), 8), TapPlan("avgpool", "avgpool", (3,), 12))
    assert plan.mean_id_bytes == 6.5  # 5 and 8 bytes: ä and ö take two each
    assert plan.record_bytes == record_bytes_bound(12, 4, 8, 1) + 64


# ---- rows a batch -----------------------------------------------------------------------------------------------


def tap(*shape: int, layer: str = "layer4", pool: str | None = None) -> TapFacts:
    spec = layer if pool is None else f"{layer}:{pool}"
    return TapFacts(name=layer, spec=spec, layer=layer, pool=pool, shape=list(shape))


def batch_samples(
    *taps: TapFacts, dtype: str = "float16", views: int = 1, size: int = 256, samples: int = 10**6
) -> int:
    return choose_batch_samples(
        taps, dtype=dtype, samples=samples, views=views, longest_id_bytes=20, label_values=1, batch_size=size
    )


def test_the_widest_tap_decides_how_many_samples_fit_into_a_record() -> None:
    """512 x 7 x 7 in float16 are 50,176 bytes a sample: 19 fit below 999,000 bytes."""
    wide = tap(512, 7, 7)
    assert batch_samples(tap(128, layer="layer2", pool="gap"), wide) == 19
    assert record_bytes_bound(50_176, 19, 20, 1) <= RECORD_LIMIT < record_bytes_bound(50_176, 20, 20, 1)
    assert batch_samples(wide, dtype="float32") == 9
    assert batch_samples(wide, views=2) == 9


def test_narrow_taps_stop_at_the_batch_size_and_at_the_data_set() -> None:
    assert batch_samples(tap(128)) == 256
    assert batch_samples(tap(128), size=100) == 100
    assert batch_samples(tap(128), samples=40) == 40


def test_a_sample_that_is_too_large_is_refused_with_its_tap_its_bytes_and_what_helps() -> None:
    with pytest.raises(UsageError) as refused:
        batch_samples(tap(64, 224, 224, layer="conv1"), tap(128, layer="layer2", pool="gap"))
    text = str(refused.value)
    assert "tap conv1 is too large" in text
    assert "64 x 224 x 224 float16 take 6,422,528 bytes, the limit is 999,000" in text
    assert "conv1:avg7 takes 6,272 bytes" in text
    assert "--views" not in text
    assert "--dtype" not in text
    assert (refused.value.tap, refused.value.bytes) == ("conv1", 6_422_528)


def test_settings_are_advised_only_where_they_help() -> None:
    """300,000 numbers: 1.2 MB in float32, 0.6 MB in float16; twice that for two views."""
    with pytest.raises(UsageError, match="--dtype float16") as half:
        batch_samples(tap(300_000), dtype="float32")
    assert "--views" not in str(half.value)
    with pytest.raises(UsageError, match="--views 1") as one:
        batch_samples(tap(300_000), views=2)
    assert "--dtype" not in str(one.value)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_840_000_000, "1.84 GB"), (2.5e12, "2.5 TB")]
)
def test_sizes_read_as_people_write_them(count: float, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0.4 s"), (59, "59 s"), (90, "1.5 min"), (5400, "1.5 h")])
def test_durations_read_as_people_write_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text

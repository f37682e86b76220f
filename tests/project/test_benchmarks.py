"""Each benchmark runs, in small; nothing is asserted about speed."""

from __future__ import annotations

import gc
import importlib.util
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks import (
    ablations,
    checkpoint,
    decode,
    gateway,
    grouped_heads,
    produce,
    publish,
    read,
    seek,
    storage,
    wire,
)
from benchmarks.__main__ import THEMES, main
from benchmarks.broker import own_broker
from benchmarks.kafka_tools import last_rate
from benchmarks.measure import Ratio, Run, in_turn, ratio, time_ratio
from benchmarks.produce import Case
from benchmarks.report import Report, Setting, Table, markdown
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream.kafka.admin import ping
from tests.project.documents import ROOT

PHOTOS = Case(
    "photos", produce.write_photos, images=6, image_size=32, batch_size=4, rows_of_a_step=8, taps=("avgpool",)
)


def runs(*rates: float) -> list[Run]:
    return [Run(rate, 0.0) for rate in rates]


def rows_of(report: Report) -> list[Sequence[tuple[str, ...]]]:
    for table in report.tables:
        assert {len(row) for row in table.rows} == {len(table.header)}
    return [table.rows for table in report.tables]


def test_ways_are_measured_in_turn_forwards_and_backwards_after_one_run_that_does_not_count() -> None:
    order = ""

    def way(name: str) -> Run:
        nonlocal order
        order += name
        return Run(len(order), 0.0)

    found = in_turn({"a": lambda: way("a"), "b": lambda: way("b")}, 3)
    assert order == "ab" + "ab" + "ba" + "ab"
    assert found == {"a": runs(3, 6, 7), "b": runs(4, 5, 8)}


def test_what_takes_long_says_so_after_the_first_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 0.0
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now_s)

    def way(seconds: float) -> Run:
        nonlocal now_s
        now_s += seconds
        return Run(1.0, 0.0)

    in_turn({"bare": lambda: way(0.4), "ours": lambda: way(0.8)}, 4)
    assert capsys.readouterr().err == ""
    in_turn({"bare": lambda: way(4), "ours": lambda: way(8)}, 4)
    assert capsys.readouterr().err == "    bare, ours: 4 repeats, about 48 s\n"


def test_a_ratio_is_the_median_of_the_repeats_ratios() -> None:
    found = ratio({"ours": runs(90, 50, 99), "bare": runs(100, 100, 90)}, "ours", "bare")
    assert found == Ratio(0.9, 0.5, 1.1)
    assert str(found) == "0.90 (0.50 to 1.10)"
    assert found.against(0.9) == "0.90: met"
    assert found.against(0.95) == "0.95: missed"


def test_a_ratio_of_times_is_how_much_longer_one_takes_and_is_to_stay_below_its_goal() -> None:
    found = time_ratio({"ours": runs(100, 50, 40), "bare": runs(100, 60, 60)}, "ours", "bare")
    assert found == Ratio(1.2, 1.0, 1.5)
    assert found.within(1.2) == "1.20: met"
    assert found.within(1.1) == "1.10: missed"


def test_a_table_is_markdown_with_numbers_on_the_right() -> None:
    table = Table(("record", "MB/s"), [("513 kB", "2,000"), ("a long one", "9")])
    assert table.markdown().splitlines() == [
        "| record     |  MB/s |",
        "|------------|------:|",
        "| 513 kB     | 2,000 |",
        "| a long one |     9 |",
    ]


def test_a_report_names_hardware_command_and_versions() -> None:
    setting = Setting(
        "AMD Ryzen(TM) 7 CPU @ 3 GHz", 8, 16.0, "Linux", "python -m benchmarks x", datetime(2026, 1, 2, tzinfo=UTC), 0.5
    )
    text = markdown(
        Report("x", "A against B.", [Table(("a", "b"), [("1", "2")])], ["Note."], {"numpy": "2.0"}), setting
    )
    assert text.startswith("# x\n\nA against B.\n\n| a | b |")
    assert "`python -m benchmarks x`, 2026-01-02 00:00 UTC" in text
    assert "AMD Ryzen(TM) 7 CPU @ 3 GHz, 8 cores, 16 GB, Linux; load 0.5 before" in text
    assert re.search(r"versions: python 3\..*, featurestream .*, numpy 2.0\n$", text)
    assert setting.hardware == "amd-ryzen-7-8-cores"


def test_the_command_prints_a_report_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["wire", "--reports", str(tmp_path)])
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"wire_[a-z0-9-]+-cores_\d{4}-\d{2}-\d{2}\.md", file.name)
    assert file.read_text(encoding="utf-8") in capsys.readouterr().out


def test_an_unknown_theme_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["write"])
    assert f'unknown theme "write", expected one of {", ".join(THEMES)}' in capsys.readouterr().err


@pytest.mark.parametrize("theme", THEMES)
def test_each_theme_is_a_module_that_the_readme_explains(theme: str) -> None:
    assert (ROOT / "benchmarks" / f"{theme}.py").is_file()
    assert f"| `{theme}` |" in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_wire_runs() -> None:
    ((line,),) = rows_of(wire.run(shapes=[(4, 8)], repeats=1, loop_s=0.0))
    assert line[0].startswith("4 x 8 float16")


def test_grouped_heads_runs() -> None:
    ((sgd, adamw),) = rows_of(grouped_heads.run(shapes=[(8, 16, 3, 16, 2)], repeats=1, loop_s=0.0))
    assert sgd[0] == "2 x 8-16-3, batch 16, SGD"
    assert adamw[0].endswith("AdamW")


def test_decode_measures_every_decoder_that_is_installed_and_how_far_its_pixels_are_from_pillows() -> None:
    [rows] = rows_of(decode.run(loops=1, repeats=1))
    assert [row[:2] for row in rows[:2]] == [("JPEG, quality 75", "pillow"), ("JPEG, quality 75", "simplejpeg")]
    assert rows[-1][:2] == ("PNG", "pillow")
    assert rows[0][4] == "0"


@pytest.mark.broker
def test_publish_runs_and_leaves_no_topic(broker: Cluster) -> None:
    (line,), weights = rows_of(publish.run(broker, rows=[8], volume=500_000, repeats=1, java=False))
    assert line[0] == "33 kB"
    assert [row[1] for row in weights] == ["256", "256", "240", "19"]
    assert all(int(row[2].replace(",", "")) < int(row[3].replace(",", "")) < 999_000 for row in weights)
    check_nothing_is_left(broker)


@pytest.mark.slow
@pytest.mark.broker
def test_publish_is_measured_against_kafkas_own_tool(broker: Cluster) -> None:
    """Slow: it downloads the tool's jars once."""
    (line,), _ = rows_of(publish.run(broker, rows=[8], volume=500_000, repeats=1))
    assert float(line[2]) > 0
    check_nothing_is_left(broker)


def test_the_rate_of_kafkas_tool_is_that_after_the_warm_up() -> None:
    """Lines as ProducerPerformance of Kafka 4.3.1 prints them."""
    printed = """
163 records sent, 32.6 records/sec (15.53 MB/sec), 851.8 ms avg latency, 2176.0 ms max latency.
250 records sent, 27.409275 records/sec (13.07 MB/sec), 835.84 ms avg latency, 2645.00 ms max latency, 740 ms 50th.
200 steady state records sent, 32.247662 records/sec (15.38 MB/sec), 873.42 ms avg latency, 794 ms 50th.
"""
    assert last_rate(printed) == 32.247662
    assert last_rate("Exception in thread main") is None


@pytest.mark.broker
def test_read_runs_and_leaves_no_topic(broker: Cluster) -> None:
    speeds, memory = rows_of(read.run(broker, rows=[8], volume=3_000_000, repeats=1, slow_s=0.2))
    assert [line[1] for line in speeds] == ["1", "2"]
    assert [line[0] for line in memory] == 2 * ["a quarter of the stream", "the whole stream", "a slow user"]
    check_nothing_is_left(broker)


@pytest.mark.broker
def test_produce_runs_and_leaves_no_topic(broker: Cluster) -> None:
    ready = Case(
        "in memory", produce.no_files, images=2, image_size=224, batch_size=2, rows_of_a_step=2, autocast="bfloat16"
    )
    speeds, stages, *_ = rows_of(produce.run(broker, cases=[PHOTOS, ready], scaled=None, repeats=1))
    assert [row[:3] for row in speeds] == [("photos", "resnet18", "32"), ("in memory", "resnet18", "224")]
    assert [row[0] for row in stages] == ["photos", "in memory"]
    check_nothing_is_left(broker)


@pytest.mark.slow
@pytest.mark.broker
def test_a_kill_and_a_second_process_are_measured(broker: Cluster) -> None:
    """Slow: it starts six processes that import torch."""
    *_, restarts, scaling = rows_of(produce.run(broker, cases=[], scaled=PHOTOS, kills=1, repeats=1, scaled_repeats=1))
    assert all(float(row[1]) > 0 for row in restarts)
    assert [row[0] for row in scaling] == ["1", "2"]
    check_nothing_is_left(broker)


@pytest.mark.broker
def test_checkpoint_runs_and_leaves_no_topic(broker: Cluster) -> None:
    cases = [checkpoint.Case("linear", "linear", {}, 1, 3), checkpoint.Case("two", "mlp", {"hidden": 8}, 2, 3)]
    costs, ages = rows_of(checkpoint.run(broker, cases=cases, window=1))
    assert [line[0] for line in costs] == ["linear", "two"]
    for line in ages:
        first, last = (int(text.replace(",", "")) for text in line[-2:])
        assert last == pytest.approx(first, rel=0.01), "the last file is as large as the first, but for longer numbers"
    check_nothing_is_left(broker)


@pytest.mark.broker
def test_seek_runs_and_leaves_no_topic(broker: Cluster) -> None:
    (lines,) = rows_of(seek.run(broker, records=[40], lanes=[2], repeats=1))
    assert [line[:3] for line in lines] == [("40", "2", "open"), ("40", "2", "new")]
    check_nothing_is_left(broker)


@pytest.mark.broker
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_storage_runs_and_leaves_no_topic(broker: Cluster) -> None:
    (lines,) = rows_of(storage.run(broker, width=8, rows=4, volume=4_000, repeats=1))
    assert lines[0][0] == "FeatureStream"
    shown = [line[0] for line in lines[1:]]
    for package, title in storage.TITLES.items():
        expected = [f"{title}, a sample a {unit}" for unit in ("row", "batch")]
        if importlib.util.find_spec(package) is None:
            expected = [f"{title}: not installed"]
        assert [name for name in shown if name.startswith(title)] == expected
    check_nothing_is_left(broker)
    gc.collect()  # WebDataset leaves its files open


@pytest.mark.broker
def test_ablations_run_and_leave_no_topic(broker: Cluster) -> None:
    found = ablations.run(broker, images=16, epochs=1, rates=[1e-3, 1e-2], dropouts=[0.0], seeds=[0], repeats=1)
    with_extraction, without = rows_of(found)
    assert with_extraction[0][0] == "1 repeats"
    assert without[0][0] == "once"
    check_nothing_is_left(broker)


@pytest.mark.broker
def test_gateway_runs_and_leaves_no_topic(broker: Cluster) -> None:
    found = gateway.run(
        broker, width=8, rows=4, volume=4_000, clients=[1, 3], seconds=0.2, slow=3, slow_s=0.3, repeats=1
    )
    reading, asking, memory = rows_of(found)
    assert [line[0] for line in reading] == [
        "FeatureStream on Kafka",
        "FeatureStream through the gateway",
        "the gateway's msgpack answers",
        "bare HTTP, as many bytes",
    ]
    servers = [gateway.GATEWAY_MSGPACK, gateway.BARE_MSGPACK, gateway.GATEWAY_JSON, gateway.BARE_JSON]
    if importlib.util.find_spec("flask") is None:
        assert [line[:2] for line in asking] == [
            *((name, str(count)) for count in (1, 3) for name in servers),
            (f"{gateway.ORIGINAL}: not installed", ""),
        ]
    else:
        servers.append(gateway.ORIGINAL)
        assert [line[:2] for line in asking] == [(name, str(count)) for count in (1, 3) for name in servers]
    assert memory[0][1] == "3"
    check_nothing_is_left(broker)


@pytest.mark.broker
def test_the_benchmarks_broker_is_their_own_and_ends_with_them(broker: Cluster) -> None:
    with own_broker() as cluster:
        assert cluster.bootstrap_servers != broker.bootstrap_servers
        ping(cluster.bootstrap_servers, 5)
    with pytest.raises(Exception, match="no answer from Kafka"):
        ping(cluster.bootstrap_servers, 0.5)


def check_nothing_is_left(cluster: Cluster) -> None:
    with KafkaLog(cluster) as log:
        assert [topic for topic in log.topics() if topic.startswith("bench-")] == []

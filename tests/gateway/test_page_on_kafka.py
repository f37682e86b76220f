"""The page on a real broker, a real stream and real runs, served by ``featurectl gateway``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from featurectl.app import app
from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster
from featurestream.kafka import KafkaLog
from featurestream_producer.run import produce
from tests.gateway.browsing import chromium, lane_fact, opened, stream_fact
from tests.producing import REPOSITORY, config, write_images
from tests.support import append, make_manifest, publish

pytestmark = pytest.mark.broker


def printed(*words: str) -> list[dict[str, Any]]:
    """Return what a command prints with --json."""
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@contextmanager
def gateway(cluster: Cluster) -> Iterator[str]:
    """Run ``featurectl gateway`` for the length of the block; yield its address."""
    words = ["gateway", "--port", "0", "--bootstrap-servers", cluster.bootstrap_servers]
    process = subprocess.Popen(
        [sys.executable, "-m", "featurectl", *words], stderr=subprocess.PIPE, text=True, env=os.environ, cwd=REPOSITORY
    )
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if line.startswith("gateway: ")), None)
        assert line is not None, "the gateway ended before it served"
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def values(page: Any, selector: str) -> dict[str, str | None]:
    """Return the facts that a part of the page shows, as programs read them."""
    found: dict[str, str | None] = page.locator(f"{selector} data[data-fact]").evaluate_all(
        "(nodes) => Object.fromEntries(nodes.map((node) => [node.dataset.fact, node.value]))"
    )
    return found


def check_streams(page: Any, streams: list[dict[str, Any]]) -> None:
    for stream in streams:
        card = f'[data-stream="{stream["stream"]}"]'
        facts = values(page, card)
        assert facts["passes"] == str(stream["passes_done"])
        assert facts["on the log"] == str(stream["next_batch"])
        assert facts["retention edge"] == str(stream["first_batch"])
        assert facts["disk"] == str(stream["bytes"])
        assert facts["newest batch"] == stream["last_appended_at"]
        assert facts["readers"] == str(len(stream["readers"]))
        assert page.locator(f"{card} .chip").inner_text() == stream["producer"]
    train = next(stream for stream in streams if stream["stream"] == "train")
    assert stream_fact(page, "train", "disk").inner_text() == f"{train['bytes'] / 1000:.3g} kB"
    assert stream_fact(page, "train", "passes").inner_text() == "2 of 2, complete"
    assert stream_fact(page, "train", "on the log").inner_text() == "12 batches (0 to 11)"


def check_lanes(page: Any) -> None:
    for name in ("E1", "E2"):
        assert page.locator(f'[data-experiment="{name}"] .chip').inner_text() == "finished"
        assert lane_fact(page, name, "position").get_attribute("value") == "12:0"
        assert lane_fact(page, name, "progress").inner_text() == "epoch 2 of 2 · step 10"
        assert "rows/s" in lane_fact(page, name, "speed").inner_text()


def check_curves(page: Any, runs: Path) -> None:
    for name in ("E1", "E2"):
        lines = (runs / name / "metrics.jsonl").read_text().splitlines()
        newest = [json.loads(line) for line in lines if '"validation"' in line][-1]
        shown = page.locator(f'[data-curve="{name}"] data')
        page.locator(f'[data-curve="{name}"]', has_text="at step 10").wait_for()
        assert float(shown.get_attribute("value")) == newest["top1"]
    assert page.locator("#curves canvas").bounding_box()["width"] > 600


def check_comparison(page: Any, rows: list[dict[str, Any]]) -> None:
    page.locator("#comparison [data-run]").first.wait_for()
    assert page.locator("#comparison [data-run]").all_inner_texts() == [row["run"] for row in rows]
    for place, row in enumerate(rows):
        facts = values(page, f"#comparison tbody tr:nth-child({place + 1})")
        assert float(facts["metric"] or "nan") == row["top1"]
        for name in ("difference", "low", "high", "p_holm"):
            assert facts.get(name, "") == ("" if row[name] is None else repr_js(row[name]))


def repr_js(value: float) -> str:
    """Return a number as JavaScript writes it."""
    return str(int(value)) if value == int(value) else repr(value)


def check_health(page: Any, report: dict[str, Any]) -> None:
    for place, tap in enumerate(report["health"][0]["taps"]):
        shown = page.locator(f"#health tbody tr:nth-child({place + 1})")
        assert shown.locator("th").inner_text() == tap["name"]
        assert shown.locator(".chip").inner_text() == "same bits"
        facts = shown.locator("data").evaluate_all("(nodes) => nodes.map((node) => Number(node.value))")
        assert facts[:2] == [tap["rows"], tap["mean"]]
        assert facts[5:] == [tap["largest"], tap["separability"]]


def check_picture(page: Any) -> None:
    sample = page.locator("#rows .id").first.inner_text()
    page.locator('#rows [data-row="0"]').click()
    page.locator("#picture img").wait_for()
    assert page.locator("#picture img").evaluate("(node) => node.decode().then(() => node.naturalWidth)") > 100
    shown = page.locator("#picture [data-fact=sample]").inner_text(), page.locator("#picture [data-fact=checked]")
    assert shown[0] == sample
    assert shown[1].inner_text() == "it is what was fed: the record carries this checksum"
    page.keyboard.press("Escape")


def test_the_page_shows_what_the_commands_print_and_goes_on_by_itself(
    new_broker: Callable[[str], EmbeddedBroker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(bootstrap_servers=new_broker("home").up().bootstrap_servers)
    monkeypatch.setenv("FEATURESTREAM_BOOTSTRAP_SERVERS", cluster.bootstrap_servers)
    images, runs = write_images(tmp_path / "images"), tmp_path / "runs"
    with chromium() as browser, KafkaLog(cluster) as log:
        produce(config(images, "train"), log)
        produce(config(images, "validation", transform="eval", passes=1), log)
        for name, tap in (("E1", "early"), ("E2", "late")):
            words = ["train", "train", "--tap", tap, "--name", name, "--validate", "validation", "--head", "linear",
                     "--epochs", "2", "--batch-size", "8", "--device", "cpu", "--reporter", "jsonl"]  # fmt: skip
            done = CliRunner().invoke(app, [*words, "--runs", str(runs)])
            assert done.exit_code == 0, done.output
        growing = publish(log, make_manifest("growing", passes=None), range(3))
        with gateway(cluster) as url, opened(browser, f"{url}/?stream=train") as page:
            page.locator("#rows [data-row]").first.wait_for()
            check_lanes(page)
            check_streams(page, printed("streams"))
            check_curves(page, runs)
            check_comparison(page, printed("compare", "--stream", "train"))
            check_health(page, printed("streams", "train")[0])
            check_picture(page)
            append(log, growing, range(3, 8))
            page.get_by_text("8 batches (0 to 7)").wait_for()
            check_streams(page, printed("streams"))

"""The page in a real browser, on a gateway that serves a log in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from featurectl.gateway import programs
from featurestream.errors import BrokerError, OutsideError
from featurestream.experiments import ExperimentsTopic, MetricsChunk, RunRecord
from featurestream.manifest import sealed
from featurestream.memory import MemoryLog
from featurestream.names import reader_group, record_key, tap_topic
from featurestream.wire import encode, headers_of
from featurestream_gateway.programs import Comparison, Picture
from featurestream_gateway.settings import Token
from tests.gateway.browsing import WAIT_MS, chromium, lane_fact, opened, stream_fact
from tests.gateway.serving import Served, serving
from tests.support import append, create, make_batch_record, make_manifest, publish

SECRET = "a-secret-of-30-characters-long"
REFUSED = "Failed to load resource"  # what Chromium reports of an answer that is an error, and of none
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"

PLANT = "(() => { try { document.body.innerHTML = '<i>x</i>' } catch (error) { return String(error) } })()"

#: A PNG file of one black pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c636000000002000148"
    "afa4710000000049454e44ae426082"
)

#: Everything that a person can reach, in the order of the document.
REACHABLE = """
() => [...document.querySelectorAll('a[href], button, input, select, pre[tabindex="0"], [tabindex="0"]')]
  .filter((node) => node.checkVisibility() && !node.disabled)
"""
#: How far apart the ink and the ground of every text that is seen are, the least first (WCAG 2.2, 1.4.3).
CONTRASTS = """
() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return rgba('Canvas');
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !node.checkVisibility()) continue;
    const [a, b] = [light(rgba(getComputedStyle(node).color)), light(ground(node))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), texts.currentNode.data.trim().slice(0, 40)]);
  }
  return found.sort((one, other) => one[0] - other[0]);
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests here."""
    with chromium() as running:
        yield running


def log_with_readers() -> MemoryLog:
    """A log with one stream of 6 batches, of which E1 has read 4 and E2 none."""
    log = MemoryLog()
    publish(log, make_manifest("toy"))
    for name, offset in (("E1", 2), ("E2", 0)):
        log.commit_positions(reader_group("toy", name), {("toy.layer3", lane): offset for lane in (0, 1)})
    return log


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A gateway on that log, whose images are nowhere. No test changes it."""

    def nowhere(*_: Any) -> Picture:
        raise OutsideError("the images are not where the producer found them", hint="start the gateway where they are")

    with serving(log_with_readers(), replace(programs(), picture=nowhere)) as found:
        yield found


def test_without_a_stream_the_page_says_how_to_make_one_and_shows_it_when_it_comes(browser: Any) -> None:
    log = MemoryLog()
    with serving(log) as served, opened(browser, served.url) as page:
        page.get_by_text("There is no stream yet.").wait_for()
        assert page.locator("#no-stream pre").all_inner_texts()[0] == "featurectl demo"
        publish(log, make_manifest("toy"), range(3))
        stream_fact(page, "toy", "on the log").wait_for()
        assert not page.locator("#no-stream").is_visible()
        assert stream_fact(page, "toy", "on the log").inner_text() == "3 batches (0 to 2)"
        assert page.locator("#experiments pre").inner_text() == "featurectl train toy --tap layer3 --name E1"


def test_what_is_published_while_the_page_is_open_changes_its_numbers_without_a_reload(browser: Any) -> None:
    log, manifest = MemoryLog(), make_manifest("toy", passes=None)
    publish(log, manifest, range(3))
    with serving(log) as served, opened(browser, served.url) as page:
        page.get_by_text("3 batches (0 to 2)").wait_for()
        page.evaluate("window.opened = 'once'")
        append(log, manifest, range(3, 7))
        page.get_by_text("7 batches (0 to 6)").wait_for()
        log.commit_positions(reader_group("toy", "E1"), {("toy.layer3", 0): 2, ("toy.layer3", 1): 2})
        lane_fact(page, "E1", "lag").wait_for()
        assert lane_fact(page, "E1", "position").get_attribute("value") == "4:0"
        assert lane_fact(page, "E1", "lag").inner_text() == "3 batches · 10 rows"
        for lane in (0, 1):
            for tap in ("layer3", "avgpool"):
                log.delete_before(f"toy.{tap}", lane, 1)
        page.get_by_text("5 batches (2 to 6)").wait_for()
        assert stream_fact(page, "toy", "retention edge").get_attribute("value") == "2"
        assert page.evaluate("window.opened") == "once"


def test_a_gateway_that_needs_a_token_is_given_it_by_a_person_and_only_this_tab_keeps_it(browser: Any) -> None:
    with (
        serving(log_with_readers(), token=Token(SECRET)) as served,
        opened(browser, served.url, expected=REFUSED) as page,
    ):
        page.get_by_role("heading", name="This gateway needs a token").wait_for()
        assert page.evaluate("document.activeElement.id") == "secret"
        page.get_by_label("Token").fill("something else entirely")
        page.keyboard.press("Enter")
        page.get_by_text("It was not accepted: the token is not the gateway's, or cannot be read.").wait_for()
        page.get_by_label("Token").fill(SECRET)
        page.get_by_role("button", name="Use it").click()
        stream_fact(page, "toy", "on the log").wait_for()
        assert not page.locator("#token").is_visible()
        assert page.evaluate("Object.values(sessionStorage)") == [SECRET]
        assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", served.url + "/"]
        page.locator("#rows [data-row]").first.wait_for()  # what is asked for beside the live connection has it too


def test_a_gateway_that_is_lost_is_told_of_and_found_again(browser: Any) -> None:
    log = log_with_readers()
    with serving(log) as served:
        port = int(served.url.rpartition(":")[2])
        context = opened(browser, served.url, expected=REFUSED)
        page = context.__enter__()
        stream_fact(page, "toy", "on the log").wait_for()
    try:
        page.get_by_text("The gateway does not answer.").wait_for()
        assert page.locator("#status").inner_text() == "gateway lost"
        assert stream_fact(page, "toy", "on the log").inner_text() == "6 batches (0 to 5)"  # what was known last
        with serving(log, port=port):
            page.get_by_role("button", name="Try now").click()
            page.locator("#status[data-state=live]").wait_for()
            assert page.locator("#notices").inner_text() == ""
    finally:
        context.__exit__(None, None, None)


def test_a_kafka_that_does_not_answer_is_told_of_until_it_does(browser: Any) -> None:
    class Away(MemoryLog):
        away = False

        def committed_positions(self) -> dict[str, dict[tuple[str, int], int]]:
            if self.away:
                raise BrokerError("no broker answers at kafka:9092", hint="start it")
            return super().committed_positions()

    log = Away()
    publish(log, make_manifest("toy"))
    with serving(log) as served, opened(browser, served.url) as page:
        stream_fact(page, "toy", "on the log").wait_for()
        log.away = True
        page.get_by_text("no broker answers at kafka:9092").wait_for()
        assert page.locator("#notices").inner_text().endswith("start it")
        assert page.locator("#status").inner_text() == "no news"
        log.away = False
        page.locator("#status[data-state=live]").wait_for()
        assert page.locator("#notices").inner_text() == ""


def test_names_and_ids_are_shown_as_they_are_and_never_become_html(browser: Any) -> None:
    log, plain = MemoryLog(), make_manifest("toy", passes=1)
    backbone = plain.backbone.model_copy(update={"name": HOSTILE})
    manifest = sealed(plain.model_copy(update={"backbone": backbone, "fingerprint": ""}))
    create(log, manifest)
    sink = log.sink()
    for batch in range(3):
        for tap in ("layer3", "avgpool"):
            record = make_batch_record(manifest, batch, tap)
            record = replace(record, ids=tuple(f"{HOSTILE}{index}" for index in record.indices))
            where = tap_topic("toy", tap), manifest.layout.lane_of(batch)
            sink.append(*where, key=record_key(0, batch), value=encode(record), headers=headers_of(record))
    sink.close()
    log.commit_positions(reader_group("toy", HOSTILE), {("toy.layer3", 0): 1, ("toy.layer3", 1): 1})
    facts = {"id": HOSTILE, "index": 8, "label": 2, "shape": [3, 8, 8], "checksum": HOSTILE, "colours": HOSTILE,
             "row": 0, "checked_row": 0}  # fmt: skip
    given = replace(programs(), picture=lambda *_: Picture(PNG, facts))
    with serving(log, given) as served, opened(browser, served.url, expected="TrustedHTML") as page:
        page.locator("#rows .id").first.wait_for()
        assert page.locator("#rows .id").all_inner_texts() == [f"{HOSTILE}{index}" for index in (8, 9)]
        assert page.locator(".lane .name").all_inner_texts() == [HOSTILE]
        assert HOSTILE in page.locator(".card").inner_text()
        page.locator("#rows [data-row]").first.click()
        page.locator("#picture [data-fact=sample]").wait_for()
        assert page.locator("#picture [data-fact=sample]").inner_text() == HOSTILE
        assert (
            page.locator("#picture img").get_attribute("alt")
            == f"What the backbone got of {HOSTILE}, beside the original"
        )
        assert page.locator("img[src=x], main b, #picture b").count() == 0
        assert page.title() == "featurestream"
        # Nor could a mistake in the page's own code make HTML of a text.
        assert "TrustedHTML" in page.evaluate(PLANT)


def write_run(log: MemoryLog, rows: list[dict[str, Any]], **changes: Any) -> None:
    """Write an experiment of stream toy, with its rows of metrics, into the run registry."""
    facts = {
        "name": "E1", "id": "0123456789ab", "state": "running", "stream": "toy", "host": "far", "folder": "runs/E1",
        "started_at": "2026-01-31T12:00:00+00:00", "updated_at": "2026-01-31T12:00:09+00:00", "fingerprint": "f" * 32,
        "config": {}, "start": {"batch": 0}, "position": {"batch": 4, "row": 1}, "epoch": 1, "epochs": 3, "step": 7,
        "rows": 12, "batches": 4, "rows_per_s": 512.25, "passes": 1, "rereads": 0, "metrics": {"top1": 0.75},
        "main_metric": "top1", "metric_rows": len(rows), "metric_chunks": 1,
    } | changes  # fmt: skip
    run = RunRecord.model_validate(facts)
    with ExperimentsTopic(log, "toy") as topic:
        topic.create()
        topic.write_metrics(run.key, 0, MetricsChunk(first=0, rows=rows))
        topic.write_run(run)
        topic.flush()


def validated(count: int, name: str = "top1") -> list[dict[str, Any]]:
    """Return rows of validation at the steps 0, 1, ...: 0, 0.125, 0.25, ..."""
    return [
        {"kind": "validation", "step": step, "epoch": step, "batch": step, "time": 5.0 + step, name: step / 8}
        for step in range(count)
    ]


def test_an_experiment_of_the_registry_is_a_lane_and_a_curve_that_grow_while_one_looks(browser: Any) -> None:
    log = log_with_readers()
    write_run(log, validated(5))
    write_run(log, validated(3), name="E3", id="3" * 12, state="diverged", reason="loss is nan", rows_per_s=None)
    rows = [{"run": "E1", "samples": "A", "top1": 0.75}]
    given = replace(programs(), compare=lambda *_: Comparison("top1", rows, []))
    with serving(log, given) as served, opened(browser, served.url) as page:
        page.get_by_text("0.5000 at step 4").wait_for()
        assert lane_fact(page, "E1", "position").inner_text() == "batch 4, row 1"
        assert lane_fact(page, "E1", "lag").inner_text() == "2 batches · 5 rows"
        assert lane_fact(page, "E1", "speed").inner_text() == "512 rows/s"
        assert lane_fact(page, "E1", "progress").inner_text() == "epoch 1 of 3 · step 7"
        assert lane_fact(page, "E1", "newest").inner_text() == "top1 0.7500"
        assert lane_fact(page, "E3", "lag").inner_text() == "reads no more"
        assert page.locator('[data-experiment="E3"] .chip').get_attribute("title") == "loss is nan"
        assert page.locator('[data-curve="E3"]').inner_text().endswith("0.2500 at step 2")
        write_run(log, validated(7), position={"batch": 6, "row": 0}, updated_at="2026-01-31T12:00:10+00:00")
        page.get_by_text("0.7500 at step 6").wait_for()
        assert lane_fact(page, "E1", "lag").inner_text() == "none"
        page.get_by_role("img", name="validation top1 over step").focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        page.get_by_text("0.6250 at step 5").wait_for()
        page.locator("#curves select").last.select_option("time")
        page.get_by_text("0.7500 at 6 s").wait_for()
        page.get_by_role("checkbox", name="E3").uncheck()
        names = page.locator("[data-curve]").evaluate_all("(nodes) => nodes.map((node) => node.dataset.curve)")
        assert names == ["E1", "E2"]


def test_a_comparison_shows_the_best_first_and_each_difference_with_its_interval(browser: Any) -> None:
    best = {
        "run": "E1", "samples": "A", "top1": 0.75, "tap": "layer3", "head": "mlp", "epochs": 3, "state": "running",
        "difference": None, "low": None, "high": None, "p_holm": None, "paired_samples": None,
    }  # fmt: skip
    paired = {"against": "E1", "paired_samples": 1438, "p_holm": 0.0004}
    rows = [
        best,
        best | paired | {"run": "E2", "top1": 0.5, "difference": -0.25, "low": -0.375, "high": -0.125},
        best | {"run": HOSTILE, "samples": "B", "top1": 0.25, "not_compared": f"other samples {HOSTILE}"},
    ]
    log = log_with_readers()
    write_run(log, validated(2, HOSTILE), name="E9", main_metric=HOSTILE, metrics={HOSTILE: 1.0}, reason=HOSTILE)
    given = replace(programs(), compare=lambda *_: Comparison("top1", rows, []))
    with serving(log, given) as served, opened(browser, served.url) as page:
        page.locator("#comparison tbody tr").nth(2).wait_for()
        table = [page.locator(f"#comparison tbody tr:nth-child({n}) > *").all_inner_texts() for n in (1, 2, 3)]
        assert table[0] == ["E1", "0.7500", "the best", "", "–", "A", "layer3", "mlp", "3", "running"]
        assert table[1][:6] == ["E2", "0.5000", "−0.2500", "−0.3750 to −0.1250", "< 0.001", "1,438 A"]
        assert table[2][:3] == [HOSTILE, "0.2500", f"other samples {HOSTILE}"]
        assert page.locator("#comparison svg").get_attribute("data-apart") == "true"
        assert lane_fact(page, "E9", "newest").inner_text() == f"{HOSTILE} 1.000"
        assert page.get_by_label("metric").input_value() == f"validation {HOSTILE}"
        assert page.locator('[data-curve="E9"]').inner_text().endswith("0.1250 at step 1")
        assert page.locator("img[src=x], main b").count() == 0


def test_a_stream_that_cannot_be_shown_is_named_with_what_to_do_beside_the_others(browser: Any) -> None:
    log = log_with_readers()
    log.create_topic("half.manifest", 1, {})
    with serving(log) as served, opened(browser, served.url) as page:
        page.get_by_text("Stream half cannot be shown").wait_for()
        assert "its producer is about to write it" in page.locator("#stream-problems").inner_text()
        assert stream_fact(page, "toy", "readers").inner_text() == "2"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen_and_all_texts_can_be_read(
    browser: Any, served: Served, scheme: str
) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with opened(browser, served.url, **phone) as page:
        page.locator("#rows [data-row]").first.wait_for()
        lane_fact(page, "E2", "lag").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        least, text = page.evaluate(CONTRASTS)[0]
        assert least >= 4.5, (least, text)
        lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert all(part < 64 for part in lightness) if scheme == "dark" else all(part > 192 for part in lightness)
        small = page.evaluate(
            "() => [...document.querySelectorAll('button:not(.pick):not(.link), select, .lane label')]"
            ".filter((node) => node.checkVisibility() && node.getBoundingClientRect().height < 44).length"
        )
        assert small == 0  # a finger's width


def test_the_keyboard_reaches_everything_in_the_order_in_which_it_stands(browser: Any, served: Served) -> None:
    with opened(browser, served.url, expected=REFUSED) as page:
        page.locator("#rows [data-row]").first.wait_for()
        page.locator("#passes table").first.wait_for()
        page.evaluate(f"window.reachable = ({REACHABLE})()")
        count = page.evaluate("reachable.length")
        names = page.evaluate(
            "reachable.map((node) => node.ariaLabel ?? node.labels?.[0]?.textContent ?? node.textContent)"
        )
        assert all(name.strip() for name in names)
        assert count > 12
        for place in range(count):
            page.keyboard.press("Tab")
            seen = page.evaluate(
                "(place) => { const at = document.activeElement;"
                " const outline = (name) => parseFloat(getComputedStyle(at, name).outlineWidth);"
                " return [reachable.indexOf(at), Math.max(outline(null), outline('::after'))] }",
                place,
            )
            assert seen[0] == place, names[place]
            assert seen[1] >= 2, f"nobody sees that {names[place]} has the focus"
        page.locator('[data-row="1"]').focus()
        page.keyboard.press("Enter")
        page.get_by_text("the images are not where the producer found them").wait_for()
        assert page.locator("#picture h2").inner_text() == "The image behind row 1 of batch 5"
        assert page.locator("#picture-body").inner_text().endswith("start the gateway where they are")
        assert page.evaluate("document.activeElement.id") == "picture-close"
        page.keyboard.press("Escape")
        assert not page.locator("#picture").is_visible()
        assert page.evaluate("document.activeElement.dataset.row") == "1"
        page.locator('[data-experiment="E2"] input').focus()
        page.keyboard.press("Space")
        assert not page.locator('[data-experiment="E2"] input').is_checked()
        page.evaluate("new Promise((done) => setTimeout(done, 0))")
        assert page.evaluate("document.activeElement.closest('[data-experiment]').dataset.experiment") == "E2"


def test_another_stream_is_chosen_kept_in_the_address_and_can_be_gone_back_from(browser: Any) -> None:
    log = log_with_readers()
    publish(log, make_manifest("other", samples=12))
    with serving(log) as served, opened(browser, served.url) as page:
        page.get_by_text("2 experiments on toy").wait_for()
        page.get_by_role("button", name="other", exact=True).click()
        page.get_by_text("0 experiments on other").wait_for()
        assert page.url == f"{served.url}/?stream=other"
        page.reload()
        page.get_by_text("0 experiments on other").wait_for()
        assert page.get_by_role("button", name="other", exact=True).get_attribute("aria-current") == "true"
        page.go_back()
        page.get_by_text("2 experiments on toy").wait_for()


def test_rows_are_shown_batch_by_batch_with_labels_and_what_is_missing(browser: Any, served: Served) -> None:
    with opened(browser, served.url) as page:
        page.locator('#rows [data-row="1"]').wait_for()  # the newest batch has two rows
        assert page.locator("#rows .id").all_inner_texts() == ["img/7.png", "img/8.png"]
        page.get_by_role("button", name="the batch before").click()
        page.locator('#rows [data-row="3"]').wait_for()
        assert page.locator("#rows .id").all_inner_texts() == [f"img/{index}.png" for index in (3, 4, 5, 6)]
        assert page.locator("#rows tbody tr").first.locator("td").all_inner_texts()[1:4] == ["3", "0", "1"]
        page.get_by_label("batch", exact=True).fill("0")
        page.keyboard.press("Enter")
        page.get_by_text("img/0.png").wait_for()
        page.get_by_label("batch", exact=True).fill("99")
        page.keyboard.press("Enter")
        assert page.get_by_label("batch", exact=True).evaluate("node => node.validity.rangeOverflow")
        assert page.locator("#rows .id").all_inner_texts() == [f"img/{index}.png" for index in range(4)]


def test_the_page_asks_nobody_but_the_gateway(browser: Any, served: Served) -> None:
    asked: list[str] = []
    context = browser.new_context()
    try:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served.url)
        page.locator("#rows [data-row]").first.wait_for(timeout=WAIT_MS)
    finally:
        context.close()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith(served.url)] == []
    assert re.search(r"\?every=", " ".join(asked))

"""A real browser for tests of the page: the system's Chromium, without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: A browser starts, and a page is drawn, on a machine that does much else.
WAIT_MS = 30_000


@contextmanager
def chromium() -> Iterator[Any]:
    """Run a Chromium for the length of the block; skip the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright: it drives the browser")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"there is no browser; one of {', '.join(PROGRAMS)} is needed")
    with playwright.sync_playwright() as running:
        # Without a sandbox: as root, and in containers, there is none.
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, url: str, *, expected: str | None = None, **settings: Any) -> Iterator[Any]:
    """Open the page in a profile of its own; whatever it reports as an error fails the test at the end.

    Reports that contain ``expected`` are part of the test: a browser tells of every request that is refused.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | settings)
    errors: list[str] = []
    try:
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: errors.append(f"{error}"))
        page.on("console", lambda line: line.type == "error" and errors.append(line.text))
        page.goto(url)
        yield page
    finally:
        context.close()
    unexpected = [error for error in errors if expected is None or expected not in error]
    assert not unexpected, unexpected


def stream_fact(page: Any, stream: str, what: str) -> Any:
    """Return where the page shows one fact of a stream."""
    return page.locator(f'[data-stream="{stream}"] [data-fact="{what}"]')


def lane_fact(page: Any, experiment: str, what: str) -> Any:
    """Return where the page shows one fact of an experiment."""
    return page.locator(f'[data-experiment="{experiment}"] [data-fact="{what}"]')
